//! Sequenced packets stand in for a tap: they keep packets apart as a tap does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::virtio::testing::{Driver, memory};

const RECEIVE_RING: u64 = 0x10_0000;
const TRANSMIT_RING: u64 = 0x20_0000;
const DATA: u64 = 0x100_0000;

struct Wire {
    nic: Nic,
    far: File,
    receive: Driver,
    transmit: Driver,
    active: Active,
    memory: Arc<Ram>,
}

impl Wire {
    fn new(mergeable: bool, longest: usize) -> Wire {
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
        let nic = Nic {
            tap: near.into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        };
        Wire {
            nic,
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
    let mut wire = Wire::new(true, 1530);
    let frame = packet(100, 1);
    wire.transmit.write(DATA, &frame);
    let head = wire
        .transmit
        .add(&[(DATA, 12, false), (DATA + 12, 60, false), (DATA + 72, 28, false)]);
    assert_eq!(
        wire.active.transmit(&wire.nic, &wire.memory).unwrap(),
        Progress::Idle
    );
    assert_eq!(wire.sent().unwrap(), frame);
    assert_eq!(wire.transmit.used(), [(u32::from(head), 0)]);
}

#[test]
fn what_is_no_packet_is_dropped_and_given_back() {
    let mut wire = Wire::new(true, 1530);
    wire.transmit.add(&[(DATA, 11, false)]);
    wire.transmit.add(&[(DATA, 12, true)]);
    wire.transmit.add(&[(DATA, 1 << 20, false)]);
    wire.active.transmit(&wire.nic, &wire.memory).unwrap();
    assert_eq!(wire.transmit.used().len(), 3);
    assert!(wire.sent().is_none());
}

#[test]
fn a_tap_that_takes_nothing_loses_packets_and_holds_up_nobody() {
    let mut wire = Wire::new(true, 1530);
    wire.transmit.write(DATA, &packet(60_000, 1));
    for _ in 0..100 {
        wire.transmit.add(&[(DATA, 60_000, false)]);
    }
    while wire.active.transmit(&wire.nic, &wire.memory).unwrap() == Progress::More {}
    assert_eq!(wire.transmit.used().len(), 100);
}

#[test]
fn a_packet_that_waits_for_buffers_is_not_lost() {
    let mut wire = Wire::new(true, MAX_PACKET);
    let large = packet(5000, 3);
    wire.far.write_all(&large).unwrap();
    let addresses: Vec<u64> = (0..64).map(|at| DATA + at * 4096).collect();
    // Not enough for the longest packet that might come, so none is taken.
    for address in addresses.iter().take(2) {
        wire.receive.add(&[(*address, 2048, true)]);
    }
    assert_eq!(
        wire.active.receive(&wire.nic, &wire.memory).unwrap(),
        Progress::Idle
    );
    assert!(wire.receive.used().is_empty());
    for address in addresses.iter().skip(2) {
        wire.receive.add(&[(*address, 2048, true)]);
    }
    wire.active.receive(&wire.nic, &wire.memory).unwrap();
    let mut expected = large;
    expected[NUM_BUFFERS] = 3;
    assert_eq!(wire.received(&addresses), [expected]);
}

#[test]
fn without_mergeable_buffers_each_packet_has_its_own() {
    let mut wire = Wire::new(false, 1530);
    let addresses = [DATA, DATA + 4096];
    for address in addresses {
        wire.receive.add(&[(address, 2048, true)]);
    }
    for seed in 0..2 {
        wire.far.write_all(&packet(1000, seed)).unwrap();
    }
    wire.active.receive(&wire.nic, &wire.memory).unwrap();
    assert_eq!(wire.received(&addresses).len(), 2);

    wire.receive.add(&[(DATA, 1529, true)]);
    let error = wire.active.receive(&wire.nic, &wire.memory).unwrap_err();
    assert!(matches!(error, Broken::Buffers(1529)), "{error}");
}

#[test]
fn a_buffer_without_room_for_the_header_breaks_the_device() {
    let mut wire = Wire::new(true, 1530);
    wire.receive.add(&[(DATA, 11, true)]);
    let error = wire.active.receive(&wire.nic, &wire.memory).unwrap_err();
    assert!(matches!(error, Broken::Buffers(11)), "{error}");
}

#[test]
fn the_driver_sees_address_and_mtu() {
    let Wire { nic, .. } = Wire::new(true, 1530);
    let description = Net::new(nic).description();
    assert_eq!(description.kind, 1);
    assert_eq!(description.config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 220, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packets_arrive_whole_and_in_order(
        sizes in proptest::collection::vec(HEADER..4000, 1..12),
        buffers in proptest::collection::vec(HEADER as u32..3000, 200),
    ) {
        let mut wire = Wire::new(true, 4000);
        let addresses: Vec<u64> = (0..buffers.len() as u64).map(|at| DATA + at * 4096).collect();
        for (address, size) in addresses.iter().zip(&buffers) {
            wire.receive.add(&[(*address, *size, true)]);
        }
        let packets: Vec<_> = sizes.iter().zip(0..).map(|(size, seed)| packet(*size, seed)).collect();
        for packet in &packets {
            wire.far.write_all(packet).unwrap();
        }
        wire.active.receive(&wire.nic, &wire.memory).unwrap();
        let mut received = wire.received(&addresses);
        for packet in &mut received {
            packet[NUM_BUFFERS..HEADER].fill(0);
        }
        prop_assert_eq!(received, packets);
    }
}
