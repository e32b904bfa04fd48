//! Which pages are RAM: derived from its amount and from constants, so that nothing of the host's can point into stage0.
//!
//! ```text
//! 0 ── RAM ── 640 KiB ── nothing ── 1 MiB ── RAM ─[ stage0 ]─ RAM ── ≤ 3 GiB ── staging, devices ── 4 GiB ── RAM ──
//! ```

use crate::abi::{CONVENTIONAL_END, HIGH_RAM, LOW_RAM_END};
use crate::platform::Image;

/// A range of guest-physical addresses, in bytes, both ends whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

impl Range {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// RAM below 4 GiB ends here.
pub fn low_end(ram: u64) -> u64 {
    ram.min(LOW_RAM_END)
}

/// The ranges that stage0 validates, lowest first: all RAM but the image. Some may be empty.
///
/// Up to 1 MiB from [`CONVENTIONAL_END`] is left alone: Linux before 6.9 validates it itself, and would take a page that is valid
/// for an attack.
pub fn ranges(ram: u64, image: &Image) -> [Range; 4] {
    let low = low_end(ram);
    [
        Range {
            start: 0,
            end: CONVENTIONAL_END,
        },
        Range {
            start: BIOS_END,
            end: image.start,
        },
        Range {
            start: image.end,
            end: low,
        },
        Range {
            start: HIGH_RAM,
            end: HIGH_RAM + (ram - low),
        },
    ]
}

/// Where RAM goes on after the BIOS area.
pub const BIOS_END: u64 = 0x10_0000;

#[cfg(test)]
#[path = "ram_test.rs"]
mod tests;
