//! Drivers and peers that mean no good: chains of random descriptors, rings with random indices, packets and streams of random bytes.
//!
//! ```text
//!   rings            descriptor tables, available and used rings of both queues
//!   TABLES           indirect tables
//!   ARENA ─┬─ pages that a descriptor lets the device write to: anything may happen to them
//!          └─ all others: compared with a copy after each round
//! ```
//!
//! The tame form keeps descriptors out of rings and tables, so that it is known where the device may write, and nothing else may have
//! changed. The wild one points them anywhere, where only this is left: no panic, no end of the process, no round without an end.
//! `CWRUN_SOAK` makes them run for ten minutes together; `CWRUN_SEED` repeats a run.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{Arena, Choices, Driver, INDIRECT, NEXT, WRITE, memory};

const SIZE: u16 = 256;
const RINGS: [u64; 2] = [0x10_0000, 0x20_0000];
const TABLES: u64 = 0x30_0000;
const TABLE_ENTRIES: u64 = 32;
const ARENA: u64 = Arena::START;
const ARENA_BYTES: u64 = Arena::BYTES;
const MEMORY_BYTES: u64 = 64 << 20;

/// The other end of the wire.
enum Far {
    Tap(File),
    Stream(UnixStream),
}

struct Bench {
    choices: Choices,
    wild: bool,
    memory: Arc<Ram>,
    drivers: [Driver; 2],
    available: [u16; 2],
    active: Active,
    wire: Wire,
    far: Far,
    arena: Arena,
}

impl Bench {
    fn new(wild: bool, on_stream: bool) -> Bench {
        let memory = memory();
        let drivers = RINGS.map(|base| Driver::new(&memory, base, SIZE));
        let (wire, far) = wire(on_stream);
        let active = active(&drivers, true);
        Bench {
            choices: Choices::new(),
            wild,
            arena: Arena::new(&memory),
            memory,
            drivers,
            available: [0; 2],
            active,
            wire,
            far,
        }
    }

    /// As after a reset of the device.
    fn reset(&mut self) {
        for base in RINGS {
            self.memory.write_slice(&[0; 0xc000], GuestAddress(base)).unwrap();
        }
        self.memory
            .write_slice(&vec![0; (TABLE_ENTRIES * 16) as usize * 16], GuestAddress(TABLES))
            .unwrap();
        self.available = [0; 2];
        self.arena.forget_writable();
        let mergeable = !self.choices.one_in(4);
        self.active = active(&self.drivers, mergeable);
    }

    fn address(&mut self) -> u64 {
        // Behind the end, up to it, and at the end of everything.
        match self.choices.below(600) {
            0 => return MEMORY_BYTES + self.choices.below(1 << 20),
            1 => return u64::MAX - self.choices.below(1 << 16),
            2 if self.wild => return self.choices.next(),
            _ => {}
        }
        match self.choices.below(12) {
            0 if self.wild => RINGS[0] + self.choices.below(0xc000),
            1 if self.wild => RINGS[1] + self.choices.below(0xc000),
            2 if self.wild => TABLES + self.choices.below(0x1000),
            _ => ARENA + self.choices.below(ARENA_BYTES),
        }
    }

    fn length(&mut self) -> u32 {
        match self.choices.below(200) {
            0 => 0,
            1 => self.choices.below(16) as u32,
            2 if self.wild => self.choices.next() as u32,
            3..=100 => 12 + self.choices.below(3000) as u32,
            _ => 1530 + self.choices.below(68_000) as u32,
        }
    }

    /// Writes a descriptor that points to data, and perhaps to the `next` one, and takes note of it. Mostly sound ones, or nothing but errors would come of it.
    fn describe(&mut self, at: u64, next: Option<u16>, write: bool) {
        let (mut address, mut length) = (self.address(), self.length());
        let last = ARENA + ARENA_BYTES;
        if !self.wild && (ARENA..last).contains(&address) {
            // What begins in the arena stays in it, but now and then what runs out of all memory.
            let room = last - address;
            length = length.min(room as u32);
            if self.choices.one_in(2000) {
                address = MEMORY_BYTES - 1;
                length = length.max(2);
            }
        }
        let mut flags = if next.is_none() || self.choices.one_in(2) {
            0
        } else {
            NEXT
        };
        if write {
            flags |= WRITE;
            self.arena.note_writable(address, length);
        }
        if self.choices.one_in(300) {
            flags = self.choices.next() as u16;
            if !self.wild {
                // The arena would be taken for a table, and what lies in it for addresses.
                flags &= !INDIRECT;
            }
            // Any of these may let the device write.
            self.arena.note_writable(address, length);
        }
        let next = if self.choices.one_in(100) {
            self.choices.next() as u16
        } else {
            next.unwrap_or_default()
        };
        self.drivers[0].put_descriptor_at(at, (address, length, flags, next));
    }

    /// New descriptors for a queue, and word of some of them.
    fn offer(&mut self, queue: usize) {
        let receive = queue == 0;
        for _ in 0..self.choices.below(8) {
            let index = self.choices.below(SIZE.into()) as u16;
            let mut at = index;
            let write = if self.choices.one_in(300) {
                !receive
            } else {
                receive
            };
            if self.choices.one_in(6) {
                let table = TABLES + self.choices.below(16) * TABLE_ENTRIES * 16;
                let entries = 1 + self.choices.below(TABLE_ENTRIES);
                for entry in 0..entries {
                    let next = (entry + 1 < entries).then_some((entry + 1) as u16);
                    self.describe(table + entry * 16, next, write);
                }
                let length = if self.choices.one_in(100) {
                    self.choices.below(600) as u32
                } else {
                    entries as u32 * 16
                };
                self.drivers[queue].put_descriptor(index, (table, length, INDIRECT, 0));
            } else {
                for part in (1..=1 + self.choices.below(4) as u16).rev() {
                    let next = (part > 1).then_some((at + 1) % SIZE);
                    self.describe(RINGS[queue] + u64::from(at) * 16, next, write);
                    at = (at + 1) % SIZE;
                }
            }
            let slot = RINGS[queue] + 0x4004 + u64::from(self.available[queue] % SIZE) * 2;
            let head = if self.choices.one_in(200) {
                self.choices.next() as u16
            } else {
                index
            };
            self.memory.write_obj(head, GuestAddress(slot)).unwrap();
            self.available[queue] = self.available[queue].wrapping_add(1);
        }
        if self.choices.one_in(300) {
            self.available[queue] = self.choices.next() as u16;
        }
        self.drivers[queue].set_available(self.available[queue]);
        // When the driver wants to hear of the other side, at both places where it may stand.
        let wish = self.choices.next() as u16;
        let at = RINGS[queue] + 0x4004 + u64::from(SIZE) * 2;
        self.memory.write_obj(wish, GuestAddress(at)).unwrap();
        self.memory
            .write_obj(wish & 1, GuestAddress(RINGS[queue] + 0x4000))
            .unwrap();
    }

    /// What the other end does: it sends something and takes what is there.
    fn stir_far_end(&mut self, on_stream: bool) {
        let mut sink = vec![0; 1 << 17];
        let length = match self.choices.below(4) {
            0 => self.choices.below(100),
            1 => self.choices.below(65_000),
            _ => self.choices.below(1600),
        };
        let bytes = self.choices.bytes(length);
        let broken = match &mut self.far {
            Far::Tap(far) => {
                // Full, or empty.
                let _ = far.write(&bytes);
                while far.read(&mut sink).is_ok() {}
                false
            }
            Far::Stream(far) => {
                let honest = !self.choices.one_in(50);
                let prefix = if honest {
                    bytes.len() as u32
                } else {
                    self.choices.next() as u32
                };
                let _ = far
                    .write_all(&prefix.to_be_bytes())
                    .and_then(|()| far.write_all(&bytes));
                loop {
                    match far.read(&mut sink) {
                        Ok(0) => break true,
                        Ok(_) => {}
                        Err(error) => break error.kind() != ErrorKind::WouldBlock,
                    }
                }
            }
        };
        if broken {
            (self.wire, self.far) = wire(on_stream);
        }
    }

    /// One turn of everybody. Whether the device broke.
    fn turn(&mut self, on_stream: bool) -> bool {
        self.offer(0);
        self.offer(1);
        self.stir_far_end(on_stream);
        self.arena.remember();
        let (memory, active, wire) = (&self.memory, &mut self.active, &mut self.wire);
        let result = active.transmit(wire, memory).and_then(|_| {
            active.receive(wire, memory)?;
            active.receive.needs_interrupt(memory)?;
            active.transmit.needs_interrupt(memory)?;
            Ok(())
        });
        if !self.wild {
            self.arena.expect_untouched();
        }
        result.is_err()
    }
}

fn wire(on_stream: bool) -> (Wire, Far) {
    if on_stream {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        return (Wire::new(Link::Stream(near)), Far::Stream(far));
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Wire::new(Link::Tap(near.into())), Far::Tap(far.into()))
}

fn active(drivers: &[Driver; 2], mergeable: bool) -> Active {
    let [receive, transmit] = [drivers[0].queue(), drivers[1].queue()];
    Active {
        receive,
        transmit,
        mergeable,
        longest: if mergeable { MAX_PACKET } else { OVERHEAD + 1500 },
    }
}

fn fuzz(wild: bool, on_stream: bool) {
    let soak = std::env::var_os("CWRUN_SOAK").is_some();
    let end = Instant::now() + Duration::from_secs(if soak { 150 } else { 2 });
    let mut bench = Bench::new(wild, on_stream);
    let (mut turns, mut breaks) = (0u64, 0u64);
    while Instant::now() < end {
        turns += 1;
        if bench.turn(on_stream) || turns.is_multiple_of(1000) {
            breaks += 1;
            bench.reset();
        }
    }
    eprintln!("wild {wild}, stream {on_stream}: {turns} turns, {breaks} resets");
    // Else nothing but the first check of everything would have been tested.
    assert!(turns > 10 && breaks < turns, "{turns} turns, {breaks} resets");
}

#[test]
fn hostile_chains_and_packets_on_a_tap() {
    fuzz(false, false);
}

#[test]
fn hostile_chains_and_packets_on_a_stream() {
    fuzz(false, true);
}

#[test]
fn chains_that_point_into_the_rings_on_a_tap() {
    fuzz(true, false);
}

#[test]
fn chains_that_point_into_the_rings_on_a_stream() {
    fuzz(true, true);
}
