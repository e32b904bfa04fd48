//! Messages over a Unix stream socket, framed as in [`workload::protocol`].
//!
//! Three conversations use it: `create` with the process that becomes the VMM, later commands with the VMM's control
//! socket, and the VMM with the guest (whose vsock stream ends in such a socket).

use anyhow::{Context, Result, ensure};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut, Write};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use workload::protocol::{Decoder, encode};

/// Descriptors that can go with a message: those of standard streams.
pub const MAX_DESCRIPTORS: usize = 3;

/// One end of a conversation that sends `S` and receives `R`.
pub struct Channel<S, R> {
    stream: UnixStream,
    decoder: Decoder<R>,
    /// Descriptors that came with what was read.
    descriptors: Vec<OwnedFd>,
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
            descriptors: Vec::new(),
            sends: PhantomData,
        }
    }

    /// From here on reads and writes wait for the other side for so long at most, and then fail with EAGAIN.
    pub fn wait_at_most(&self, time: Duration) -> Result<()> {
        let both = self.stream.set_read_timeout(Some(time));
        both.and_then(|()| self.stream.set_write_timeout(Some(time)))
            .context("channel")
    }

    /// Sends one message, waiting until the other side has room for it.
    pub fn send(&mut self, message: &S) -> Result<()> {
        let bytes = encode(message)?;
        self.stream
            .write_all(&bytes)
            .context("the other side of the channel is gone")
    }

    /// Sends one message together with descriptors, at most [`MAX_DESCRIPTORS`], which the other side finds with
    /// [`Channel::descriptors`].
    pub fn send_with(&mut self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let room = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        ensure!(
            room,
            "{} descriptors are too many for a message",
            descriptors.len()
        );
        let sent = rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        // They go with the first byte; the rest may need more calls.
        let rest = bytes.get(sent.context("the other side of the channel is gone")?..);
        self.stream
            .write_all(rest.unwrap_or_default())
            .context("the other side of the channel is gone")
    }

    /// The descriptors that have come with messages so far.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let count = match rustix::net::recvmsg(&self.stream, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        {
            Ok(received) if received.bytes == 0 => return Ok(Received::Closed),
            Ok(received) => received.bytes,
            Err(Errno::INTR) => return Ok(Received::Pending),
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error).context("the channel can't be read"),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message
                && self.descriptors.len() < MAX_DESCRIPTORS
            {
                self.descriptors.extend(descriptors);
            }
        }
        self.decoder.push(&bytes[..count]);
        Ok(self.buffered()?.map_or(Received::Pending, Received::Message))
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
