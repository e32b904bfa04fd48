//! The container's standard streams: between the descriptors that the engine gave us and the guest.
//!
//! ```text
//!   fd 0 ──read──► pump thread ──socket──► vsock device ──► guest
//!   fd 1 ◄─write── pump thread ◄─socket─── vsock device ◄── guest
//! ```
//!
//! Threads with blocking calls, because the engine's descriptors may be files, pipes or terminals, shared with others
//! whose non-blocking mode is none of ours. Back-pressure is a full socket; nothing here grows.

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

/// Where the container's input comes from and its output goes to.
#[derive(Debug)]
pub enum Stdio {
    /// Descriptors 0, 1 and 2 of this process.
    Inherited,
    /// The caller's terminal, which it has put into raw mode: descriptors 0 and 1, in one guest stream.
    Foreground,
    /// The slave side of a terminal whose master is the engine's.
    Terminal(OwnedFd),
}

/// One direction of one stream. One of its ends is a socket to the guest.
struct Pump {
    from: OwnedFd,
    to: OwnedFd,
    direction: Direction,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    /// `to` is the socket. At the end the guest sees the end of its input.
    ToGuest,
    /// `from` is the socket. At the end it is of no more use: the guest sees a broken stream if it was not the one to end it.
    FromGuest,
}

/// The guest's ends of the streams, and the pumps that have not been started.
pub struct Streams {
    /// Socket for the guest's stream 0, 1, 2.
    pub guest_ends: Vec<(u32, UnixStream)>,
    inputs: Vec<Pump>,
    outputs: Vec<Pump>,
    drained: OwnedFd,
}

impl Stdio {
    /// The terminal to become this process's controlling terminal.
    pub fn controlling_terminal(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Terminal(slave) => Some(slave.as_fd()),
            Self::Inherited | Self::Foreground => None,
        }
    }

    /// Sockets for the guest and pumps to and from them.
    pub fn streams(self) -> Result<Streams> {
        let drained = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
        let mut streams = Streams {
            guest_ends: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            drained,
        };
        match self {
            Self::Inherited => {
                streams.add(0, Some(rustix::io::dup(rustix::stdio::stdin())?), None)?;
                streams.add(1, None, Some(rustix::io::dup(rustix::stdio::stdout())?))?;
                streams.add(2, None, Some(rustix::io::dup(rustix::stdio::stderr())?))?;
            }
            Self::Foreground => {
                let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
                streams.add(0, Some(rustix::io::dup(input)?), Some(rustix::io::dup(output)?))?;
            }
            Self::Terminal(slave) => streams.add(0, Some(slave.try_clone()?), Some(slave))?,
        }
        Ok(streams)
    }
}

impl Streams {
    fn add(&mut self, number: u32, input: Option<OwnedFd>, output: Option<OwnedFd>) -> Result<()> {
        let (ours, guest) = UnixStream::pair().context("stdio socket")?;
        if let Some(from) = input {
            self.inputs.push(Pump {
                from,
                to: ours.try_clone()?.into(),
                direction: Direction::ToGuest,
            });
        }
        if let Some(to) = output {
            self.outputs.push(Pump {
                from: ours.into(),
                to,
                direction: Direction::FromGuest,
            });
        }
        self.guest_ends.push((number, guest));
        Ok(())
    }

    /// Starts carrying output. The descriptor becomes readable once for each stream that the guest has ended and that has
    /// been written out whole.
    pub fn start_outputs(&mut self) -> Result<(usize, OwnedFd)> {
        let count = self.outputs.len();
        for pump in self.outputs.drain(..) {
            let drained = self.drained.try_clone()?;
            spawn("stdout", pump, move || {
                // Writing to an eventfd of our own fails only on overflow, far beyond three streams.
                let _ = rustix::io::write(&drained, &1u64.to_ne_bytes());
            })?;
        }
        Ok((count, self.drained.try_clone()?))
    }

    /// Starts carrying input: not before the workload runs, so that a container that is never started takes none.
    pub fn start_inputs(&mut self) -> Result<()> {
        self.inputs
            .drain(..)
            .try_for_each(|pump| spawn("stdin", pump, || {}))
    }
}

fn spawn(name: &str, pump: Pump, done: impl FnOnce() + Send + 'static) -> Result<()> {
    let work = move || {
        pump.run();
        done();
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .context("stdio thread")
}

impl Pump {
    fn run(self) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = match retry(&self.from, PollFlags::IN, || {
                rustix::io::read(&self.from, &mut buffer[..])
            }) {
                // A terminal whose other side is gone reads as an error: that is its end.
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            if self.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // Fails only for a socket whose other end is closed, which then needs no telling.
        let _ = match self.direction {
            Direction::ToGuest => rustix::net::shutdown(&self.to, Shutdown::Write),
            Direction::FromGuest => rustix::net::shutdown(&self.from, Shutdown::Both),
        };
    }

    fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let count = retry(&self.to, PollFlags::OUT, || rustix::io::write(&self.to, bytes))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

/// Repeats a call that was interrupted, or that found a descriptor in somebody else's non-blocking mode.
fn retry<T>(fd: &OwnedFd, ready: PollFlags, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(fd, ready)], None);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "stdio_test.rs"]
mod tests;
