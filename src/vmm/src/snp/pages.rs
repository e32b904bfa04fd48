//! Which of the guest's pages are private and which are shared, and the changes between the two that the guest asks for.
//!
//! ```text
//!   guest-physical      private side            shared side
//!   region 0  ┌──┐      guest_memfd 0           memory of this process
//!             │  │      (encrypted, nobody      (what devices read and write)
//!             └──┘       can map it)
//!   region 1  …
//! ```
//!
//! A page has one side at a time that counts. A change sets KVM's attribute first and then gives back the memory of the side that
//! lost the page, so that a guest does not cost twice its memory. The host can't read the private side whatever it does here: the
//! processor's reverse map table sees to that. This is book-keeping, and what the guest asks for is hostile input.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::layout::PAGE;

/// `KVM_HC_MAP_GPA_RANGE` (Linux `Documentation/virt/kvm/x86/hypercalls.rst`).
pub const MAP_GPA_RANGE: u64 = 12;
/// Its third argument: bits 3:0 are a page size, which is a hint; bit 4 asks for private pages; the rest is reserved.
const RANGE_PAGE_SIZE: u64 = 0xf;
const RANGE_ENCRYPTED: u64 = 1 << 4;
/// `KVM_MEMORY_EXIT_FLAG_PRIVATE`: the access that failed was to a private page.
const FAULT_PRIVATE: u64 = 1 << 3;
/// What a hypercall answers.
const DONE: u64 = 0;
const INVALID: u64 = (-(libc::EINVAL as i64)) as u64;
const FAILED: u64 = (-(libc::EIO as i64)) as u64;

/// What makes changes real. All ranges are whole pages of one region.
pub trait Backing: fmt::Debug + Send + Sync {
    /// Tells KVM which side counts.
    fn set_private(&self, gpa: u64, bytes: u64, private: bool) -> io::Result<()>;
    /// Gives the memory of the shared side back.
    fn discard_shared(&self, gpa: u64, bytes: u64) -> io::Result<()>;
    /// Gives the memory of the private side back.
    fn discard_private(&self, gpa: u64, bytes: u64) -> io::Result<()>;
}

/// Why a change can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not pages, or not RAM.
    #[error(
        "the guest asks to change the state of {bytes:#x} bytes at {gpa:#x}, which are not whole pages of its memory"
    )]
    Range {
        /// First address.
        gpa: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// A bit that has no meaning here.
    #[error("the guest's memory exit has the flags {0:#x}, of which some are unknown")]
    Flags(u64),
    /// The host can't.
    #[error("the host can't change the state of guest memory at {gpa:#x}")]
    Host {
        /// First address.
        gpa: u64,
        /// The host's error.
        source: io::Error,
    },
}

/// How often and how much was changed, and what is shared now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Changes that did something.
    pub conversions: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Pages that are shared now.
    pub shared_pages: u64,
}

/// The state of every page.
#[derive(Debug)]
pub struct Pages {
    state: Mutex<State>,
    backing: Box<dyn Backing>,
}

#[derive(Debug)]
struct State {
    regions: Vec<Region>,
    statistics: Statistics,
}

/// One bit a page, set if it is shared: a hostile guest can't make this grow.
#[derive(Debug)]
struct Region {
    gpa: u64,
    bytes: u64,
    shared: Vec<u64>,
}

impl Pages {
    /// For RAM at `ranges` (address and bytes; whole pages, ascending), all of it shared: the state in which KVM makes a VM.
    pub fn new(ranges: &[(u64, u64)], backing: Box<dyn Backing>) -> Pages {
        let region = |&(gpa, bytes): &(u64, u64)| Region {
            gpa,
            bytes,
            // At most a bit for each page of memory that was allocated before.
            shared: vec![u64::MAX; (bytes / PAGE).div_ceil(64) as usize],
        };
        let pages = ranges.iter().map(|(_, bytes)| bytes / PAGE).sum();
        Pages {
            state: Mutex::new(State {
                regions: ranges.iter().map(region).collect(),
                statistics: Statistics {
                    shared_pages: pages,
                    ..Statistics::default()
                },
            }),
            backing,
        }
    }

    /// Notes that all pages are private, as they are after a launch.
    pub fn all_private(&self) {
        let mut state = self.lock();
        for region in &mut state.regions {
            region.shared.fill(0);
        }
        state.statistics.shared_pages = 0;
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// Makes `bytes` bytes from `gpa` on private or shared. They may lie in several regions that follow each other without a gap.
    pub fn convert(&self, gpa: u64, bytes: u64, private: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let State { regions, statistics } = &mut *state;
        let pieces = match pieces(regions, gpa, bytes) {
            Some(pieces) => pieces,
            None => {
                statistics.refused += 1;
                return Err(Error::Range { gpa, bytes });
            }
        };
        for (index, start, length) in pieces {
            let region = &mut regions[index];
            let first = (start - region.gpa) / PAGE;
            let pages = first..first + length / PAGE;
            let changed = pages
                .clone()
                .filter(|page| region.is_shared(*page) == private)
                .count() as u64;
            if changed == 0 {
                continue;
            }
            let host = |source| Error::Host { gpa: start, source };
            self.backing.set_private(start, length, private).map_err(host)?;
            pages.for_each(|page| region.set_shared(page, !private));
            statistics.conversions += 1;
            match private {
                true => {
                    statistics.shared_pages -= changed;
                    self.backing.discard_shared(start, length).map_err(host)?;
                }
                false => {
                    statistics.shared_pages += changed;
                    self.backing.discard_private(start, length).map_err(host)?;
                }
            }
        }
        Ok(())
    }

    /// A device touches these bytes. Where page states are modelled, that makes them shared: nothing else would be left for it to see.
    pub fn touch(&self, gpa: u64, bytes: u64) {
        let start = gpa & !(PAGE - 1);
        let end = gpa
            .checked_add(bytes)
            .and_then(|end| end.checked_next_multiple_of(PAGE));
        if let Some(end) = end.filter(|end| *end > start) {
            // What is not RAM was not touched.
            let _ = self.convert(start, end - start, false);
        }
    }

    /// Whether all of these bytes are in shared pages: what a device may touch.
    pub fn are_shared(&self, gpa: u64, bytes: u64) -> bool {
        let state = self.lock();
        let (start, Some(end)) = (gpa & !(PAGE - 1), gpa.checked_add(bytes)) else {
            return false;
        };
        let Some(end) = end.checked_next_multiple_of(PAGE) else {
            return false;
        };
        let Some(pieces) = pieces(&state.regions, start, end - start) else {
            return bytes == 0;
        };
        pieces.into_iter().all(|(index, start, length)| {
            let region = &state.regions[index];
            let first = (start - region.gpa) / PAGE;
            (first..first + length / PAGE).all(|page| region.is_shared(page))
        })
    }

    /// Serves `KVM_HC_MAP_GPA_RANGE`: address, number of 4 KiB pages, attributes. Returns the hypercall's answer.
    pub fn map_gpa_range(&self, [gpa, pages, attributes, ..]: [u64; 6]) -> u64 {
        if attributes & !(RANGE_ENCRYPTED | RANGE_PAGE_SIZE) != 0 {
            self.lock().statistics.refused += 1;
            return INVALID;
        }
        let bytes = pages.saturating_mul(PAGE);
        match self.convert(gpa, bytes, attributes & RANGE_ENCRYPTED != 0) {
            Ok(()) => DONE,
            Err(Error::Range { .. } | Error::Flags(_)) => INVALID,
            Err(error) => {
                tracing::warn!(%error, cause = error.source_text(), "a change of page states failed");
                FAILED
            }
        }
    }

    /// Serves `KVM_EXIT_MEMORY_FAULT`: the guest used pages as what they are not, which asks for the change.
    pub fn memory_fault(&self, flags: u64, gpa: u64, bytes: u64) -> Result<(), Error> {
        if flags & !FAULT_PRIVATE != 0 {
            return Err(Error::Flags(flags));
        }
        self.convert(gpa, bytes, flags & FAULT_PRIVATE != 0)
    }

    /// A thread that panicked with the lock held ended the process.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Error {
    /// The cause behind it, for logs.
    fn source_text(&self) -> Option<String> {
        std::error::Error::source(self).map(|cause| cause.to_string())
    }
}

impl Region {
    /// `page` is one of the region's.
    fn is_shared(&self, page: u64) -> bool {
        self.shared[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    fn set_shared(&mut self, page: u64, shared: bool) {
        let (word, bit) = (&mut self.shared[(page / 64) as usize], 1 << (page % 64));
        *word = if shared { *word | bit } else { *word & !bit };
    }
}

/// Cuts a range into those of regions: index, address, bytes. `None` unless it is one or more whole pages, all of them RAM.
fn pieces(regions: &[Region], gpa: u64, bytes: u64) -> Option<Vec<(usize, u64, u64)>> {
    let end = gpa.checked_add(bytes)?;
    if bytes == 0 || !gpa.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) {
        return None;
    }
    let mut pieces = Vec::new();
    let mut at = gpa;
    for (index, region) in regions.iter().enumerate() {
        let region_end = region.gpa + region.bytes;
        if at < region.gpa || at >= region_end {
            continue;
        }
        let length = end.min(region_end) - at;
        pieces.push((index, at, length));
        at += length;
        if at == end {
            return Some(pieces);
        }
    }
    None
}

#[cfg(test)]
#[path = "pages_test.rs"]
mod tests;
