//! One stream between the guest and an endpoint in this process.
//!
//! ```text
//!   guest ── Data ──► pending (≤ BUF_ALLOC) ──► socket ──► endpoint
//!   guest ◄── Data ◄──────────────────────────── socket ◄── endpoint
//! ```
//!
//! *Guest to endpoint*: credit is what the endpoint has taken (`forwarded`), so the guest can never have more than
//! [`BUF_ALLOC`] bytes here; a guest that sends more breaks the protocol. *Endpoint to guest*: nothing is buffered here; the
//! socket is read only when the guest has both credit and a buffer for the bytes.
//!
//! The directions end apart from each other. What the guest sent before it ended its direction is delivered before the
//! endpoint sees the end.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use crate::sys;
use crate::virtio::queue::Buffer;

/// What the guest may have sent and the endpoint not yet taken, in bytes.
pub const BUF_ALLOC: u32 = 256 << 10;
/// The largest payload of a packet to the guest, in bytes.
const MAX_PAYLOAD: usize = 64 << 10;
/// A guest that knows of less room than this is told of more.
const LOW_CREDIT: u32 = BUF_ALLOC / 2;

/// The two ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The port that the guest connected to.
    pub host: u32,
    /// The port that it connected from.
    pub guest: u32,
}

/// The guest did what the protocol forbids: the connection is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation;

/// A connection. Sockets are used edge-triggered: `readable` and `writable` remember the last event until a call would have to
/// wait.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub ports: Ports,
    guest_cid: u64,
    stream: UnixStream,
    /// An event said so, and no read has found the socket empty since.
    pub readable: bool,
    /// An event said so, and no write has found the socket full since.
    pub writable: bool,
    /// Whether it waits for its turn to send to the guest.
    pub queued: bool,
    /// Packets it has sent to the guest in this turn.
    pub sent_in_turn: usize,

    /// The guest has ended its direction.
    guest_ended: bool,
    /// The endpoint has been told that this was all.
    end_delivered: bool,
    /// The endpoint takes nothing any more.
    endpoint_deaf: bool,
    pending: VecDeque<u8>,
    /// Bytes that the guest has sent, that the endpoint has taken, and that the guest knows the endpoint has taken.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,

    /// The guest does not know the connection any more.
    detached: bool,

    /// The endpoint has ended its direction.
    endpoint_ended: bool,
    /// The guest takes nothing any more.
    guest_deaf: bool,
    /// Bytes sent to the guest, and what the guest said about them.
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_buf_alloc: u32,

    /// Shutdown flags that the guest has been told.
    told: u32,
    /// Packets without data that wait to be sent.
    wants_response: bool,
    wants_credit_update: bool,
    /// The guest was asked for credit and has not given any since.
    asked_credit: bool,
}

impl Connection {
    /// The connection that the guest asked for with `request`; `stream` leads to the endpoint.
    pub fn new(stream: UnixStream, request: &Header) -> Connection {
        Connection {
            ports: Ports {
                host: request.dst_port,
                guest: request.src_port,
            },
            guest_cid: request.src_cid,
            stream,
            readable: false,
            writable: true,
            queued: false,
            sent_in_turn: 0,
            guest_ended: false,
            end_delivered: false,
            endpoint_deaf: false,
            pending: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            detached: false,
            endpoint_ended: false,
            guest_deaf: false,
            sent: Wrapping(0),
            guest_forwarded: Wrapping(request.fwd_cnt),
            guest_buf_alloc: request.buf_alloc,
            told: 0,
            wants_response: true,
            wants_credit_update: false,
            asked_credit: false,
        }
    }

    /// The socket, for epoll.
    pub fn socket(&self) -> &UnixStream {
        &self.stream
    }

    // ---- guest to endpoint

    /// Takes a packet from the guest. The payload is what follows the header in the guest's buffer.
    pub fn receive(&mut self, header: &Header, payload: &mut Buffer<'_>) -> Result<(), Violation> {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        // A guest answers at once, whether its reader has taken anything or not; where it has not, the next word comes from itself.
        if self.credit() > 0 {
            self.asked_credit = false;
        }
        match header.op {
            Op::Data => self.receive_data(header.len, payload),
            Op::Shutdown => {
                self.receive_shutdown(header.flags);
                Ok(())
            }
            Op::CreditUpdate => Ok(()),
            Op::CreditRequest => {
                self.wants_credit_update = true;
                Ok(())
            }
            Op::Request | Op::Response | Op::Reset | Op::Unknown(_) => Err(Violation),
        }
    }

    fn receive_data(&mut self, len: u32, payload: &mut Buffer<'_>) -> Result<(), Violation> {
        // `len` is a copy; the pieces of the payload have lengths of their own that no longer change.
        let bytes = len as usize;
        if self.guest_ended || bytes > payload.len() || bytes > self.room() {
            return Err(Violation);
        }
        payload.truncate(bytes);
        self.received += len;
        self.send_directly(payload);
        self.keep(payload);
        Ok(())
    }

    /// Bytes that the guest may still send. `pending` never holds more than `BUF_ALLOC`.
    fn room(&self) -> usize {
        (BUF_ALLOC as usize).saturating_sub(self.pending.len())
    }

    /// Sends from guest memory to the socket, as far as that takes it now.
    fn send_directly(&mut self, payload: &mut Buffer<'_>) {
        while self.pending.is_empty() && self.writable && !self.endpoint_deaf && payload.len() > 0 {
            match sys::send(&self.stream, payload.rest()) {
                Ok(bytes) => {
                    payload.skip(bytes);
                    self.taken(bytes);
                }
                Err(error) => return self.send_failed(&error),
            }
        }
    }

    /// Copies what the socket did not take to `pending`.
    fn keep(&mut self, payload: &mut Buffer<'_>) {
        let bytes = payload.len();
        if self.endpoint_deaf {
            return self.taken(bytes);
        }
        self.pending.reserve(bytes);
        for piece in payload.rest() {
            let mut copy = vec![0; piece.len()];
            piece.copy_to(&mut copy[..]);
            self.pending.extend(copy);
        }
    }

    fn receive_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            // The endpoint's next write fails. Our own next read would find the end, but there is none.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_ended = true;
            self.end_when_delivered();
        }
    }

    /// Delivers what is pending, as far as the socket takes it now.
    pub fn deliver(&mut self) {
        while self.writable && !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match rustix::net::send(
                self.stream.as_fd(),
                front,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(bytes) => {
                    self.pending.drain(..bytes);
                    self.taken(bytes);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => self.send_failed(&error.into()),
            }
        }
        if self.pending.is_empty() {
            // A stream that stalled once gives its memory back.
            self.pending = VecDeque::new();
        }
        self.end_when_delivered();
    }

    /// The endpoint has taken (or will never take) `bytes` more bytes.
    fn taken(&mut self, bytes: usize) {
        // At most `BUF_ALLOC` at a time.
        self.forwarded += bytes as u32;
        self.update_credit();
    }

    fn update_credit(&mut self) {
        let known_room = BUF_ALLOC.saturating_sub((self.received - self.announced).0);
        if known_room < LOW_CREDIT && self.forwarded != self.announced {
            self.wants_credit_update = true;
        }
    }

    fn send_failed(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.writable = false;
        } else {
            self.endpoint_is_deaf();
        }
    }

    /// The endpoint has closed its receiving side: what is pending has no reader.
    pub fn endpoint_is_deaf(&mut self) {
        self.endpoint_deaf = true;
        let bytes = self.pending.len();
        self.pending = VecDeque::new();
        self.taken(bytes);
    }

    fn end_when_delivered(&mut self) {
        if self.guest_ended && !self.end_delivered && self.pending.is_empty() {
            self.end_delivered = true;
            // Fails only if the endpoint is gone, which ends the direction as well.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Whether the guest has closed both directions and everything it sent has been delivered: answer with a reset.
    pub fn is_finished(&self) -> bool {
        self.guest_deaf && self.guest_ended && self.pending.is_empty()
    }

    /// The guest has forgotten the connection. Returns whether something is left to deliver.
    pub fn detach(&mut self) -> bool {
        self.detached = true;
        self.guest_ended = true;
        self.guest_deaf = true;
        self.end_when_delivered();
        self.is_undelivered()
    }

    /// Whether it lives only for its last bytes.
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// Whether bytes wait for the endpoint.
    pub fn is_undelivered(&self) -> bool {
        !self.pending.is_empty()
    }

    // ---- endpoint to guest

    /// Whether there is a packet for the guest. An empty read may still show that there is none.
    pub fn has_packet(&self) -> bool {
        let any = self.wants_response
            || self.wants_credit_update
            || self.shutdown_to_tell() != 0
            || self.can_send_data()
            || self.must_ask_credit();
        any && !self.detached
    }

    fn can_send_data(&self) -> bool {
        self.is_open_to_guest() && self.readable && self.credit() > 0
    }

    fn must_ask_credit(&self) -> bool {
        self.is_open_to_guest() && self.readable && self.credit() == 0 && !self.asked_credit
    }

    fn is_open_to_guest(&self) -> bool {
        !self.endpoint_ended && !self.guest_deaf
    }

    /// Bytes that the guest can take. A guest that claims to have taken more than it was sent gets nothing.
    fn credit(&self) -> usize {
        let in_flight = (self.sent - self.guest_forwarded).0;
        self.guest_buf_alloc.saturating_sub(in_flight) as usize
    }

    /// Shutdown flags that are true and that the guest does not know yet.
    fn shutdown_to_tell(&self) -> u32 {
        let mut flags = 0;
        if self.endpoint_ended {
            flags |= SHUTDOWN_SEND;
        }
        // When both directions are over, telling so lets the guest forget the connection.
        let nothing_to_take = self.endpoint_deaf || self.end_delivered && self.endpoint_ended;
        if nothing_to_take {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags & !self.told
    }

    /// The next packet for the guest. Data goes straight to `payload`, the room behind the header.
    pub fn next_packet(&mut self, payload: &Buffer<'_>) -> Option<Header> {
        if self.detached {
            return None;
        }
        if std::mem::take(&mut self.wants_response) {
            return Some(self.packet(Op::Response));
        }
        if self.can_send_data()
            && let Some(packet) = self.read_endpoint(payload)
        {
            return Some(packet);
        }
        let flags = self.shutdown_to_tell();
        if flags != 0 {
            self.told |= flags;
            // The flags add up at the receiver, so all that hold are sent again.
            return Some(Header {
                flags: self.told,
                ..self.packet(Op::Shutdown)
            });
        }
        if std::mem::take(&mut self.wants_credit_update) {
            return Some(self.packet(Op::CreditUpdate));
        }
        if self.must_ask_credit() {
            self.asked_credit = true;
            return Some(self.packet(Op::CreditRequest));
        }
        None
    }

    fn read_endpoint(&mut self, payload: &Buffer<'_>) -> Option<Header> {
        let limit = self.credit().min(MAX_PAYLOAD);
        let pieces = payload.first(limit);
        match sys::receive(&self.stream, &pieces) {
            Ok(0) => {
                self.endpoint_ended = true;
                None
            }
            Ok(bytes) => {
                // At most `MAX_PAYLOAD`.
                self.sent += bytes as u32;
                Some(Header {
                    len: bytes as u32,
                    ..self.packet(Op::Data)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            // The endpoint was closed before it had read everything.
            Err(_) => {
                self.endpoint_ended = true;
                self.endpoint_is_deaf();
                None
            }
        }
    }

    /// The packet that ends the connection.
    pub fn reset(&mut self) -> Header {
        self.packet(Op::Reset)
    }

    /// A packet to the guest without data, with our side's credit.
    fn packet(&mut self, op: Op) -> Header {
        self.announced = self.forwarded;
        self.wants_credit_update = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded.0,
        }
    }
}
