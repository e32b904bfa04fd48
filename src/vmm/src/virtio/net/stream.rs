//! Ethernet frames on a stream socket, as `passt` and QEMU's `-netdev stream` have them.
//!
//! ```text
//!   ┌ length: 32 bits, big-endian ┬ frame ┬ length ┬ frame ┬ …
//! ```
//!
//! A stream has no packets: what is written may be taken in part and what is read may end anywhere, so both ways have a buffer. When
//! the one to the peer is full, the guest's packets wait in their queue. A peer that is gone or talks nonsense leaves a dead link, which
//! takes what is sent and gives nothing, as a cable does whose other end lies on the floor.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::{HEADER, MAX_PACKET};
use crate::virtio::queue::Buffer;

/// Bytes of a length.
const PREFIX: usize = 4;
/// The least that makes a frame: an Ethernet header, in bytes.
const SHORTEST: usize = 14;
/// The longest frame, in bytes.
const LONGEST: usize = MAX_PACKET - HEADER;
/// Bytes on their way to the peer at which no more are taken from the guest.
const FULL: usize = 256 << 10;
/// Room for what comes from the peer, in bytes: more than the longest frame.
const ROOM: usize = 256 << 10;

/// Both directions of a stream.
#[derive(Debug)]
pub struct Stream {
    /// Gone once the link is dead.
    socket: Option<UnixStream>,
    /// To the peer; the first `sent` bytes have left.
    out: Vec<u8>,
    sent: usize,
    /// From the peer; what counts lies between `start` and `end`.
    come: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    /// Over a socket that does not block.
    pub fn new(socket: UnixStream) -> Stream {
        Stream {
            socket: Some(socket),
            out: Vec::new(),
            sent: 0,
            come: vec![0; ROOM].into(),
            start: 0,
            end: 0,
        }
    }

    /// Whether the next frame of the guest's has room.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < FULL
    }

    /// Takes a packet of the guest's, header and all; what is none is dropped. It leaves with the next [`flush`](Self::flush).
    pub fn send(&mut self, packet: &mut Buffer<'_>) {
        packet.skip(HEADER);
        let length = packet.len();
        if self.socket.is_none() || !(SHORTEST..=LONGEST).contains(&length) {
            return;
        }
        // Below 2^17.
        self.out.extend((length as u32).to_be_bytes());
        let start = self.out.len();
        self.out.resize(start + length, 0);
        packet.read_into(&mut self.out[start..]);
    }

    /// Gives the socket what it takes. The rest waits until it can be written to.
    pub fn flush(&mut self) {
        while let (Some(socket), true) = (&mut self.socket, self.sent < self.out.len()) {
            match socket.write(&self.out[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.give_up(&error.to_string()),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= FULL {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The frame that comes next, if all of it is there. It stays until [`drop_frame`](Self::drop_frame).
    pub fn frame(&mut self) -> Option<&[u8]> {
        loop {
            match self.length() {
                Some(length) if !(SHORTEST..=LONGEST).contains(&length) => {
                    self.give_up("it sent a frame of an impossible length");
                    return None;
                }
                Some(length) if self.end - self.start >= PREFIX + length => {
                    let start = self.start + PREFIX;
                    return self.come.get(start..start + length);
                }
                _ if !self.read_more() => return None,
                _ => {}
            }
        }
    }

    /// Drops the frame that [`frame`](Self::frame) has shown.
    pub fn drop_frame(&mut self) {
        if let Some(length) = self.length() {
            self.start = (self.start + PREFIX + length).min(self.end);
        }
    }

    /// What the next frame's length is said to be.
    fn length(&self) -> Option<usize> {
        let prefix = self.come.get(self.start..self.end)?.first_chunk::<PREFIX>()?;
        Some(u32::from_be_bytes(*prefix) as usize)
    }

    /// Reads what the socket has. `false` if that is nothing.
    fn read_more(&mut self) -> bool {
        // The longest frame fits, so there is room behind an incomplete one at the front.
        self.come.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            let Some(socket) = &mut self.socket else {
                return false;
            };
            match socket.read(&mut self.come[self.end..]) {
                Ok(0) => self.give_up("it has closed the connection"),
                Ok(bytes) => {
                    self.end += bytes;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => self.give_up(&error.to_string()),
            }
        }
    }

    fn give_up(&mut self, why: &str) {
        tracing::warn!("the guest's network is cut off from its other end: {why}");
        self.socket = None;
        self.out.clear();
        self.sent = 0;
        self.start = 0;
        self.end = 0;
    }
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
