//! The machine of a guest that is not confidential.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use stage0::abi::PLAIN_TERMINATION_PORT;
use stage0::{Handover, Image, PageSize, Platform, Pvalidate, Sha256, Termination};

use crate::memory;

/// CPUID leaf 7.0, EBX.
const FEATURE_SHA: u32 = 1 << 29;

/// Boots the kernel that the hash page names.
pub fn boot(image: &Image) -> Result<Handover, Termination> {
    let has_sha = __cpuid_count(7, 0).ebx & FEATURE_SHA != 0;
    // SAFETY: the processor says so itself, and `entry.s` has turned SSE on.
    let sha256 = unsafe { Sha256::choose(has_sha) };
    stage0::plain(&mut Plain, image, sha256)
}

/// Tells the VMM why, and stops.
pub fn terminate(code: u8) -> ! {
    loop {
        // SAFETY: the port is the VMM's; with interrupts off nothing follows the halt.
        unsafe {
            asm!("out dx, al", "hlt", in("dx") PLAIN_TERMINATION_PORT, in("al") code, options(nomem, nostack))
        }
    }
}

struct Plain;

impl Platform for Plain {
    fn sev_status(&mut self) -> u64 {
        0
    }

    fn msr_protocol(&mut self, _: u64) -> u64 {
        0
    }

    fn vmgexit(&mut self, _: u64) {}

    fn pvalidate(&mut self, _: u64, _: PageSize, _: bool) -> Pvalidate {
        Pvalidate::Failed
    }

    fn read_shared(&mut self, gpa: u64) -> u64 {
        memory::read_shared(gpa)
    }

    fn write_shared(&mut self, gpa: u64, value: u64) {
        memory::write_shared(gpa, value);
    }

    fn copy_from_shared(&mut self, from: u64, to: u64, len: u64) {
        memory::copy_from_shared(from, to, len);
    }

    fn move_private(&mut self, from: u64, to: u64, len: u64) {
        memory::move_private(from, to, len);
    }

    fn private(&mut self, gpa: u64, len: usize) -> &mut [u8] {
        // SAFETY: the library asks for the image's data pages and for RAM, one at a time, and the returned reference keeps it
        // from asking again.
        unsafe { &mut *memory::private(gpa, len) }
    }
}
