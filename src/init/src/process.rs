//! The container's first process, seen from init.

use crate::container::{Container, Member, Stdio, terminal};
use crate::failure::{Context as _, Failure, Result};
use crate::link::{Link, Report};
use crate::sys::{self, Fork};
use rustix::fs::{Uid, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use workload::protocol::Status;

/// A process that waits for the start, runs, or has ended and not been asked for its status.
pub struct Process {
    /// Readable once the process has ended.
    pidfd: OwnedFd,
    /// To and from it until `execve`.
    pub link: Link,
}

/// Init's ends of the workload's standard streams.
pub enum Streams {
    /// Three pipes.
    Pipes {
        /// Writes to descriptor 0.
        input: OwnedFd,
        /// Reads from descriptor 1.
        output: OwnedFd,
        /// Reads from descriptor 2.
        error: OwnedFd,
    },
    /// A terminal.
    Terminal {
        /// Both ways.
        master: OwnedFd,
        /// Held so that the terminal outlives a workload that closes it for a moment.
        slave: OwnedFd,
    },
}

/// What a process's streams will be made of when it is ready: pipes, or nothing yet for a terminal.
pub struct Unready(Option<Streams>);

impl Unready {
    /// The streams. `terminal` came with the report that the process is ready.
    pub fn streams(self, terminal: Option<OwnedFd>) -> Result<Streams> {
        match (self.0, terminal) {
            (Some(pipes), _) => Ok(pipes),
            (None, Some(master)) => Ok(Streams::Terminal {
                slave: terminal::open_slave(&master)?,
                master,
            }),
            (None, None) => Err(Failure::other("the container's process made no terminal")),
        }
    }
}

impl Process {
    /// Makes the container and its first process, up to the start.
    pub fn prepare(container: &Container<'_>) -> Result<(Self, Streams)> {
        // SAFETY: the flag makes no descriptors private to a thread, which is what is unsafe about the call.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.context(|| "make the PID namespace".into())?;
        let (process, unready) = Self::fork(&container.workload.process, |stdio, link| {
            container.run(stdio, link)
        })?;
        let streams = match process.link.report()? {
            Report::Ready(terminal) => unready.streams(terminal),
            Report::Failed(failure) => Err(failure),
            Report::Closed => Err(Failure::other("the container's process died while it was set up")),
        };
        match streams {
            Ok(streams) => Ok((process, streams)),
            Err(failure) => Err(process.abandon(failure)),
        }
    }

    /// Begins another process in the container. By the thread that has made the first: its children are born in the container's
    /// PID namespace.
    pub fn join(member: &Member<'_>) -> Result<(Self, Unready)> {
        Self::fork(member.process, |stdio, link| member.run(stdio, link))
    }

    fn fork(process: &workload::Process, run: impl FnOnce(Stdio, &Link)) -> Result<(Self, Unready)> {
        let (ours, theirs) = if process.terminal {
            (None, Stdio::Terminal)
        } else {
            let (ours, theirs) = pipes(process.user.uid)?;
            (Some(ours), Stdio::Pipes(theirs))
        };
        let (link, their_link) = Link::pair()?;
        let pidfd = match sys::fork().context(|| "fork".into())? {
            Fork::Child => {
                drop((link, ours));
                run(theirs, &their_link);
                sys::exit_now(127)
            }
            Fork::Parent(pidfd) => pidfd,
        };
        Ok((Self { pidfd, link }, Unready(ours)))
    }

    /// Collects a process that came to nothing.
    pub fn abandon(&self, failure: Failure) -> Failure {
        // It has ended or is about to, which is not waited for: the guest's end is its end.
        let _ = sys::pidfd_signal(&self.pidfd, libc::SIGKILL);
        let _ = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        failure
    }

    /// How it ended, if it has; collects it.
    pub fn status(&self) -> io::Result<Option<Status>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Some(status) = waitid(WaitId::PidFd(self.pidfd.as_fd()), options)? else {
            return Ok(None);
        };
        // Both numbers are below 256 by the kernel's own encoding.
        let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number & 0xff).ok());
        Ok(byte(status.exit_status())
            .map(|code| Status::Code { code })
            .or_else(|| byte(status.terminating_signal()).map(|signal| Status::Signal { signal })))
    }

    /// Sends it a signal by number.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::pidfd_signal(&self.pidfd, signal)
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Pipes that belong to the workload's user, since programs reopen them by name (`/dev/stdout`).
fn pipes(uid: u32) -> Result<(Streams, [OwnedFd; 3])> {
    let pipe = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fchown(&read, Some(Uid::from_raw(uid)), None)?;
        Ok::<_, rustix::io::Errno>((read, write))
    };
    let pipe = || pipe().context(|| "make a pipe".into());
    let ((stdin, input), (output, stdout), (error, stderr)) = (pipe()?, pipe()?, pipe()?);
    Ok((Streams::Pipes { input, output, error }, [stdin, stdout, stderr]))
}
