//! `run`: create, start and wait in one.

use super::create::{self, Console};
use crate::cli::{Global, Run};
use crate::control;
use crate::machine::terminal::{self, RawMode};
use crate::state::Container;
use anyhow::{Context, Result, anyhow};
use rustix::fd::AsFd;
use rustix::process::{Pid, WaitOptions};
use std::os::fd::RawFd;
use workload::protocol::Request;

/// The command. Returns the exit status for the caller.
pub fn run(global: &Global, args: &Run, inherited: &[RawFd]) -> Result<u8> {
    let console = if args.detach {
        Console::Socket
    } else {
        Console::Foreground
    };
    let signals = if args.detach {
        None
    } else {
        Some(crate::signal_fd::block()?)
    };
    let (container, vmm) = create::create(global, &args.create, inherited, console)?;
    let status = super::start::start(&container).and_then(|()| match &signals {
        None => Ok(0),
        Some(signals) => attend(&container, vmm, signals),
    });
    let started = status.is_ok();
    if !(started && (args.detach || args.keep)) {
        super::delete::destroy(&container)?;
    }
    status
}

/// Forwards signals to the container and waits for its end.
fn attend(container: &Container, vmm: Pid, signals: &rustix::fd::OwnedFd) -> Result<u8> {
    let stdin = rustix::stdio::stdin();
    let terminal = has_terminal(container)? && rustix::termios::isatty(stdin);
    let _raw = if terminal { Some(RawMode::enter()?) } else { None };
    let resize = || {
        if let (true, Some((rows, columns))) = (terminal, terminal::size(stdin.as_fd())) {
            // The workload may have ended meanwhile.
            let _ = control::request(container, Request::Resize { rows, columns });
        }
    };
    resize();
    loop {
        match crate::signal_fd::next(signals)? {
            libc::SIGCHLD => {
                if let Some((_, status)) =
                    rustix::process::waitpid(Some(vmm), WaitOptions::NOHANG).context("waiting for the VMM")?
                {
                    return exit_code(status).context("the VMM ended in an unknown way");
                }
            }
            libc::SIGWINCH => resize(),
            number => {
                if let Err(error) = control::request(
                    container,
                    Request::Signal {
                        signal: number,
                        all: false,
                    },
                ) {
                    tracing::debug!("signal {number} not delivered: {error:#}");
                }
            }
        }
    }
}

fn exit_code(status: rustix::process::WaitStatus) -> Result<u8> {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => return Err(anyhow!("neither exited nor killed")),
    };
    Ok(u8::try_from(code)?)
}

fn has_terminal(container: &Container) -> Result<bool> {
    let bundle = crate::bundle::Bundle::load(&container.record.bundle, None)?;
    Ok(bundle
        .spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false))
}
