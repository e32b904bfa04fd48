//! Puts a Linux kernel into guest memory, ready to run in 64-bit mode at its first instruction.
//!
//! This follows the 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"): the vCPU
//! starts in long mode with the low GiB identity-mapped, flat segments, interrupts off, and RSI pointing to
//! `boot_params`.

mod elf;
mod initrd;
mod mptable;
mod params;

use std::fs::File;

use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::GuestMemory;
use crate::phase::phase;

/// The command line that every guest gets first. Each word, and why:
///
/// - `console=ttyS0 quiet`: errors, warnings of the kernel's end and a panic go to the serial port; every character
///   costs exits, so the rest stays in the guest. `loglevel=7` in the caller's part brings everything.
/// - `reboot=k panic=-1`: ends go through the keyboard controller's reset line, at once; see [`Exit`](crate::Exit).
/// - `acpi=off`: no tables from the host; processors come from the MP table, devices from this command line.
/// - `8250.nr_uarts=1`: don't search for serial ports that don't exist.
/// - `cryptomgr.notests`: no self-test of every cipher at each boot.
/// - `random.trust_cpu=on`: RDRAND seeds the pool at once.
/// - `dummy.numdummies=0`: no network interface that nobody asked for.
/// - `tsc=reliable no_timer_check`: KVM's clocks need no cross-checks.
pub const BASE_CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=-1 acpi=off 8250.nr_uarts=1 cryptomgr.notests \
                                random.trust_cpu=on dummy.numdummies=0 tsc=reliable no_timer_check";

/// Why a guest could not be made ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel file is not one that can be booted.
    #[error("guest kernel can't be loaded")]
    Kernel(#[source] elf::Error),
    /// The initrd can't be loaded.
    #[error("guest initrd can't be loaded")]
    Initrd(#[source] initrd::Error),
    /// The command line is longer than the kernel reads.
    #[error("kernel command line is {0} bytes long, more than the {max} that the kernel reads", max = layout::CMDLINE_SIZE - 1)]
    CmdlineTooLong(usize),
    /// The command line holds a zero byte, a line break or another control character.
    #[error(
        "kernel command line holds the byte {0:#04x}, which is neither a printable character nor a space"
    )]
    CmdlineByte(u8),
    /// The MP table would run over its place.
    #[error("MP table for {0} vCPUs does not fit")]
    MpTable(u8),
    /// A structure falls outside guest memory.
    #[error("boot data does not fit into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Loads everything that the guest's first instruction needs and returns the guest-physical address of that instruction.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    initrd: &File,
    cmdline: &str,
    vcpus: u8,
) -> Result<u64, Error> {
    check_cmdline(cmdline)?;
    let image = phase("vmm.kernel", || elf::load(memory, kernel).map_err(Error::Kernel))?;
    let initrd = phase("vmm.initrd", || {
        initrd::load(memory, initrd, image.end).map_err(Error::Initrd)
    })?;

    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    memory.write_slice(
        &params::zero_page(memory, initrd, cmdline.len()),
        GuestAddress(layout::BOOT_PARAMS),
    )?;
    let table = mptable::build(vcpus).ok_or(Error::MpTable(vcpus))?;
    memory.write_slice(&table, GuestAddress(layout::MP_TABLE))?;
    Ok(image.entry)
}

/// A command line is one line of printable text (ASCII or UTF-8) that the kernel reads to its end.
fn check_cmdline(cmdline: &str) -> Result<(), Error> {
    if cmdline.len() >= layout::CMDLINE_SIZE {
        return Err(Error::CmdlineTooLong(cmdline.len()));
    }
    match cmdline.bytes().find(|byte| byte.is_ascii_control()) {
        Some(byte) => Err(Error::CmdlineByte(byte)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_checked() {
        assert!(check_cmdline(BASE_CMDLINE).is_ok());
        assert!(check_cmdline(&"x".repeat(2047)).is_ok());
        assert!(matches!(
            check_cmdline(&"x".repeat(2048)),
            Err(Error::CmdlineTooLong(2048))
        ));
        assert!(matches!(check_cmdline("a\0b"), Err(Error::CmdlineByte(0))));
        assert!(matches!(check_cmdline("a\nb"), Err(Error::CmdlineByte(b'\n'))));
    }
}
