//! `ps`: the processes of a container, as it numbers them itself.

use crate::cli::{Global, ListFormat, Ps};
use crate::control;
use crate::state::{Root, Status};
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use workload::protocol::{Outcome, Request};

/// The command.
pub fn run(global: &Global, args: &Ps) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let status = container.status();
    ensure!(
        matches!(status, Status::Created | Status::Running | Status::Paused),
        "container {:?} is {status}, it has no processes",
        args.id
    );
    let mut pids = match control::ask(&container, Request::Processes)? {
        Outcome::Processes { pids } => pids,
        other => bail!("container {:?} answers with {other:?}", args.id),
    };
    pids.sort_unstable();
    if args.format == ListFormat::Json {
        return super::print_json(&pids);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "PID")?;
    pids.iter()
        .try_for_each(|pid| writeln!(out, "{pid}"))
        .context("standard output")
}
