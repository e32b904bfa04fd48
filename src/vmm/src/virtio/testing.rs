//! The driver's side of a virtqueue, for tests.
//!
//! ```text
//!   base          descriptor table (size × 16)
//!   base+0x4000   available ring
//!   base+0x8000   used ring
//! ```

use std::sync::Arc;

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::queue::Queue;
use crate::memory::{Ram, allocate};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Driver {
    pub memory: Arc<Ram>,
    base: u64,
    size: u16,
    available: u16,
    next_descriptor: u16,
    seen_used: u16,
}

pub fn memory() -> Arc<Ram> {
    Arc::new(allocate(64).unwrap())
}

impl Driver {
    pub fn new(memory: &Arc<Ram>, base: u64, size: u16) -> Driver {
        Driver {
            memory: Arc::clone(memory),
            base,
            size,
            available: 0,
            next_descriptor: 0,
            seen_used: 0,
        }
    }

    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + 0x4000, self.base + 0x8000]
    }

    /// The device's side.
    pub fn queue(&self) -> Queue {
        let mut ring = Ring::new(self.size).unwrap();
        let [descriptors, available, used] = self.addresses();
        ring.set_desc_table_address(Some(descriptors as u32), None);
        ring.set_avail_ring_address(Some(available as u32), None);
        ring.set_used_ring_address(Some(used as u32), None);
        ring.set_ready(true);
        assert!(ring.is_valid(&**self.memory));
        Queue::new(ring)
    }

    pub fn put_descriptor(&self, index: u16, (address, len, flags, next): Descriptor) {
        self.put_descriptor_at(self.base + u64::from(index) * 16, (address, len, flags, next));
    }

    pub fn put_descriptor_at(&self, at: u64, (address, len, flags, next): Descriptor) {
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = self.base + 0x4004 + u64::from(self.available % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub fn set_available(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.base + 0x4002))
            .unwrap();
    }

    /// Makes a chain of `(address, len, writable)` parts available and returns its head.
    pub fn add(&mut self, parts: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (at, &(address, len, writable)) in parts.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let more = if at + 1 < parts.len() { NEXT } else { 0 };
            let flags = more | if writable { WRITE } else { 0 };
            self.put_descriptor(index, (address, len, flags, (index + 1) % self.size));
        }
        self.offer(head);
        head
    }

    /// The requests that came back since the last call: `(head, bytes written)`.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.base + 0x8002)).unwrap();
        let mut used = Vec::new();
        while self.seen_used != index {
            let at = self.base + 0x8004 + u64::from(self.seen_used % self.size) * 8;
            let head = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            used.push((head, len));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        used
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

/// What a fuzzer chooses: xorshift64* from a seed that it says, or that `CWRUN_SEED` gives it.
pub struct Choices(u64);

impl Choices {
    pub fn new() -> Choices {
        let now = || {
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |now| now.as_nanos() as u64)
        };
        let seed = std::env::var("CWRUN_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(now);
        eprintln!("CWRUN_SEED={seed}");
        Choices(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The memory that a fuzzer's buffers lie in, page by page: what the device may write to, and what it must not have changed.
pub struct Arena {
    memory: Arc<Ram>,
    before: Vec<u8>,
    writable: Vec<bool>,
}

impl Arena {
    pub const START: u64 = 0x100_0000;
    pub const BYTES: u64 = 1 << 18;
    const PAGE: usize = 4096;

    pub fn new(memory: &Arc<Ram>) -> Arena {
        Arena {
            memory: Arc::clone(memory),
            before: vec![0; Self::BYTES as usize],
            writable: vec![false; Self::BYTES as usize / Self::PAGE],
        }
    }

    /// A descriptor lets the device write there.
    pub fn note_writable(&mut self, address: u64, length: u32) {
        for (page, writable) in self.writable.iter_mut().enumerate() {
            let start = Self::START + (page * Self::PAGE) as u64;
            *writable |= start < address.saturating_add(length.into()) && address < start + Self::PAGE as u64;
        }
    }

    /// No descriptor does any more.
    pub fn forget_writable(&mut self) {
        self.writable.fill(false);
    }

    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; Self::BYTES as usize];
        self.memory
            .read_slice(&mut content, GuestAddress(Self::START))
            .unwrap();
        content
    }

    /// Before the device's turn.
    pub fn remember(&mut self) {
        self.before = self.content();
    }

    /// After it.
    pub fn expect_untouched(&self) {
        let after = self.content();
        let pages = self.before.chunks(Self::PAGE).zip(after.chunks(Self::PAGE));
        for (page, ((before, after), writable)) in pages.zip(&self.writable).enumerate() {
            assert!(*writable || before == after, "the device wrote to page {page}");
        }
    }
}
