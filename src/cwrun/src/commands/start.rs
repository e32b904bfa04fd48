//! `start`: tells the guest to run the workload.

use crate::cli::{Global, Id};
use crate::launch::hooks;
use crate::state::{Container, Root, Status};
use anyhow::{Result, ensure};
use workload::protocol::Request;

/// The command.
pub fn run(global: &Global, args: &Id) -> Result<()> {
    start(&Root::new(global.root.clone())?.get(&args.id)?)
}

/// Starts a created container.
pub fn start(container: &Container) -> Result<()> {
    let status = container.status();
    ensure!(
        status == Status::Created,
        "container {:?} is {status}, only a created container can be started",
        container.record.id
    );
    crate::control::request(container, Request::Start)?;
    hooks::run_all_logging(
        "poststart",
        &container.record.hooks.poststart,
        &container.oci_state(Status::Running),
    );
    Ok(())
}
