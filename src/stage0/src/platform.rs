//! What the logic needs of the machine.

/// Where the pages of the image are, as the linker placed them: guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// First byte of the image.
    pub start: u64,
    /// First byte after the image.
    pub end: u64,
    /// The page of hashes.
    pub hashes: u64,
    /// The secrets page.
    pub secrets: u64,
    /// The CPUID page.
    pub cpuid: u64,
    /// The page that becomes the GHCB.
    pub ghcb: u64,
}

/// Size of a page in a page-state change and for PVALIDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

impl PageSize {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Small => crate::abi::PAGE,
            PageSize::Large => crate::abi::LARGE_PAGE,
        }
    }
}

/// What PVALIDATE (AMD 24594, "PVALIDATE") did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pvalidate {
    /// The page's validated bit changed.
    Changed,
    /// Carry flag: the page was in the wanted state already.
    Unchanged,
    /// FAIL_SIZEMISMATCH: the host backs the large page by small ones.
    SizeMismatch,
    /// Any other failure.
    Failed,
}

/// Instructions and memory. What comes out of shared memory and out of the GHCB is the host's and may change at any moment;
/// private memory is nobody else's once it has been validated.
pub trait Platform {
    /// The SEV_STATUS MSR (0xc0010131).
    fn sev_status(&mut self) -> u64;
    /// Writes the GHCB MSR, exits to the host (VMGEXIT), and reads the MSR.
    fn msr_protocol(&mut self, request: u64) -> u64;
    /// Exits to the host with the GHCB at `ghcb`.
    fn vmgexit(&mut self, ghcb: u64);
    /// PVALIDATE of the private page at `gpa`; `valid` is the wanted state.
    fn pvalidate(&mut self, gpa: u64, size: PageSize, valid: bool) -> Pvalidate;
    /// Reads 8 bytes of shared memory, once.
    fn read_shared(&mut self, gpa: u64) -> u64;
    /// Writes 8 bytes of shared memory.
    fn write_shared(&mut self, gpa: u64, value: u64);
    /// Copies `len` bytes of shared memory at `from` to private memory at `to`, reading each once.
    fn copy_from_shared(&mut self, from: u64, to: u64, len: u64);
    /// Moves `len` bytes within private memory to a lower address; the ranges may overlap.
    fn move_private(&mut self, from: u64, to: u64, len: u64);
    /// Private memory. The caller asks only for the image and for RAM that has been validated.
    fn private(&mut self, gpa: u64, len: usize) -> &mut [u8];
}
