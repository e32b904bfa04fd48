//! Init's end of the control stream (see [`workload::protocol`]).

use crate::failure::{Context as _, Failure, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use workload::protocol::{Decoder, Outcome, ToGuest, ToHost, encode};

/// Bytes of answers that may wait for the host. While more wait, its requests are not read.
const MAX_WAITING: usize = 64 << 10;

/// The stream, with what has been read and not understood, and what has been said and not sent.
pub struct Control {
    socket: OwnedFd,
    decoder: Decoder<ToGuest>,
    waiting: Vec<u8>,
}

impl Control {
    /// Takes over a connected socket. It blocks until [`Control::set_nonblocking`].
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
            waiting: Vec::new(),
        }
    }

    /// From here on nothing blocks.
    pub fn set_nonblocking(&self) -> Result<()> {
        rustix::io::ioctl_fionbio(&self.socket, true).context(|| "control stream".into())
    }

    /// Reads what has arrived. Fails at the end of the stream, which is the end of the host.
    pub fn receive(&mut self) -> Result<()> {
        let mut bytes = zeroize::Zeroizing::new([0; 16 << 10]);
        match recv(&self.socket, &mut bytes[..], RecvFlags::empty()) {
            Ok((0, _)) => Err(Failure::other("the host closed the control stream")),
            Ok((count, _)) => {
                self.decoder.push(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error).context(|| "read the control stream".into()),
        }
    }

    /// The next request that has arrived whole.
    pub fn next_request(&mut self) -> Result<Option<ToGuest>> {
        if self.waiting.len() > MAX_WAITING {
            return Ok(None);
        }
        self.decoder
            .next_message()
            .map_err(|error| Failure::other(error.to_string()))
    }

    /// Waits for the next request, on a stream that blocks.
    pub fn wait_for_request(&mut self) -> Result<ToGuest> {
        loop {
            if let Some(request) = self.next_request()? {
                return Ok(request);
            }
            self.receive()?;
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, id: u32, outcome: Outcome) -> Result<()> {
        self.send(&ToHost::Reply { id, outcome })
    }

    /// Says something; sends as much of it as the stream takes now.
    pub fn send(&mut self, message: &ToHost) -> Result<()> {
        let bytes = encode(message).map_err(|error| Failure::other(error.to_string()))?;
        self.waiting.extend_from_slice(&bytes);
        self.flush()
    }

    /// Sends what waits, as far as the stream takes it now.
    pub fn flush(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            match send(&self.socket, &self.waiting, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "write to the control stream".into()),
            }
        }
        Ok(())
    }

    /// Has everything said been sent?
    pub fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What to wait for.
    pub fn interest(&self) -> PollFd<'_> {
        let mut events = PollFlags::empty();
        if self.waiting.len() <= MAX_WAITING {
            events |= PollFlags::IN;
        }
        if !self.waiting.is_empty() {
            events |= PollFlags::OUT;
        }
        PollFd::new(&self.socket, events)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
