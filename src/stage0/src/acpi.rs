//! The only ACPI tables that a confidential guest gets (ACPI 6.5 §5.2): which processors and which I/O APIC there are.
//!
//! ```text
//! RSDP (36) │ 64: XSDT (44) ─► 128: MADT (44 │ local APIC ×n (8) │ I/O APIC (12) │ NMI (6))
//! ```
//!
//! Linux ignores MP tables under SNP, so this is how it learns of application processors. There is no DSDT on purpose: without
//! AML there is nothing to interpret, and the kernel ends its ACPI subsystem once it has read these.

use crate::abi::{MAX_VCPUS, PAGE};

const XSDT: usize = 64;
const MADT: usize = 128;
const HEADER: usize = 36;
const RSDP_LEN: usize = 36;
const RSDP_V1_LEN: usize = 20;
const XSDT_LEN: usize = HEADER + 8;
/// Lengths of MADT structures (§5.2.12).
const LOCAL_APIC_LEN: usize = 8;
const IO_APIC_LEN: usize = 12;
const NMI_LEN: usize = 6;

const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
/// MADT flag PCAT_COMPAT: there is a pair of 8259.
const PCAT_COMPAT: u32 = 1;
const ENABLED: u32 = 1;

const _: () =
    assert!(MADT + HEADER + 8 + MAX_VCPUS as usize * LOCAL_APIC_LEN + IO_APIC_LEN + NMI_LEN <= PAGE as usize);

/// Writes the tables for `vcpus` processors into `page`, which is at `gpa` and is zero. `vcpus` is at most [`MAX_VCPUS`].
pub fn write(page: &mut [u8; PAGE as usize], gpa: u64, vcpus: u32) {
    let madt = madt(&mut page[MADT..], vcpus);
    seal(&mut page[MADT..MADT + madt], *b"APIC", 5);
    put(page, XSDT + HEADER, &(gpa + MADT as u64).to_le_bytes());
    seal(&mut page[XSDT..XSDT + XSDT_LEN], *b"XSDT", 1);
    rsdp(&mut page[..RSDP_LEN], gpa + XSDT as u64);
}

/// §5.2.5.3.
fn rsdp(rsdp: &mut [u8], xsdt: u64) {
    put(rsdp, 0, b"RSD PTR ");
    put(rsdp, 9, b"CWRUN ");
    put(rsdp, 15, &[2]);
    put(rsdp, 20, &(RSDP_LEN as u32).to_le_bytes());
    put(rsdp, 24, &xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..RSDP_V1_LEN]);
    rsdp[32] = checksum(rsdp);
}

/// Writes the body of the MADT; returns the table's length.
fn madt(table: &mut [u8], vcpus: u32) -> usize {
    put(table, HEADER, &LOCAL_APIC_ADDRESS.to_le_bytes());
    put(table, HEADER + 4, &PCAT_COMPAT.to_le_bytes());
    let mut at = HEADER + 8;
    for id in 0..vcpus as u8 {
        put(table, at, &[0, LOCAL_APIC_LEN as u8, id, id]);
        put(table, at + 4, &ENABLED.to_le_bytes());
        at += LOCAL_APIC_LEN;
    }
    // Its id must be none of a local APIC's; its first input is interrupt 0.
    put(table, at, &[1, IO_APIC_LEN as u8, vcpus as u8]);
    put(table, at + 4, &IO_APIC_ADDRESS.to_le_bytes());
    at += IO_APIC_LEN;
    // NMI at LINT1 of all local APICs.
    put(table, at, &[4, NMI_LEN as u8, 0xff, 0, 0, 1]);
    at + NMI_LEN
}

/// Fills in a table's header (§5.2.6) and its checksum.
fn seal(table: &mut [u8], signature: [u8; 4], revision: u8) {
    let len = table.len() as u32;
    put(table, 0, &signature);
    put(table, 4, &len.to_le_bytes());
    put(table, 8, &[revision]);
    put(table, 10, b"CWRUN STAGE0  ");
    put(table, 24, &1u32.to_le_bytes());
    put(table, 28, b"CWRN");
    put(table, 32, &1u32.to_le_bytes());
    table[9] = checksum(table);
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
