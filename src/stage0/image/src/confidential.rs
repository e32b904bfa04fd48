//! The machine under SEV-SNP.

use core::arch::asm;

use stage0::{Handover, Image, PageSize, Platform, Pvalidate, Termination};

use crate::memory;

const MSR_GHCB: u32 = 0xc001_0130;
const MSR_SEV_STATUS: u32 = 0xc001_0131;

/// Return values of PVALIDATE in EAX.
const SUCCESS: u32 = 0;
const FAIL_SIZEMISMATCH: u32 = 6;

/// Boots the kernel that was measured.
pub fn boot(image: &Image) -> Result<Handover, Termination> {
    stage0::confidential(&mut Snp, image)
}

/// Asks the host to end the guest, and goes nowhere if it does not.
pub fn terminate(code: u8) -> ! {
    let request = Termination::from_code(code)
        .unwrap_or(Termination::Panic)
        .ghcb_msr();
    loop {
        Snp.msr_protocol(request);
    }
}

struct Snp;

impl Platform for Snp {
    fn sev_status(&mut self) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: every processor with 64-bit mode and SEV has this MSR, and the launch starts us on none without.
        unsafe {
            asm!("rdmsr", in("ecx") MSR_SEV_STATUS, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
        }
        u64::from(high) << 32 | u64::from(low)
    }

    fn msr_protocol(&mut self, request: u64) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the host answers in the MSR; it can't touch our registers or private memory.
        unsafe {
            asm!(
                "wrmsr",
                "rep vmmcall",
                "rdmsr",
                in("ecx") MSR_GHCB,
                inout("eax") request as u32 => low,
                inout("edx") (request >> 32) as u32 => high,
                options(nostack, preserves_flags)
            );
        }
        u64::from(high) << 32 | u64::from(low)
    }

    fn vmgexit(&mut self, ghcb: u64) {
        // SAFETY: the library wrote a request into the GHCB, which is shared and registered; the host changes only that page.
        unsafe {
            asm!(
                "wrmsr",
                "rep vmmcall",
                in("ecx") MSR_GHCB,
                in("eax") ghcb as u32,
                in("edx") (ghcb >> 32) as u32,
                options(nostack, preserves_flags)
            );
        }
    }

    fn pvalidate(&mut self, gpa: u64, size: PageSize, valid: bool) -> Pvalidate {
        let status: u64;
        let unchanged: u8;
        // SAFETY: validates RAM that nothing uses yet, or invalidates the GHCB's page, which Rust does not know. The address is
        // in the private view, where virtual and physical are the same.
        unsafe {
            asm!(
                // pvalidate
                ".byte 0xf2, 0x0f, 0x01, 0xff",
                "setc {unchanged}",
                unchanged = out(reg_byte) unchanged,
                inout("rax") gpa => status,
                in("ecx") u32::from(size == PageSize::Large),
                in("edx") u32::from(valid),
                options(nostack)
            );
        }
        match (status as u32, unchanged) {
            (SUCCESS, 0) => Pvalidate::Changed,
            (SUCCESS, _) => Pvalidate::Unchanged,
            (FAIL_SIZEMISMATCH, _) => Pvalidate::SizeMismatch,
            _ => Pvalidate::Failed,
        }
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
        // SAFETY: the library asks for the image's data pages and for RAM that it has validated, one at a time, and the
        // returned reference keeps it from asking again.
        unsafe { &mut *memory::private(gpa, len) }
    }
}
