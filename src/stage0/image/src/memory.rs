//! Guest-physical memory through the measured page tables.
//!
//! ```text
//! virtual 0 ── private view (C-bit) ── 512 GiB ── shared view (no C-bit) ── 1 TiB
//! ```

use core::arch::asm;
use core::ptr::{read_volatile, with_exposed_provenance, with_exposed_provenance_mut, write_volatile};

/// The shared view of guest-physical memory starts here.
const SHARED_VIEW: u64 = 1 << 39;

fn shared(gpa: u64) -> usize {
    (SHARED_VIEW + gpa) as usize
}

/// Reads 8 bytes of shared memory, once.
pub fn read_shared(gpa: u64) -> u64 {
    // SAFETY: the shared view maps all addresses below 512 GiB, and any value is a u64. Nothing of Rust's is in shared memory.
    unsafe { read_volatile(with_exposed_provenance(shared(gpa))) }
}

/// Writes 8 bytes of shared memory.
pub fn write_shared(gpa: u64, value: u64) {
    // SAFETY: as in `read_shared`.
    unsafe { write_volatile(with_exposed_provenance_mut(shared(gpa)), value) }
}

/// Copies `len` bytes of shared memory to private memory, each read once.
pub fn copy_from_shared(from: u64, to: u64, len: u64) {
    // SAFETY: the library gives staging as source and validated RAM, where nothing of Rust's is, as destination.
    unsafe { copy_up(shared(from), to, len) }
}

/// Moves `len` bytes within private memory, to a lower address.
pub fn move_private(from: u64, to: u64, len: u64) {
    debug_assert!(to <= from);
    // SAFETY: the library gives validated RAM, where nothing of Rust's is.
    unsafe { copy_up(from as usize, to, len) }
}

/// Copies from the lowest address to the highest, so that the places may overlap if `to` is the lower one; each byte is read once. By eight
/// bytes: a processor that does not make more of `rep movsb` than it says takes eight times as long with it.
///
/// # Safety
/// Both places are mapped, and nothing of Rust's is in them.
unsafe fn copy_up(from: usize, to: u64, len: u64) {
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Private memory.
pub fn private(gpa: u64, len: usize) -> *mut [u8] {
    core::ptr::slice_from_raw_parts_mut(with_exposed_provenance_mut(gpa as usize), len)
}
