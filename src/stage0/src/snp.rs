//! Is this an SNP guest, and one whose encryption bit is where our page tables have it?

use crate::abi::{PAGE, Termination, u32_at, u64_at};
use crate::ghcb;
use crate::platform::{Image, Platform, Pvalidate};

/// SEV_STATUS (AMD 24593 §15.34.10): SEV, SEV-ES, SNP.
const SEV_SNP: u64 = 0b111;
/// SEV_STATUS bits whose features would change what stage0 relies on: vTOM (what is private), ReflectVc and restricted or
/// alternate injection (who handles events).
const UNKNOWN_FEATURES: u64 = 0b1111 << 3;
/// The C-bit of every processor that has SNP, and of the page tables in the image.
pub const C_BIT: u32 = 51;

/// The CPUID page (AMD 56860 §8.17, "CPUID page"): count u32, reserved u32 and u64, then 64 entries of 48 bytes.
mod table {
    pub const MAX_ENTRIES: u32 = 64;
    pub const HEADER: usize = 16;
    pub const ENTRY: usize = 48;
    pub const EAX: usize = 24;
    pub const EBX: usize = 28;
}

/// Leaf 7.0: EBX bit 29 is the SHA extensions.
const LEAF_FEATURES: u32 = 7;
const FEATURE_SHA: u32 = 1 << 29;
/// Leaf 0x8000_001f: EAX has SEV (1), SEV-ES (3) and SNP (4), EBX bits 5:0 the C-bit's position.
const LEAF_ENCRYPTION: u32 = 0x8000_001f;
const ENCRYPTION_SNP: u32 = 1 << 1 | 1 << 3 | 1 << 4;

/// Checks that SNP is on, that the C-bit is ours, that the host speaks our protocol; makes the GHCB.
pub fn establish<P: Platform>(platform: &mut P, image: &Image) -> Result<(), Termination> {
    // SECURITY: this MSR can't be intercepted. Without SNP nothing below would protect anything.
    let status = platform.sev_status();
    if status & SEV_SNP != SEV_SNP {
        return Err(Termination::NotSnp);
    }
    if status & UNKNOWN_FEATURES != 0 {
        return Err(Termination::SevFeatures);
    }
    let from_host = ghcb::negotiate(platform)?;
    let from_page = encryption_bit(cpuid_page(platform, image))?;
    // SECURITY: with the bit elsewhere our "private" mappings would be plain ones (or fault). The page comes through the
    // firmware, the other number from the host; both must agree with what was measured.
    if from_host != u64::from(C_BIT) || from_page != C_BIT {
        return Err(Termination::CBit);
    }
    ghcb::features(platform)?;
    // The GHCB was launched as a private page. Invalid first: a page that is valid must not change hands.
    if platform.pvalidate(image.ghcb, crate::PageSize::Small, false) != Pvalidate::Changed {
        return Err(Termination::GhcbPage);
    }
    ghcb::make_shared(platform, image.ghcb)?;
    ghcb::register(platform, image.ghcb)
}

/// The processor has SHA extensions, according to the CPUID page. Anything odd about the page means "no".
pub fn has_sha(page: &[u8; PAGE as usize]) -> bool {
    matches!(leaf(page, LEAF_FEATURES), Ok(entry) if u32_at(entry, table::EBX) & FEATURE_SHA != 0)
}

fn cpuid_page<'p, P: Platform>(platform: &'p mut P, image: &Image) -> &'p [u8] {
    platform.private(image.cpuid, PAGE as usize)
}

fn encryption_bit(page: &[u8]) -> Result<u32, Termination> {
    let entry = leaf(page, LEAF_ENCRYPTION)?;
    if u32_at(entry, table::EAX) & ENCRYPTION_SNP != ENCRYPTION_SNP {
        return Err(Termination::CpuidContents);
    }
    Ok(u32_at(entry, table::EBX) & 0x3f)
}

/// The first entry for `function` with subfunction 0, and nothing odd about the page.
fn leaf(page: &[u8], function: u32) -> Result<&[u8], Termination> {
    let count = u32_at(page, 0);
    // SECURITY: the kernel walks this page by its count too; one beyond the page would read what follows it.
    if !(1..=table::MAX_ENTRIES).contains(&count) {
        return Err(Termination::CpuidCount);
    }
    // 16 + 64 × 48 bytes are less than a page.
    let entries = &page[table::HEADER..table::HEADER + count as usize * table::ENTRY];
    let mut found = None;
    for entry in entries.chunks_exact(table::ENTRY) {
        if u64_at(entry, 40) != 0 {
            return Err(Termination::CpuidContents);
        }
        if u32_at(entry, 0) == function && u32_at(entry, 4) == 0 {
            found = found.or(Some(entry));
        }
    }
    found.ok_or(Termination::CpuidContents)
}

#[cfg(test)]
#[path = "snp_test.rs"]
mod tests;
