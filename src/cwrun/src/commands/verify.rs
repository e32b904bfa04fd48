//! `verify`: judges evidence by a policy, without asking anybody.
//!
//! Evidence is what `attest` writes, a report with certificates in trustee's form, or the bytes of a report alone, whose certificate then
//! comes from a file. The verdict goes to standard output, and the exit
//! status is 0 only if it is "accepted".

use super::attest::Statement;
use crate::cli::Verify;
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;
use tee::appraise::{Accepted, AppraisalPolicy, Clause, Context, Refused, Verdict, appraise};
use tee::certs::{Certificate, Link, RevocationList, Roots, UnixTime};
use tee::evidence::Evidence;
use tee::launch::LaunchDigest;
use tee::report::{ChipId, HostData, REPORT_SIZE, Report, ReportData, Tcb, TcbField};
use tee::vmsa::CpuModel;

/// The most that is read of any file, in bytes: a Workload in text, twice.
const MAX_FILE: u64 = 2 * workload::protocol::MAX_MESSAGE as u64;
const REFUSED: u8 = 1;

/// The command. Returns the exit status.
pub fn run(args: &Verify) -> Result<u8> {
    let mut policy = read_policy(&args.policy)?;
    let expected = args.workload.as_deref().map(read).transpose()?;
    if let Some(bytes) = &expected {
        demand(&mut policy, bytes)?;
    }
    let lists = args
        .crl
        .iter()
        .map(|path| read_list(path))
        .collect::<Result<Vec<_>>>()?;
    let verdict = Given::read(args).and_then(|given| judge(&given, &policy, args, &lists));
    let verdict = match verdict {
        Ok(accepted) => Ok(accepted),
        Err(Problem::Refused(refused)) => Err(refused),
        Err(Problem::Other(error)) => return Err(error),
    };
    match args.json {
        true => super::print_json(&Told::of(&verdict, args))?,
        false => print(&verdict, args)?,
    }
    Ok(if verdict.is_ok() { 0 } else { REFUSED })
}

/// Why there is no acceptance.
enum Problem {
    /// The evidence is not good.
    Refused(Refused),
    /// It could not be looked at.
    Other(anyhow::Error),
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<tee::evidence::Error> for Problem {
    fn from(error: tee::evidence::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

fn refused(clause: Clause, sentence: impl Into<String>) -> Problem {
    let sentence = sentence.into();
    Problem::Refused(Refused { clause, sentence })
}

/// Evidence, and the Workload that came with it.
struct Given {
    evidence: Evidence,
    workload: Option<String>,
}

impl Given {
    fn read(args: &Verify) -> Result<Self, Problem> {
        let bytes = read(&args.evidence)?;
        let mut given = match bytes.len() {
            REPORT_SIZE => Self {
                evidence: Evidence::from_raw(&bytes, &[])?,
                workload: None,
            },
            _ => Self::parse(&bytes)?,
        };
        if let Some(path) = &args.vcek {
            let certificate = Certificate::from_either(&read(path)?, Link::Vek)
                .with_context(|| format!("--vcek {}", path.display()))?;
            given.evidence.chain.vek = Some(certificate);
        }
        Ok(given)
    }

    /// From one of the two forms in JSON.
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let document: Value = serde_json::from_slice(bytes)
            .map_err(|error| refused(Clause::Format, format!("the evidence is no JSON: {error}")))?;
        match document.get("evidence") {
            None => Ok(Self {
                evidence: Evidence::from_json(bytes)?,
                workload: None,
            }),
            Some(_) => {
                let statement: Statement = serde_json::from_value(document).map_err(|error| {
                    refused(
                        Clause::Format,
                        format!("the evidence is not what `attest` writes: {error}"),
                    )
                })?;
                if statement.version != Statement::VERSION {
                    let version = statement.version;
                    return Err(refused(
                        Clause::Format,
                        format!(
                            "the evidence has version {version}, and {} is known",
                            Statement::VERSION
                        ),
                    ));
                }
                Ok(Self {
                    evidence: Evidence::from_json(statement.evidence.to_string().as_bytes())?,
                    workload: Some(statement.workload),
                })
            }
        }
    }
}

fn judge(
    given: &Given,
    policy: &AppraisalPolicy,
    args: &Verify,
    lists: &[RevocationList],
) -> Result<Accepted, Problem> {
    let report = &given.evidence.report;
    let report_data = match &args.nonce {
        Some(nonce) => ReportData(nonce.report_data()),
        // Nothing was asked for, so nothing is compared: `print` says so.
        None => report.report_data(),
    };
    let context = Context {
        roots: if args.sim { Roots::Sim } else { Roots::Amd },
        now: UnixTime(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()),
        report_data,
        lists,
    };
    let accepted = appraise(&given.evidence, policy, &context)?;
    match &given.workload {
        Some(workload) if hash(workload.as_bytes()) != report.host_data() => Err(refused(
            Clause::HostData,
            "the Workload that came with the evidence is not the one that HOST_DATA names",
        )),
        _ => Ok(accepted),
    }
}

fn hash(workload: &[u8]) -> HostData {
    HostData(Sha256::digest(workload).into())
}

/// This Workload and no other, which must be one that the policy names, if it names any.
fn demand(policy: &mut AppraisalPolicy, workload: &[u8]) -> Result<()> {
    let digest = hash(workload);
    ensure!(
        policy.host_data.is_empty() || policy.host_data.contains(&digest),
        "--workload: its SHA-256 {digest} is not in host_data of the policy"
    );
    policy.host_data = [digest].into();
    Ok(())
}

fn read_policy(path: &Path) -> Result<AppraisalPolicy> {
    let bytes = read(path)?;
    let context = || format!("policy {}", path.display());
    let text = String::from_utf8(bytes).with_context(context)?;
    let document = toml::Deserializer::parse(&text)
        .map_err(|error| anyhow::anyhow!("{}", error.message()))
        .with_context(context)?;
    serde_path_to_error::deserialize(document).with_context(context)
}

fn read_list(path: &Path) -> Result<RevocationList> {
    RevocationList::parse(&read(path)?).with_context(|| format!("revocation list {}", path.display()))
}

/// A file, or standard input for `-`.
fn read(path: &Path) -> Result<Vec<u8>> {
    let context = || path.display().to_string();
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).with_context(context)?),
    };
    let mut bytes = Vec::new();
    source
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    ensure!(
        bytes.len() as u64 <= MAX_FILE,
        "{}: is longer than {MAX_FILE} bytes",
        path.display()
    );
    Ok(bytes)
}

/// The verdict as JSON.
#[derive(Debug, Serialize)]
struct Told {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    clause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<String>,
    /// Whose word was taken.
    roots: &'static str,
    /// Whether the evidence answers a nonce of the verifier's.
    fresh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<ReportTold>,
}

#[derive(Debug, Serialize)]
struct ReportTold {
    launch_digest: LaunchDigest,
    host_data: HostData,
    processor: CpuModel,
    chip_id: ChipId,
    guest_policy: String,
    guest_svn: u32,
    vmpl: u32,
    reported_tcb: String,
}

impl ReportTold {
    fn of(accepted: &Accepted) -> Self {
        let Accepted { key, report } = accepted;
        Self {
            launch_digest: report.measurement(),
            host_data: report.host_data(),
            processor: key.cpu,
            chip_id: report.chip_id(),
            guest_policy: report.policy().to_string(),
            guest_svn: report.guest_svn(),
            vmpl: report.vmpl(),
            reported_tcb: tcb(report, key.cpu),
        }
    }
}

fn tcb(report: &Report, cpu: CpuModel) -> String {
    let raw = report.tcb(TcbField::Reported);
    Tcb::from_raw(raw, cpu).map_or_else(|| format!("{raw:#x}"), |tcb| tcb.to_string())
}

impl Told {
    fn of(verdict: &Verdict, args: &Verify) -> Self {
        let refused = verdict.as_ref().err();
        Self {
            verdict: if refused.is_none() { "accepted" } else { "refused" },
            clause: refused.map(|refused| refused.clause.name()),
            sentence: refused.map(|refused| refused.sentence.clone()),
            roots: if args.sim { "sim" } else { "amd" },
            fresh: verdict.is_ok() && args.nonce.is_some(),
            report: verdict.as_ref().ok().map(ReportTold::of),
        }
    }
}

/// The verdict for a person.
fn print(verdict: &Verdict, args: &Verify) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let accepted = match verdict {
        Ok(accepted) => accepted,
        Err(Refused { clause, sentence }) => {
            return writeln!(out, "refused ({clause}): {sentence}").context("standard output");
        }
    };
    let told = ReportTold::of(accepted);
    writeln!(out, "accepted")?;
    if args.sim {
        writeln!(
            out,
            "              by the software TEE's root, whose key everybody has: this proves nothing"
        )?;
    }
    if args.nonce.is_none() {
        writeln!(out, "              without --nonce: the evidence may be old")?;
    }
    writeln!(out, "launch digest {}", told.launch_digest)?;
    writeln!(out, "host data     {}", told.host_data)?;
    writeln!(out, "processor     {}, chip {}", told.processor, told.chip_id)?;
    writeln!(out, "reported TCB  {}", told.reported_tcb)?;
    writeln!(
        out,
        "guest         policy {}, SVN {}, VMPL {}",
        told.guest_policy, told.guest_svn, told.vmpl
    )?;
    Ok(())
}

#[cfg(test)]
#[path = "verify_test.rs"]
mod tests;
