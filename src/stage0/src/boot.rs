//! From the first Rust instruction to the kernel's.

use crate::abi::{HashPage, PAGE, Staging, Termination};
use crate::boot_params::{self, ACPI, BOOT_PARAMS, SETUP_DATA};
use crate::bzimage::{ENTRY_64, LOAD_ADDRESS};
use crate::load::{self, Loaded};
use crate::platform::{Image, Platform};
use crate::sha256::Sha256;
use crate::{accept, acpi, ram, snp};

/// The BIOS data area.
const BIOS_DATA: u64 = 0x400;
const BIOS_DATA_LEN: usize = 0x100;

/// How to enter the kernel (boot.rst, "64-bit Boot Protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Address of its 64-bit entry.
    pub entry: u64,
    /// Address of `boot_params`, for RSI.
    pub boot_params: u64,
}

/// Boots a guest under SEV-SNP.
///
/// # Errors
/// What the host did wrong; the guest must end with it.
pub fn confidential<P: Platform>(platform: &mut P, image: &Image) -> Result<Handover, Termination> {
    snp::establish(platform, image)?;
    let (staging, hashes) = inputs(platform, image)?;
    accept::accept(platform, image.ghcb, &ram::ranges(staging.ram, image))?;
    let has_sha = snp::has_sha(page(platform, image.cpuid));
    // SAFETY: the firmware compares the page with the processor. If it lies all the same, an unknown instruction ends us.
    let sha256 = unsafe { Sha256::choose(has_sha) };
    let loaded = load::load(platform, &staging, &hashes, sha256)?;
    let page = page(platform, SETUP_DATA);
    page.fill(0);
    boot_params::write_cc_blob(page, image);
    Ok(hand_over(platform, image, &staging, &hashes, &loaded, true))
}

/// Boots a guest that is not confidential, to try everything else: memory is as it is, and there is no CC blob. The image that
/// calls this is another than the one that calls [`confidential`].
///
/// # Errors
/// As [`confidential`].
pub fn plain<P: Platform>(platform: &mut P, image: &Image, sha256: Sha256) -> Result<Handover, Termination> {
    let (staging, hashes) = inputs(platform, image)?;
    let loaded = load::load(platform, &staging, &hashes, sha256)?;
    Ok(hand_over(platform, image, &staging, &hashes, &loaded, false))
}

fn inputs<P: Platform>(platform: &mut P, image: &Image) -> Result<(Staging, HashPage), Termination> {
    let hashes = HashPage::decode(page(platform, image.hashes))?;
    let staging = load::staging(platform)?;
    load::check_lengths(&staging, &hashes)?;
    Ok((staging, hashes))
}

fn hand_over<P: Platform>(
    platform: &mut P,
    image: &Image,
    staging: &Staging,
    hashes: &HashPage,
    loaded: &Loaded,
    confidential: bool,
) -> Handover {
    // SECURITY: Linux looks into the BIOS data area for where conventional memory ends. What a validated page holds before it
    // is written is for the host to influence.
    platform.private(BIOS_DATA, BIOS_DATA_LEN).fill(0);
    let tables = page(platform, ACPI);
    tables.fill(0);
    acpi::write(tables, ACPI, staging.vcpus);
    let params = page(platform, BOOT_PARAMS);
    params.fill(0);
    boot_params::write(
        params,
        loaded.header(),
        staging.ram,
        image,
        loaded.initrd,
        hashes.initrd.len,
        confidential,
    );
    Handover {
        entry: LOAD_ADDRESS + ENTRY_64,
        boot_params: BOOT_PARAMS,
    }
}

/// One page of private memory.
fn page<P: Platform>(platform: &mut P, gpa: u64) -> &mut [u8; PAGE as usize] {
    match platform.private(gpa, PAGE as usize).try_into() {
        Ok(page) => page,
        // The platform gives as many bytes as it is asked for.
        Err(_) => unreachable!(),
    }
}
