//! The CPUID page (AMD 56860 §8.17.2.6, table 76): what the guest takes for its processor's features without asking the host.
//!
//! ```text
//!   0   count, reserved, reserved
//!   16  up to 64 entries of 48 bytes: leaf, subleaf, XCR0, XSS │ EAX, EBX, ECX, EDX, reserved
//! ```
//!
//! The firmware checks each entry against the processor. Where it disagrees it refuses the page and writes what it would accept into
//! it, and a launch may try once more with that. Its contents are not measured: the firmware vouches for them.

use kvm_bindings::kvm_cpuid_entry2;

use super::{PAGE_BYTES, Page};

/// The most entries that a page has.
pub const MAX_ENTRIES: usize = 64;
const HEADER: usize = 16;
const ENTRY: usize = 48;

/// XSAVE's leaf.
const XSAVE: u32 = 0xd;
/// Size of an XSAVE area with nothing but x87 and SSE: what subleaves 0 and 1 say while XCR0 is 1. The guest adds the rest.
const LEGACY_XSAVE_BYTES: u32 = 0x240;

/// Features of KVM's emulation that no SNP guest has, because the firmware does not vouch for them: leaf, subleaf, register (EAX,
/// EBX, ECX, EDX), bits.
const EMULATED: [(u32, u32, usize, u32); 4] = [
    // TSC deadline timer.
    (1, 0, 2, 1 << 24),
    // TSC_ADJUST.
    (7, 0, 1, 1 << 1),
    // Intel's controls of speculation: SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, CORE_CAPABILITIES, SSBD.
    (7, 0, 3, 0x3f << 26),
    // VIRT_SSBD.
    (0x8000_0008, 0, 1, 1 << 25),
];

/// Features that protect the guest. A correction that takes one of them away is an answer that no sound firmware gives.
const PROTECTIONS: [(u32, u32, usize, u32, &str); 8] = [
    (1, 0, 2, 1 << 30, "RDRAND"),
    (7, 0, 1, 1 << 7, "SMEP"),
    (7, 0, 1, 1 << 18, "RDSEED"),
    (7, 0, 1, 1 << 20, "SMAP"),
    (7, 0, 2, 1 << 2, "UMIP"),
    (0x8000_0001, 0, 3, 1 << 20, "NX"),
    // IBPB, IBRS, STIBP, SSBD.
    (
        0x8000_0008,
        0,
        1,
        1 << 12 | 1 << 14 | 1 << 15 | 1 << 24,
        "controls of speculation",
    ),
    // SEV, SEV-ES, SEV-SNP.
    (0x8000_001f, 0, 0, 1 << 1 | 1 << 3 | 1 << 4, "memory encryption"),
];

/// Why a CPUID page can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More entries than there is room for.
    #[error("the CPUID table has {0} entries, more than the {MAX_ENTRIES} of an SNP guest's CPUID page")]
    TooMany(usize),
    /// The corrected page answers other questions.
    #[error("the firmware's correction of the CPUID page changes which leaves there are")]
    OtherLeaves,
    /// The corrected page lacks a protection.
    #[error("the firmware's correction of the CPUID page takes {name} away (leaf {leaf:#x})")]
    Weaker {
        /// The leaf.
        leaf: u32,
        /// The feature.
        name: &'static str,
    },
    /// The corrected page has the encryption bit elsewhere.
    #[error("the firmware's correction of the CPUID page moves the encryption bit")]
    EncryptionBit,
    /// There was nothing to correct.
    #[error("the firmware refuses the CPUID page and corrects nothing in it")]
    Unchanged,
    /// The second try failed too.
    #[error("the firmware refuses the CPUID page with its own corrections")]
    Again,
}

/// Takes features that only KVM's emulation has out of a vCPU's table.
pub fn mask(table: &mut [kvm_cpuid_entry2]) {
    for entry in table {
        for (leaf, subleaf, register, bits) in EMULATED {
            if (entry.function, entry.index) == (leaf, subleaf) {
                *registers_of(entry)[register] &= !bits;
            }
        }
    }
}

fn registers_of(entry: &mut kvm_cpuid_entry2) -> [&mut u32; 4] {
    [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx]
}

/// The page for a vCPU's table.
pub fn build(table: &[kvm_cpuid_entry2]) -> Result<Box<Page>, Error> {
    if table.len() > MAX_ENTRIES {
        return Err(Error::TooMany(table.len()));
    }
    let mut page = Box::new([0; PAGE_BYTES]);
    // At most MAX_ENTRIES.
    page[..4].copy_from_slice(&(table.len() as u32).to_le_bytes());
    for (slot, entry) in page[HEADER..].chunks_exact_mut(ENTRY).zip(table) {
        let starts = entry.function == XSAVE && entry.index <= 1;
        let ebx = if starts { LEGACY_XSAVE_BYTES } else { entry.ebx };
        slot[0..4].copy_from_slice(&entry.function.to_le_bytes());
        slot[4..8].copy_from_slice(&entry.index.to_le_bytes());
        slot[8..16].copy_from_slice(&u64::from(starts).to_le_bytes());
        for (at, register) in [entry.eax, ebx, entry.ecx, entry.edx].into_iter().enumerate() {
            slot[24 + at * 4..28 + at * 4].copy_from_slice(&register.to_le_bytes());
        }
    }
    Ok(page)
}

/// Whether a launch may go on with `corrected`, which the firmware made of `offered`.
pub fn check_correction(offered: &Page, corrected: &Page) -> Result<(), Error> {
    if offered == corrected {
        return Err(Error::Unchanged);
    }
    if offered[..HEADER] != corrected[..HEADER] {
        return Err(Error::OtherLeaves);
    }
    for (before, after) in entries(offered).zip(entries(corrected)) {
        if before[..24] != after[..24] {
            return Err(Error::OtherLeaves);
        }
        let (leaf, subleaf) = (word(before, 0), word(before, 4));
        for (of, at, register, bits, name) in PROTECTIONS {
            let offset = 24 + register * 4;
            if (leaf, subleaf) == (of, at) && word(before, offset) & !word(after, offset) & bits != 0 {
                return Err(Error::Weaker { leaf, name });
            }
        }
        // EBX bits 5:0 say which address bit encrypts.
        if leaf == 0x8000_001f && (word(before, 28) ^ word(after, 28)) & 0x3f != 0 {
            return Err(Error::EncryptionBit);
        }
    }
    Ok(())
}

/// `LEAF[SUBLEAF] REGISTER OFFERED -> CORRECTED` for each register that was corrected: for the log.
pub fn differences(offered: &Page, corrected: &Page) -> Vec<String> {
    let mut told = Vec::new();
    for (before, after) in entries(offered).zip(entries(corrected)) {
        for (at, name) in ["eax", "ebx", "ecx", "edx"].into_iter().enumerate() {
            let (old, new) = (word(before, 24 + at * 4), word(after, 24 + at * 4));
            if old != new {
                let (leaf, subleaf) = (word(before, 0), word(before, 4));
                told.push(format!("{leaf:#x}[{subleaf:#x}] {name} {old:#x} -> {new:#x}"));
            }
        }
    }
    told
}

fn entries(page: &Page) -> impl Iterator<Item = &[u8]> {
    page[HEADER..].chunks_exact(ENTRY).take(MAX_ENTRIES)
}

/// The little-endian word at `at` of an entry.
fn word(entry: &[u8], at: usize) -> u32 {
    let bytes = entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
#[path = "cpuid_page_test.rs"]
mod tests;
