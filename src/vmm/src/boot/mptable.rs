//! The Intel MultiProcessor tables (MP Specification 1.4, chapter 4), from which a guest without ACPI learns its
//! processors and interrupt lines.
//!
//! ```text
//! floating pointer (16 bytes) ─► header (44) │ processor ×n (20) │ bus (8) │ I/O APIC (8)
//!                                            │ interrupt ×24 (8)│ local interrupt ×2 (8)
//! ```

use crate::layout::{IO_APIC, LAST_GSI, LOCAL_APIC, MP_TABLE, MP_TABLE_SIZE};

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;
/// Processor flags: enabled, and the boot processor.
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6, model 0, stepping 0; with an on-chip FPU and APIC. The guest reads the true values from CPUID.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;
/// Interrupt types of table 4-10.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// The tables for `vcpus` processors with the APIC ids 0, 1, …, as bytes for [`MP_TABLE`]; `None` if there is no room or no
/// APIC id left for the I/O APIC.
pub fn build(vcpus: u8) -> Option<Vec<u8>> {
    let io_apic_id = vcpus.checked_add(1).filter(|&id| id < ALL_LOCAL_APICS)?;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        entry(&processor(id));
    }
    entry(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    entry(&[2, io_apic_id, IO_APIC_VERSION, ENABLED, a, b, c, d]);
    for line in 0..=LAST_GSI as u8 {
        entry(&[3, VECTORED, 0, 0, ISA_BUS, line, io_apic_id, line]);
    }
    entry(&[4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entry(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut table = floating_pointer().to_vec();
    table.extend(header(&entries, count));
    table.extend(entries);
    (table.len() <= MP_TABLE_SIZE).then_some(table)
}

fn floating_pointer() -> [u8; FLOATING_POINTER_SIZE] {
    let mut pointer = [0; FLOATING_POINTER_SIZE];
    pointer[..4].copy_from_slice(b"_MP_");
    let table = MP_TABLE as u32 + FLOATING_POINTER_SIZE as u32;
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // length in units of 16 bytes
    pointer[9] = SPECIFICATION;
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: &[u8], count: u16) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    // At most 255 processors and a few more entries: below 64 KiB.
    let length = (HEADER_SIZE + entries.len()) as u16;
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPECIFICATION;
    header[8..16].copy_from_slice(b"CWRUN   ");
    header[16..28].copy_from_slice(b"MICROVM     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    header[7] = checksum(&[&header, entries].concat());
    header
}

fn processor(id: u8) -> [u8; 20] {
    let mut processor = [0; 20];
    processor[1] = id;
    processor[2] = LOCAL_APIC_VERSION;
    processor[3] = if id == 0 {
        ENABLED | BOOT_PROCESSOR
    } else {
        ENABLED
    };
    processor[4..8].copy_from_slice(&SIGNATURE.to_le_bytes());
    processor[8..12].copy_from_slice(&FEATURES.to_le_bytes());
    processor
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg()
}

#[cfg(test)]
#[path = "mptable_test.rs"]
mod tests;
