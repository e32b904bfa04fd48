//! Bytes from one descriptor to another, with 64 KiB in between and not one more.
//!
//! ```text
//!   source ── read when empty ──► buffer ── write until empty ──► sink
//!     end of file ──────────────────────────► sink closed for writing
//!     closed for reading ◄─────────────────── nobody reads the sink any more
//! ```
//!
//! Nothing here blocks: [`Pump::interests`] says what to wait for, [`Pump::work`] does what can be done. A side that
//! stalls holds up its own stream alone, since the buffer is full then and the other side is left alone.

use crate::sys;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Bytes held at most.
pub const BUFFER: usize = 64 << 10;
/// What a pipe may hold, `fs.pipe-max-size` unless root has changed that.
const LARGEST_PIPE: usize = 1 << 20;
/// Buffers moved in one go before the others have their turn.
const TURNS: usize = 16;

/// One side of a pump; a terminal and its socket are sides of two pumps.
#[derive(Clone)]
pub struct End {
    fd: Rc<OwnedFd>,
    kind: Kind,
}

/// What closing an end for one direction means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// shutdown(2).
    Socket,
    /// close(2).
    Pipe,
    /// Nothing: a terminal has no half.
    Terminal,
}

impl End {
    /// Takes a descriptor over and makes it non-blocking.
    pub fn new(fd: OwnedFd, kind: Kind) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd: Rc::new(fd),
            kind,
        })
    }

    fn shut(&self, direction: Shutdown) {
        if self.kind == Kind::Socket {
            // A connection that is gone already is as closed as it can be.
            let _ = rustix::net::shutdown(&*self.fd, direction);
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves bytes one way.
pub struct Pump {
    source: Option<End>,
    sink: Option<End>,
    buffer: Box<[u8]>,
    /// The part of the buffer that is read and not yet written.
    start: usize,
    end: usize,
    /// The sink has been told that no more comes; kept until its bytes are taken.
    delivering: Option<End>,
    /// Bytes read since [`Pump::mark`], and whether there were none to read at some time.
    read: usize,
    emptied: bool,
}

/// What came of one read or write.
enum Moved {
    Some,
    Blocked,
    Ended,
}

impl Pump {
    /// A pump that has moved nothing yet.
    pub fn new(source: End, sink: End) -> Self {
        Self {
            source: Some(source),
            sink: Some(sink),
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            delivering: None,
            read: 0,
            emptied: false,
        }
    }

    /// What to wait for. Idle sides are watched for errors alone, and not at all where they would cry without end.
    pub fn interests(&self) -> impl Iterator<Item = PollFd<'_>> {
        let idle = self.start == self.end;
        let source = self
            .source
            .as_ref()
            .filter(|_| idle)
            .map(|end| PollFd::new(&*end.fd, PollFlags::IN));
        let events = if idle { PollFlags::empty() } else { PollFlags::OUT };
        let sink = self.sink.as_ref().map(|end| PollFd::new(&*end.fd, events));
        source.into_iter().chain(sink)
    }

    /// Moves what can be moved without waiting.
    pub fn work(&mut self) {
        for _ in 0..TURNS {
            let moved = if self.start == self.end {
                self.fill()
            } else {
                self.empty()
            };
            match moved {
                Moved::Some => {}
                Moved::Blocked | Moved::Ended => break,
            }
        }
        if self.sink.as_ref().is_some_and(broken) {
            self.give_up();
        }
    }

    fn fill(&mut self) -> Moved {
        let Some(source) = &self.source else {
            return Moved::Ended;
        };
        match rustix::io::read(&*source.fd, &mut self.buffer[..]) {
            Ok(0) => self.finish(),
            Ok(count) => {
                (self.start, self.end) = (0, count);
                self.read = self.read.saturating_add(count);
                Moved::Some
            }
            Err(Errno::AGAIN) => {
                self.emptied = true;
                Moved::Blocked
            }
            Err(Errno::INTR) => Moved::Some,
            // A terminal whose last user is gone says EIO, a connection that broke ECONNRESET: no more comes.
            Err(_) => self.finish(),
        }
    }

    fn empty(&mut self) -> Moved {
        let (Some(sink), Some(bytes)) = (&self.sink, self.buffer.get(self.start..self.end)) else {
            return Moved::Ended;
        };
        match rustix::io::write(&*sink.fd, bytes) {
            Ok(count) => {
                self.start += count;
                Moved::Some
            }
            Err(Errno::AGAIN) => Moved::Blocked,
            Err(Errno::INTR) => Moved::Some,
            Err(_) => {
                self.give_up();
                Moved::Ended
            }
        }
    }

    /// The source has ended and all of it is written.
    fn finish(&mut self) -> Moved {
        self.source = None;
        if let Some(sink) = self.sink.take() {
            sink.shut(Shutdown::Write);
            self.delivering = (sink.kind == Kind::Socket).then_some(sink);
        }
        Moved::Ended
    }

    /// Nobody reads the sink: what is on its way is lost, and the source's writer learns it.
    fn give_up(&mut self) {
        self.sink = None;
        (self.start, self.end) = (0, 0);
        if let Some(source) = self.source.take() {
            source.shut(Shutdown::Read);
        }
    }

    /// From here on, what is written into the source no longer counts: see [`Pump::end`].
    pub fn mark(&mut self) {
        (self.read, self.emptied) = (0, false);
    }

    /// Ends the pump, if all is written that was in the source when it was marked.
    pub fn end(&mut self) {
        if self.start == self.end && (self.emptied || self.read >= LARGEST_PIPE) {
            self.finish();
        }
    }

    /// Has everything that the source will ever give been written, or can't it be?
    pub fn is_finished(&self) -> bool {
        self.source.is_none() && self.start == self.end
    }

    /// How far the other end of the sink is with the bytes of a finished pump.
    pub fn delivery(&self) -> Delivery {
        let Some(sink) = &self.delivering else {
            return Delivery::Confirmed;
        };
        if sys::unsent_bytes(sink).is_ok_and(|bytes| bytes > 0) && !has(sink, PollFlags::ERR) {
            Delivery::Under
        } else if has(sink, PollFlags::HUP | PollFlags::ERR) {
            Delivery::Confirmed
        } else {
            Delivery::Taken
        }
    }
}

/// How far the last bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// Still in this machine.
    Under,
    /// The device has taken them.
    Taken,
    /// Their reader has seen the end and closed.
    Confirmed,
}

fn broken(end: &End) -> bool {
    has(end, PollFlags::ERR | PollFlags::HUP)
}

fn has(end: &End, flags: PollFlags) -> bool {
    let mut poll = [PollFd::new(&*end.fd, PollFlags::empty())];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut poll, Some(&now)).is_ok() && poll[0].revents().intersects(flags)
}

#[cfg(test)]
#[path = "pump_test.rs"]
mod tests;
