//! Loads an uncompressed Linux kernel: a strict reader of ELF64 executables for x86-64.
//!
//! ```text
//! file                          guest memory
//! ┌──────────────┐
//! │ ELF header   │
//! │ program hdrs │
//! ├──────────────┤  p_offset   ┌──────────────┐ p_paddr
//! │ PT_LOAD      │ ──────────► │ p_filesz     │
//! ├──────────────┤             ├──────────────┤
//! │ …            │             │ zeros        │ to p_memsz
//! └──────────────┘             └──────────────┘
//! ```
//!
//! The file may come from anywhere, so every number in it is checked against the file's length and guest memory before
//! it is used. Only program headers count; sections are not read.
//!
//! Segments are copied, into huge pages. Mapping the file instead would share its pages between VMs and save the copy (a few
//! milliseconds), but then each 4 KiB page of the kernel is a fault of its own: where nested paging is emulated a boot took
//! 0.4 s longer.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::layout::{HIGH_RAM, IDENTITY_MAP_END};
use crate::memory::{self, GuestMemory};

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// A kernel has four or five.
const MAX_PROGRAM_HEADERS: u16 = 64;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// Why a file is not a kernel that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("can't read {what}")]
    Read {
        /// Which part of the file.
        what: &'static str,
        /// The read's error.
        source: io::Error,
    },
    /// Not an ELF file at all.
    #[error("it is not an ELF file (a compressed bzImage won't do: vmlinux is needed)")]
    NotElf,
    /// An ELF file of another kind.
    #[error("it is not a 64-bit little-endian executable for x86-64")]
    WrongKind,
    /// A count or size in the ELF header is out of range.
    #[error("its ELF header has {field} = {value}, which is out of range")]
    Header {
        /// Name of the field in the ELF specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A number of a segment is out of range.
    #[error("its segment {index} has {problem}")]
    Segment {
        /// Index in the program header table.
        index: usize,
        /// What is wrong, as a phrase.
        problem: &'static str,
    },
    /// No segment at all.
    #[error("it has nothing to load")]
    Empty,
    /// Execution would start outside what was loaded.
    #[error("its entry point {0:#x} lies outside its segments")]
    Entry(u64),
}

/// Where the kernel came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// First guest-physical address above the kernel, with its zeroed data.
    pub end: u64,
}

/// A segment whose numbers have been checked: it lies within the file and within low guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    file_size: u64,
    memory: Range<u64>,
}

/// Loads the kernel from `file` into fresh (zero) guest memory.
pub fn load(memory: &GuestMemory, file: &File) -> Result<Image, Error> {
    let length = file
        .metadata()
        .map_err(|source| Error::Read {
            what: "its length",
            source,
        })?
        .len();
    let mut header = [0; HEADER_SIZE];
    read_exact(file, &mut header, 0, "its ELF header")?;
    let header = Header::parse(&header)?;
    let mut table = vec![0; usize::from(header.count) * PROGRAM_HEADER_SIZE];
    read_exact(file, &mut table, header.table, "its program headers")?;
    let low_end = memory::low_end(memory).min(IDENTITY_MAP_END);
    let segments = parse_segments(&table, length, low_end)?;
    for segment in &segments {
        copy(memory, file, segment)?;
    }
    let end = segments
        .iter()
        .map(|segment| segment.memory.end)
        .max()
        .ok_or(Error::Empty)?;
    if !segments
        .iter()
        .any(|segment| segment.memory.contains(&header.entry))
    {
        return Err(Error::Entry(header.entry));
    }
    Ok(Image {
        entry: header.entry,
        end,
    })
}

/// What counts of the ELF header.
#[derive(Debug)]
struct Header {
    entry: u64,
    table: u64,
    count: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Header, Error> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Error::NotElf);
        }
        let (class, data, version) = (bytes[4], bytes[5], bytes[6]);
        let kind = (u16_at(bytes, 16), u16_at(bytes, 18), u32_at(bytes, 20));
        if (class, data, version) != (2, 1, 1) || kind != (TYPE_EXECUTABLE, MACHINE_X86_64, 1) {
            return Err(Error::WrongKind);
        }
        let entry_size = u16_at(bytes, 54);
        if usize::from(entry_size) != PROGRAM_HEADER_SIZE {
            return Err(Error::Header {
                field: "e_phentsize",
                value: entry_size.into(),
            });
        }
        let count = u16_at(bytes, 56);
        if count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(Error::Header {
                field: "e_phnum",
                value: count.into(),
            });
        }
        Ok(Header {
            entry: u64_at(bytes, 24),
            table: u64_at(bytes, 32),
            count,
        })
    }
}

/// The loadable segments of a program header table, checked against the file's length and the end of usable memory.
fn parse_segments(table: &[u8], file_length: u64, low_end: u64) -> Result<Vec<Segment>, Error> {
    let mut segments: Vec<Segment> = Vec::new();
    let (headers, _) = table.as_chunks::<PROGRAM_HEADER_SIZE>();
    for (index, header) in headers.iter().enumerate() {
        if u32_at(header, 0) != PT_LOAD {
            continue;
        }
        let problem = |problem| Error::Segment { index, problem };
        let segment = parse_segment(header, file_length, low_end).map_err(problem)?;
        if segment.memory.is_empty() {
            continue;
        }
        let overlaps = |other: &Segment| {
            segment.memory.start < other.memory.end && other.memory.start < segment.memory.end
        };
        if segments.iter().any(overlaps) {
            return Err(problem("an address range that overlaps another's"));
        }
        segments.push(segment);
    }
    if segments.is_empty() {
        Err(Error::Empty)
    } else {
        Ok(segments)
    }
}

fn parse_segment(
    header: &[u8; PROGRAM_HEADER_SIZE],
    file_length: u64,
    low_end: u64,
) -> Result<Segment, &'static str> {
    let (file_offset, start) = (u64_at(header, 8), u64_at(header, 24));
    let (file_size, memory_size) = (u64_at(header, 32), u64_at(header, 40));
    if file_size > memory_size {
        return Err("more bytes in the file than in memory");
    }
    match file_offset.checked_add(file_size) {
        Some(end) if end <= file_length => {}
        _ => return Err("contents beyond the end of the file"),
    }
    let end = start
        .checked_add(memory_size)
        .ok_or("an address range that wraps around")?;
    if start < HIGH_RAM {
        return Err("an address below 1 MiB");
    }
    if end > low_end {
        return Err("an address beyond guest memory (or 1 GiB): more memory may help");
    }
    Ok(Segment {
        file_offset,
        file_size,
        memory: start..end,
    })
}

/// Reads a segment's contents into guest memory. What follows them is zero already.
fn copy(memory: &GuestMemory, file: &File, segment: &Segment) -> Result<(), Error> {
    let what = "a segment";
    // Segments end below 1 GiB, so lengths fit a usize.
    let slice = memory
        .get_slice(GuestAddress(segment.memory.start), segment.file_size as usize)
        .map_err(|error| Error::Read {
            what,
            source: io::Error::other(error),
        })?;
    crate::sys::read_exact_at(file, &slice, segment.file_offset)
        .map_err(|source| Error::Read { what, source })
}

fn read_exact(file: &File, buffer: &mut [u8], offset: u64, what: &'static str) -> Result<(), Error> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof if offset == 0 => Error::NotElf,
            _ => Error::Read { what, source },
        })
}

// The offsets below are constants within fixed-size headers, so the ranges exist.

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
#[path = "elf_test.rs"]
mod tests;
