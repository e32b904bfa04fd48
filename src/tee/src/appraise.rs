//! The verdict on evidence: accepted, or the clause that failed.
//!
//! What is checked, in this order, and nothing after the first failure:
//!
//! ```text
//!   chain      a pinned root, issuers, signatures, times, revocation
//!   binding    the report names the key's kind, generation, TCB and chip
//!   signature  the endorsement key signed these very bytes
//!   policy     processor, firmware, launch: what the owner of the workload asked for
//! ```
//!
//! Nothing in a report is believed before its signature has been verified but which key to verify it with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certs::{self, EndorsementKey, RevocationList, Roots, UnixTime};
use crate::evidence::Evidence;
use crate::launch::{LaunchDigest, Policy};
use crate::report::{HostData, PlatformBit, Report, ReportData, SigningKey, Tcb, TcbField};
use crate::vmsa::CpuModel;

/// What the owner of a workload asks of evidence. TOML, JSON or anything else that serde reads; unknown fields are errors.
///
/// ```toml
/// launch_digests = ["8f1e…"]          # one of these; none at all accepts nothing
/// host_data = ["3b0c…"]               # one of these
/// processors = ["genoa", "turin"]
/// allow_smt = true
/// require_platform = ["alias-check-complete"]
///
/// [minimum_tcb.genoa]
/// bootloader = 10
/// snp = 23
/// microcode = 84
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppraisalPolicy {
    /// The launch digests that are good: one for each vCPU count, CPU model and version.
    pub launch_digests: BTreeSet<LaunchDigest>,
    /// The HOST_DATA that is good: the SHA-256 of Workloads.
    pub host_data: BTreeSet<HostData>,
    /// Processor generations that are good.
    pub processors: BTreeSet<CpuModel>,
    /// The least security versions by generation. A generation that is not here may have any.
    #[serde(default)]
    pub minimum_tcb: BTreeMap<CpuModel, MinimumTcb>,
    /// The least GUEST_SVN.
    #[serde(default)]
    pub minimum_guest_svn: u32,
    /// The highest VMPL that may ask: 0 where there is nothing but a kernel.
    #[serde(default)]
    pub maximum_vmpl: u8,
    /// Guests that the host may debug are good. For development.
    #[serde(default)]
    pub allow_debug: bool,
    /// Guests that a migration agent may move are good.
    #[serde(default)]
    pub allow_migration: bool,
    /// Guests whose cores' other threads may run something else are good.
    #[serde(default)]
    pub allow_smt: bool,
    /// Reports signed by a cloud provider's VLEK are good.
    #[serde(default)]
    pub allow_vlek: bool,
    /// Bits of PLATFORM_INFO that must be set.
    #[serde(default)]
    pub require_platform: BTreeSet<PlatformBit>,
    /// Bits of PLATFORM_INFO that must not be set.
    #[serde(default)]
    pub forbid_platform: BTreeSet<PlatformBit>,
}

/// The least security version of each component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names are those of `Tcb`")]
pub struct MinimumTcb {
    pub fmc: u8,
    pub bootloader: u8,
    pub tee: u8,
    pub snp: u8,
    pub microcode: u8,
}

/// What evidence is judged by, beside the policy.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Whose word is taken.
    pub roots: Roots,
    /// When.
    pub now: UnixTime,
    /// What the guest had to put into its report: the hash of its key and the nonce that it was given.
    pub report_data: ReportData,
    /// Revocation lists: all must be those of the evidence's root.
    pub lists: &'a [RevocationList],
}

/// A single condition of an appraisal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Clause {
    /// The evidence can't be read.
    Format,
    /// The chain begins at a trusted root.
    Root,
    /// Certificates are signed by those above them.
    Chain,
    /// Certificates are valid now.
    Time,
    /// No certificate is revoked.
    Revocation,
    /// The report names the kind of key that its certificate is for.
    SigningKey,
    /// The report is of the processor generation that its certificate is for.
    Product,
    /// The report has the TCB that its certificate is for.
    CertifiedTcb,
    /// The report is of the chip that its certificate is for.
    Chip,
    /// The report is signed.
    Signature,
    /// REPORT_DATA is what this session asked for.
    ReportData,
    /// The processor generation is allowed.
    Processor,
    /// Firmware is new enough.
    MinimumTcb,
    /// PLATFORM_INFO is as required.
    Platform,
    /// The guest can't be debugged.
    Debug,
    /// The guest can't be migrated.
    Migration,
    /// The guest's cores run nothing else.
    Smt,
    /// The report is for a privileged enough level.
    Vmpl,
    /// GUEST_SVN is high enough.
    GuestSvn,
    /// The launch digest is allowed.
    LaunchDigest,
    /// HOST_DATA is allowed.
    HostData,
}

impl Clause {
    /// The name that logs and JSON have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Root => "root",
            Self::Chain => "chain",
            Self::Time => "time",
            Self::Revocation => "revocation",
            Self::SigningKey => "signing-key",
            Self::Product => "product",
            Self::CertifiedTcb => "certified-tcb",
            Self::Chip => "chip",
            Self::Signature => "signature",
            Self::ReportData => "report-data",
            Self::Processor => "processor",
            Self::MinimumTcb => "minimum-tcb",
            Self::Platform => "platform",
            Self::Debug => "debug",
            Self::Migration => "migration",
            Self::Smt => "smt",
            Self::Vmpl => "vmpl",
            Self::GuestSvn => "guest-svn",
            Self::LaunchDigest => "launch-digest",
            Self::HostData => "host-data",
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Evidence that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("evidence refused ({clause}): {sentence}")]
pub struct Refused {
    /// The first clause that failed.
    pub clause: Clause,
    /// What it found.
    pub sentence: String,
}

/// Evidence that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The key that signed, with its generation, TCB and chip.
    pub key: EndorsementKey,
    /// The report, now believed.
    pub report: Report,
}

/// What comes of an appraisal.
pub type Verdict = Result<Accepted, Refused>;

impl Refused {
    fn new(clause: Clause, sentence: String) -> Self {
        Self { clause, sentence }
    }
}

impl From<crate::evidence::Error> for Refused {
    /// Evidence that can't be read is refused like any other.
    fn from(error: crate::evidence::Error) -> Self {
        Self::new(Clause::Format, error.to_string())
    }
}

impl From<certs::Error> for Refused {
    fn from(error: certs::Error) -> Self {
        let clause = match &error {
            certs::Error::Format { .. } | certs::Error::Extension(_) | certs::Error::Missing => {
                Clause::Format
            }
            certs::Error::Root(_) => Clause::Root,
            certs::Error::Issuer(_) | certs::Error::Signature(_) => Clause::Chain,
            certs::Error::Time(_) => Clause::Time,
            certs::Error::Revoked(_) => Clause::Revocation,
        };
        Self::new(clause, error.to_string())
    }
}

/// Judges evidence by a policy.
pub fn appraise(evidence: &Evidence, policy: &AppraisalPolicy, context: &Context) -> Verdict {
    let accepted = verify(evidence, context)?;
    if accepted.report.report_data() != context.report_data {
        let sentence = "REPORT_DATA is not what this session asked for".to_owned();
        return Err(Refused::new(Clause::ReportData, sentence));
    }
    policy.check(&accepted)?;
    Ok(accepted)
}

/// Chain, binding and signature: who says what is in the report. Not that it is good.
pub fn verify(evidence: &Evidence, context: &Context) -> Verdict {
    let key = evidence.chain.verify(context.roots, context.now, context.lists)?;
    let report = &evidence.report;
    check_binding(&key, report)?;
    match key.key.verifies(report.signed(), report.signature()) {
        true => Ok(Accepted {
            key,
            report: report.clone(),
        }),
        false => {
            let sentence = "the report's signature is not that of the endorsement key".to_owned();
            Err(Refused::new(Clause::Signature, sentence))
        }
    }
}

fn check_binding(key: &EndorsementKey, report: &Report) -> Result<(), Refused> {
    let refuse = |clause, sentence: String| Err(Refused::new(clause, sentence));
    if report.signing_key() != key.kind {
        let (says, is) = (report.signing_key().name(), key.kind.name());
        return refuse(
            Clause::SigningKey,
            format!("the report says it is signed by a {says}, and the certificate is a {is}'s"),
        );
    }
    if let Some(cpu) = report.cpu().filter(|cpu| *cpu != key.cpu) {
        let certified = key.cpu;
        return refuse(
            Clause::Product,
            format!("the report is of a {cpu} processor, and the certificate of a {certified}"),
        );
    }
    for field in TcbField::ALL {
        if Tcb::from_raw(report.tcb(field), key.cpu).is_none() {
            let sentence = format!("reserved bytes of {} are not zero", field.name());
            return refuse(Clause::Format, sentence);
        }
    }
    let reported = report.tcb(TcbField::Reported);
    if reported != key.tcb.to_raw() {
        let sentence = format!(
            "REPORTED_TCB is {reported:#018x}, and the certificate is for {}",
            key.tcb
        );
        return refuse(Clause::CertifiedTcb, sentence);
    }
    let chip = report.chip_id();
    match &key.hwid {
        // A host may hide CHIP_ID (MaskChipId). The signature tells the chip all the same.
        Some(hwid) if chip.0 != [0; 64] && !is_chip(&chip.0, hwid) => refuse(
            Clause::Chip,
            "CHIP_ID is not the certificate's hardware id".to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Whether CHIP_ID is this id, followed by zeros.
fn is_chip(chip: &[u8; 64], hwid: &[u8]) -> bool {
    chip.strip_prefix(hwid)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}

impl AppraisalPolicy {
    /// Judges a report that is believed, of [`verify`]; that it answers a challenge is the caller's to see to. The launch comes last: a
    /// digest says nothing on a platform that isn't good.
    pub fn check(&self, accepted: &Accepted) -> Result<(), Refused> {
        let Accepted { key, report } = accepted;
        self.check_platform(key, report)?;
        self.check_guest_policy(report.policy())?;
        self.check_launch(report)
    }

    fn check_platform(&self, key: &EndorsementKey, report: &Report) -> Result<(), Refused> {
        let refuse = |clause, sentence: String| Err(Refused::new(clause, sentence));
        if key.kind == SigningKey::Vlek && !self.allow_vlek {
            return refuse(
                Clause::SigningKey,
                "the report is signed by a VLEK, which the policy does not allow".to_owned(),
            );
        }
        if !self.processors.contains(&key.cpu) {
            return refuse(
                Clause::Processor,
                format!("the policy does not allow {} processors", key.cpu),
            );
        }
        self.check_tcb(key.cpu, report)?;
        for bit in PlatformBit::ALL {
            let set = report.platform_info() & bit.mask() != 0;
            if !set && self.require_platform.contains(&bit) {
                return refuse(
                    Clause::Platform,
                    format!("the platform lacks {:?}, which the policy requires", bit.name()),
                );
            }
            if set && self.forbid_platform.contains(&bit) {
                return refuse(
                    Clause::Platform,
                    format!("the platform has {:?}, which the policy forbids", bit.name()),
                );
            }
        }
        Ok(())
    }

    /// What the key was derived from, what the platform can't go back behind, and what launched the guest.
    fn check_tcb(&self, cpu: CpuModel, report: &Report) -> Result<(), Refused> {
        let Some(minimum) = self.minimum_tcb.get(&cpu) else {
            return Ok(());
        };
        for field in [TcbField::Reported, TcbField::Committed, TcbField::Launch] {
            // `check_binding` has decoded all of them.
            let tcb = Tcb::from_raw(report.tcb(field), cpu).unwrap_or(Tcb::NONE);
            let components = [
                ("fmc", tcb.fmc.unwrap_or_default(), minimum.fmc),
                ("bootloader", tcb.bootloader, minimum.bootloader),
                ("tee", tcb.tee, minimum.tee),
                ("snp", tcb.snp, minimum.snp),
                ("microcode", tcb.microcode, minimum.microcode),
            ];
            if let Some((name, has, least)) = components.iter().find(|(_, has, least)| has < least) {
                let field = field.name();
                let sentence =
                    format!("{name} of {field} is {has}, and the policy asks for {least} or later");
                return Err(Refused::new(Clause::MinimumTcb, sentence));
            }
        }
        Ok(())
    }

    fn check_guest_policy(&self, policy: Policy) -> Result<(), Refused> {
        let forbidden = [
            (
                Policy::DEBUG,
                self.allow_debug,
                Clause::Debug,
                "the host may debug the guest",
            ),
            (
                Policy::MIGRATE_MA,
                self.allow_migration,
                Clause::Migration,
                "a migration agent may move the guest",
            ),
            (
                Policy::SMT,
                self.allow_smt,
                Clause::Smt,
                "the guest may share its cores with other threads (SMT)",
            ),
        ];
        for (flag, allowed, clause, sentence) in forbidden {
            if policy.has(flag) && !allowed {
                return Err(Refused::new(
                    clause,
                    format!("{sentence}, which the policy does not allow"),
                ));
            }
        }
        Ok(())
    }

    fn check_launch(&self, report: &Report) -> Result<(), Refused> {
        let refuse = |clause, sentence: String| Err(Refused::new(clause, sentence));
        if report.vmpl() > u32::from(self.maximum_vmpl) {
            let (vmpl, most) = (report.vmpl(), self.maximum_vmpl);
            return refuse(
                Clause::Vmpl,
                format!("VMPL is {vmpl}, and the policy asks for at most {most}"),
            );
        }
        if report.guest_svn() < self.minimum_guest_svn {
            let (svn, least) = (report.guest_svn(), self.minimum_guest_svn);
            return refuse(
                Clause::GuestSvn,
                format!("GUEST_SVN is {svn}, and the policy asks for {least} or higher"),
            );
        }
        if !self.launch_digests.contains(&report.measurement()) {
            let sentence = format!(
                "launch digest {} is not one that the policy allows",
                report.measurement()
            );
            return refuse(Clause::LaunchDigest, sentence);
        }
        if !self.host_data.contains(&report.host_data()) {
            let sentence = format!(
                "HOST_DATA {} is not one that the policy allows",
                report.host_data()
            );
            return refuse(Clause::HostData, sentence);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "appraise_test.rs"]
mod appraise_test;
