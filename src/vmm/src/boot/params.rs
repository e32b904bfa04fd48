//! Linux' `boot_params`, the "zero page" (`Documentation/arch/x86/zero-page.rst`).
//!
//! A boot loader copies a bzImage's setup header into it; a bare vmlinux has none, so the few fields that the kernel reads
//! on the 64-bit path are written here. Everything else is zero, which means "absent".

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::initrd::Initrd;
use crate::layout::{CMDLINE, CONVENTIONAL_END, HIGH_RAM};
use crate::memory::GuestMemory;

/// Size of `struct boot_params`, in bytes.
const SIZE: usize = 4096;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_LENGTH: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_RAM: u32 = 1;
const E820_ENTRY_SIZE: usize = 20;

/// The zero page for a guest with `memory`, `initrd` and a command line of `cmdline_len` bytes.
pub fn zero_page(memory: &GuestMemory, initrd: Initrd, cmdline_len: usize) -> [u8; SIZE] {
    let mut page = [0; SIZE];
    put(&mut page, BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(&mut page, HEADER_MAGIC, b"HdrS");
    // "Undefined" loader.
    put(&mut page, TYPE_OF_LOADER, &[0xff]);
    put(&mut page, RAMDISK_IMAGE, &initrd.start.to_le_bytes());
    put(&mut page, RAMDISK_SIZE, &initrd.len.to_le_bytes());
    put(&mut page, CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    // Shorter than CMDLINE_SIZE, so it fits.
    put(&mut page, CMDLINE_LENGTH, &(cmdline_len as u32).to_le_bytes());

    let map = e820(memory);
    // At most three entries.
    put(&mut page, E820_ENTRIES, &[map.len() as u8]);
    for (index, (start, len)) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_SIZE;
        put(&mut page, at, &start.to_le_bytes());
        put(&mut page, at + 8, &len.to_le_bytes());
        put(&mut page, at + 16, &E820_RAM.to_le_bytes());
    }
    page
}

/// `(address, bytes)` of the RAM that the kernel may use: all but the part of the first MiB where a PC has its BIOS.
fn e820(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut map = vec![(0, CONVENTIONAL_END)];
    for region in memory.iter() {
        let (start, len) = (region.start_addr().raw_value(), region.len());
        match start {
            // The first region is at least MIN_MEMORY_MIB long.
            0 => map.push((HIGH_RAM, len - HIGH_RAM)),
            _ => map.push((start, len)),
        }
    }
    map
}

/// Writes `bytes` at the constant offset `at` of the page, which has room for it.
fn put(page: &mut [u8; SIZE], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    const INITRD: Initrd = Initrd {
        start: 0x7f0_0000,
        len: 0x1234,
    };

    #[test]
    fn fields_are_where_linux_reads_them() {
        let page = zero_page(&allocate(128).unwrap(), INITRD, 17);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x218..0x21c], 0x7f0_0000u32.to_le_bytes());
        assert_eq!(page[0x21c..0x220], 0x1234u32.to_le_bytes());
        assert_eq!(page[0x228..0x22c], 0x2_0000u32.to_le_bytes());
        assert_eq!(page[0x238..0x23c], 17u32.to_le_bytes());
    }

    #[test]
    fn the_memory_map_leaves_out_the_bios_area_and_the_hole() {
        assert_eq!(
            e820(&allocate(128).unwrap()),
            [(0, 0x9fc00), (0x10_0000, 127 << 20)]
        );
        let large = e820(&allocate(4096).unwrap());
        assert_eq!(
            large,
            [
                (0, 0x9fc00),
                (0x10_0000, (3 << 30) - 0x10_0000),
                (4 << 30, 1 << 30)
            ]
        );
        let page = zero_page(&allocate(4096).unwrap(), INITRD, 0);
        assert_eq!(page[0x1e8], 3);
        let third = &page[0x2d0 + 40..0x2d0 + 60];
        assert_eq!(third[..8], (4u64 << 30).to_le_bytes());
        assert_eq!(third[8..16], (1u64 << 30).to_le_bytes());
        assert_eq!(third[16..], 1u32.to_le_bytes());
    }
}
