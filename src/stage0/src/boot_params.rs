//! Linux' `boot_params` (`Documentation/arch/x86/zero-page.rst`), the memory map, and the CC blob that says where secrets and
//! CPUID page are. All in low memory that Linux reserves before it allocates:
//!
//! ```text
//!  0x7000 boot_params │ 0x8000 setup_data ─► CC blob │ 0x9000 command line │ … │ 0x9f000 ACPI tables │ 0xa0000
//! ```

use crate::abi::{CONVENTIONAL_END, HIGH_RAM, PAGE};
use crate::bzimage::{HEADER, LOAD_ADDRESS};
use crate::platform::Image;
use crate::ram::{self, BIOS_END, Range};

/// Where `boot_params` is.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Where the `setup_data` with the CC blob is.
pub const SETUP_DATA: u64 = 0x8000;
/// Where the command line is, with a zero byte at its end.
pub const CMDLINE: u64 = 0x9000;
/// Where the ACPI tables are.
pub const ACPI: u64 = CONVENTIONAL_END - PAGE;

const ACPI_RSDP_ADDR: usize = 0x70;
const CC_BLOB_ADDRESS: usize = 0x13c;
const E820_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const SETUP_DATA_PTR: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// `struct setup_data`: next u64, type u32, len u32; then the payload. Ours is `struct cc_setup_data`'s pointer, and the blob
/// itself right after it, so that the kernel reserves both.
const SETUP_CC_BLOB: u32 = 7;
const SETUP_HEADER: usize = 16;
const BLOB: usize = 24;
const BLOB_LEN: usize = 40;
const BLOB_MAGIC: u32 = 0x4544_4d41;

/// Writes `boot_params`. `page` is zero; `header` is the kernel's setup header, from [`HEADER`] on and short enough.
pub fn write(
    page: &mut [u8],
    header: &[u8],
    ram: u64,
    image: &Image,
    initrd: Range,
    initrd_len: u64,
    confidential: bool,
) {
    put(page, HEADER, header);
    put(page, TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    // All below 4 GiB.
    put(page, CODE32_START, &(LOAD_ADDRESS as u32).to_le_bytes());
    if initrd_len != 0 {
        put(page, RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
        put(page, RAMDISK_SIZE, &(initrd_len as u32).to_le_bytes());
    }
    put(page, CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    put(page, ACPI_RSDP_ADDR, &ACPI.to_le_bytes());
    put(page, SETUP_DATA_PTR, &0u64.to_le_bytes());
    if confidential {
        put(page, SETUP_DATA_PTR, &SETUP_DATA.to_le_bytes());
        put(
            page,
            CC_BLOB_ADDRESS,
            &(SETUP_DATA as u32 + BLOB as u32).to_le_bytes(),
        );
    }
    let mut count = 0;
    for (range, kind) in e820(ram, image) {
        if range.len() == 0 {
            continue;
        }
        let at = E820_TABLE + count * E820_ENTRY;
        put(page, at, &range.start.to_le_bytes());
        put(page, at + 8, &range.len().to_le_bytes());
        put(page, at + 16, &kind.to_le_bytes());
        count += 1;
    }
    put(page, E820_ENTRIES, &[count as u8]);
}

/// What is where, lowest first; some may be empty. All RAM in it has been validated.
fn e820(ram: u64, image: &Image) -> [(Range, u32); 6] {
    let low = ram::low_end(ram);
    let range = |start, end| Range { start, end };
    [
        (range(0, ACPI), E820_RAM),
        (range(ACPI, CONVENTIONAL_END), E820_ACPI),
        (range(BIOS_END, image.start), E820_RAM),
        (range(image.start, image.end), E820_RESERVED),
        (range(image.end, low), E820_RAM),
        (range(HIGH_RAM, HIGH_RAM + (ram - low)), E820_RAM),
    ]
}

/// Writes the `setup_data` and the CC blob (`struct cc_blob_sev_info`): where the measured image has secrets and CPUID page.
pub fn write_cc_blob(page: &mut [u8], image: &Image) {
    put(page, 8, &SETUP_CC_BLOB.to_le_bytes());
    put(page, 12, &((BLOB - SETUP_HEADER + BLOB_LEN) as u32).to_le_bytes());
    put(
        page,
        SETUP_HEADER,
        &(SETUP_DATA as u32 + BLOB as u32).to_le_bytes(),
    );
    put(page, BLOB, &BLOB_MAGIC.to_le_bytes());
    put(page, BLOB + 8, &image.secrets.to_le_bytes());
    put(page, BLOB + 16, &(PAGE as u32).to_le_bytes());
    put(page, BLOB + 24, &image.cpuid.to_le_bytes());
    put(page, BLOB + 32, &(PAGE as u32).to_le_bytes());
}

/// Writes `value` at the constant offset `at` of a page that has room for it.
fn put(page: &mut [u8], at: usize, value: &[u8]) {
    page[at..at + value.len()].copy_from_slice(value);
}
