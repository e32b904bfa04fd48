//! `run`: create, start and wait in one.

use super::create::{self, Console, Created};
use crate::cli::{Global, Run};
use crate::machine::terminal::{self, RawMode};
use crate::settings::Settings;
use crate::state::Container;
use crate::{control, signal_fd};
use anyhow::{Context, Result, anyhow};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::WaitOptions;
use std::os::fd::RawFd;
use workload::protocol::Request;

/// The command. Returns the exit status for the caller.
pub fn run(global: &Global, settings: &Settings, args: &Run, inherited: &[RawFd]) -> Result<u8> {
    if args.detach {
        let created = create::create(global, settings, &args.create, inherited, Console::Socket)?;
        super::start::start(&created.container).inspect_err(|_| discard(&created.container))?;
        return Ok(0);
    }
    let signals = signal_fd::block()?;
    let created = create::create(global, settings, &args.create, inherited, Console::Foreground)?;
    let result = attend(&created, &signals);
    if !(args.keep && result.is_ok()) {
        discard(&created.container);
    }
    result
}

/// Deletes a container whose result is known already and must not be lost for this.
fn discard(container: &Container) {
    if let Err(error) = super::delete::destroy(container) {
        tracing::error!("container {:?} can't be deleted: {error:#}", container.record.id);
    }
}

/// Starts the container, forwards signals to it and waits for its end.
fn attend(created: &Created, signals: &OwnedFd) -> Result<u8> {
    let Created {
        container,
        vmm,
        terminal,
    } = created;
    let stdin = rustix::stdio::stdin();
    let terminal = *terminal && rustix::termios::isatty(stdin);
    // Before anything runs that writes to it.
    let _raw = if terminal { Some(RawMode::enter()?) } else { None };
    super::start::start(container)?;
    let resize = || {
        if let (true, Some((rows, columns))) = (terminal, terminal::size(stdin.as_fd())) {
            // The workload may have ended meanwhile.
            let _ = control::request(
                container,
                Request::Resize {
                    process: 0,
                    rows,
                    columns,
                },
            );
        }
    };
    resize();
    loop {
        match signal_fd::next(signals)? {
            libc::SIGCHLD => {
                if let Some((_, status)) = rustix::process::waitpid(Some(*vmm), WaitOptions::NOHANG)
                    .context("waiting for the VMM")?
                {
                    return exit_code(status).context("the VMM ended in an unknown way");
                }
            }
            libc::SIGWINCH => resize(),
            number => {
                if let Err(error) = control::request(
                    container,
                    Request::Signal {
                        process: 0,
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
