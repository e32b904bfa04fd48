//! Messages as they are on the wire (linux/fuse.h): little-endian, as the guests that we run are.

use rustix::fs::{Statx, StatxTimestamp};
use rustix::io::Errno;
use std::ffi::CStr;

/// Version of the protocol that is spoken here.
pub const MAJOR: u32 = 7;
/// Its minor version: all that is used here is in it.
pub const MINOR: u32 = 33;

/// What a request asks for: `enum fuse_opcode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    ReadLink,
    Symlink,
    MkNod,
    MkDir,
    Unlink,
    RmDir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    StatFs,
    Release,
    Fsync,
    SetXattr,
    GetXattr,
    ListXattr,
    RemoveXattr,
    Init,
    OpenDir,
    ReadDir,
    ReleaseDir,
    FsyncDir,
    Create,
    Interrupt,
    Destroy,
    BatchForget,
    Fallocate,
    Rename2,
    LSeek,
    CopyFileRange,
    TmpFile,
}

impl Opcode {
    /// The operation of this number, if there is one here. A guest does without the others: locks are its own, permissions it checks by
    /// the attributes, and closing a file has nothing to flush.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Lookup,
            2 => Self::Forget,
            3 => Self::GetAttr,
            4 => Self::SetAttr,
            5 => Self::ReadLink,
            6 => Self::Symlink,
            8 => Self::MkNod,
            9 => Self::MkDir,
            10 => Self::Unlink,
            11 => Self::RmDir,
            12 => Self::Rename,
            13 => Self::Link,
            14 => Self::Open,
            15 => Self::Read,
            16 => Self::Write,
            17 => Self::StatFs,
            18 => Self::Release,
            20 => Self::Fsync,
            21 => Self::SetXattr,
            22 => Self::GetXattr,
            23 => Self::ListXattr,
            24 => Self::RemoveXattr,
            26 => Self::Init,
            27 => Self::OpenDir,
            28 => Self::ReadDir,
            29 => Self::ReleaseDir,
            30 => Self::FsyncDir,
            35 => Self::Create,
            36 => Self::Interrupt,
            38 => Self::Destroy,
            42 => Self::BatchForget,
            43 => Self::Fallocate,
            45 => Self::Rename2,
            46 => Self::LSeek,
            47 => Self::CopyFileRange,
            51 => Self::TmpFile,
            _ => return None,
        })
    }

    /// Whether nobody waits for an answer.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt)
    }
}

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Length of the request with this header, in bytes.
    pub length: u32,
    /// What is asked for.
    pub opcode: u32,
    /// Names the request in its answer.
    pub unique: u64,
    /// Which inode it is about.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// Who asks.
    pub gid: u32,
}

impl Header {
    /// Its length in bytes.
    pub const BYTES: usize = 40;

    /// From its bytes.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let mut body = Body(bytes);
        // The array has them all.
        let mut u32 = || body.u32().unwrap_or_default();
        let (length, opcode) = (u32(), u32());
        let mut u64 = || body.u64().unwrap_or_default();
        let (unique, node) = (u64(), u64());
        let mut u32 = || body.u32().unwrap_or_default();
        let (uid, gid) = (u32(), u32());
        Self {
            length,
            opcode,
            unique,
            node,
            uid,
            gid,
        }
    }
}

/// What follows the header, read from the front.
#[derive(Debug)]
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    /// The next bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (now, later) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (now, later) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = later;
        Ok(*now)
    }

    /// The next number.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next number.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Passes over bytes that mean nothing here.
    pub fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    /// The next string, which ends with NUL.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.skip(text.count_bytes() + 1)?;
        Ok(text)
    }

    /// The next string as the name of something in a directory.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > 255 => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

/// Flags of INIT that are used here (`FUSE_*`): the guest may have several reads of a file under way,
/// truncates with opening, writes more than a page at once, drops what it has of a file that has changed, looks up names of one directory
/// side by side, and leaves it to this side to take set-ID bits away (and so does not ask for `security.capability` before each write).
pub const FEATURES: u32 = 1 | (1 << 3) | (1 << 5) | (1 << 12) | (1 << 15) | (1 << 18) | MAX_PAGES | (1 << 28);
/// `FUSE_MAX_PAGES`: the answer to INIT says how large a request may be.
pub const MAX_PAGES: u32 = 1 << 22;
/// The largest read or write, in pages of 4 KiB.
pub const PAGES: u16 = 256;

/// What SETATTR is to set (`FATTR_*`).
pub mod fattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_GETATTR_FH`: GETATTR is about an open file.
pub const GETATTR_FH: u32 = 1;
/// `FUSE_WRITE_CACHE`: what is written comes from the guest's page cache, at its place in the file.
pub const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`: who writes may not keep set-ID bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`: the same of who truncates.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
pub const FSYNC_DATA: u32 = 1;

/// `struct fuse_attr`, 88 bytes. `inode`: the number that is shown.
pub fn attributes(stat: &Statx, inode: u64, out: &mut Vec<u8>) {
    let seconds = |time: StatxTimestamp| time.tv_sec;
    for number in [inode, stat.stx_size, stat.stx_blocks] {
        out.extend(number.to_le_bytes());
    }
    let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
    times
        .iter()
        .for_each(|time| out.extend(seconds(*time).to_le_bytes()));
    times
        .iter()
        .for_each(|time| out.extend(time.tv_nsec.to_le_bytes()));
    for number in [
        u32::from(stat.stx_mode),
        stat.stx_nlink,
        stat.stx_uid,
        stat.stx_gid,
        device(stat.stx_rdev_major, stat.stx_rdev_minor),
        stat.stx_blksize,
        0, // flags
    ] {
        out.extend(number.to_le_bytes());
    }
}

/// A device number as the kernel has it on the wire (`new_encode_dev`).
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// Such a number taken apart.
pub fn device_parts(number: u32) -> (u32, u32) {
    (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xfff00),
    )
}

/// `struct fuse_attr_out`: attributes that are valid for no time.
pub fn attr_out(stat: &Statx, inode: u64) -> Vec<u8> {
    let mut out = vec![0; 16];
    attributes(stat, inode, &mut out);
    out
}

/// `struct fuse_entry_out`: an inode whose name and attributes are valid for no time.
pub fn entry_out(node: u64, stat: &Statx, inode: u64) -> Vec<u8> {
    let mut out = node.to_le_bytes().to_vec();
    out.resize(40, 0); // generation and validities
    attributes(stat, inode, &mut out);
    out
}

/// `struct fuse_open_out`.
pub fn open_out(handle: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&handle.to_le_bytes());
    out
}

/// A count with padding behind it (`struct fuse_write_out`, `struct fuse_getxattr_out`).
pub fn count_out(count: usize) -> Vec<u8> {
    // A request is shorter than 4 GiB.
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    u64::from(count).to_le_bytes().to_vec()
}

/// `struct fuse_init_out`, for what the guest offers.
pub fn init_out(offered: u32, readahead: u32) -> Vec<u8> {
    let bytes = u32::from(PAGES) * 4096;
    let mut out = Vec::with_capacity(64);
    for number in [MAJOR, MINOR, readahead.min(bytes), offered & FEATURES] {
        out.extend(number.to_le_bytes());
    }
    out.extend(64u16.to_le_bytes()); // max_background
    out.extend(48u16.to_le_bytes()); // congestion_threshold
    out.extend(bytes.to_le_bytes()); // max_write
    out.extend(1u32.to_le_bytes()); // time_gran, in nanoseconds
    out.extend(PAGES.to_le_bytes());
    out.resize(64, 0);
    out
}

/// One entry of a directory as an array of names (`struct fuse_dirent`), or nothing where `room` has no place for it.
pub fn directory_entry(
    inode: u64,
    next: u64,
    kind: u32,
    name: &CStr,
    room: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let name = name.to_bytes();
    let bytes = (24 + name.len()).next_multiple_of(8);
    let end = out.len().checked_add(bytes).filter(|end| *end <= room)?;
    out.extend(inode.to_le_bytes());
    out.extend(next.to_le_bytes());
    // NAME_MAX is 255.
    out.extend(u32::try_from(name.len()).ok()?.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(name);
    out.resize(end, 0);
    Some(())
}

/// The header of an answer, `struct fuse_out_header`.
pub fn answer(unique: u64, payload: usize, error: Option<Errno>) -> [u8; 16] {
    let mut header = [0; 16];
    // An answer is shorter than 4 GiB.
    let length = u32::try_from(payload + header.len()).unwrap_or(u32::MAX);
    let error = error.map_or(0, |error| -error.raw_os_error());
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&error.to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}
