//! Who vouches for a report: AMD's certificates, or those of the software TEE. (AMD 57230, VCEK Certificate and KDS Interface
//! Specification; RFC 5280; RFC 4055 for RSASSA-PSS.)
//!
//! ```text
//!   ARK   AMD Root Key, one for each product: pinned here, byte by byte
//!    │ RSASSA-PSS, SHA-384
//!    ├──► revocation list
//!    ▼
//!   ASK or ASVK   SEV Signing Key: pinned here too (ASK), or from the evidence
//!    │ RSASSA-PSS, SHA-384
//!    ▼
//!   VCEK or VLEK   P-384: this chip (VCEK) at this TCB: HWID and SPLs are in its extensions
//!    │ ECDSA
//!    ▼
//!   report
//! ```

mod crl;
mod parse;

use std::fmt;
use std::sync::LazyLock;

use crate::ecdsa::PublicKey;
use crate::report::{SigningKey, Tcb};
use crate::vmsa::CpuModel;

pub use crl::RevocationList;
pub use parse::{Certificate, MAX_CERTIFICATE, MAX_CRL, from_pem};

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub u64);

/// Whose word is taken. Evidence of one never passes for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Roots {
    /// AMD's: real processors.
    Amd,
    /// The software TEE's, whose key everybody has: it proves nothing.
    Sim,
}

/// Where a chain of trust begins.
struct Root {
    name: &'static str,
    cpu: CpuModel,
    ark: Certificate,
    ask: Certificate,
}

impl Root {
    fn new(name: &'static str, cpu: CpuModel, ark: &str, ask: &str) -> Self {
        // These files are part of the source, and a test parses them all.
        let one = |pem: &str| {
            from_pem(pem.as_bytes(), Link::Ark)
                .expect("pinned certificates are valid")
                .remove(0)
        };
        Self {
            name,
            cpu,
            ark: one(ark),
            ask: one(ask),
        }
    }
}

macro_rules! root {
    ($name:literal, $cpu:expr, $ark:literal, $ask:literal) => {
        Root::new($name, $cpu, include_str!($ark), include_str!($ask))
    };
}

static AMD: LazyLock<[Root; 3]> = LazyLock::new(|| {
    [
        root!(
            "AMD's ARK-Milan",
            CpuModel::Milan,
            "../roots/milan-ark.pem",
            "../roots/milan-ask.pem"
        ),
        root!(
            "AMD's ARK-Genoa",
            CpuModel::Genoa,
            "../roots/genoa-ark.pem",
            "../roots/genoa-ask.pem"
        ),
        root!(
            "AMD's ARK-Turin",
            CpuModel::Turin,
            "../roots/turin-ark.pem",
            "../roots/turin-ask.pem"
        ),
    ]
});

static SIM: LazyLock<[Root; 1]> = LazyLock::new(|| {
    [root!(
        "the software TEE's ARK-Sim",
        CpuModel::Genoa,
        "../sim/ark.pem",
        "../sim/ask.pem"
    )]
});

impl Roots {
    fn all(self) -> &'static [Root] {
        match self {
            Self::Amd => &*AMD,
            Self::Sim => &*SIM,
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd => "AMD's roots",
            Self::Sim => "the software TEE's root",
        })
    }
}

/// Which certificate of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The root.
    Ark,
    /// ASK or ASVK: what signs endorsement keys.
    Ask,
    /// VCEK or VLEK.
    Vek,
    /// A revocation list.
    Crl,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ark => "ARK",
            Self::Ask => "ASK",
            Self::Vek => "endorsement key",
            Self::Crl => "revocation list",
        })
    }
}

/// Why a chain is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that are no certificate or list.
    #[error("the certificate of the {link} is not valid: {reason}")]
    Format {
        /// Which.
        link: Link,
        /// What is wrong with it.
        reason: String,
    },
    /// A root that is none of those trusted.
    #[error("the endorsement key leads to no root among {0}")]
    Root(Roots),
    /// Issued by another than the one above it.
    #[error("the {0} names another issuer than the certificate above it")]
    Issuer(Link),
    /// Not signed by the one above it.
    #[error("the signature of the {0} is not that of the certificate above it")]
    Signature(Link),
    /// Not yet, or no longer.
    #[error("the {0} is not valid at this time")]
    Time(Link),
    /// On a revocation list.
    #[error("the {0} has been revoked")]
    Revoked(Link),
    /// An extension of an endorsement key that is missing, or not what it should be.
    #[error("the endorsement key's {0} is missing or not valid")]
    Extension(&'static str),
    /// No certificate of the endorsement key.
    #[error("there is no certificate of an endorsement key")]
    Missing,
}

/// An endorsement key whose chain has been verified, with what its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey {
    /// What verifies reports.
    pub key: PublicKey,
    /// VCEK or VLEK.
    pub kind: SigningKey,
    /// The processor generation that the root is for.
    pub cpu: CpuModel,
    /// The TCB that the key belongs to.
    pub tcb: Tcb,
    /// The chip that the key belongs to: 64 bytes, or 8 from Turin. A VLEK has none.
    pub hwid: Option<Vec<u8>>,
}

/// The certificates that came with a report.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// VCEK or VLEK.
    pub vek: Option<Certificate>,
    /// ASK or ASVK; the pinned ASK where there is none.
    pub ask: Option<Certificate>,
    /// The root. It adds nothing to the pinned one, but must be the same.
    pub ark: Option<Certificate>,
}

impl Chain {
    /// Verifies the chain at a time. Revocation lists that are not the root's own are refused.
    pub fn verify(
        &self,
        roots: Roots,
        now: UnixTime,
        lists: &[RevocationList],
    ) -> Result<EndorsementKey, Error> {
        let vek = self.vek.as_ref().ok_or(Error::Missing)?;
        let trusted = Trusted::find(roots, self, vek)?;
        trusted.ark.check_time(Link::Ark, now)?;
        trusted.ask.check_time(Link::Ask, now)?;
        trusted.ask.check_issuer(Link::Ask, trusted.ark)?;
        if !trusted.ask.may_sign_certificates() {
            return Err(Error::Format {
                link: Link::Ask,
                reason: "it may not sign certificates".to_owned(),
            });
        }
        for list in lists {
            list.check(trusted.ark, &trusted.ask, now)?;
        }
        vek.check_time(Link::Vek, now)?;
        vek.check_issuer(Link::Vek, &trusted.ask)?;
        vek.endorsement_key(trusted.cpu)
    }
}

/// Root and signing key of a chain: a pinned root, and a signing key that names it as its issuer.
struct Trusted {
    cpu: CpuModel,
    ark: &'static Certificate,
    ask: Certificate,
}

impl Trusted {
    fn find(roots: Roots, chain: &Chain, vek: &Certificate) -> Result<Self, Error> {
        for Root { cpu, ark, ask, .. } in roots.all() {
            let ask = chain.ask.as_ref().unwrap_or(ask);
            if ask.names_issuer(ark) && vek.names_issuer(ask) {
                return match chain.ark.as_ref().is_none_or(|given| given == ark) {
                    true => Ok(Self {
                        cpu: *cpu,
                        ark,
                        ask: ask.clone(),
                    }),
                    false => Err(Error::Root(roots)),
                };
            }
        }
        Err(Error::Root(roots))
    }
}

/// What roots there are, for a person: name, and SHA-256 of the certificate.
pub fn pinned(roots: Roots) -> Vec<(&'static str, String)> {
    roots
        .all()
        .iter()
        .map(|root| (root.name, root.ark.fingerprint()))
        .collect()
}

#[cfg(test)]
#[path = "certs_test.rs"]
pub(crate) mod certs_test;
