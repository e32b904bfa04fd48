//! A report with the certificates that came with it, in the forms that they travel in.
//!
//! - JSON `{"attestation_report": …, "cert_chain": [{"cert_type": "VCEK", "data": […]}, …]}`: what the `sev` crate serialises and
//!   trustee verifies. Byte strings are arrays of numbers. `cert_chain` may be null or missing.
//! - The report's bytes, and the certificate table of the GHCB protocol's extended guest request (GHCB 2.0, §4.1.8.1):
//!
//! ```text
//!   0    GUID [16] │ offset u32 │ length u32     an entry for each certificate
//!   24   …
//!   24 n zeros [24]                              the end of the entries
//!   offset  …                                    DER or PEM
//! ```

mod json;

use crate::certs::{self, Certificate, Chain, Link};
use crate::report::{self, Report};

pub use json::MAX_JSON;

/// The largest certificate table, in bytes.
pub const MAX_TABLE: usize = 64 << 10;

/// The most entries of a certificate table.
const MAX_ENTRIES: usize = 16;

/// Length of an entry in bytes.
const ENTRY: usize = 24;

/// Why bytes are no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The report can't be read.
    #[error("the report is not valid: {0}")]
    Report(#[from] report::Error),
    /// A certificate can't be read.
    #[error(transparent)]
    Certificate(#[from] certs::Error),
    /// The JSON is not of the right shape.
    #[error("the evidence is not valid JSON of an attestation report: {0}")]
    Json(#[from] serde_json::Error),
    /// The certificate table is not of the right shape.
    #[error("the certificate table is not valid: {0}")]
    Table(&'static str),
    /// Two certificates for one place.
    #[error("the evidence has two certificates of the {0}")]
    Twice(Link),
}

/// A report with its certificates, parsed; nothing of it is verified.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// What the firmware says.
    pub report: Report,
    /// Who vouches for it.
    pub chain: Chain,
}

impl Evidence {
    /// Reads trustee's form.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        json::parse(text)
    }

    /// Writes trustee's form.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads the firmware's form: a report, and a certificate table that may be empty.
    pub fn from_raw(report: &[u8], table: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            report: Report::parse(report)?,
            chain: parse_table(table)?,
        })
    }
}

/// A kind of entry in a certificate table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ark,
    Ask,
    Vcek,
    Vlek,
    /// A list or something else: the appraiser has lists of its own.
    Other,
}

/// GUIDs as the table has them: RFC 4122 bytes, first three fields little-endian.
const GUIDS: [(Kind, [u8; 16]); 4] = [
    (
        Kind::Ark,
        guid(0xc0b4_06a4, 0xa803, 0x4952, 0x9743_3fb6_014c_d0ae),
    ),
    (
        Kind::Ask,
        guid(0x4ab7_b379, 0xbbac, 0x4fe4, 0xa02f_05ae_f327_c782),
    ),
    (
        Kind::Vcek,
        guid(0x63da_758d, 0xe664, 0x4564, 0xadc5_f4b9_3be8_accd),
    ),
    (
        Kind::Vlek,
        guid(0xa807_4bc2, 0xa25a, 0x483e, 0xaae6_39c0_45a0_b8a1),
    ),
];

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7],
    ]
}

fn parse_table(table: &[u8]) -> Result<Chain, Error> {
    let mut chain = Chain::default();
    if table.is_empty() {
        return Ok(chain);
    }
    if table.len() > MAX_TABLE {
        return Err(Error::Table("it is larger than 64 KiB"));
    }
    for index in 0..=MAX_ENTRIES {
        let entry = table
            .get(ENTRY * index..ENTRY * (index + 1))
            .ok_or(Error::Table("it has no end"))?;
        if entry.iter().all(|byte| *byte == 0) {
            return Ok(chain);
        }
        let kind = GUIDS
            .iter()
            .find(|(_, guid)| *guid == entry[..16])
            .map_or(Kind::Other, |(kind, _)| *kind);
        let field =
            |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
        let (offset, length) = (field(16), field(20));
        let bytes = offset.checked_add(length).and_then(|end| table.get(offset..end));
        chain.add(kind, bytes.ok_or(Error::Table("a certificate lies outside"))?)?;
    }
    Err(Error::Table("it has more than 16 entries"))
}

impl Chain {
    fn add(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Error> {
        let (place, link) = match kind {
            Kind::Ark => (&mut self.ark, Link::Ark),
            Kind::Ask => (&mut self.ask, Link::Ask),
            Kind::Vcek | Kind::Vlek => (&mut self.vek, Link::Vek),
            Kind::Other => return Ok(()),
        };
        if place.is_some() {
            return Err(Error::Twice(link));
        }
        *place = Some(Certificate::from_either(bytes, link)?);
        Ok(())
    }

    /// As a certificate table.
    pub fn to_table(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut table = vec![0; ENTRY * (entries.len() + 1)];
        for (index, (kind, certificate)) in entries.iter().enumerate() {
            let guid = GUIDS
                .iter()
                .find(|(known, _)| known == kind)
                .map_or([0; 16], |(_, guid)| *guid);
            let bytes = certificate.bytes();
            // Certificates are at most MAX_CERTIFICATE bytes, so that both fit into 32 bits.
            let (offset, length) = (table.len() as u32, bytes.len() as u32);
            let entry = [guid.as_slice(), &offset.to_le_bytes(), &length.to_le_bytes()].concat();
            table[ENTRY * index..ENTRY * (index + 1)].copy_from_slice(&entry);
            table.extend(bytes);
        }
        table
    }

    /// The certificates with their kinds. An endorsement key's is told by its subject.
    fn entries(&self) -> Vec<(Kind, &Certificate)> {
        let vek = self
            .vek
            .as_ref()
            .map(|vek| (if vek.is_vlek() { Kind::Vlek } else { Kind::Vcek }, vek));
        let ask = self.ask.as_ref().map(|ask| (Kind::Ask, ask));
        let ark = self.ark.as_ref().map(|ark| (Kind::Ark, ark));
        [ark, ask, vek].into_iter().flatten().collect()
    }
}

#[cfg(test)]
#[path = "evidence_test.rs"]
mod evidence_test;
