//! stage0's ELF file as pages to launch. Its program headers say all: where, of which type, with which bytes.
//!
//! | p_type | pages |
//! |---|---|
//! | PT_LOAD | NORMAL: code, data, page tables; zeros behind the file's bytes |
//! | 0x6063_7701 | NORMAL: one page of hashes, which the launcher fills in |
//! | 0x6063_7702 | SECRETS: one page |
//! | 0x6063_7703 | CPUID: one page |
//! | 0x6063_7704 | ZERO: scratch |
//!
//! p_paddr is the guest physical address, and e_entry is where the boot vCPU starts. Every segment begins on a page of its
//! own. (System V ABI, ELF-64 object file format; psABI for x86-64.)

use crate::{Gpa, PAGE_SIZE, Page};
use stage0::abi::segment;

/// The largest file, in bytes, that is looked at.
pub const MAX_FILE: usize = 4 << 20;

/// The most pages of an image, of all types.
pub const MAX_PAGES: usize = 1024;

/// The most program headers.
const MAX_SEGMENTS: usize = 32;

/// stage0 lies below this address: it is there before anybody knows how much memory there is beyond.
const MAX_GPA: u64 = 1 << 32;

const PT_NULL: u32 = 0;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PT_GNU_RELRO: u32 = 0x6474_e552;
const PT_GNU_PROPERTY: u32 = 0x6474_e553;
const PT_HASHES: u32 = segment::HASHES;
const PT_SECRETS: u32 = segment::SECRETS;
const PT_CPUID: u32 = segment::CPUID;
const PT_SCRATCH: u32 = segment::ZERO;

/// Why a file is not an image that can be launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than [`MAX_FILE`] bytes.
    #[error("the file is larger than {MAX_FILE} bytes")]
    FileTooLarge,
    /// A header that is no executable's for this machine.
    #[error("the file is no static ELF executable for x86-64: {0} is wrong")]
    Header(&'static str),
    /// The file ends before something that its headers promise.
    #[error("the file ends inside {0}")]
    Short(String),
    /// A program header that can't be launched.
    #[error("program header {index}: {problem}")]
    Segment {
        /// From 0.
        index: usize,
        /// What is wrong.
        problem: SegmentProblem,
    },
    /// Two segments share a page.
    #[error("two segments lie on page {0}")]
    Overlap(Gpa),
    /// A page that there must be exactly one of.
    #[error("the image has {count} {what} pages and should have one")]
    Count {
        /// "hash", "secrets", "CPUID".
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// Nothing to run, or too much.
    #[error("the image has {0} pages and should have at least one and at most {MAX_PAGES}")]
    Pages(usize),
    /// The entry point is not in an executable segment's file bytes.
    #[error("the entry point {0} is not in an executable segment")]
    Entry(Gpa),
}

/// What is wrong with a program header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentProblem {
    /// A type that can't be launched, such as PT_DYNAMIC.
    #[error("p_type {0:#x} has no place in an image")]
    Type(u32),
    /// p_paddr is not page-aligned.
    #[error("p_paddr {0:#x} is not page-aligned")]
    Alignment(u64),
    /// The segment is empty.
    #[error("p_memsz is 0")]
    Empty,
    /// More bytes in the file than in memory.
    #[error("p_filesz {file:#x} exceeds p_memsz {memory:#x}")]
    Sizes {
        /// p_filesz.
        file: u64,
        /// p_memsz.
        memory: u64,
    },
    /// The end is above the limit.
    #[error("it ends above 4 GiB")]
    Address,
    /// A segment that the launcher or the firmware fills has bytes of its own.
    #[error("it may not have bytes other than zero")]
    Bytes,
}

/// What a page of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// stage0's code or data.
    Load,
    /// The page of hashes.
    Hashes,
    /// The firmware's secrets.
    Secrets,
    /// Checked CPUID leaves.
    Cpuid,
    /// Zeroed memory.
    Scratch,
}

/// One page of an image.
#[derive(Clone, PartialEq, Eq)]
pub struct ImagePage {
    /// Where the guest has it.
    pub gpa: Gpa,
    /// What it is.
    pub kind: Kind,
    /// Its bytes: zeros but for [`Kind::Load`].
    pub bytes: Box<Page>,
}

impl std::fmt::Debug for ImagePage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {}", self.kind, self.gpa)
    }
}

/// An image that can be launched: no overlap, one page each of hashes, secrets and CPUID, an entry point in its code.
#[derive(Debug, Clone)]
pub struct Image {
    pages: Vec<ImagePage>,
    entry: Gpa,
}

impl Image {
    /// Reads an ELF file.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        if file.len() > MAX_FILE {
            return Err(Error::FileTooLarge);
        }
        let header = Header::parse(file)?;
        let mut pages = Vec::new();
        let mut executable = false;
        for index in 0..header.segments {
            let segment = Segment::parse(file, &header, index)?;
            executable |= segment.executes(header.entry);
            segment.add_pages(&mut pages)?;
        }
        pages.sort_by_key(|page| page.gpa);
        let image = Self {
            pages,
            entry: Gpa(header.entry),
        };
        image.check()?;
        match executable {
            true => Ok(image),
            false => Err(Error::Entry(image.entry)),
        }
    }

    /// All pages, by ascending address.
    pub fn pages(&self) -> &[ImagePage] {
        &self.pages
    }

    /// Where the boot vCPU starts.
    pub fn entry(&self) -> Gpa {
        self.entry
    }

    /// Where the page tables are that the boot vCPU starts with: stage0's linker script places them first.
    pub fn page_tables(&self) -> Gpa {
        // `check` has seen a page.
        self.pages[0].gpa
    }

    /// Where the page of hashes goes.
    pub fn hash_page(&self) -> Gpa {
        self.only(Kind::Hashes)
    }

    /// Where the secrets page goes.
    pub fn secrets_page(&self) -> Gpa {
        self.only(Kind::Secrets)
    }

    /// Where the CPUID page goes.
    pub fn cpuid_page(&self) -> Gpa {
        self.only(Kind::Cpuid)
    }

    fn only(&self, kind: Kind) -> Gpa {
        let found = self.pages.iter().find(|page| page.kind == kind);
        // `check` has counted one of each.
        found.expect("an image has one page of each such kind").gpa
    }

    fn check(&self) -> Result<(), Error> {
        if self.pages.is_empty() || self.pages.len() > MAX_PAGES {
            return Err(Error::Pages(self.pages.len()));
        }
        for pair in self.pages.windows(2) {
            if pair[0].gpa == pair[1].gpa {
                return Err(Error::Overlap(pair[0].gpa));
            }
        }
        for (kind, what) in [
            (Kind::Hashes, "hash"),
            (Kind::Secrets, "secrets"),
            (Kind::Cpuid, "CPUID"),
        ] {
            let count = self.pages.iter().filter(|page| page.kind == kind).count();
            if count != 1 {
                return Err(Error::Count { what, count });
            }
        }
        Ok(())
    }
}

/// The fields of an ELF header that matter, in bounds.
struct Header {
    entry: u64,
    table: u64,
    segments: usize,
}

impl Header {
    fn parse(file: &[u8]) -> Result<Self, Error> {
        const ET_EXEC: u16 = 2;
        const EM_X86_64: u16 = 62;
        const ENTRY_SIZE: u16 = 56;
        let header: &[u8; 64] = file
            .first_chunk()
            .ok_or_else(|| Error::Short("the ELF header".to_owned()))?;
        let checks = [
            (header[0..4] == *b"\x7fELF", "e_ident[EI_MAG]"),
            (header[4] == 2, "e_ident[EI_CLASS]"),
            (header[5] == 1, "e_ident[EI_DATA]"),
            (header[6] == 1, "e_ident[EI_VERSION]"),
            (u16_at(header, 16) == ET_EXEC, "e_type"),
            (u16_at(header, 18) == EM_X86_64, "e_machine"),
            (u32_at(header, 20) == 1, "e_version"),
            (u16_at(header, 52) == 64, "e_ehsize"),
            (u16_at(header, 54) == ENTRY_SIZE, "e_phentsize"),
            (usize::from(u16_at(header, 56)) <= MAX_SEGMENTS, "e_phnum"),
        ];
        if let Some((_, field)) = checks.iter().find(|(right, _)| !right) {
            return Err(Error::Header(field));
        }
        Ok(Self {
            entry: u64_at(header, 24),
            table: u64_at(header, 32),
            segments: u16_at(header, 56).into(),
        })
    }
}

/// A program header.
struct Segment<'a> {
    kind: Option<Kind>,
    executable: bool,
    gpa: u64,
    /// In bytes, at most `MAX_GPA`.
    memory: u64,
    bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(file: &'a [u8], header: &Header, index: usize) -> Result<Self, Error> {
        const PF_X: u32 = 1;
        let wrong = |problem| Error::Segment { index, problem };
        let entry = slice(file, header.table.saturating_add(56 * index as u64), 56)
            .ok_or_else(|| Error::Short("the program headers".to_owned()))?;
        let (p_type, flags) = (u32_at(entry, 0), u32_at(entry, 4));
        let (offset, gpa) = (u64_at(entry, 8), u64_at(entry, 24));
        let (file_size, memory) = (u64_at(entry, 32), u64_at(entry, 40));
        let Some(kind) = kind_of(p_type).map_err(wrong)? else {
            return Ok(Self {
                kind: None,
                executable: false,
                gpa,
                memory: 0,
                bytes: &[],
            });
        };
        if gpa % PAGE_SIZE as u64 != 0 {
            return Err(wrong(SegmentProblem::Alignment(gpa)));
        }
        if memory == 0 {
            return Err(wrong(SegmentProblem::Empty));
        }
        if file_size > memory {
            return Err(wrong(SegmentProblem::Sizes {
                file: file_size,
                memory,
            }));
        }
        if gpa.checked_add(memory).is_none_or(|end| end > MAX_GPA) {
            return Err(wrong(SegmentProblem::Address));
        }
        let bytes = slice(file, offset, file_size)
            .ok_or_else(|| Error::Short(format!("the bytes of program header {index}")))?;
        if kind != Kind::Load && bytes.iter().any(|byte| *byte != 0) {
            return Err(wrong(SegmentProblem::Bytes));
        }
        let executable = kind == Kind::Load && flags & PF_X != 0;
        Ok(Self {
            kind: Some(kind),
            executable,
            gpa,
            memory,
            bytes,
        })
    }

    /// Whether there is code of the file at `entry`.
    fn executes(&self, entry: u64) -> bool {
        let offset = entry.checked_sub(self.gpa);
        self.executable && offset.is_some_and(|offset| offset < self.bytes.len() as u64)
    }

    fn add_pages(&self, pages: &mut Vec<ImagePage>) -> Result<(), Error> {
        let Some(kind) = self.kind else {
            return Ok(());
        };
        // At most 2^20, as memory is at most 4 GiB.
        let count = self.memory.div_ceil(PAGE_SIZE as u64) as usize;
        if count > MAX_PAGES - pages.len().min(MAX_PAGES) {
            return Err(Error::Pages(pages.len() + count));
        }
        for number in 0..count {
            let mut bytes = Box::new([0; PAGE_SIZE]);
            let rest = self.bytes.get(number * PAGE_SIZE..).unwrap_or_default();
            let length = rest.len().min(PAGE_SIZE);
            bytes[..length].copy_from_slice(&rest[..length]);
            let gpa = Gpa(self.gpa + (number * PAGE_SIZE) as u64);
            pages.push(ImagePage { gpa, kind, bytes });
        }
        Ok(())
    }
}

/// What the pages of a segment are; `None` for one that has nothing to say about memory.
fn kind_of(p_type: u32) -> Result<Option<Kind>, SegmentProblem> {
    Ok(Some(match p_type {
        PT_LOAD => Kind::Load,
        PT_HASHES => Kind::Hashes,
        PT_SECRETS => Kind::Secrets,
        PT_CPUID => Kind::Cpuid,
        PT_SCRATCH => Kind::Scratch,
        PT_NULL | PT_NOTE | PT_PHDR | PT_GNU_STACK | PT_GNU_RELRO | PT_GNU_PROPERTY => return Ok(None),
        other => return Err(SegmentProblem::Type(other)),
    }))
}

/// `length` bytes at `offset`, if the file has them.
fn slice(file: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    file.get(start..end)
}

// Callers have headers of 56 or 64 bytes and offsets inside them.

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[path = "image_test.rs"]
pub(crate) mod image_test;
