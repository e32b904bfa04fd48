//! What a disk's bytes lie in: files, end to end.
//!
//! ```text
//!   disk:  0 ─────────── a ─────────── b ── end
//!          │  files[0]   │  files[1]   │ …
//! ```
//!
//! A request may cross from one file into the next.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::sys::{self, Slice};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Files that together are a disk.
#[derive(Debug)]
pub struct Backing {
    parts: Vec<Part>,
    bytes: u64,
}

#[derive(Debug)]
struct Part {
    file: File,
    /// Where it begins on the disk, in bytes.
    start: u64,
}

/// A stretch of a request that lies in one file.
struct Piece<'b> {
    file: &'b File,
    offset: u64,
    bytes: u64,
}

impl Backing {
    /// Joins `files`.
    ///
    /// # Errors
    /// Where a length can't be told, or the sum is beyond what a file could have.
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let mut bytes = 0u64;
        let mut parts = Vec::with_capacity(files.len());
        for mut file in files {
            // A block device has no length in its metadata, but an end.
            let length = file.seek(SeekFrom::End(0))?;
            parts.push(Part { file, start: bytes });
            bytes = bytes
                .checked_add(length)
                .filter(|bytes| i64::try_from(*bytes).is_ok())
                .ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Ok(Self { parts, bytes })
    }

    /// The file of a disk that has only one.
    #[cfg(test)]
    pub fn only_file(&self) -> &File {
        &self.parts[0].file
    }

    /// As on a file system that can't free or zero a range by itself.
    #[cfg(test)]
    pub fn write_zeros(&self, offset: u64, bytes: u64) {
        self.pieces(offset, bytes)
            .for_each(|piece| piece.write_zeros().unwrap());
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Reads from `offset` until all of `slices`, `bytes` together, is filled. Uses up `slices`.
    pub fn read(&self, slices: &mut [Slice<'_>], offset: u64, bytes: u64) -> io::Result<()> {
        self.transfer(slices, offset, bytes, sys::read_all_at)
    }

    /// Writes all of `slices`, `bytes` together, from `offset` on. Uses up `slices`.
    pub fn write(&self, slices: &mut [Slice<'_>], offset: u64, bytes: u64) -> io::Result<()> {
        self.transfer(slices, offset, bytes, sys::write_all_at)
    }

    fn transfer<'m>(
        &self,
        mut slices: &mut [Slice<'m>],
        offset: u64,
        bytes: u64,
        call: fn(&File, &mut [Slice<'m>], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        for piece in self.pieces(offset, bytes) {
            if piece.bytes == bytes {
                return call(piece.file, slices, piece.offset);
            }
            // Not more than the slices' length, which is that of a vector in memory.
            let length = piece.bytes as usize;
            call(piece.file, &mut sys::first(slices, length), piece.offset)?;
            slices = sys::advance(slices, length);
        }
        Ok(())
    }

    /// Makes the writes durable.
    pub fn sync(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| part.file.sync_data())
    }

    /// Frees the range; it reads as zeros afterwards. EOPNOTSUPP where the file system can't.
    pub fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.pieces(offset, bytes)
            .try_for_each(|piece| piece.allocate(libc::FALLOC_FL_PUNCH_HOLE))
    }

    /// Makes the range read as zeros, and frees it if `unmap` is set and the file system can.
    pub fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        self.pieces(offset, bytes)
            .try_for_each(|piece| match piece.allocate(mode) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => piece.write_zeros(),
                result => result,
            })
    }

    /// The range, cut where files end. Nothing for an empty range, or beyond the end.
    fn pieces(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Piece<'_>> {
        let end = offset.saturating_add(bytes);
        let ends = self
            .parts
            .iter()
            .skip(1)
            .map(|part| part.start)
            .chain([self.bytes]);
        self.parts.iter().zip(ends).filter_map(move |(part, part_end)| {
            let (from, to) = (offset.max(part.start), end.min(part_end));
            (from < to).then(|| Piece {
                file: &part.file,
                offset: from - part.start,
                bytes: to - from,
            })
        })
    }
}

impl Piece<'_> {
    /// `fallocate`, which fails with EOPNOTSUPP where the file system can't do `mode`.
    fn allocate(&self, mode: libc::c_int) -> io::Result<()> {
        loop {
            // Offset and length are below the file's length, so they fit an `off_t`.
            let (offset, bytes) = (self.offset as libc::off_t, self.bytes as libc::off_t);
            let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the call takes no pointers, and the descriptor is open.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn write_zeros(&self) -> io::Result<()> {
        let end = self.offset + self.bytes;
        let mut at = self.offset;
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64);
            // Not above the array's length.
            self.file.write_all_at(&ZEROS[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }
}
