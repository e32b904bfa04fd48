//! An empty ext4 for the scratch disk, in three writes.
//!
//! ```text
//!   block  0 superblock │ 1 … group descriptors │ block bitmap │ inode bitmap │ inode table (512 blocks) │ root directory
//!          └──────────── written, as is the first block of the inode table ──────────┘                  └── written
//! ```
//!
//! The file system lives as long as this guest, on a disk where a block that was never written can't even be read (its
//! authentication tag is missing). So there is no journal and no copy of the superblock, and everything that the group
//! descriptors can declare unused is left as it is: bitmaps of all groups but the first and the last, and the inode tables
//! (`uninit_bg`; the kernel makes them when it first needs them). What mke2fs(8) calls:
//! `-O none,ext_attr,dir_index,filetype,extent,large_file,huge_file,uninit_bg,dir_nlink,extra_isize,sparse_super2
//! -E num_backup_sb=0`. Format: Documentation/filesystems/ext4 of the kernel.

use std::io;
use std::os::unix::fs::FileExt;

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Blocks in a group: what one bitmap block covers.
const GROUP_BLOCKS: u64 = 8 * BLOCK;
/// Inodes in a group: one for each 16 KiB, mke2fs's default.
const GROUP_INODES: u32 = 8192;
const INODE_BYTES: u64 = 256;
/// Blocks of inode table in a group.
const TABLE_BLOCKS: u64 = GROUP_INODES as u64 * INODE_BYTES / BLOCK;
/// Blocks of each group that hold bitmaps and inode table.
const GROUP_OVERHEAD: u64 = 2 + TABLE_BLOCKS;
/// A last group with less room than this beside its overhead is not worth having.
const MIN_GROUP_ROOM: u64 = 64;
const DESCRIPTOR_BYTES: u64 = 32;
/// Inodes 1 to 10 are reserved; the root directory is number 2.
const RESERVED_INODES: u32 = 10;
const ROOT_INODE: usize = 2;

const MAGIC: u16 = 0xef53;
const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// Where things lie in a file system of a given size.
struct Shape {
    /// Blocks in all, a last group that is too small left out.
    blocks: u64,
    groups: u64,
    descriptor_blocks: u64,
}

impl Shape {
    fn new(bytes: u64) -> io::Result<Self> {
        let mut blocks = bytes / BLOCK;
        let last = blocks % GROUP_BLOCKS;
        if blocks > GROUP_BLOCKS && last < GROUP_OVERHEAD + MIN_GROUP_ROOM {
            blocks -= last;
        }
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let shape = Self {
            blocks,
            groups,
            descriptor_blocks: (groups * DESCRIPTOR_BYTES).div_ceil(BLOCK),
        };
        let smallest = shape.used_in_first() + MIN_GROUP_ROOM;
        if blocks < smallest || blocks > u64::from(u32::MAX) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("ext4 needs between {} bytes and 16 TiB", smallest * BLOCK),
            ));
        }
        Ok(shape)
    }

    /// The first group's block bitmap, with which its overhead begins.
    fn first_bitmap(&self) -> u64 {
        1 + self.descriptor_blocks
    }

    fn root_directory(&self) -> u64 {
        self.first_bitmap() + GROUP_OVERHEAD
    }

    /// Blocks of the first group that are in use, from its start.
    fn used_in_first(&self) -> u64 {
        self.root_directory() + 1
    }

    fn blocks_of(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }

    fn free_blocks_of(&self, group: u64) -> u64 {
        match group {
            0 => self.blocks_of(0) - self.used_in_first(),
            _ => self.blocks_of(group) - GROUP_OVERHEAD,
        }
    }
}

/// Makes an empty file system in the first `bytes` bytes of `disk`. `uuid` and `hash_seed` are random.
///
/// # Errors
/// Those of writing, and [`io::ErrorKind::InvalidInput`] where there is too little room, or too much.
pub fn format(disk: &impl FileExt, bytes: u64, uuid: &[u8; 16], hash_seed: &[u8; 16]) -> io::Result<()> {
    let shape = Shape::new(bytes)?;
    let mut head = superblock(&shape, uuid, hash_seed);
    head.extend(descriptors(&shape, uuid));
    head.extend(bitmap(shape.used_in_first(), shape.blocks_of(0)));
    head.extend(bitmap(RESERVED_INODES.into(), GROUP_INODES.into()));
    head.extend(first_inodes(&shape));
    disk.write_all_at(&head, 0)?;
    if let last @ 1.. = shape.groups - 1 {
        let bits = bitmap(GROUP_OVERHEAD, shape.blocks_of(last));
        disk.write_all_at(&bits, last * GROUP_BLOCKS * BLOCK)?;
    }
    disk.write_all_at(&root_directory(), shape.root_directory() * BLOCK)
}

fn superblock(shape: &Shape, uuid: &[u8; 16], hash_seed: &[u8; 16]) -> Vec<u8> {
    let inodes = shape.groups as u32 * GROUP_INODES; // 2^17 groups at most
    let free_blocks: u64 = (0..shape.groups).map(|group| shape.free_blocks_of(group)).sum();
    let mut block = Fields::block();
    let at = 1024;
    block.u32(at, inodes);
    block.u32(at + 4, shape.blocks as u32); // `Shape::new` checks
    block.u32(at + 12, free_blocks as u32);
    block.u32(at + 16, inodes - RESERVED_INODES);
    block.u32(at + 24, 2); // block size: 1024 << 2
    block.u32(at + 28, 2); // cluster size: the same
    block.u32(at + 32, GROUP_BLOCKS as u32);
    block.u32(at + 36, GROUP_BLOCKS as u32);
    block.u32(at + 40, GROUP_INODES);
    block.u16(at + 54, u16::MAX); // checks after so many mounts: never
    block.u16(at + 56, MAGIC);
    block.u16(at + 58, 1); // unmounted cleanly
    block.u16(at + 60, 2); // on errors: read-only
    block.u32(at + 76, 1); // revision with the fields below
    block.u32(at + 84, RESERVED_INODES + 1); // first inode for files
    block.u16(at + 88, INODE_BYTES as u16);
    block.u32(at + 92, COMPAT_EXT_ATTR | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2);
    block.u32(at + 96, INCOMPAT_FILETYPE | INCOMPAT_EXTENTS);
    let ro_compat = RO_COMPAT_LARGE_FILE
        | RO_COMPAT_HUGE_FILE
        | RO_COMPAT_GDT_CSUM
        | RO_COMPAT_DIR_NLINK
        | RO_COMPAT_EXTRA_ISIZE;
    block.u32(at + 100, ro_compat);
    block.bytes(at + 104, uuid);
    block.bytes(at + 236, hash_seed);
    block.bytes(at + 252, &[1]); // hash of directory indices: half MD4
    block.u16(at + 348, 32); // inode fields beyond the first 128 bytes: at least
    block.u16(at + 350, 32); // and wanted
    block.u32(at + 352, 1); // that hash takes characters as signed
    block.0
}

fn descriptors(shape: &Shape, uuid: &[u8; 16]) -> Vec<u8> {
    let mut blocks = Fields(vec![0; (shape.descriptor_blocks * BLOCK) as usize]);
    for group in 0..shape.groups {
        let at = (group * DESCRIPTOR_BYTES) as usize;
        let bitmap = match group {
            0 => shape.first_bitmap(),
            _ => group * GROUP_BLOCKS,
        };
        // Block numbers have 32 bits, counts in a group fit into 16: `Shape::new` and the constants see to it.
        blocks.u32(at, bitmap as u32);
        blocks.u32(at + 4, bitmap as u32 + 1);
        blocks.u32(at + 8, bitmap as u32 + 2);
        blocks.u16(at + 12, shape.free_blocks_of(group) as u16);
        let (used_inodes, directories, flags) = match group {
            0 => (RESERVED_INODES, 1, 0),
            // The end of the file system has to be marked.
            last if last == shape.groups - 1 => (0, 0, INODE_UNINIT),
            _ => (0, 0, INODE_UNINIT | BLOCK_UNINIT),
        };
        blocks.u16(at + 14, (GROUP_INODES - used_inodes) as u16);
        blocks.u16(at + 16, directories);
        blocks.u16(at + 18, flags);
        blocks.u16(at + 28, (GROUP_INODES - used_inodes) as u16); // never used, from the table's end
        let checksum = [&uuid[..], &(group as u32).to_le_bytes(), &blocks.0[at..at + 30]]
            .iter()
            .fold(!0, |crc, bytes| crc16(crc, bytes));
        blocks.u16(at + 30, checksum);
    }
    blocks.0
}

/// A bitmap with the first `used` bits set, and those from `end` on, which stand for nothing.
fn bitmap(used: u64, end: u64) -> Vec<u8> {
    let bit = |number: u64| u8::from(number < used || number >= end) << (number % 8);
    (0..BLOCK)
        .map(|byte| (0..8).fold(0, |bits, i| bits | bit(byte * 8 + i)))
        .collect()
}

/// The first block of the inode table: reserved inodes, all zero but for the root directory's.
fn first_inodes(shape: &Shape) -> Vec<u8> {
    let mut block = Fields::block();
    let at = (ROOT_INODE - 1) * INODE_BYTES as usize;
    block.u16(at, 0o040_755);
    block.u32(at + 4, BLOCK as u32); // size
    block.u16(at + 26, 2); // links: from itself, as "." and as ".."
    block.u32(at + 28, (BLOCK / 512) as u32); // sectors
    block.u32(at + 32, 0x8_0000); // mapped by extents
    // Extent header: magic, one entry, of four, depth 0. Then the extent: block 0 of the file, one long, and where.
    block.u16(at + 40, 0xf30a);
    block.u16(at + 42, 1);
    block.u16(at + 44, 4);
    block.u16(at + 56, 1);
    block.u32(at + 60, shape.root_directory() as u32);
    block.u16(at + 128, 32); // bytes of fields beyond the first 128
    block.0
}

/// "." and "..", both the root directory; the second entry reaches to the block's end.
fn root_directory() -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut block = Fields::block();
    for (at, length, name) in [(0, 12, &b"."[..]), (12, BLOCK as u16 - 12, b"..")] {
        block.u32(at, ROOT_INODE as u32);
        block.u16(at + 4, length);
        block.bytes(at + 6, &[name.len() as u8, DIRECTORY]);
        block.bytes(at + 8, name);
    }
    block.0
}

/// Little-endian fields of a structure.
struct Fields(Vec<u8>);

impl Fields {
    fn block() -> Self {
        Self(vec![0; BLOCK as usize])
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }
}

/// CRC-16/ARC, reflected polynomial 0xa001, as the kernel's `crc16`.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            crc >> 1 ^ (0xa001 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
#[path = "ext4_test.rs"]
mod tests;
