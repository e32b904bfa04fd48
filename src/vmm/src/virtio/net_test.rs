//! Sequenced packets stand in for a tap: they keep packets apart as a tap does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::virtio::testing::{Driver, memory};

const RECEIVE_RING: u64 = 0x10_0000;
const TRANSMIT_RING: u64 = 0x20_0000;
const DATA: u64 = 0x100_0000;

struct Bench {
    wire: Wire,
    far: File,
    receive: Driver,
    transmit: Driver,
    active: Active,
    memory: Arc<Ram>,
}

impl Bench {
    fn new(mergeable: bool, longest: usize) -> Bench {
        let (near, far): (OwnedFd, OwnedFd) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let memory = memory();
        let receive = Driver::new(&memory, RECEIVE_RING, 256);
        let transmit = Driver::new(&memory, TRANSMIT_RING, 256);
        let active = Active {
            receive: receive.queue(),
            transmit: transmit.queue(),
            mergeable,
            longest,
        };
        Bench {
            wire: Wire::new(Link::Tap(near.into())),
            far: far.into(),
            receive,
            transmit,
            active,
            memory,
        }
    }

    fn sent(&mut self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 1 << 17];
        let bytes = self.far.read(&mut packet).ok()?;
        packet.truncate(bytes);
        Some(packet)
    }

    /// What the driver finds in the buffers at `addresses` that came back, packet by packet.
    fn received(&mut self, addresses: &[u64]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let used = self.receive.used();
        let mut used = used.iter();
        while let Some((head, written)) = used.next() {
            let mut packet = self.receive.read(addresses[*head as usize], *written as usize);
            let buffers = u16::from_le_bytes([packet[NUM_BUFFERS], packet[NUM_BUFFERS + 1]]);
            for _ in 1..buffers {
                let (head, written) = used.next().expect("all of a packet's buffers come at once");
                packet.extend(self.receive.read(addresses[*head as usize], *written as usize));
            }
            packets.push(packet);
        }
        packets
    }
}

/// A packet of that many bytes with a header of zeros, as a tap that leaves the number of buffers alone gives it.
fn packet(bytes: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((HEADER..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)));
    packet
}

#[test]
fn what_the_guest_sends_goes_out_whole() {
    let mut bench = Bench::new(true, 1530);
    let frame = packet(100, 1);
    bench.transmit.write(DATA, &frame);
    let head = bench
        .transmit
        .add(&[(DATA, 12, false), (DATA + 12, 60, false), (DATA + 72, 28, false)]);
    assert_eq!(
        bench.active.transmit(&mut bench.wire, &bench.memory).unwrap(),
        Progress::Idle
    );
    assert_eq!(bench.sent().unwrap(), frame);
    assert_eq!(bench.transmit.used(), [(u32::from(head), 0)]);
}

#[test]
fn what_is_no_packet_is_dropped_and_given_back() {
    let mut bench = Bench::new(true, 1530);
    bench.transmit.add(&[(DATA, 11, false)]);
    bench.transmit.add(&[(DATA, 12, true)]);
    bench.transmit.add(&[(DATA, 1 << 20, false)]);
    bench.active.transmit(&mut bench.wire, &bench.memory).unwrap();
    assert_eq!(bench.transmit.used().len(), 3);
    assert!(bench.sent().is_none());
}

#[test]
fn a_tap_that_takes_nothing_loses_packets_and_holds_up_nobody() {
    let mut bench = Bench::new(true, 1530);
    bench.transmit.write(DATA, &packet(60_000, 1));
    for _ in 0..100 {
        bench.transmit.add(&[(DATA, 60_000, false)]);
    }
    while bench.active.transmit(&mut bench.wire, &bench.memory).unwrap() == Progress::More {}
    assert_eq!(bench.transmit.used().len(), 100);
}

#[test]
fn a_packet_that_waits_for_buffers_is_not_lost() {
    let mut bench = Bench::new(true, MAX_PACKET);
    let large = packet(5000, 3);
    bench.far.write_all(&large).unwrap();
    let addresses: Vec<u64> = (0..64).map(|at| DATA + at * 4096).collect();
    // Not enough for the longest packet that might come, so none is taken.
    for address in addresses.iter().take(2) {
        bench.receive.add(&[(*address, 2048, true)]);
    }
    assert_eq!(
        bench.active.receive(&mut bench.wire, &bench.memory).unwrap(),
        Progress::Idle
    );
    assert!(bench.receive.used().is_empty());
    for address in addresses.iter().skip(2) {
        bench.receive.add(&[(*address, 2048, true)]);
    }
    bench.active.receive(&mut bench.wire, &bench.memory).unwrap();
    let mut expected = large;
    expected[NUM_BUFFERS] = 3;
    assert_eq!(bench.received(&addresses), [expected]);
}

#[test]
fn without_mergeable_buffers_each_packet_has_its_own() {
    let mut bench = Bench::new(false, 1530);
    let addresses = [DATA, DATA + 4096];
    for address in addresses {
        bench.receive.add(&[(address, 2048, true)]);
    }
    for seed in 0..2 {
        bench.far.write_all(&packet(1000, seed)).unwrap();
    }
    bench.active.receive(&mut bench.wire, &bench.memory).unwrap();
    assert_eq!(bench.received(&addresses).len(), 2);

    bench.receive.add(&[(DATA, 1529, true)]);
    let error = bench.active.receive(&mut bench.wire, &bench.memory).unwrap_err();
    assert!(matches!(error, Broken::Buffers(1529)), "{error}");
}

#[test]
fn a_buffer_without_room_for_the_header_breaks_the_device() {
    let mut bench = Bench::new(true, 1530);
    bench.receive.add(&[(DATA, 11, true)]);
    let error = bench.active.receive(&mut bench.wire, &bench.memory).unwrap_err();
    assert!(matches!(error, Broken::Buffers(11)), "{error}");
}

#[test]
fn the_driver_sees_address_and_mtu() {
    let (socket, _far) = UnixStream::pair().unwrap();
    let tap = File::open("/dev/null").unwrap();
    let describe = |link| {
        let nic = Nic {
            link,
            vhost: None,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        };
        Net::new(nic).description()
    };
    let on_tap = describe(Link::Tap(tap));
    assert_eq!(on_tap.kind, 1);
    assert_eq!(on_tap.config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 220, 5]);
    // A stream carries complete frames, so nothing of them may be left to it.
    let on_stream = describe(Link::Stream(socket));
    let offloads = LEAVES.into_iter().chain(TAKES.map(|(feature, _)| feature));
    let offloads = offloads.fold(0, |bits, bit| bits | 1 << bit);
    assert_eq!(
        (on_tap.features & offloads, on_stream.features & offloads),
        (offloads, 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packets_arrive_whole_and_in_order(
        sizes in proptest::collection::vec(HEADER..4000, 1..12),
        buffers in proptest::collection::vec(HEADER as u32..3000, 200),
    ) {
        let mut bench = Bench::new(true, 4000);
        let addresses: Vec<u64> = (0..buffers.len() as u64).map(|at| DATA + at * 4096).collect();
        for (address, size) in addresses.iter().zip(&buffers) {
            bench.receive.add(&[(*address, *size, true)]);
        }
        let packets: Vec<_> = sizes.iter().zip(0..).map(|(size, seed)| packet(*size, seed)).collect();
        for packet in &packets {
            bench.far.write_all(packet).unwrap();
        }
        bench.active.receive(&mut bench.wire, &bench.memory).unwrap();
        let mut received = bench.received(&addresses);
        for packet in &mut received {
            packet[NUM_BUFFERS..HEADER].fill(0);
        }
        prop_assert_eq!(received, packets);
    }
}
