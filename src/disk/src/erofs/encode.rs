//! The bytes of superblock, inodes and directories.

use super::{INODE_LEN, SUPERBLOCK_AT, xattr};
use crate::BLOCK;
use crate::tree::{Inode, Kind, Tree};

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM` and `_MTIME`.
const FEATURE_COMPAT: u32 = 1 | 2;
/// Directory entry: inode number u64, offset of name u16, type u8, reserved u8.
const DIRENT_LEN: usize = 12;

/// What the superblock says.
pub(super) struct Superblock<'a> {
    pub(super) root: u64,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) uuid: &'a [u8; 16],
    pub(super) label: &'a str,
}

/// How the data of an inode is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// In blocks only.
    Plain,
    /// The last, partial block (or all there is) behind the inode.
    Inline,
}

/// Writes the superblock into block 0 of the image, of which everything else must be in place.
pub(super) fn superblock(block: &mut [u8], superblock: &Superblock<'_>) {
    let Superblock {
        root,
        inodes,
        blocks,
        uuid,
        label,
    } = superblock;
    let area = &mut block[SUPERBLOCK_AT..BLOCK];
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(8, &FEATURE_COMPAT.to_le_bytes());
    put(12, &[12]); // blocks of 2^12 bytes
    put(14, &(*root as u16).to_le_bytes()); // the plan places the root first
    put(16, &inodes.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(48, &uuid[..]);
    put(64, label.as_bytes());
    let checksum = crc32c(area);
    area[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// CRC-32C as EROFS has it: all ones to start with, not inverted in the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// An extended inode. `block` is the first block of its data, `number` what 32-bit programs see as `st_ino`.
pub(super) fn inode(
    inode: &Inode,
    size: u64,
    storage: Storage,
    block: u32,
    xattrs: usize,
    number: u32,
) -> [u8; INODE_LEN] {
    let layout = match storage {
        Storage::Plain => 0u16,
        Storage::Inline => 2,
    };
    let location = match inode.kind {
        Kind::Character { major, minor } | Kind::Block { major, minor } => device(major, minor),
        _ => block,
    };
    let mut bytes = [0; INODE_LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &(1 | layout << 1).to_le_bytes());
    put(2, &xattr::count(xattrs).to_le_bytes());
    put(4, &inode.mode.to_le_bytes());
    put(8, &size.to_le_bytes());
    put(16, &location.to_le_bytes());
    put(20, &number.to_le_bytes());
    put(24, &inode.uid.to_le_bytes());
    put(28, &inode.gid.to_le_bytes());
    put(32, &inode.mtime.seconds.to_le_bytes());
    put(40, &inode.mtime.nanoseconds.to_le_bytes());
    put(44, &inode.nlink.to_le_bytes());
    bytes
}

/// The kernel's `new_encode_dev`: 12 bits of major number between the halves of 20 bits of minor number.
const fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// How many of the entries from `first` on fit into one directory block, and the bytes that they take.
pub(super) fn directory_block(lengths: impl Iterator<Item = usize>) -> (usize, usize) {
    let (mut count, mut used) = (0, 0);
    for len in lengths {
        if used + DIRENT_LEN + len > BLOCK {
            break;
        }
        used += DIRENT_LEN + len;
        count += 1;
    }
    (count, used)
}

/// Writes one block of a directory: entries, then their names. `number` tells the number of an inode.
pub(super) fn directory(
    tree: &Tree,
    first: usize,
    count: usize,
    number: impl Fn(u32) -> u64,
    block: &mut [u8],
) {
    let (mut entry_at, mut name_at) = (0, count * DIRENT_LEN);
    for &entry in &tree.entries[first..first + count] {
        let name = tree.name(entry);
        block[entry_at..entry_at + 8].copy_from_slice(&number(entry.inode).to_le_bytes());
        block[entry_at + 8..entry_at + 10].copy_from_slice(&(name_at as u16).to_le_bytes());
        block[entry_at + 10] = file_type(tree.at(entry.inode).kind);
        block[name_at..name_at + name.len()].copy_from_slice(name);
        entry_at += DIRENT_LEN;
        name_at += name.len();
    }
}

const fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::Regular { .. } => 1,
        Kind::Directory { .. } => 2,
        Kind::Character { .. } => 3,
        Kind::Block { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink { .. } => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        // The check value of CRC-32C, before the final inversion that EROFS leaves out.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }

    #[test]
    fn device_numbers() {
        assert_eq!(device(0, 0), 0);
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(0xfff, 0xf_ffff), u32::MAX);
        assert_eq!(device(1, 0x100), 0x10_0100);
    }

    #[test]
    fn a_block_takes_what_fits() {
        // Each entry takes 16 bytes: 256 of them fill a block exactly.
        assert_eq!(directory_block(std::iter::repeat_n(4, 1000)), (256, 4096));
        assert_eq!(directory_block(std::iter::repeat_n(255, 1000)), (15, 15 * 267));
        assert_eq!(directory_block([1, 2].into_iter()), (2, 27));
    }
}
