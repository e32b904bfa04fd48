//! Brings kernel, initrd and command line from staging into private memory and checks the private copies.
//!
//! ```text
//!          16 MiB ┌──────────────┐
//!                 │ bzImage      │  copied whole, hashed, then moved down so that its code starts at 16 MiB
//!     + init_size ├┄┄┄┄┄┄┄┄┄┄┄┄┄┄┤
//!                 │              │
//!                 │ initrd       │  ends with RAM, or with what the kernel can reach
//! ≤ 2 GiB, RAM end└──────────────┘
//! ```

use crate::abi::{Expected, Extent, HashPage, PAGE, STAGING_START, Staging, Termination};
use crate::boot_params::CMDLINE;
use crate::bzimage::{HEADER, HEADER_MAX_END, Header, LOAD_ADDRESS};
use crate::platform::Platform;
use crate::ram::{self, Range};
use crate::sha256::Sha256;

/// The initrd ends here at the latest; Linux' default `initrd_addr_max` is 2 GiB - 1.
const INITRD_CEILING: u64 = 0x8000_0000;
/// Longest command line, in bytes: a page with its zero byte.
const MAX_CMDLINE: u64 = PAGE - 1;

/// What is in memory now, and the kernel's setup header.
pub struct Loaded {
    /// The pages of the initrd.
    pub initrd: Range,
    /// The setup header's bytes from [`HEADER`] on.
    header: [u8; HEADER_MAX_END - HEADER],
    header_len: usize,
}

impl Loaded {
    /// The setup header, for `boot_params`.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }
}

/// Reads the staging descriptor.
pub fn staging<P: Platform>(platform: &mut P) -> Result<Staging, Termination> {
    // SECURITY: shared memory can change between two reads. Each word is read once, into private memory, and what is
    // checked is what is used.
    let mut bytes = [0; Staging::LEN];
    for (at, word) in (STAGING_START..).step_by(8).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&platform.read_shared(at).to_le_bytes());
    }
    Staging::decode(&bytes)
}

/// Compares what the VMM staged with what was measured, before anything is copied.
pub fn check_lengths(staging: &Staging, hashes: &HashPage) -> Result<(), Termination> {
    // SECURITY: only measured lengths are used from here on, so that a file can't run over another's place.
    if staging.kernel.len != hashes.kernel.len {
        return Err(Termination::KernelLength);
    }
    if staging.initrd.len != hashes.initrd.len {
        return Err(Termination::InitrdLength);
    }
    if staging.cmdline.len != hashes.cmdline.len || hashes.cmdline.len > MAX_CMDLINE {
        return Err(Termination::CmdlineLength);
    }
    Ok(())
}

/// Loads all three files. RAM has been validated.
pub fn load<P: Platform>(
    platform: &mut P,
    staging: &Staging,
    hashes: &HashPage,
    sha256: Sha256,
) -> Result<Loaded, Termination> {
    let end = ram::low_end(staging.ram).min(INITRD_CEILING);
    let initrd = initrd_place(end, hashes)?;
    fetch(
        platform,
        &staging.kernel,
        &hashes.kernel,
        LOAD_ADDRESS,
        sha256,
        Termination::KernelHash,
    )?;
    let loaded = unpack(platform, hashes, initrd)?;
    fetch(
        platform,
        &staging.initrd,
        &hashes.initrd,
        initrd.start,
        sha256,
        Termination::InitrdHash,
    )?;
    platform.private(CMDLINE, PAGE as usize).fill(0);
    fetch(
        platform,
        &staging.cmdline,
        &hashes.cmdline,
        CMDLINE,
        sha256,
        Termination::CmdlineHash,
    )?;
    Ok(loaded)
}

/// The highest pages below `end` that hold the initrd and leave room for the kernel's file.
fn initrd_place(end: u64, hashes: &HashPage) -> Result<Range, Termination> {
    let start = end.checked_sub(hashes.initrd.len).ok_or(Termination::NoRoom)? & !(PAGE - 1);
    let kernel_end = LOAD_ADDRESS
        .checked_add(hashes.kernel.len)
        .ok_or(Termination::NoRoom)?;
    match kernel_end <= start {
        true => Ok(Range { start, end }),
        false => Err(Termination::NoRoom),
    }
}

/// Copies a file into private memory at `to` and checks the copy.
fn fetch<P: Platform>(
    platform: &mut P,
    staged: &Extent,
    expected: &Expected,
    to: u64,
    sha256: Sha256,
    otherwise: Termination,
) -> Result<(), Termination> {
    platform.copy_from_shared(staged.gpa, to, expected.len);
    // SECURITY: the private copy is what is hashed; the host can't change it any more.
    let copy = platform.private(to, expected.len as usize);
    match sha256.digest(copy) == expected.sha256 {
        true => Ok(()),
        false => Err(otherwise),
    }
}

/// Checks the kernel's header against memory and moves its code to [`LOAD_ADDRESS`].
fn unpack<P: Platform>(platform: &mut P, hashes: &HashPage, initrd: Range) -> Result<Loaded, Termination> {
    let file = platform.private(LOAD_ADDRESS, hashes.kernel.len as usize);
    let header = Header::parse(file, hashes.cmdline.len)?;
    let mut loaded = Loaded {
        initrd,
        header: [0; HEADER_MAX_END - HEADER],
        header_len: header.end - HEADER,
    };
    loaded.header[..header.end - HEADER].copy_from_slice(&file[HEADER..header.end]);
    // The kernel unpacks itself here before it knows where the initrd is.
    if LOAD_ADDRESS + header.init_size > initrd.start {
        return Err(Termination::KernelInitSize);
    }
    if initrd.end - 1 > header.initrd_max {
        return Err(Termination::NoRoom);
    }
    let code = hashes.kernel.len - header.setup_len;
    platform.move_private(LOAD_ADDRESS + header.setup_len, LOAD_ADDRESS, code);
    Ok(loaded)
}
