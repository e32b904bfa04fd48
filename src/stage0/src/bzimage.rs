//! The setup header of a bzImage (Linux `Documentation/arch/x86/boot.rst`). The file has passed its hash by now, yet it is
//! parsed as if it had not: whoever makes the hashes may have made a mistake.

use crate::abi::{Termination, u32_at, u64_at};

/// Where the kernel's protected-mode code goes: Linux' default `CONFIG_PHYSICAL_START`.
pub const LOAD_ADDRESS: u64 = 0x100_0000;
/// Offset of the 64-bit entry into the protected-mode code.
pub const ENTRY_64: u64 = 0x200;
/// Offset of the setup header in the file and in `boot_params`.
pub const HEADER: usize = 0x1f1;
/// The header may reach to here: `boot_params` has other fields after it.
pub const HEADER_MAX_END: usize = 0x290;

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_OFFSET: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The fields above lie before this.
const FIELDS_END: usize = 0x264;

const SECTOR: u64 = 512;
/// 2.12 has `xloadflags`.
const MIN_VERSION: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes before the protected-mode code.
    pub setup_len: u64,
    /// End of the header in the file.
    pub end: usize,
    /// Memory that the kernel needs from [`LOAD_ADDRESS`] before it looks at the memory map.
    pub init_size: u64,
    /// The initrd's last byte must not lie above this.
    pub initrd_max: u64,
}

impl Header {
    /// Parses the header of the bzImage `file`, to be started with a command line of `cmdline` bytes.
    pub fn parse(file: &[u8], cmdline: u64) -> Result<Self, Termination> {
        let fields = file.get(..FIELDS_END).ok_or(Termination::KernelFormat)?;
        if u16_at(fields, BOOT_FLAG) != 0xaa55 || fields[MAGIC..MAGIC + 4] != *b"HdrS" {
            return Err(Termination::KernelFormat);
        }
        let is_64_bit = u16_at(fields, XLOADFLAGS) & KERNEL_64 != 0 && fields[LOADFLAGS] & LOADED_HIGH != 0;
        if u16_at(fields, VERSION) < MIN_VERSION || !is_64_bit {
            return Err(Termination::KernelProtocol);
        }
        let header = Header {
            setup_len: setup_len(fields[SETUP_SECTS]),
            end: MAGIC + usize::from(fields[JUMP_OFFSET]),
            init_size: u32_at(fields, INIT_SIZE).into(),
            initrd_max: u32_at(fields, INITRD_ADDR_MAX).into(),
        };
        if !(FIELDS_END..=HEADER_MAX_END).contains(&header.end) {
            return Err(Termination::KernelFormat);
        }
        header.check_sizes(file.len() as u64, u64::from(u32_at(fields, SYSSIZE)) * 16)?;
        check_address(fields)?;
        if cmdline > u32_at(fields, CMDLINE_SIZE).into() {
            return Err(Termination::KernelCmdline);
        }
        Ok(header)
    }

    fn check_sizes(&self, file: u64, code: u64) -> Result<(), Termination> {
        let present = file
            .checked_sub(self.setup_len)
            .ok_or(Termination::KernelTruncated)?;
        if present < code || present <= ENTRY_64 || (self.end as u64) > self.setup_len {
            return Err(Termination::KernelTruncated);
        }
        match self.init_size >= present {
            true => Ok(()),
            false => Err(Termination::KernelInitSize),
        }
    }
}

/// `setup_sects` 0 means 4, for historical reasons; the boot sector is not counted.
fn setup_len(sectors: u8) -> u64 {
    let sectors = if sectors == 0 { 4 } else { sectors };
    (u64::from(sectors) + 1) * SECTOR
}

/// A relocatable kernel runs where it is if that is aligned and not below its preferred address; another only there.
fn check_address(fields: &[u8]) -> Result<(), Termination> {
    let alignment = u64::from(u32_at(fields, KERNEL_ALIGNMENT));
    let preferred = u64_at(fields, PREF_ADDRESS);
    let fits = match fields[RELOCATABLE] {
        0 => preferred == LOAD_ADDRESS,
        _ => {
            alignment.is_power_of_two() && LOAD_ADDRESS.is_multiple_of(alignment) && preferred <= LOAD_ADDRESS
        }
    };
    if fits {
        Ok(())
    } else {
        Err(Termination::KernelAddress)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
