//! `kill`: a signal for the workload, delivered in the guest. SIGKILL ends the VM.

use crate::cli::{Global, Kill};
use crate::failure::GuestFailure;
use crate::signal;
use crate::state::{Container, Root, Status};
use anyhow::{Result, bail};
use workload::protocol::{FailureKind, Request};

/// The command.
pub fn run(global: &Global, args: &Kill) -> Result<()> {
    let signal = signal::parse(&args.signal)?;
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    match (container.status(), container.record.vmm) {
        (Status::Created | Status::Running | Status::Paused, Some(vmm)) if signal == libc::SIGKILL => {
            signal::send(vmm, signal)
        }
        (Status::Created | Status::Running | Status::Paused, Some(_)) => {
            deliver(&container, signal, args.all)
        }
        // Engines signal all processes of a container that has just ended, to be sure.
        (Status::Stopped, _) if args.all => Ok(()),
        (status, _) => bail!(
            "container {:?} is {status}, only a created or running container can be signalled",
            args.id
        ),
    }
}

fn deliver(container: &Container, signal: i32, all: bool) -> Result<()> {
    match crate::control::request(
        container,
        Request::Signal {
            process: 0,
            signal,
            all,
        },
    ) {
        Err(error)
            if all
                && error
                    .downcast_ref::<GuestFailure>()
                    .is_some_and(|f| f.kind == FailureKind::NoProcess) =>
        {
            Ok(())
        }
        result => result,
    }
}
