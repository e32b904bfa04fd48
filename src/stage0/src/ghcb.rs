//! The GHCB protocol (AMD 56421, revision 2.03): requests through the MSR alone, and page-state changes through the page.

use crate::abi::{PAGE, Termination};
use crate::platform::{PageSize, Platform};

/// Codes of the MSR protocol, in bits 11:0 (§2.3.1).
mod msr {
    pub const SEV_INFO_REQUEST: u64 = 0x002;
    pub const SEV_INFO: u64 = 0x001;
    pub const REGISTER_REQUEST: u64 = 0x012;
    pub const REGISTER: u64 = 0x013;
    pub const PAGE_STATE_REQUEST: u64 = 0x014;
    pub const PAGE_STATE: u64 = 0x015;
    pub const FEATURES_REQUEST: u64 = 0x080;
    pub const FEATURES: u64 = 0x081;
    pub const CODE: u64 = 0xfff;
}

/// The protocol version that stage0 and Linux need for SNP.
const VERSION: u64 = 2;
/// Hypervisor features (§2.2): SNP, and creation of application processors.
const FEATURES: u64 = 0b11;

/// Page operations (§4.1.6).
const OPERATION_PRIVATE: u64 = 1;
const OPERATION_SHARED: u64 = 2;

/// Offsets into the GHCB (§2.6, table 5). The last word has the protocol version in bits 31:16 and usage 0 in bits 63:32.
mod field {
    pub const SW_EXITCODE: u64 = 0x390;
    pub const SW_EXITINFO1: u64 = 0x398;
    pub const SW_EXITINFO2: u64 = 0x3a0;
    pub const SW_SCRATCH: u64 = 0x3a8;
    pub const VALID_BITMAP: u64 = 0x3f0;
    pub const SHARED_BUFFER: u64 = 0x800;
    pub const VERSION_AND_USAGE: u64 = 0xff8;
}

/// SW_EXITCODE of a page-state change (§4.1.6).
const EXIT_PAGE_STATE_CHANGE: u64 = 0x8000_0010;
/// The most entries of one page-state change: what the shared buffer holds after its 8-byte header.
pub const MAX_ENTRIES: usize = 253;

fn request<P: Platform>(platform: &mut P, value: u64, answer: u64) -> Result<u64, Termination> {
    let got = platform.msr_protocol(value);
    // SECURITY: an answer to another request than ours means nothing; going on would be guessing.
    match got & msr::CODE == answer {
        true => Ok(got),
        false => Err(Termination::GhcbProtocol),
    }
}

/// Agrees on the protocol version; returns the C-bit's position as the host says it.
pub fn negotiate<P: Platform>(platform: &mut P) -> Result<u64, Termination> {
    let info = request(platform, msr::SEV_INFO_REQUEST, msr::SEV_INFO)?;
    let (max, min) = (info >> 48, info >> 32 & 0xffff);
    // SECURITY: version 1 has no page-state changes; a host that offers only that can't run SNP guests.
    if !(min..=max).contains(&VERSION) {
        return Err(Termination::GhcbVersion);
    }
    Ok(info >> 24 & 0xff)
}

/// Checks that the host offers what stage0 and the kernel after it need.
pub fn features<P: Platform>(platform: &mut P) -> Result<(), Termination> {
    let answer = request(platform, msr::FEATURES_REQUEST, msr::FEATURES)?;
    match answer >> 12 & FEATURES == FEATURES {
        true => Ok(()),
        false => Err(Termination::HostFeatures),
    }
}

/// Asks the host to make the page at `gpa` shared, without a GHCB.
pub fn make_shared<P: Platform>(platform: &mut P, gpa: u64) -> Result<(), Termination> {
    let value = OPERATION_SHARED << 52 | gpa & !(PAGE - 1) | msr::PAGE_STATE_REQUEST;
    let answer = request(platform, value, msr::PAGE_STATE)?;
    match answer >> 32 {
        0 => Ok(()),
        _ => Err(Termination::GhcbPage),
    }
}

/// Registers the GHCB at `gpa`.
pub fn register<P: Platform>(platform: &mut P, gpa: u64) -> Result<(), Termination> {
    let answer = request(platform, gpa | msr::REGISTER_REQUEST, msr::REGISTER)?;
    // SECURITY: with a GHCB elsewhere the host would read and write a page that we do not look at.
    match answer & !msr::CODE == gpa {
        true => Ok(()),
        false => Err(Termination::GhcbRegistration),
    }
}

/// A page to make private: address and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its size.
    pub size: PageSize,
}

impl Page {
    /// An entry of a page-state change, with no 4 KiB page of it done yet (§4.1.6, table 9).
    fn entry(self) -> u64 {
        let large = u64::from(self.size == PageSize::Large);
        large << 56 | OPERATION_PRIVATE << 52 | self.gpa
    }
}

/// Asks the host to make `pages` private: at least one and at most [`MAX_ENTRIES`].
///
/// Whether it did, PVALIDATE shows; this only sees to it that the host neither refuses nor keeps us for ever.
pub fn make_private<P: Platform>(platform: &mut P, ghcb: u64, pages: &[Page]) -> Result<(), Termination> {
    let end = pages.len() as u64 - 1;
    let buffer = ghcb + field::SHARED_BUFFER;
    for (at, page) in (buffer + 8..).step_by(8).zip(pages) {
        platform.write_shared(at, page.entry());
    }
    // The header: current entry (16 bits), last entry (16 bits), reserved.
    platform.write_shared(buffer, end << 16);
    let mut progress = 0;
    loop {
        call(platform, ghcb, EXIT_PAGE_STATE_CHANGE)?;
        let header = platform.read_shared(buffer);
        let current = header & 0xffff;
        // SECURITY: a header with another end would make us take pages for done that the host never looked at.
        if header >> 16 != end || current > end + 1 {
            return Err(Termination::PageStateHeader);
        }
        if current > end {
            return Ok(());
        }
        // SECURITY: the host may stop in the middle and be called again, but each call must get further, by an entry or by a
        // 4 KiB page of one: else it could keep us here, or lead us back.
        let page = platform.read_shared(buffer + 8 + current * 8) & 0xfff;
        let reached = current << 12 | page;
        if reached <= progress {
            return Err(Termination::PageStateProgress);
        }
        progress = reached;
    }
}

/// One request through the GHCB (§2.6): code and scratch address are all that it says.
fn call<P: Platform>(platform: &mut P, ghcb: u64, code: u64) -> Result<(), Termination> {
    let fields = [
        (field::SW_EXITCODE, code),
        (field::SW_EXITINFO1, 0),
        (field::SW_EXITINFO2, 0),
        (field::SW_SCRATCH, ghcb + field::SHARED_BUFFER),
    ];
    let mut bitmap = [0u64; 2];
    for (offset, value) in fields {
        platform.write_shared(ghcb + offset, value);
        let bit = offset / 8;
        // Offsets are below 0x400: two words of 64 bits.
        bitmap[(bit / 64) as usize & 1] |= 1 << (bit % 64);
    }
    platform.write_shared(ghcb + field::VALID_BITMAP, bitmap[0]);
    platform.write_shared(ghcb + field::VALID_BITMAP + 8, bitmap[1]);
    platform.write_shared(ghcb + field::VERSION_AND_USAGE, VERSION << 16);
    platform.vmgexit(ghcb);
    // SECURITY: SW_EXITINFO1 other than 0 asks us to raise an exception of the host's choice: never.
    if platform.read_shared(ghcb + field::SW_EXITINFO1) as u32 != 0 {
        return Err(Termination::HostException);
    }
    match platform.read_shared(ghcb + field::SW_EXITINFO2) {
        0 => Ok(()),
        _ => Err(Termination::PageStateChange),
    }
}

#[cfg(test)]
#[path = "ghcb_test.rs"]
mod tests;
