//! Split virtqueues (VIRTIO 1.2 §2.7) as a device sees them.
//!
//! ```text
//!   available ring ─► head ─► descriptor ─► descriptor ─► …        one chain = one request
//!                             └──── readable ────┘ └ writable ┘    device-readable parts come first
//! ```
//!
//! The rings are walked by the `virtio-queue` crate. This module turns each chain into [`Buffer`]s whose every piece lies in
//! guest memory, and turns whatever the guest did wrong into an [`Error`], after which the device asks for a reset. Addresses and
//! lengths are read once; the contents stay the guest's to change.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;
use crate::snp::Pages;
use crate::sys::Slice;

/// Sizes in bytes (VIRTIO 1.2 §2.7.6, §2.7.8): flags and index, then entries; a used entry is a head and a length, 32 bits each.
const AVAILABLE_RING_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_RING_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// How the driver broke the rules of the queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver claims more requests than the ring holds, or the ring can't be accessed.
    #[error("the available ring is invalid")]
    Ring(#[from] virtio_queue::Error),
    /// An entry of a ring lies outside guest memory.
    #[error("a ring has an entry that can't be accessed")]
    Entry,
    /// The chain ends in the middle, loops or is longer than the queue.
    #[error("the descriptor chain at index {0} is broken")]
    Chain(u16),
    /// A descriptor points outside guest memory.
    #[error("the descriptor chain at index {0} has a buffer outside guest memory")]
    Address(u16),
    /// A part that the device may read follows one that it may write.
    #[error("the descriptor chain at index {0} has a readable part after a writable one")]
    Order(u16),
}

/// One virtqueue in use.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    /// The used ring's index when the driver was last considered for an interrupt.
    considered: Wrapping<u16>,
    /// A model of page states, which is told what the device touches.
    model: Option<Arc<Pages>>,
}

/// One request: a chain of descriptors, split into what the device may read and what it may write.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Index of the first descriptor: how the request is named when it is given back.
    pub head: u16,
    /// The device-readable part.
    pub readable: Buffer<'m>,
    /// The device-writable part.
    pub writable: Buffer<'m>,
}

impl Queue {
    /// Takes a ring whose addresses the transport has checked.
    pub fn new(ring: Ring) -> Queue {
        let considered = Wrapping(ring.next_used());
        Queue {
            ring,
            considered,
            model: None,
        }
    }

    /// How many entries its rings have.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Guest-physical addresses of the descriptor table, the available and the used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [
            self.ring.desc_table(),
            self.ring.avail_ring(),
            self.ring.used_ring(),
        ]
    }

    /// Tells `model` what the device touches through this queue, first of all its rings.
    pub fn modelled(mut self, model: Option<Arc<Pages>>) -> Queue {
        if let Some(pages) = &model {
            let size = u64::from(self.size());
            let bytes = [16 * size, 6 + 2 * size, 6 + 8 * size];
            let rings = self.addresses().into_iter().zip(bytes);
            rings.for_each(|(gpa, bytes)| pages.touch(gpa, bytes));
        }
        self.model = model;
        self
    }

    /// The next request, if there is one.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, Error> {
        // Asked first: the driver may add a request between this and the next line, but takes none away.
        if self.is_empty(memory)? {
            return Ok(None);
        }
        let size = self.ring.size();
        let mut descriptors = self.ring.iter(memory)?.next().ok_or(Error::Entry)?;
        let head = descriptors.head_index();
        let mut chain = Chain {
            head,
            readable: Buffer::default(),
            writable: Buffer::default(),
        };
        let mut complete = false;
        for (count, descriptor) in descriptors.by_ref().enumerate() {
            if count >= usize::from(size) {
                return Err(Error::Chain(head));
            }
            let slice = memory
                .get_slice(descriptor.addr(), descriptor.len() as usize)
                .map_err(|_| Error::Address(head))?;
            if let Some(pages) = &self.model {
                pages.touch(descriptor.addr().raw_value(), descriptor.len().into());
            }
            match (descriptor.is_write_only(), chain.writable.is_untouched()) {
                (true, _) => chain.writable.push(slice),
                (false, true) => chain.readable.push(slice),
                (false, false) => return Err(Error::Order(head)),
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(Some(chain))
        } else {
            Err(Error::Chain(head))
        }
    }

    /// Gives the request that was taken last back to the available ring, untouched.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives a request back to the driver, with `written` bytes in its writable part.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Error> {
        Ok(self.ring.add_used(memory, head, written)?)
    }

    /// Gives several requests back of which the driver is to see either none or all.
    pub fn push_together(&mut self, memory: &GuestMemory, requests: &[(u16, u32)]) -> Result<(), Error> {
        let Some(((last_head, last_written), before)) = requests.split_last() else {
            return Ok(());
        };
        let first = self.ring.next_used();
        // The entries lie in the ring before the index moves past all of them with the last one.
        for (at, (head, written)) in (0u16..).zip(before) {
            let slot = u64::from(first.wrapping_add(at) % self.ring.size());
            let entry = GuestAddress(self.ring.used_ring())
                .checked_add(USED_RING_HEADER + slot * USED_ELEMENT)
                .ok_or(Error::Entry)?;
            let element = (u64::from(*written) << 32) | u64::from(*head);
            memory.write_obj(element, entry).map_err(|_| Error::Entry)?;
        }
        // Fewer than the ring has entries, which are fewer than 2^16.
        self.ring.set_next_used(first.wrapping_add(before.len() as u16));
        self.push(memory, *last_head, *last_written)
    }

    /// Whether no request waits.
    pub fn is_empty(&self, memory: &GuestMemory) -> Result<bool, Error> {
        Ok(self.ring.avail_idx(memory, Ordering::Acquire)? == Wrapping(self.ring.next_avail()))
    }

    /// Asks the driver to notify us of new requests. `true` if some arrived meanwhile, which it does not notify.
    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        Ok(self.ring.enable_notification(memory)?)
    }

    /// Tells the driver that notifications are needless for now.
    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        Ok(self.ring.disable_notification(memory)?)
    }

    /// Whether the driver wants an interrupt for the requests that were given back since the last call (VIRTIO 1.2 §2.7.10).
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let now = Wrapping(self.ring.next_used());
        let before = std::mem::replace(&mut self.considered, now);
        if now == before {
            return Ok(false);
        }
        if !self.ring.event_idx_enabled() {
            return Ok(true);
        }
        // The used entries are written before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = GuestAddress(self.ring.avail_ring())
            .checked_add(AVAILABLE_RING_HEADER + u64::from(self.ring.size()) * AVAILABLE_ELEMENT)
            .ok_or(Error::Entry)?;
        let wish = Wrapping(u16::from_le(
            memory.load(wish, Ordering::Relaxed).map_err(|_| Error::Entry)?,
        ));
        Ok(now - wish - Wrapping(1) < now - before)
    }
}

/// Pieces of guest memory that belong together, in order. Reading and writing use them up from the front.
#[derive(Debug, Default)]
pub struct Buffer<'m> {
    pieces: Vec<Slice<'m>>,
    /// Index of the first piece that is not used up.
    next: usize,
}

impl<'m> Buffer<'m> {
    fn push(&mut self, piece: Slice<'m>) {
        self.pieces.push(piece);
    }

    /// Whether no piece was ever added.
    fn is_untouched(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes left. A chain has at most 4 GiB, which `virtio-queue` checks.
    pub fn len(&self) -> usize {
        self.rest().iter().map(|piece| piece.len()).sum()
    }

    /// The pieces that are left.
    pub fn rest(&self) -> &[Slice<'m>] {
        self.pieces.get(self.next..).unwrap_or_default()
    }

    /// The next `bytes` bytes (or all, if there are fewer), which stay where they are.
    pub fn first(&self, mut bytes: usize) -> Vec<Slice<'m>> {
        let mut pieces = Vec::new();
        for piece in self.rest() {
            let now = bytes.min(piece.len());
            // Not above the piece's length, so the part exists.
            pieces.extend(piece.subslice(0, now));
            bytes -= now;
            if bytes == 0 {
                break;
            }
        }
        pieces
    }

    /// The pieces that are left, for a call that uses them up.
    pub fn rest_mut(&mut self) -> &mut [Slice<'m>] {
        self.pieces.get_mut(self.next..).unwrap_or_default()
    }

    /// Copies the next `N` bytes out, or nothing if there are fewer.
    pub fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read_into(&mut bytes).then_some(bytes)
    }

    /// Copies the next bytes out into all of `bytes`, or nothing if there are fewer. Whether it did.
    pub fn read_into(&mut self, bytes: &mut [u8]) -> bool {
        if self.len() < bytes.len() {
            return false;
        }
        let mut rest = &mut *bytes;
        self.take(rest.len(), |piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
            piece.copy_to(now);
            rest = later;
        });
        true
    }

    /// Copies `bytes` into the next pieces; those beyond the end are dropped. Returns how many had room.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.len().min(bytes.len());
        let mut rest = bytes;
        self.take(room, |piece| {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from(now);
            rest = later;
        });
        room
    }

    /// Drops the next `bytes` bytes.
    pub fn skip(&mut self, bytes: usize) {
        self.take(bytes, |_| {});
    }

    /// Cuts the buffer to its next `bytes` bytes.
    pub fn truncate(&mut self, bytes: usize) {
        let mut left = bytes;
        for at in self.next..self.pieces.len() {
            let Some(piece) = self.pieces.get_mut(at) else {
                break;
            };
            if piece.len() >= left {
                // `left` is not above the piece's length, so the part exists.
                *piece = piece.subslice(0, left).unwrap_or(*piece);
                self.pieces.truncate(at + 1);
                return;
            }
            left -= piece.len();
        }
    }

    /// Cuts off the next `bytes` bytes (or all, if there are fewer) and returns them as a buffer of their own.
    pub fn split_front(&mut self, bytes: usize) -> Buffer<'m> {
        let mut front = Buffer::default();
        self.take(bytes, |piece| front.push(piece));
        front
    }

    /// Cuts off the last byte and returns it as a buffer of its own.
    pub fn split_last_byte(&mut self) -> Option<Buffer<'m>> {
        while self.pieces.len() > self.next && self.pieces.last().is_some_and(|piece| piece.is_empty()) {
            self.pieces.pop();
        }
        let last = self.rest().last()?;
        let (front, byte) = last.split_at(last.len().checked_sub(1)?).ok()?;
        *self.pieces.last_mut()? = front;
        Some(Buffer {
            pieces: vec![byte],
            next: 0,
        })
    }

    /// Hands the next `bytes` bytes to `each`, piece by piece, and drops them. Stops at the end.
    fn take(&mut self, mut bytes: usize, mut each: impl FnMut(Slice<'m>)) {
        while bytes > 0 {
            let Some(piece) = self.pieces.get_mut(self.next) else {
                return;
            };
            let Ok((now, later)) = piece.split_at(bytes.min(piece.len())) else {
                return;
            };
            bytes -= now.len();
            *piece = later;
            if later.is_empty() {
                self.next += 1;
            }
            each(now);
        }
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
