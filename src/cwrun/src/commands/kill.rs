//! `kill`: a signal for the workload, delivered in the guest. SIGKILL ends the VM.

use crate::cli::{Global, Kill};
use crate::control;
use crate::failure::GuestFailure;
use crate::signal;
use crate::state::{Container, Root, Status};
use anyhow::{Result, bail};
use std::time::Duration;
use workload::protocol::{FailureKind, Request};

/// How long the VMM may take to answer. An engine holds its own locks meanwhile, and what follows may be SIGKILL, which needs no answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a VMM that has stopped to answer may take to end.
const END: Duration = Duration::from_secs(5);

/// The command.
pub fn run(global: &Global, args: &Kill) -> Result<()> {
    let signal = signal::parse(&args.signal)?;
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    match (container.status(), container.record.vmm) {
        (Status::Created | Status::Running | Status::Paused, Some(vmm)) => {
            let sent = match signal {
                libc::SIGKILL => signal::send(vmm, signal),
                _ => deliver(&container, signal, args.all),
            };
            sent.or_else(|error| after(&container, args.all, error))
        }
        (Status::Stopped, _) => stopped(&container, args.all),
        (status, _) => bail!(
            "container {:?} is {status}, only a created or running container can be signalled",
            args.id
        ),
    }
}

fn deliver(container: &Container, signal: i32, all: bool) -> Result<()> {
    let request = Request::Signal {
        process: 0,
        signal,
        all,
    };
    let answered = match control::request_within(container, request, PATIENCE) {
        // As kill(2) succeeds with a process that has ended and that nobody has waited for.
        Err(error)
            if error
                .downcast_ref::<GuestFailure>()
                .is_some_and(|failure| failure.kind == FailureKind::NoProcess) =>
        {
            return Ok(());
        }
        result => result?,
    };
    if !answered {
        tracing::warn!(
            "container {:?} has not answered for {} s; it has the signal when it goes on",
            container.record.id,
            PATIENCE.as_secs()
        );
    }
    Ok(())
}

/// What an error means of a container that may have ended meanwhile.
fn after(container: &Container, all: bool, error: anyhow::Error) -> Result<()> {
    let of_the_guest = error.downcast_ref::<GuestFailure>().is_some();
    if of_the_guest || container.outlives(END) {
        return Err(error);
    }
    stopped(container, all)
}

/// Engines signal all processes of a container that has just ended, to be sure. containerd knows the words in parentheses.
fn stopped(container: &Container, all: bool) -> Result<()> {
    if all {
        return Ok(());
    }
    bail!(
        "container {:?} is stopped, only a created or running container can be signalled (container not running)",
        container.record.id
    )
}
