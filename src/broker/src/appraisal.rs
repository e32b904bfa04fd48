//! Whether evidence is genuine and fresh, and whether a policy accepts it: the broker's use of the crate `tee`.
//!
//! A report is appraised twice: when it comes, as to who signed it and what session it answers; and for each resource, in full, by every
//! policy that concerns the resource.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tee::appraise::{Accepted, AppraisalPolicy, Context, MinimumTcb, verify};
use tee::certs::{Certificate, Link, RevocationList, Roots, UnixTime};
use tee::evidence::Evidence;
use tee::launch::LaunchDigest;
use tee::report::{HostData, PlatformBit, Report, ReportData};
use tee::vmsa::CpuModel;
use tokio::runtime::Handle;

use crate::config;
use crate::record::Registration;
use crate::vcek::VcekSource;

/// Kinds of TEE that this broker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tee {
    /// SEV-SNP.
    Snp,
    /// The software TEE, which protects nothing.
    Sim,
}

impl Tee {
    /// The kind that a request names. The protocol has "sample" for what is not a TEE.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "snp" => Some(Self::Snp),
            "sample" | "sim" => Some(Self::Sim),
            _ => None,
        }
    }

    /// Its name in logs and tokens.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Sim => "sim",
        }
    }

    fn roots(self) -> Roots {
        match self {
            Self::Snp => Roots::Amd,
            Self::Sim => Roots::Sim,
        }
    }
}

/// Clauses of a policy that a registration or a policy file may have. In a registration, what is missing has its strict default; in a
/// policy file, what is missing is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyFile {
    /// The launch digests that are good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_digests: Option<BTreeSet<LaunchDigest>>,
    /// The HOST_DATA that is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_data: Option<BTreeSet<HostData>>,
    /// The processor generations that are good; default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<BTreeSet<CpuModel>>,
    /// The least security versions by generation; default: any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub minimum_tcb: BTreeMap<CpuModel, MinimumTcb>,
    /// The least GUEST_SVN; default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_guest_svn: Option<u32>,
    /// The highest VMPL; default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_vmpl: Option<u8>,
    /// Whether the host may debug the guest; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_debug: Option<bool>,
    /// Whether a migration agent may move the guest; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_migration: Option<bool>,
    /// Whether the guest may run with SMT; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_smt: Option<bool>,
    /// Whether a cloud provider's VLEK may sign; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_vlek: Option<bool>,
    /// Bits of PLATFORM_INFO that must be set.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub require_platform: BTreeSet<PlatformBit>,
    /// Bits of PLATFORM_INFO that must not be set.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub forbid_platform: BTreeSet<PlatformBit>,
}

impl PolicyFile {
    /// The policy of a registration: strict where nothing is said.
    fn of_registration(registration: &Registration, report: &Report) -> AppraisalPolicy {
        let own = &registration.policy;
        let registered: BTreeSet<_> = registration
            .launch_digests
            .values()
            .map(|digest| LaunchDigest(digest.0))
            .collect();
        let host_data = match registration.host_data {
            Some(host_data) => HostData(host_data.0),
            // krun's guests have none: there, the launch digest covers the workload.
            None => HostData([0; 32]),
        };
        AppraisalPolicy {
            launch_digests: both(registered, own.launch_digests.as_ref()),
            host_data: both(BTreeSet::from([host_data]), own.host_data.as_ref()),
            ..own.policy(false, report)
        }
    }

    /// `lax`: what is accepted where nothing is said.
    fn policy(&self, lax: bool, report: &Report) -> AppraisalPolicy {
        AppraisalPolicy {
            launch_digests: self
                .launch_digests
                .clone()
                .unwrap_or_else(|| BTreeSet::from([report.measurement()])),
            host_data: self
                .host_data
                .clone()
                .unwrap_or_else(|| BTreeSet::from([report.host_data()])),
            processors: self
                .processors
                .clone()
                .unwrap_or_else(|| BTreeSet::from([CpuModel::Milan, CpuModel::Genoa, CpuModel::Turin])),
            minimum_tcb: self.minimum_tcb.clone(),
            minimum_guest_svn: self.minimum_guest_svn.unwrap_or(0),
            maximum_vmpl: self.maximum_vmpl.unwrap_or(if lax { u8::MAX } else { 0 }),
            allow_debug: self.allow_debug.unwrap_or(lax),
            allow_migration: self.allow_migration.unwrap_or(lax),
            allow_smt: self.allow_smt.unwrap_or(lax),
            allow_vlek: self.allow_vlek.unwrap_or(lax),
            require_platform: self.require_platform.clone(),
            forbid_platform: self.forbid_platform.clone(),
        }
    }
}

fn both<T: Ord>(mut one: BTreeSet<T>, other: Option<&BTreeSet<T>>) -> BTreeSet<T> {
    if let Some(other) = other {
        one.retain(|value| other.contains(value));
    }
    one
}

/// Why evidence gets nothing.
#[derive(Debug)]
pub struct Refused {
    /// The clause that decided.
    pub clause: &'static str,
    /// A sentence.
    pub detail: String,
}

impl From<tee::appraise::Refused> for Refused {
    fn from(refused: tee::appraise::Refused) -> Self {
        Self {
            clause: refused.clause.name(),
            detail: refused.sentence,
        }
    }
}

/// Evidence whose signatures were verified and which answered its session. Verified once: what is decided on for as long as the session
/// lives is this very report.
pub struct Genuine(Accepted);

impl Genuine {
    /// The launch digest, in hexadecimal digits.
    pub fn launch_digest(&self) -> String {
        self.0.report.measurement().to_string()
    }

    /// HOST_DATA, in hexadecimal digits.
    pub fn host_data(&self) -> String {
        self.0.report.host_data().to_string()
    }
}

/// Why there is no appraiser.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the configuration can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not a revocation list.
    #[error("{path} is not a revocation list: {source}")]
    List {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: tee::certs::Error,
    },
}

/// Appraises evidence.
pub struct Appraiser {
    accept_sim: bool,
    vceks: VcekSource,
    lists: BTreeMap<CpuModel, PathBuf>,
}

impl Appraiser {
    /// As the configuration says. `runtime` is where AMD's service is asked.
    pub fn new(config: &config::Evidence, runtime: Handle) -> Result<Self, Error> {
        let roots = config.kds_roots.as_deref();
        let vceks = VcekSource::new(
            config.vcek_cache.as_deref(),
            config.kds_url.as_deref(),
            roots,
            runtime,
        )
        .map_err(|source| Error::Read {
            path: roots.unwrap_or(Path::new("/")).to_path_buf(),
            source,
        })?;
        for path in config.revocation_lists.values() {
            read_list(path)?;
        }
        Ok(Self {
            accept_sim: config.accept_sim,
            vceks,
            lists: config.revocation_lists.clone(),
        })
    }

    /// Whether evidence of this kind is looked at.
    pub fn accepts(&self, tee: Tee) -> Result<(), Refused> {
        if tee == Tee::Sim && !self.accept_sim {
            return Err(Refused {
                clause: "tee",
                detail: "this broker does not accept the software TEE, which protects nothing".into(),
            });
        }
        Ok(())
    }

    /// Takes evidence as trustee's clients send it, whose REPORT_DATA should be one of `expected`.
    pub fn verify_json(&self, tee: Tee, evidence: &Value, expected: &[[u8; 64]]) -> Result<Genuine, Refused> {
        let parsed =
            Evidence::from_json(evidence.to_string().as_bytes()).map_err(tee::appraise::Refused::from)?;
        self.verify(tee, parsed, expected)
    }

    /// Takes a report as the firmware gives it, without certificates.
    pub fn verify_report(&self, tee: Tee, report: &[u8], expected: &[[u8; 64]]) -> Result<Genuine, Refused> {
        let parsed = Evidence::from_raw(report, &[]).map_err(tee::appraise::Refused::from)?;
        self.verify(tee, parsed, expected)
    }

    fn verify(&self, tee: Tee, mut evidence: Evidence, expected: &[[u8; 64]]) -> Result<Genuine, Refused> {
        self.accepts(tee)?;
        // Cheap and telling: most evidence that is wrong is not this session's.
        let report_data = evidence.report.report_data();
        if !expected.contains(&report_data.0) {
            return Err(Refused {
                clause: tee::appraise::Clause::ReportData.name(),
                detail: "REPORT_DATA is not what this session asked for".into(),
            });
        }
        let fetched = if evidence.chain.vek.is_none() {
            self.complete(tee, &mut evidence)?
        } else {
            None
        };
        let context = context(tee, report_data, &[])?;
        let accepted = verify(&evidence, &context)?;
        if let Some(path) = self.lists.get(&accepted.key.cpu).filter(|_| tee == Tee::Snp) {
            let lists = [read_list(path).map_err(|error| Refused {
                clause: "revocation",
                detail: error.to_string(),
            })?];
            verify(
                &evidence,
                &Context {
                    lists: &lists,
                    ..context
                },
            )?;
        }
        if let Some(der) = fetched {
            self.vceks.keep(&evidence.report, &der);
        }
        Ok(Genuine(accepted))
    }

    /// Adds the certificate that evidence came without; returns it.
    fn complete(&self, tee: Tee, evidence: &mut Evidence) -> Result<Option<Vec<u8>>, Refused> {
        if tee == Tee::Sim {
            evidence.chain = tee::sim::chain();
            return Ok(None);
        }
        let der = self.vceks.find(&evidence.report).map_err(|error| Refused {
            clause: "vcek",
            detail: error.to_string(),
        })?;
        evidence.chain.vek =
            Some(Certificate::from_either(&der, Link::Vek).map_err(tee::appraise::Refused::from)?);
        Ok(Some(der))
    }

    /// Whether the policy of a registration and those of files accept evidence. `admitted` takes the place of the registration's, where it
    /// is another's guest that was registered.
    pub fn decide(
        &self,
        genuine: &Genuine,
        registration: &Registration,
        admitted: Option<AppraisalPolicy>,
        files: &[PolicyFile],
    ) -> Result<(), Refused> {
        let Genuine(accepted) = genuine;
        let report = &accepted.report;
        let own = admitted.unwrap_or_else(|| PolicyFile::of_registration(registration, report));
        for policy in std::iter::once(own).chain(files.iter().map(|file| file.policy(true, report))) {
            policy.check(accepted)?;
        }
        Ok(())
    }
}

fn context(tee: Tee, report_data: ReportData, lists: &[RevocationList]) -> Result<Context<'_>, Refused> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| Refused {
            clause: "time",
            detail: "this machine's clock is before 1970".into(),
        })?;
    Ok(Context {
        roots: tee.roots(),
        now: UnixTime(now.as_secs()),
        report_data,
        lists,
    })
}

/// Lists are read each time, so that a new one takes effect at once.
fn read_list(path: &Path) -> Result<RevocationList, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })?;
    RevocationList::parse(&bytes).map_err(|source| Error::List {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
#[path = "appraisal_test.rs"]
mod tests;
