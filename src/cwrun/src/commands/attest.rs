//! `attest`: a running container's evidence, for whoever asks what it is.
//!
//! ```text
//!   verifier ── nonce ──► attest ──► VMM ──► init ──► firmware: REPORT_DATA = SHA-512 of domain and nonce
//!            ◄─ report, certificates, Workload ─────────────────┘
//! ```

use crate::cli::{Attest, Global};
use crate::control;
use crate::state::{Root, Status};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::io::Write;
use tee::evidence::Evidence;
use tee::report::Report;
use tee::sim;
use workload::protocol::{Outcome, Request};
use workload::{Nonce, TeeKind, Workload};

/// What `attest` writes and `verify` reads.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`Statement::VERSION`].
    pub version: u32,
    /// Which TEE the Workload names.
    pub tee: Option<TeeKind>,
    /// What was asked with. A verifier compares with its own.
    pub nonce: Nonce,
    /// Report and certificates in trustee's form ([`Evidence::to_json`]).
    pub evidence: Value,
    /// The Workload's canonical bytes, which are text: their SHA-256 is the report's HOST_DATA.
    pub workload: String,
}

impl Statement {
    /// The only version there is.
    pub const VERSION: u32 = 1;
}

/// The command.
pub fn run(global: &Global, args: &Attest) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let status = container.status();
    ensure!(
        matches!(status, Status::Created | Status::Running | Status::Paused),
        "container {:?} is {status}, it has nothing to attest",
        args.id
    );
    let nonce = args.nonce.clone();
    let answer = control::ask(&container, Request::Attest { nonce })?;
    let Outcome::Evidence {
        report,
        certificates,
        workload,
    } = answer
    else {
        bail!("container {:?} answers with {answer:?}", args.id)
    };
    let statement = statement(&args.nonce, &report.0, &certificates.0, workload.0)
        .with_context(|| format!("container {:?}", args.id))?;
    let mut text = serde_json::to_string_pretty(&statement).context("JSON")?;
    text.push('\n');
    match &args.output {
        Some(path) => fs::write(path, text).with_context(|| format!("--output {}", path.display())),
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .context("standard output"),
    }
}

fn statement(nonce: &Nonce, report: &[u8], certificates: &[u8], workload: Vec<u8>) -> Result<Statement> {
    let tee = Workload::from_bytes(&workload).context("its Workload")?.tee;
    let tee = tee.map(|tee| tee.kind);
    let evidence = match tee {
        // Everybody has these certificates, so the guest need not bring them.
        Some(TeeKind::Sim) => Evidence {
            report: Report::parse(report).context("its report")?,
            chain: sim::chain(),
        },
        Some(TeeKind::Snp) | None => {
            Evidence::from_raw(report, certificates).context("its report and certificates")?
        }
    };
    Ok(Statement {
        version: Statement::VERSION,
        tee,
        nonce: nonce.clone(),
        evidence: serde_json::from_str(&evidence.to_json()).context("its evidence")?,
        workload: String::from_utf8(workload).context("its Workload")?,
    })
}
