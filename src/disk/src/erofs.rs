//! EROFS, uncompressed: the place of every byte is fixed by the metadata of the tree alone.
//!
//! ```text
//!   0        1024         1152                                                 blocks × 4096
//!   ┌────────┬────────────┬───────────────┬────────────────────┬────────────────────────────┐
//!   │ zeros  │ superblock │ inodes        │ directory blocks   │ data of regular files,     │
//!   │        │ 128 bytes  │ (below)       │                    │ long link targets          │
//!   └────────┴────────────┴───────────────┴────────────────────┴────────────────────────────┘
//!   inode:   │ 64 bytes, extended │ extended attributes │ inline data: within the same block │
//! ```
//!
//! An inode's number is its offset divided by 32. A regular file lies either wholly behind its inode or wholly in
//! blocks of its own, so that a conversion opens each small file once; directories keep their last, partial block
//! behind the inode where it fits. Small inodes fill the gaps that inline data leaves in earlier blocks.
//!
//! Times: the modification time of each file is kept; the build time of the superblock is 0, always.
//! See the kernel's `fs/erofs/erofs_fs.h`.

mod encode;
mod plan;
mod xattr;

pub(crate) use plan::Plan;

/// Inodes lie at multiples of this many bytes.
const SLOT: u64 = 32;

/// Length in bytes of an extended inode, the only kind in use: it alone has a time of its own.
const INODE_LEN: usize = 64;

/// Offset of the superblock in bytes.
const SUPERBLOCK_AT: usize = 1024;

/// Where the first inode may lie, in bytes: behind the superblock.
const FIRST_INODE_AT: u64 = 1152;
