//! What stage0, the launcher (`tee`), the VMM and the runtime agree on. This is the one definition.
//!
//! ```text
//! image (ELF)      program headers: position, size and type of every page that the launch puts there
//! hash page        measured; written by the launcher: what kernel, initrd and command line must be
//! staging          not measured; written by the VMM into shared memory: where they are, RAM, number of vCPUs
//! termination      one number in a GHCB termination request: what the guest found wrong
//! ```
//!
//! All integers are little-endian, all lengths and addresses are in bytes.

use core::fmt;

/// Size of a page, in bytes.
pub const PAGE: u64 = 0x1000;
/// Size of a large page, in bytes.
pub const LARGE_PAGE: u64 = 0x20_0000;

/// Program header types of the image; `p_paddr` is the guest-physical address, `p_memsz` the size, both whole pages.
///
/// The boot vCPU starts at the ELF entry in 64-bit mode with paging (EFER.LME and LMA, CR0.PE and PG, CR4.PAE), a flat 64-bit code
/// segment, and CR3 = `p_paddr` of the first [`LOAD`](segment::LOAD): there are page tables with the C-bit (bit 51; none in the plain
/// image). All other registers may be anything. Processors that start there after the first park themselves.
pub mod segment {
    /// Contents from the file, measured as NORMAL pages. Bytes beyond `p_filesz` are zero.
    pub const LOAD: u32 = 1;
    /// The page that the launcher fills with a [`HashPage`](super::HashPage), measured as NORMAL.
    pub const HASHES: u32 = 0x6063_7701;
    /// The secrets page (SNP page type SECRETS).
    pub const SECRETS: u32 = 0x6063_7702;
    /// The CPUID page (SNP page type CPUID).
    pub const CPUID: u32 = 0x6063_7703;
    /// Private memory that starts zeroed (SNP page type ZERO): its place is measured, contents there are none.
    pub const ZERO: u32 = 0x6063_7704;
}

/// Where the VMM's shared staging window starts. The descriptor ([`Staging`]) is at its first byte. Never RAM.
pub const STAGING_START: u64 = 0xc000_0000;
/// First byte after the staging window.
pub const STAGING_END: u64 = 0xd000_0000;

/// RAM starts at 0 and ends here at the latest; what has no room goes on at [`HIGH_RAM`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM goes on above 4 GiB.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// Conventional memory ends here. From here to 1 MiB there is no RAM, though the VMM may have memory there.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// The least RAM, in bytes.
pub const MIN_RAM: u64 = 64 << 20;
/// The most RAM, in bytes: what the measured page tables map, less the hole below 4 GiB.
pub const MAX_RAM: u64 = 511 << 30;
/// The most vCPUs: all have 8-bit APIC ids.
pub const MAX_VCPUS: u32 = 254;

/// In a guest that is not confidential, stage0's plain image ends by writing the termination code to this I/O port.
pub const PLAIN_TERMINATION_PORT: u16 = 0xc0d0;

/// What one of the three boot files must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of its contents.
    pub sha256: [u8; 32],
    /// Its length.
    pub len: u64,
}

/// The measured page of hashes.
///
/// ```text
///  0 magic "CWHASHES" │ 8 version u32, 0 u32 │ 16 kernel: sha256 [32], len u64 │ 56 initrd │ 96 command line │ 136 zeros
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashPage {
    /// The bzImage, the whole file.
    pub kernel: Expected,
    /// The initrd; of length 0 if there is none.
    pub initrd: Expected,
    /// The command line, without a zero byte at its end.
    pub cmdline: Expected,
}

impl HashPage {
    const MAGIC: [u8; 8] = *b"CWHASHES";
    /// Version of the layout.
    pub const VERSION: u32 = 1;
    const LEN: usize = 136;

    /// The page as the launcher measures it.
    pub fn encode(&self) -> [u8; PAGE as usize] {
        let mut page = [0; PAGE as usize];
        page[..8].copy_from_slice(&Self::MAGIC);
        page[8..12].copy_from_slice(&Self::VERSION.to_le_bytes());
        for (file, at) in [(&self.kernel, 16), (&self.initrd, 56), (&self.cmdline, 96)] {
            page[at..at + 32].copy_from_slice(&file.sha256);
            page[at + 32..at + 40].copy_from_slice(&file.len.to_le_bytes());
        }
        page
    }

    /// Reads the page.
    ///
    /// # Errors
    /// [`Termination::HashPage`] unless it is one that [`HashPage::encode`] makes.
    pub fn decode(page: &[u8; PAGE as usize]) -> Result<Self, Termination> {
        let (used, rest) = page.split_at(Self::LEN);
        let known = used[..8] == Self::MAGIC && u32_at(used, 8) == Self::VERSION && u32_at(used, 12) == 0;
        if !known || rest.iter().any(|&byte| byte != 0) {
            return Err(Termination::HashPage);
        }
        let file = |at: usize| {
            let mut sha256 = [0; 32];
            sha256.copy_from_slice(&used[at..at + 32]);
            Expected {
                sha256,
                len: u64_at(used, at + 32),
            }
        };
        Ok(HashPage {
            kernel: file(16),
            initrd: file(56),
            cmdline: file(96),
        })
    }
}

/// Where a boot file lies in the staging window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its length.
    pub len: u64,
}

impl Extent {
    /// First byte after it; `None` if that does not fit into 64 bits.
    pub fn end(&self) -> Option<u64> {
        self.gpa.checked_add(self.len)
    }
}

/// The descriptor at [`STAGING_START`], by which the VMM tells what it can't have measured. stage0 believes none of it.
///
/// ```text
///  0 magic "CWSTAGE0" │ 8 version u32, vcpus u32 │ 16 ram u64 │ 24 kernel: gpa u64, len u64 │ 40 initrd │ 56 command line │ 72
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staging {
    /// Number of vCPUs, with the APIC ids 0, 1, ….
    pub vcpus: u32,
    /// RAM, counted without holes: see [`LOW_RAM_END`] and [`HIGH_RAM`]. A multiple of 4 KiB.
    pub ram: u64,
    /// The bzImage.
    pub kernel: Extent,
    /// The initrd.
    pub initrd: Extent,
    /// The command line.
    pub cmdline: Extent,
}

impl Staging {
    const MAGIC: [u8; 8] = *b"CWSTAGE0";
    /// Version of the layout.
    pub const VERSION: u32 = 1;
    /// Length of the descriptor.
    pub const LEN: usize = 72;

    /// A descriptor that places files of these lengths in the window, one after the other, each on pages of its own.
    ///
    /// # Errors
    /// What stage0 would end with: the VMM finds out before it starts.
    pub fn place(vcpus: u32, ram: u64, kernel: u64, initrd: u64, cmdline: u64) -> Result<Self, Termination> {
        let mut next = STAGING_START + PAGE;
        let mut extent = |len: u64| {
            let extent = Extent { gpa: next, len };
            next = extent
                .end()
                .and_then(|end| end.checked_next_multiple_of(PAGE))
                .unwrap_or(STAGING_END);
            extent
        };
        let staging = Staging {
            vcpus,
            ram,
            kernel: extent(kernel),
            initrd: extent(initrd),
            cmdline: extent(cmdline),
        };
        staging.check().map(|()| staging)
    }

    /// The descriptor as the VMM writes it.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8..12].copy_from_slice(&Self::VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.vcpus.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.ram.to_le_bytes());
        for (file, at) in [(&self.kernel, 24), (&self.initrd, 40), (&self.cmdline, 56)] {
            bytes[at..at + 8].copy_from_slice(&file.gpa.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&file.len.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks a private copy of the descriptor.
    ///
    /// # Errors
    /// The [`Termination`] that says which of its values can't be.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, Termination> {
        if bytes[..8] != Self::MAGIC || u32_at(bytes, 8) != Self::VERSION {
            return Err(Termination::StagingFormat);
        }
        let extent = |at| Extent {
            gpa: u64_at(bytes, at),
            len: u64_at(bytes, at + 8),
        };
        let staging = Staging {
            vcpus: u32_at(bytes, 12),
            ram: u64_at(bytes, 16),
            kernel: extent(24),
            initrd: extent(40),
            cmdline: extent(56),
        };
        staging.check().map(|()| staging)
    }

    fn check(&self) -> Result<(), Termination> {
        // SECURITY: a number of vCPUs that does not fit the tables would let the host choose where they end.
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Termination::VcpuCount);
        }
        // SECURITY: with too little RAM, kernel or initrd would land on stage0 or beyond what was validated.
        if !(MIN_RAM..=MAX_RAM).contains(&self.ram) || !self.ram.is_multiple_of(PAGE) {
            return Err(Termination::RamSize);
        }
        // SECURITY: an extent outside the window could make stage0 read its own pages, the secrets page or devices as a file.
        let files = [self.kernel, self.initrd, self.cmdline];
        let first = STAGING_START + Self::LEN as u64;
        for file in &files {
            let inside = file.end().is_some_and(|end| end <= STAGING_END);
            if file.gpa < first || !inside {
                return Err(Termination::StagingRange);
            }
        }
        let overlap = |a: &Extent, b: &Extent| a.gpa < b.gpa + b.len && b.gpa < a.gpa + a.len;
        let [kernel, initrd, cmdline] = &files;
        if overlap(kernel, initrd) || overlap(kernel, cmdline) || overlap(initrd, cmdline) {
            return Err(Termination::StagingOverlap);
        }
        Ok(())
    }
}

/// Reads an integer at a constant offset within `bytes`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// Reads an integer at a constant offset within `bytes`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

macro_rules! terminations {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $sentence:literal,)*) => {
        /// Why stage0 ended the guest: the reason code of a GHCB termination request with the reason set
        /// [`Termination::REASON_SET`] (GHCB specification §2.3.1, "Termination Request").
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Termination {
            $(#[doc = $sentence] $name = $code,)*
        }

        impl Termination {
            /// All of them, in the order of their codes.
            pub const ALL: &[Termination] = &[$(Termination::$name,)*];

            /// The termination with the reason code `code`.
            pub fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Termination::$name),)*
                    _ => None,
                }
            }

            /// One sentence that says what was wrong.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Termination::$name => $sentence,)*
                }
            }
        }
    };
}

terminations! {
    NotSnp = 1: "the guest does not run under SEV-SNP",
    SevFeatures = 2: "the guest runs with SEV features that stage0 does not know",
    GhcbProtocol = 3: "the host gave no valid answer to a request of the GHCB MSR protocol",
    GhcbVersion = 4: "the host does not speak version 2 of the GHCB protocol",
    CBit = 5: "the encryption bit is not where the measured page tables have it (bit 51)",
    CpuidCount = 6: "the CPUID page has more entries than it has room for, or none",
    CpuidContents = 7: "the CPUID page lacks what every SNP processor has, or has reserved fields set",
    HostFeatures = 8: "the host does not offer SNP's page-state changes and creation of processors",
    GhcbPage = 9: "the GHCB page could not be shared with the host",
    GhcbRegistration = 10: "the host registered the GHCB at another address",
    PageStateChange = 11: "the host refused a page-state change",
    PageStateProgress = 12: "the host did not complete a page-state change",
    PageStateHeader = 13: "the host altered a page-state change while it served it",
    AlreadyValid = 14: "a page was already valid: the host mapped memory twice",
    PageNotValidated = 15: "the processor refused to validate a page",
    HashPage = 16: "the page of hashes is not of this version",
    StagingFormat = 17: "the staging descriptor is not of this version",
    StagingRange = 18: "a boot file lies outside the staging window",
    StagingOverlap = 19: "boot files overlap in the staging window",
    RamSize = 20: "the amount of RAM is out of range or no multiple of a page",
    VcpuCount = 21: "the number of vCPUs is out of range",
    KernelLength = 22: "the kernel's length is not the measured one",
    InitrdLength = 23: "the initrd's length is not the measured one",
    CmdlineLength = 24: "the command line's length is not the measured one, or more than a page holds",
    KernelHash = 25: "the kernel is not the measured one",
    InitrdHash = 26: "the initrd is not the measured one",
    CmdlineHash = 27: "the command line is not the measured one",
    KernelFormat = 28: "the kernel is not a bzImage",
    KernelProtocol = 29: "the kernel's boot protocol is older than 2.12 or lacks the 64-bit entry",
    KernelTruncated = 30: "the kernel's file is shorter than its header says",
    KernelAddress = 31: "the kernel can't be loaded at 16 MiB",
    KernelInitSize = 32: "the memory that the kernel needs while it unpacks is less than its file or does not fit into RAM",
    KernelCmdline = 33: "the kernel does not take a command line as long as this",
    NoRoom = 34: "kernel and initrd do not fit into RAM",
    Exception = 35: "stage0 met an exception or an injected interrupt",
    Panic = 36: "stage0 broke one of its own assumptions",
    HostException = 37: "the host answered a request by asking for an exception",
}

impl Termination {
    /// stage0's own reason set. 0 is the specification's, 1 Linux'.
    pub const REASON_SET: u8 = 0xc;
    const REQUEST: u64 = 0x100;

    /// The value of the GHCB MSR that asks the host for this termination.
    pub fn ghcb_msr(self) -> u64 {
        Self::REQUEST | u64::from(Self::REASON_SET) << 12 | u64::from(self as u8) << 16
    }

    /// What a guest's termination request means. `None` unless `msr` is one of stage0's.
    pub fn from_ghcb_msr(msr: u64) -> Option<Self> {
        let ours = Self::REQUEST | u64::from(Self::REASON_SET) << 12;
        (msr & !0xff_0000 == ours).then(|| Self::from_code((msr >> 16) as u8))?
    }

    /// What the reason set and reason code that KVM reports mean (`KVM_SYSTEM_EVENT_SEV_TERM`'s data is the MSR's value, for
    /// which [`Termination::from_ghcb_msr`] is made). `None` unless the set is stage0's.
    pub fn from_reason(set: u8, code: u8) -> Option<Self> {
        (set == Self::REASON_SET).then(|| Self::from_code(code))?
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl core::error::Error for Termination {}

#[cfg(test)]
#[path = "abi_test.rs"]
mod tests;
