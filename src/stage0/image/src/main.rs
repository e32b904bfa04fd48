//! The firmware image: instructions behind the library's [`Platform`], the entry, and the end.
//!
//! The memory map is in `image.ld`, page tables and entry in `entry.s`. With the feature `plain` it becomes the image for guests that
//! are not confidential; the one without the feature has no such code.

#![no_std]
#![no_main]

#[cfg(not(feature = "plain"))]
#[path = "confidential.rs"]
mod machine;
#[cfg(feature = "plain")]
#[path = "plain.rs"]
mod machine;
mod memory;

use core::arch::{asm, global_asm};

use stage0::{Handover, Image, Termination};

#[cfg(not(feature = "plain"))]
const C_BIT: u64 = 1 << 51;
#[cfg(feature = "plain")]
const C_BIT: u64 = 0;

global_asm!(
    ".set C_BIT, {c_bit}",
    ".set EXCEPTION, {exception}",
    include_str!("entry.s"),
    c_bit = const C_BIT,
    exception = const Termination::Exception as u8,
);

// Code that `entry.s` jumps to when nothing can be returned any more.
#[cfg(not(feature = "plain"))]
global_asm!(
    "park:",
    // AP reset hold (GHCB specification §4.3.2) by the MSR protocol: the host wakes us or not, we stay here.
    "mov ecx, 0xc0010130",
    "xor edx, edx",
    "mov eax, 6",
    "wrmsr",
    "rep vmmcall",
    "jmp park",
);
#[cfg(feature = "plain")]
global_asm!("park:", "cli", "hlt", "jmp park");

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static hash_page: u8;
    static secrets_page: u8;
    static cpuid_page: u8;
    static ghcb_page: u8;
}

/// Where the linker put everything.
fn image() -> Image {
    Image {
        start: &raw const image_start as u64,
        end: &raw const image_end as u64,
        hashes: &raw const hash_page as u64,
        secrets: &raw const secrets_page as u64,
        cpuid: &raw const cpuid_page as u64,
        ghcb: &raw const ghcb_page as u64,
    }
}

/// Called once by `entry.s`, on the boot processor, with a stack, segments, SSE and an interrupt table.
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    match machine::boot(&image()) {
        Ok(handover) => enter(handover),
        Err(termination) => machine::terminate(termination as u8),
    }
}

/// Called by `entry.s` on an exception.
#[unsafe(no_mangle)]
extern "C" fn terminate(code: u8) -> ! {
    machine::terminate(code)
}

/// Enters the kernel.
fn enter(handover: Handover) -> ! {
    // SAFETY: the library has put a kernel with a 64-bit entry there and compared it with the measured hash; segments and page
    // tables are as its boot protocol wants them. Nothing of ours runs after this.
    unsafe {
        asm!(
            "xor ebp, ebp",
            "xor edi, edi",
            "xor ebx, ebx",
            "jmp rax",
            in("rax") handover.entry,
            in("rsi") handover.boot_params,
            options(noreturn)
        )
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    machine::terminate(Termination::Panic as u8)
}
