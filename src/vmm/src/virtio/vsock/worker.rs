//! The thread of the socket device.
//!
//! ```text
//!            ┌─► wait (epoll) ─► note what each socket is ready for
//!            │   from_guest: packets of the guest ─► connections, straight to their sockets
//!            │   to_guest:   connections in turn ─► packets into the guest's buffers
//!            └── interrupt the guest if it wants to hear of it
//! ```
//!
//! No connection holds up another: one whose endpoint stalls keeps at most its own credit's worth of bytes, and those that send
//! to the guest take turns of a few packets. The guest's packets are always taken: a driver that has many replies to send puts
//! up no buffers until they are (VIRTIO 1.2 §5.10.6.1), so a device that waited for buffers would wait for ever. Resets are the
//! one thing that a guest can ask for without credit; beyond a number that no honest one reaches they are left out.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Wakes;
use super::connection::{Connection, Ports};
use super::packet::{HEADER, HOST_CID, Header, Op, TYPE_STREAM};
use crate::config::Vsock as Config;
use crate::memory::{GuestMemory, Ram};
use crate::virtio::queue::{self, Buffer, Chain, Queue};
use crate::virtio::{Command, Inbox, Interrupt};

/// Connections at one time, with those that only deliver their last bytes.
const MAX_CONNECTIONS: usize = 1024;
/// Resets that may wait for the guest's buffers. Two for each connection are more than an honest guest causes.
const MAX_RESETS: usize = 2 * MAX_CONNECTIONS;
/// Packets that a connection sends to the guest before the next one's turn.
const TURN: usize = 16;
/// Packets in each direction before the thread looks at its events again.
const ROUND: usize = 256;

const COMMAND: u64 = 0;
const TO_GUEST: u64 = 1;
const FROM_GUEST: u64 = 2;
const ENDED: u64 = 3;
/// Connections have numbers from here on. They are never used again, so an event can't mean another connection.
const FIRST_CONNECTION: u64 = 16;

/// Why the driver can't go on with this device.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("a virtqueue is broken")]
    Queue(#[from] queue::Error),
    #[error("a receive buffer of {0} bytes has no room for a packet")]
    Buffer(usize),
}

/// The queues of a running device.
#[derive(Debug)]
struct Queues {
    to_guest: Queue,
    from_guest: Queue,
}

/// State of the thread.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    /// Watched by `epoll`, which would forget them if they were closed.
    _wakes: Wakes,
    interrupt: Interrupt,
    memory: Arc<Ram>,
    epoll: Epoll,
    /// While the driver runs the device.
    queues: Option<Queues>,
    streams: Streams,
    /// The VM is over; the thread ends with the last delivered byte.
    ended: bool,
}

/// All connections.
#[derive(Debug)]
struct Streams {
    connections: HashMap<u64, Connection>,
    /// The connections that the guest knows.
    by_ports: HashMap<Ports, u64>,
    /// Connections that may have a packet for the guest, in turn.
    turns: VecDeque<u64>,
    /// Resets for the guest.
    resets: VecDeque<Header>,
    next: u64,
}

impl Worker {
    /// A worker whose device the driver has not set up yet.
    pub fn new(config: Config, wakes: Wakes, interrupt: Interrupt, memory: Arc<Ram>) -> io::Result<Worker> {
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (wakes.command.as_raw_fd(), COMMAND),
            (wakes.to_guest.as_raw_fd(), TO_GUEST),
            (wakes.from_guest.as_raw_fd(), FROM_GUEST),
            (wakes.ended.as_raw_fd(), ENDED),
        ] {
            // Edge-triggered: every write to an eventfd is an event, and nobody has to read its counter.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        let streams = Streams {
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            next: FIRST_CONNECTION,
        };
        Ok(Worker {
            config,
            _wakes: wakes,
            interrupt,
            memory,
            epoll,
            queues: None,
            streams,
            ended: false,
        })
    }

    /// The thread's life.
    pub fn run(mut self, inbox: &Inbox) {
        let mut events = vec![EpollEvent::default(); 64];
        let mut more = false;
        loop {
            match self.epoll.wait(if more { 0 } else { -1 }, &mut events) {
                Ok(count) => events.iter().take(count).for_each(|event| self.note(event)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return tracing::error!(%error, "vsock can't wait for events"),
            }
            while let Some(command) = inbox.next() {
                match command {
                    Command::Activate { queues, .. } => self.activate(queues),
                    Command::Reset(done) => {
                        self.forget_guest();
                        // The vCPU that waits is gone if the VM is over.
                        let _ = done.send(());
                    }
                    Command::Stop => return,
                }
            }
            more = match self.serve() {
                Ok(more) => more,
                Err(broken) => {
                    self.interrupt.fail("vsock", &broken);
                    self.forget_guest();
                    false
                }
            };
            if self.ended && !more {
                self.forget_guest();
                if self.streams.connections.is_empty() {
                    return;
                }
            }
        }
    }

    /// Remembers what an event means.
    fn note(&mut self, event: &EpollEvent) {
        match event.data() {
            // The thread looks at its commands and queues after every wait anyway.
            COMMAND | TO_GUEST | FROM_GUEST => {}
            ENDED => self.ended = true,
            id => self.streams.note(id, event.event_set()),
        }
    }

    fn activate(&mut self, queues: Vec<Queue>) {
        // The transport hands over as many as the description has: to the guest, from the guest, events.
        let mut queues = queues.into_iter();
        self.queues = match (queues.next(), queues.next()) {
            (Some(to_guest), Some(from_guest)) => Some(Queues { to_guest, from_guest }),
            _ => None,
        };
    }

    /// The guest's side is gone: endpoints get what it had sent, and the end.
    fn forget_guest(&mut self) {
        self.queues = None;
        self.streams.detach_all();
    }

    /// One round in both directions. Whether there is more to do without an event.
    fn serve(&mut self) -> Result<bool, Broken> {
        let Some(mut queues) = self.queues.take() else {
            return Ok(false);
        };
        let memory = Arc::clone(&self.memory);
        let more_from_guest = self.serve_from_guest(&mut queues.from_guest, &memory)?;
        let more_to_guest = self.streams.serve_to_guest(&mut queues.to_guest, &memory)?;
        let wanted = [
            queues.from_guest.needs_interrupt(&memory)?,
            queues.to_guest.needs_interrupt(&memory)?,
        ];
        if wanted.contains(&true) {
            self.interrupt.used_buffer();
        }
        let more = more_to_guest || more_from_guest;
        self.queues = Some(queues);
        Ok(more)
    }

    /// Takes packets of the guest. Whether some are left.
    fn serve_from_guest(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        queue.disable_notification(memory)?;
        for _ in 0..ROUND {
            let Some(Chain {
                head, mut readable, ..
            }) = queue.pop(memory)?
            else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(false);
            };
            // A packet without a whole header can't be answered.
            if let Some(header) = Header::read(&mut readable) {
                self.packet(&header, &mut readable);
            }
            queue.push(memory, head, 0)?;
        }
        Ok(true)
    }

    fn packet(&mut self, header: &Header, payload: &mut Buffer<'_>) {
        // Nobody else is behind this device.
        if header.src_cid != u64::from(self.config.guest_cid) {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.streams.refuse(header);
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        match (self.streams.by_ports.get(&ports).copied(), header.op) {
            (Some(id), Op::Reset) => self.streams.detach(id),
            (Some(id), _) => self.streams.receive(id, header, payload),
            (None, Op::Request) => self.connect(header),
            (None, _) => self.streams.refuse(header),
        }
    }

    fn connect(&mut self, request: &Header) {
        if self.streams.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!(
                port = request.dst_port,
                "the guest has {MAX_CONNECTIONS} vsock connections; one more is refused"
            );
            return self.streams.refuse(request);
        }
        let Some(stream) = (self.config.connect)(request.dst_port) else {
            return self.streams.refuse(request);
        };
        let connection = Connection::new(stream, request);
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, self.streams.next);
        match self
            .epoll
            .ctl(ControlOperation::Add, connection.socket().as_raw_fd(), event)
        {
            Ok(()) => self.streams.add(connection),
            Err(error) => {
                tracing::warn!(port = request.dst_port, %error, "a vsock connection can't be watched; it is refused");
                self.streams.refuse(request);
            }
        }
    }
}

impl Streams {
    fn add(&mut self, connection: Connection) {
        let id = self.next;
        self.next += 1;
        self.by_ports.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.settle(id);
    }

    /// Remembers what a socket is ready for, and delivers what waited for that.
    fn note(&mut self, id: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            connection.readable = true;
        }
        if events.contains(EventSet::HANG_UP) {
            connection.endpoint_is_deaf();
        }
        if events.contains(EventSet::OUT) {
            connection.writable = true;
            connection.deliver();
        }
        self.settle(id);
    }

    /// Takes a packet of a connection that exists.
    fn receive(&mut self, id: u64, header: &Header, payload: &mut Buffer<'_>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.receive(header, payload).is_err() {
            self.remove(id);
            return self.refuse(header);
        }
        self.settle(id);
    }

    /// Brings the lists up to date with what has happened to a connection.
    fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_detached() {
            if !connection.is_undelivered() {
                self.connections.remove(&id);
            }
        } else if connection.is_finished() {
            let reset = connection.reset();
            self.reset(reset);
            self.remove(id);
        } else if !connection.queued && connection.has_packet() {
            connection.queued = true;
            self.turns.push_back(id);
        }
    }

    /// Has the guest told of a reset.
    fn reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.by_ports.remove(&connection.ports);
        }
    }

    /// The guest has forgotten a connection: it lives on until what the guest sent is delivered.
    fn detach(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        self.by_ports.remove(&connection.ports);
        if !connection.detach() {
            self.connections.remove(&id);
        }
    }

    fn detach_all(&mut self) {
        self.by_ports.clear();
        self.turns.clear();
        self.resets.clear();
        self.connections.retain(|_, connection| connection.detach());
    }

    /// Answers a packet with a reset, unless it is one.
    fn refuse(&mut self, packet: &Header) {
        if packet.op != Op::Reset {
            self.reset(Header {
                src_cid: packet.dst_cid,
                dst_cid: packet.src_cid,
                src_port: packet.dst_port,
                dst_port: packet.src_port,
                len: 0,
                kind: packet.kind,
                op: Op::Reset,
                flags: 0,
                buf_alloc: 0,
                fwd_cnt: 0,
            });
        }
    }

    /// Fills the guest's buffers. Whether packets and maybe buffers are left.
    fn serve_to_guest(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        if self.resets.is_empty() && self.turns.is_empty() {
            return Ok(false);
        }
        queue.disable_notification(memory)?;
        for _ in 0..ROUND {
            let Some(mut chain) = queue.pop(memory)? else {
                // The guest tells when it has put new buffers there, which is all we wait for.
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(false);
            };
            if chain.writable.len() <= HEADER {
                return Err(Broken::Buffer(chain.writable.len()));
            }
            let mut room = chain.writable.split_front(HEADER);
            let Some(header) = self.next_packet(&chain.writable) else {
                queue.undo_pop();
                return Ok(false);
            };
            room.write(&header.to_bytes());
            // A payload is at most 64 KiB.
            queue.push(memory, chain.head, HEADER as u32 + header.len)?;
        }
        Ok(true)
    }

    /// The next packet for the guest: resets first, then the connections in turn. Data goes straight to `payload`.
    fn next_packet(&mut self, payload: &Buffer<'_>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(&id) = self.turns.front() {
            let connection = self.connections.get_mut(&id);
            if let Some((connection, packet)) =
                connection.and_then(|c| c.next_packet(payload).map(|p| (c, p)))
            {
                connection.sent_in_turn += 1;
                if connection.sent_in_turn >= TURN {
                    connection.sent_in_turn = 0;
                    self.turns.rotate_left(1);
                }
                return Some(packet);
            }
            self.turns.pop_front();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.queued = false;
                connection.sent_in_turn = 0;
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
