//! What a confidential guest is launched with. It joins three that know nothing of each other:
//!
//! ```text
//!   bzImage, initrd ─► BootFiles ─┬─► hash page ─► tee: plan, launch digest ─┐
//!   stage0 (ELF) ─► tee: image ───┘                                          ├─► vmm: Firmware
//!                    stage0: staging descriptor, terminations ───────────────┘
//! ```
//!
//! The launch and its prediction are made of the same [`Plan`], so `cwrun measure` can't tell another digest than the one that the
//! VMM's calls lead to.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use sha2::{Digest, Sha256};
use stage0::Termination;
use stage0::abi::{self, Expected, Extent, HashPage, Staging};
use tee::image::Image;
use tee::launch::PageType;
use tee::measure::{Launch, Plan};
use tee::vmsa::{self, CpuModel, SevFeatures, Variant};
use vmm::snp::{Content, LaunchPages, Segment, Snp, Table, VcpuState};
use vmm::{Firmware, Source, Staged};

/// The largest boot file: the staging window holds kernel and initrd.
const MAX_FILE: u64 = 64 << 20;
/// The command line lies behind the staging descriptor.
const CMDLINE: u64 = abi::STAGING_START + 0x100;
/// The kernel lies on the page after it.
const KERNEL: u64 = abi::STAGING_START + abi::PAGE;

/// Least memory of a confidential guest, in MiB: kernel and initrd are in it twice for a moment, and what devices may see is set apart.
pub const MIN_MEMORY_MIB: u64 = 256;

/// Most memory of a confidential guest, in MiB: what stage0's measured page tables map.
pub const MAX_MEMORY_MIB: u64 = abi::MAX_RAM >> 20;

/// The address bit that encrypts, in stage0's measured page tables.
pub const ENCRYPTION_BIT: u8 = 51;

/// Why a guest can't be launched, or its launch not be predicted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A boot file.
    #[error("the guest's {what} can't be read")]
    Read {
        /// `kernel`, `initrd`, `stage0`.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// A boot file that is too large.
    #[error("the guest's {what} is larger than {max} MiB", max = MAX_FILE >> 20)]
    TooLarge {
        /// `kernel`, `initrd`, `stage0`.
        what: &'static str,
    },
    /// stage0's file.
    #[error("stage0 is not an image that can be launched")]
    Image(#[from] tee::image::Error),
    /// The plan.
    #[error("the launch can't be planned")]
    Plan(#[from] tee::measure::Error),
}

/// The files that stage0 checks, and what they must be.
#[derive(Debug)]
pub struct BootFiles {
    kernel: File,
    initrd: File,
    cmdline: String,
    expected: HashPage,
}

impl BootFiles {
    /// Reads a bzImage and an initrd to their ends. The command line is the VMM's, the same for every guest.
    pub fn new(kernel: File, initrd: File) -> Result<BootFiles, Error> {
        let cmdline = vmm::confidential_cmdline();
        let expected = HashPage {
            kernel: expect("kernel", &kernel)?,
            initrd: expect("initrd", &initrd)?,
            cmdline: Expected {
                sha256: Sha256::digest(&cmdline).into(),
                len: cmdline.len() as u64,
            },
        };
        Ok(BootFiles {
            kernel,
            initrd,
            cmdline,
            expected,
        })
    }

    /// What stage0 is told to expect; it is measured.
    pub fn expected(&self) -> &HashPage {
        &self.expected
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Everything that a launch passes to the firmware.
    pub fn plan(&self, image: &Image, vcpus: u8, cpu: CpuModel, variant: Variant) -> Result<Plan, Error> {
        let launch = Launch {
            image,
            hash_page: &self.expected.encode(),
            page_tables: page_tables(image),
            vcpus: vcpus.into(),
            cpu,
            features: SevFeatures::SNP,
            variant,
        };
        Ok(Plan::new(&launch)?)
    }

    /// The VMM's part of an SNP launch. `plan` is this one's.
    pub fn launch(self, plan: &Plan, memory_mib: u64, snp: Snp) -> Firmware {
        self.firmware(plan, memory_mib, Some(snp))
    }

    /// The VMM's part of a guest that goes the same way without SNP, in stage0's image for that. It protects nothing.
    pub fn simulate(self, plan: &Plan, memory_mib: u64) -> Firmware {
        self.firmware(plan, memory_mib, None)
    }

    fn firmware(self, plan: &Plan, memory_mib: u64, snp: Option<Snp>) -> Firmware {
        let states: Vec<_> = plan.states().iter().map(state).collect();
        let kernel = Extent {
            gpa: KERNEL,
            len: self.expected.kernel.len,
        };
        let initrd = Extent {
            gpa: (kernel.gpa + kernel.len).next_multiple_of(abi::PAGE),
            len: self.expected.initrd.len,
        };
        let cmdline = Extent {
            gpa: CMDLINE,
            len: self.expected.cmdline.len,
        };
        let staging = Staging {
            vcpus: states.len() as u32,
            ram: memory_mib << 20,
            kernel,
            initrd,
            cmdline,
        };
        let bytes = |gpa, bytes| Staged {
            gpa,
            source: Source::Bytes(bytes),
        };
        let file = |extent: Extent, file| Staged {
            gpa: extent.gpa,
            source: Source::File {
                file,
                bytes: extent.len,
            },
        };
        Firmware {
            pages: launch_pages(plan),
            vcpus: states,
            window: abi::STAGING_START,
            staged: vec![
                bytes(abi::STAGING_START, staging.encode().to_vec()),
                bytes(CMDLINE, self.cmdline.into_bytes()),
                file(kernel, self.kernel),
                file(initrd, self.initrd),
            ],
            termination: match snp {
                Some(_) => |msr| Termination::from_ghcb_msr(msr).map(Termination::sentence),
                None => |code| {
                    let code = u8::try_from(code).ok();
                    code.and_then(Termination::from_code).map(Termination::sentence)
                },
            },
            termination_port: abi::PLAIN_TERMINATION_PORT,
            snp,
        }
    }
}

/// Reads stage0's image.
pub fn read_image(file: &File) -> Result<Image, Error> {
    let mut bytes = Vec::new();
    let failed = |source| Error::Read {
        what: "stage0",
        source,
    };
    let limit = tee::image::MAX_FILE as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Image::parse(&bytes)?)
}

/// Hash and length of a file, which is left at its beginning.
fn expect(what: &'static str, file: &File) -> Result<Expected, Error> {
    let failed = |source| Error::Read { what, source };
    let (mut file, mut hash, mut len) = (file, Sha256::new(), 0);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let count = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        // Reading returns no more than there is room for.
        hash.update(&chunk[..count]);
        len += count as u64;
        if len > MAX_FILE {
            return Err(Error::TooLarge { what });
        }
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(Expected {
        sha256: hash.finalize().into(),
        len,
    })
}

/// The first loaded page (`stage0::abi::segment`).
fn page_tables(image: &Image) -> tee::Gpa {
    let loaded = image
        .pages()
        .iter()
        .find(|page| page.kind == tee::image::Kind::Load);
    // An image without code was refused by its parser.
    loaded.map_or(tee::Gpa(0), |page| page.gpa)
}

/// The VMM's form of a plan's pages; those that follow each other go in one call.
fn launch_pages(plan: &Plan) -> Vec<LaunchPages> {
    let mut pages: Vec<LaunchPages> = Vec::new();
    for page in plan.updates() {
        let gpa = page.gpa.0;
        let follows = pages.last_mut().filter(|last| end(last) == Some(gpa));
        match (page.page_type, follows.map(|last| &mut last.content)) {
            (PageType::Normal, Some(Content::Measured(bytes))) => bytes.extend(&*page.bytes),
            (PageType::Zero, Some(Content::Zero(count))) => *count += 1,
            (kind, _) => pages.push(LaunchPages {
                gpa,
                content: match kind {
                    PageType::Zero => Content::Zero(1),
                    PageType::Secrets => Content::Secrets,
                    PageType::Cpuid => Content::Cpuid,
                    // Plans have no others.
                    _ => Content::Measured(page.bytes.to_vec()),
                },
            }),
        }
    }
    pages
}

/// First address after pages of which more could follow.
fn end(pages: &LaunchPages) -> Option<u64> {
    match &pages.content {
        Content::Measured(bytes) => Some(pages.gpa + bytes.len() as u64),
        Content::Zero(count) => Some(pages.gpa + count * abi::PAGE),
        Content::Secrets | Content::Cpuid => None,
    }
}

/// The VMM's form of a vCPU's registers.
fn state(state: &vmsa::VcpuState) -> VcpuState {
    let s = state;
    VcpuState {
        segments: [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment),
        ldtr: segment(&s.ldtr),
        tr: segment(&s.tr),
        gdtr: table(s.gdtr),
        idtr: table(s.idtr),
        control: [s.cr0, s.cr2, s.cr3, s.cr4],
        efer: s.efer,
        rflags: s.rflags,
        rip: s.rip,
        general: [
            s.rax, s.rcx, s.rdx, s.rbx, s.rsp, s.rbp, s.rsi, s.rdi, s.r8, s.r9, s.r10, s.r11, s.r12, s.r13,
            s.r14, s.r15,
        ],
    }
}

fn segment(segment: &vmsa::Segment) -> Segment {
    Segment {
        selector: segment.selector,
        attributes: segment.attributes,
        limit: segment.limit,
        base: segment.base,
    }
}

fn table(table: vmsa::Table) -> Table {
    Table {
        base: table.base,
        limit: table.limit,
    }
}

#[cfg(test)]
#[path = "digest_test.rs"]
mod tests;
