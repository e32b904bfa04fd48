//! Messages over a Unix stream socket, framed as in [`workload::protocol`].
//!
//! Three conversations use it: `create` with the process that becomes the VMM, later commands with the VMM's control
//! socket, and the VMM with the guest (whose vsock stream ends in such a socket).

use anyhow::{Context, Result};
use rustix::fd::{AsFd, BorrowedFd};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use workload::protocol::{Decoder, encode};

/// One end of a conversation that sends `S` and receives `R`.
pub struct Channel<S, R> {
    stream: UnixStream,
    decoder: Decoder<R>,
    sends: PhantomData<S>,
}

/// What a read brought.
#[derive(Debug)]
pub enum Received<R> {
    /// A message.
    Message(R),
    /// Nothing complete yet.
    Pending,
    /// The other side is gone.
    Closed,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Speaks over this stream.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            sends: PhantomData,
        }
    }

    /// Sends one message, waiting until the other side has room for it.
    pub fn send(&mut self, message: &S) -> Result<()> {
        let bytes = encode(message)?;
        self.stream
            .write_all(&bytes)
            .context("the other side of the channel is gone")
    }

    /// Waits for one message. `None` if the other side is gone.
    pub fn receive(&mut self) -> Result<Option<R>> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            match self.receive_some()? {
                Received::Message(message) => return Ok(Some(message)),
                Received::Pending => {}
                Received::Closed => return Ok(None),
            }
        }
    }

    /// The next message that has arrived already, without reading.
    pub fn buffered(&mut self) -> Result<Option<R>> {
        Ok(self.decoder.next_message()?)
    }

    /// Reads once, blocking unless the descriptor is readable. After a `Message`, ask [`Channel::buffered`] for more.
    pub fn receive_some(&mut self) -> Result<Received<R>> {
        let mut bytes = [0; 16 << 10];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Ok(Received::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Received::Pending),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Received::Closed),
            Err(error) => return Err(error).context("the channel can't be read"),
        };
        self.decoder.push(&bytes[..count]);
        Ok(self.buffered()?.map_or(Received::Pending, Received::Message))
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
