//! The thread with a driver that behaves, and with one that doesn't.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::super::connection::BUF_ALLOC;
use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::{Outbox, command_channel};

const CID: u64 = 3;
const RECEIVE_BUFFERS: u64 = 0x40_0000;
const SEND_BUFFERS: u64 = 0x80_0000;
const BUFFER: u64 = 4096;
const QUEUE: u16 = 128;
/// A port that leads to an endpoint; others are refused.
const OPEN: u32 = 10;

/// A guest: its queues, and the other ends of its streams.
struct Guest {
    to_guest: Driver,
    from_guest: Driver,
    /// Receive buffers by the head that they were offered under.
    sent: u64,
    events: EventFd,
    refilled: EventFd,
    ended: EventFd,
    interrupt: Interrupt,
    outbox: Outbox,
    endpoints: mpsc::Receiver<UnixStream>,
    thread: Option<std::thread::JoinHandle<()>>,
    packets: VecDeque<(Header, Vec<u8>)>,
}

fn guest() -> Guest {
    guest_with_credit(true)
}

fn guest_with_credit(receive_buffers: bool) -> Guest {
    let memory = memory();
    let eventfd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (sender, endpoints) = mpsc::channel();
    let connect = move |port| {
        let (ours, theirs) = UnixStream::pair().ok().filter(|_| port == OPEN)?;
        sender.send(theirs).ok()?;
        Some(ours)
    };
    let config = Config {
        guest_cid: CID as u32,
        connect: Box::new(connect),
    };
    let (command, to_guest, from_guest, ended) = (eventfd(), eventfd(), eventfd(), eventfd());
    let (outbox, inbox) = command_channel(command.try_clone().unwrap());
    let interrupt = Interrupt::new(eventfd());
    let wakes = Wakes {
        command,
        to_guest: to_guest.try_clone().unwrap(),
        from_guest: from_guest.try_clone().unwrap(),
        ended: to_owned(&ended),
    };
    let worker = Worker::new(config, wakes, interrupt.clone(), memory.clone()).unwrap();
    let thread = Some(std::thread::spawn(move || worker.run(&inbox)));
    let mut guest = Guest {
        to_guest: Driver::new(&memory, 0x10_0000, QUEUE),
        from_guest: Driver::new(&memory, 0x12_0000, QUEUE),
        sent: 0,
        events: from_guest,
        refilled: to_guest,
        ended,
        interrupt,
        outbox,
        endpoints,
        thread,
        packets: VecDeque::new(),
    };
    if receive_buffers {
        for at in 0..u64::from(QUEUE) {
            guest
                .to_guest
                .add(&[(RECEIVE_BUFFERS + at * BUFFER, BUFFER as u32, true)]);
        }
    }
    let queues = vec![guest.to_guest.queue(), guest.from_guest.queue()];
    guest.outbox.send(Command::Activate { queues, features: 0 });
    guest
}

fn to_owned(event: &EventFd) -> std::os::fd::OwnedFd {
    // SAFETY: the descriptor is open while `event` lives.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
        .try_clone_to_owned()
        .unwrap()
}

fn header(op: Op, port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: port,
        dst_port: OPEN,
        len: 0,
        kind: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}

impl Guest {
    /// Sends a packet; waits while the queue is full.
    fn send(&mut self, header: Header, payload: &[u8]) {
        let slot = SEND_BUFFERS + self.sent % 64 * 0x11000;
        self.sent += 1;
        self.from_guest.write(slot, &header.to_bytes());
        self.from_guest.write(slot + HEADER as u64, payload);
        self.from_guest
            .add(&[(slot, (HEADER + payload.len()) as u32, false)]);
        self.events.write(1).unwrap();
        let patience = Instant::now();
        while self.from_guest.used().is_empty() {
            assert!(
                patience.elapsed() < Duration::from_secs(10),
                "the packet is not taken"
            );
            std::thread::yield_now();
        }
    }

    fn data(&mut self, port: u32, payload: &[u8]) {
        self.send(
            Header {
                len: payload.len() as u32,
                ..header(Op::Data, port)
            },
            payload,
        );
    }

    fn shutdown(&mut self, port: u32, flags: u32) {
        self.send(
            Header {
                flags,
                ..header(Op::Shutdown, port)
            },
            &[],
        );
    }

    /// Takes what has come into the receive buffers, and offers them again.
    fn collect(&mut self) {
        for (head, len) in self.to_guest.used() {
            let at = RECEIVE_BUFFERS + u64::from(head) * BUFFER;
            let memory = self.to_guest.memory.clone();
            let mut copy = Driver::new(&memory, 0x1f_0000, 16);
            copy.add(&[(at, len, false)]);
            let mut chain = copy.queue().pop(&memory).unwrap().unwrap();
            let header = Header::read(&mut chain.readable).unwrap();
            let payload = self.to_guest.read(at + HEADER as u64, len as usize - HEADER);
            assert_eq!(payload.len(), header.len as usize);
            self.packets.push_back((header, payload));
            self.to_guest.offer(head as u16);
            self.refilled.write(1).unwrap();
        }
    }

    /// The next packet, within ten seconds.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let patience = Instant::now();
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return packet;
            }
            assert!(patience.elapsed() < Duration::from_secs(10), "no packet comes");
            self.collect();
            std::thread::yield_now();
        }
    }

    fn receive_op(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        assert_eq!(
            (header.src_cid, header.dst_cid, header.kind),
            (HOST_CID, CID, TYPE_STREAM)
        );
        header
    }

    fn silent(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        self.collect();
        assert_eq!(self.packets.pop_front(), None);
    }

    fn connect(&mut self, port: u32) -> UnixStream {
        self.send(header(Op::Request, port), &[]);
        let response = self.receive_op(Op::Response);
        assert_eq!(
            (response.dst_port, response.src_port, response.buf_alloc),
            (port, OPEN, BUF_ALLOC)
        );
        let stream = self.endpoints.recv_timeout(Duration::from_secs(10)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.outbox.send(Command::Stop);
        let result = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || result.is_ok());
    }
}

fn read_to_end(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = guest();
    let mut endpoint = guest.connect(1000);
    guest.data(1000, b"from the guest");
    let mut bytes = [0; 14];
    endpoint.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    endpoint.write_all(b"from the host").unwrap();
    let (packet, payload) = guest.receive();
    assert_eq!(
        (packet.op, &payload[..], packet.fwd_cnt),
        (Op::Data, &b"from the host"[..], 14)
    );
}

#[test]
fn refusals_are_resets() {
    let mut guest = guest();
    guest.send(
        Header {
            dst_port: 11,
            ..header(Op::Request, 1)
        },
        &[],
    );
    let reset = guest.receive_op(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (11, 1));
    // Packets for no connection, of the wrong type, for somebody else.
    for op in [
        Op::Data,
        Op::Shutdown,
        Op::Response,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Unknown(0),
        Op::Unknown(77),
    ] {
        guest.send(header(op, 2), &[]);
        guest.receive_op(Op::Reset);
    }
    guest.send(
        Header {
            kind: 2,
            ..header(Op::Request, 3)
        },
        &[],
    );
    assert_eq!(guest.receive().0.op, Op::Reset);
    guest.send(
        Header {
            dst_cid: 7,
            ..header(Op::Request, 3)
        },
        &[],
    );
    assert_eq!((guest.receive().0.op, guest.packets.len()), (Op::Reset, 0));
    // Nobody answers a reset, or a sender that is not the guest.
    guest.send(header(Op::Reset, 4), &[]);
    guest.send(
        Header {
            src_cid: 8,
            ..header(Op::Request, 4)
        },
        &[],
    );
    guest.silent();
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = guest();
    let mut endpoint = guest.connect(1000);
    guest.data(1000, b"all");
    guest.shutdown(1000, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&endpoint), b"all");
    endpoint.write_all(b"still").unwrap();
    assert_eq!(guest.receive().1, b"still");
    endpoint.shutdown(Shutdown::Write).unwrap();
    // Nothing is left in either direction.
    assert_eq!(
        guest.receive_op(Op::Shutdown).flags,
        SHUTDOWN_SEND | SHUTDOWN_RECEIVE
    );
    guest.shutdown(1000, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    guest.receive_op(Op::Reset);
}

#[test]
fn an_endpoint_that_ends_first_still_receives() {
    let mut guest = guest();
    let endpoint = guest.connect(1000);
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_op(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.data(1000, b"late");
    guest.shutdown(1000, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&endpoint), b"late");
    assert_eq!(
        guest.receive_op(Op::Shutdown).flags,
        SHUTDOWN_SEND | SHUTDOWN_RECEIVE
    );
}

#[test]
fn an_endpoint_that_goes_away_is_told() {
    let mut guest = guest();
    drop(guest.connect(1000));
    let flags = guest.receive_op(Op::Shutdown).flags;
    assert_eq!(flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    // What was on its way is dropped without harm.
    guest.data(1000, &[1; 1000]);
    guest.send(header(Op::Reset, 1000), &[]);
    guest.silent();
}

#[test]
fn a_guest_that_stops_receiving_breaks_the_endpoints_pipe() {
    let mut guest = guest();
    let mut endpoint = guest.connect(1000);
    guest.shutdown(1000, SHUTDOWN_RECEIVE);
    guest.data(1000, b"x");
    endpoint.read_exact(&mut [0]).unwrap();
    assert!(endpoint.write_all(b"y").is_err());
}

#[test]
fn everything_sent_before_a_close_arrives() {
    for reset in [false, true] {
        let mut guest = guest();
        let endpoint = guest.connect(1000);
        // More than the socket takes at once, so that some of it waits here.
        let bytes: Vec<u8> = (0..BUF_ALLOC + (100 << 10)).map(|i| (i * 7) as u8).collect();
        for piece in bytes.chunks(32 << 10) {
            guest.data(1000, piece);
        }
        guest.shutdown(1000, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
        if reset {
            guest.send(header(Op::Reset, 1000), &[]);
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(read_to_end(&endpoint) == bytes);
        if !reset {
            while guest.receive().0.op != Op::Reset {}
        }
        guest.send(header(Op::CreditRequest, 1000), &[]);
        while guest.receive().0.op != Op::Reset {}
    }
}

#[test]
fn what_was_sent_arrives_after_the_vm_has_ended() {
    let mut guest = guest();
    let endpoint = guest.connect(1000);
    for _ in 0..10 {
        guest.data(1000, &[5; 32 << 10]);
    }
    guest.ended.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!guest.thread.as_ref().unwrap().is_finished());
    assert_eq!(read_to_end(&endpoint).len(), 320 << 10);
    std::thread::sleep(Duration::from_millis(100));
    assert!(guest.thread.as_ref().unwrap().is_finished());
}

#[test]
fn a_stalled_endpoint_holds_credit_and_nobody_else() {
    let mut guest = guest();
    let mut stalled = guest.connect(1000);
    let mut other = guest.connect(1001);
    // The socket takes something; then the guest's credit runs out. A guest that follows the rules stops there.
    let mut sent = 0u32;
    let mut taken = 0u32;
    loop {
        guest.send(header(Op::CreditRequest, 1000), &[]);
        taken = taken.max(guest.receive_op(Op::CreditUpdate).fwd_cnt);
        if sent - taken + (32 << 10) > BUF_ALLOC {
            break;
        }
        guest.data(1000, &[1; 32 << 10]);
        sent += 32 << 10;
        while let Some((packet, _)) = guest.packets.pop_front() {
            taken = taken.max(packet.fwd_cnt);
        }
    }
    assert!(sent < 2 << 20);
    guest.data(1001, b"free");
    other.read_exact(&mut [0; 4]).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; sent as usize];
        stalled.read_exact(&mut bytes).unwrap();
        stalled
    });
    while guest.receive_op(Op::CreditUpdate).fwd_cnt + BUF_ALLOC / 2 < sent {}
    drop(reader.join().unwrap());
}

#[test]
fn a_guest_without_credit_for_its_bytes_is_reset() {
    let mut guest = guest();
    let _endpoint = guest.connect(1000);
    // The endpoint reads nothing. However much its socket takes, this is too much for it.
    for _ in 0..64 {
        guest.data(1000, &[1; 64 << 10]);
        guest.collect();
        while let Some((packet, _)) = guest.packets.pop_front() {
            if packet.op == Op::Reset {
                return;
            }
        }
    }
    panic!("4 MiB were taken without a reader");
}

#[test]
fn lies_about_lengths_are_reset() {
    let mut guest = guest();
    for len in [5, 4096, 1 << 20, u32::MAX] {
        let _endpoint = guest.connect(1000);
        guest.send(
            Header {
                len,
                ..header(Op::Data, 1000)
            },
            b"four",
        );
        guest.receive_op(Op::Reset);
    }
    let endpoint = guest.connect(1000);
    guest.shutdown(1000, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&endpoint), b"");
    guest.data(1000, b"after the end");
    guest.receive_op(Op::Reset);
    // A connection that exists can't be asked for again.
    let _endpoint = guest.connect(1001);
    guest.send(header(Op::Request, 1001), &[]);
    guest.receive_op(Op::Reset);
}

#[test]
fn the_guests_credit_is_kept() {
    let mut guest = guest();
    let taken = |fwd_cnt| Header {
        buf_alloc: 1000,
        fwd_cnt,
        ..header(Op::CreditUpdate, 1000)
    };
    guest.send(
        Header {
            buf_alloc: 1000,
            ..header(Op::Request, 1000)
        },
        &[],
    );
    guest.receive_op(Op::Response);
    let mut endpoint = guest.endpoints.recv().unwrap();
    endpoint.write_all(&[7; 5000]).unwrap();
    assert_eq!(guest.receive().1.len(), 1000);
    guest.receive_op(Op::CreditRequest);
    guest.silent();
    guest.send(taken(600), &[]);
    assert_eq!(guest.receive().1.len(), 600);
    // A guest that claims to have taken more than it got gets nothing.
    guest.receive_op(Op::CreditRequest);
    guest.send(taken(9000), &[]);
    guest.silent();
    // Nor is one asked again that has nothing to give.
    guest.send(taken(600), &[]);
    guest.silent();
    guest.send(taken(1600), &[]);
    assert_eq!(guest.receive().1.len(), 1000);
}

#[test]
fn connections_are_limited() {
    let mut guest = guest();
    // Both ends of each stream live in this process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, enough).unwrap();
    if limit.maximum.is_some_and(|maximum| maximum < 3000) {
        return;
    }
    let endpoints: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| guest.connect(port))
        .collect();
    guest.send(header(Op::Request, 5000), &[]);
    guest.receive_op(Op::Reset);
    drop(endpoints);
    for _ in 0..MAX_CONNECTIONS {
        let ended = guest.receive_op(Op::Shutdown);
        guest.send(header(Op::Reset, ended.dst_port), &[]);
    }
    guest.connect(5000);
}

#[test]
fn a_reset_of_the_device_forgets_everything() {
    let mut guest = guest();
    let endpoint = guest.connect(1000);
    guest.data(1000, b"before");
    guest.outbox.reset();
    assert_eq!(read_to_end(&endpoint), b"before");
}

#[test]
fn a_broken_queue_stops_the_device_and_not_the_thread() {
    let mut guest = guest();
    let endpoint = guest.connect(1000);
    guest.from_guest.set_available(5000);
    guest.events.write(1).unwrap();
    assert_eq!(read_to_end(&endpoint), b"");
    assert!(guest.interrupt.needs_reset());
    guest.outbox.reset();
}

#[test]
fn a_receive_buffer_without_room_breaks_the_device() {
    let mut guest = guest_with_credit(false);
    guest.to_guest.add(&[(RECEIVE_BUFFERS, HEADER as u32, true)]);
    let slot = SEND_BUFFERS;
    guest.from_guest.write(slot, &header(Op::Request, 1).to_bytes());
    guest.from_guest.add(&[(slot, HEADER as u32, false)]);
    guest.events.write(1).unwrap();
    let patience = Instant::now();
    while !guest.interrupt.needs_reset() {
        assert!(patience.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

/// A flood of packets that need resets, from a guest that takes none: the device goes on listening, since a driver with many
/// replies of its own to send puts up no buffers until they are taken.
#[test]
fn a_flood_of_refused_packets_is_taken() {
    const FLOOD: usize = MAX_RESETS + 1000;
    let mut guest = guest_with_credit(false);
    guest
        .from_guest
        .write(SEND_BUFFERS, &header(Op::CreditRequest, 1).to_bytes());
    let (mut taken, mut waiting) = (0, 0);
    let patience = Instant::now();
    while taken < FLOOD {
        assert!(patience.elapsed() < Duration::from_secs(10), "{taken} of {FLOOD}");
        while waiting < usize::from(QUEUE) && taken + waiting < FLOOD {
            guest.from_guest.add(&[(SEND_BUFFERS, HEADER as u32, false)]);
            waiting += 1;
        }
        guest.events.write(1).unwrap();
        std::thread::yield_now();
        let used = guest.from_guest.used().len();
        taken += used;
        waiting -= used;
    }
}

/// One step of a hostile guest.
fn step() -> impl Strategy<Value = (u16, u32, u32, u32, u32, u32, usize, bool)> {
    let number = || prop_oneof![Just(0u32), Just(u32::MAX), 0u32..5000, any::<u32>()];
    (
        0u16..9,
        0u32..4,
        9u32..12,
        number(),
        number(),
        number(),
        0usize..3000,
        any::<bool>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Any packets in any order: no panic, no hang, and another connection still works.
    #[test]
    fn any_packets_are_harmless(steps in prop::collection::vec(step(), 1..60)) {
        let mut guest = guest();
        let mut witness = guest.connect(9999);
        for (code, src_port, dst_port, len, flags, credit, payload, honest) in steps {
            let ops = [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
            let op = ops.get(usize::from(code)).copied().unwrap_or(Op::Unknown(code * 1000));
            let len = if honest { payload as u32 } else { len };
            guest.send(Header { dst_port, len, flags, buf_alloc: credit, fwd_cnt: flags, ..header(op, src_port) }, &vec![9; payload]);
            if let Ok(mut endpoint) = guest.endpoints.try_recv() {
                let _ = endpoint.write_all(&[1; 100]);
            }
            guest.collect();
        }
        guest.data(9999, b"alive");
        let mut bytes = [0; 5];
        witness.read_exact(&mut bytes).unwrap();
        prop_assert_eq!(&bytes, b"alive");
        prop_assert!(!guest.interrupt.needs_reset());
    }
}
