//! From a root file system to an encrypted, integrity-protected guest disk, and back to trust in one.
//!
//! ```text
//!   rootfs ─► Tree ─► Plan ─► build: read → hash → encrypt → write, all cores, each byte once
//!
//!   image file
//!   ┌──────────────┬──────────────────────────────────────────────────┐
//!   │ LUKS2 header │ dm-crypt payload: AES-256-XTS, 4096-byte sectors │
//!   │ 0 … 1 MiB    ├───────────────────┬──────────────┬───────────────┤
//!   │              │ EROFS             │ dm-verity    │ dm-verity     │
//!   │              │ (data_blocks×4K)  │ superblock 4K│ hash tree     │
//!   └──────────────┴───────────────────┴──────────────┴───────────────┘
//! ```
//!
//! | module | its job |
//! |---|---|
//! | `tree` | walks a directory: metadata only, sorted, never follows a symlink, never leaves the mount |
//! | `erofs` | fixes the place of every byte of the file system before any file is read |
//! | `verity` | hashes of blocks, shape of the hash tree and its superblock |
//! | `luks2` | writes the header, and reads a hostile one |
//! | `write` | writes for all threads, one at a time |
//! | `build` | the pipeline that joins them |
//! | `verify` | decrypts a finished image and recomputes its hash tree |
//! | `layer` | which layer of an overlay a directory is |
//! | `cache` | finished images by identity of their source |
//!
//! The plaintext is a function of the tree alone: names, types, modes, owners, modification times, extended
//! attributes, links and contents (and of the label, if one is asked for). Thread count, inode numbers and the clock have no influence. Ciphertext differs
//! with the volume key only; the LUKS2 header holds fresh random salts.

mod build;
pub mod cache;
mod erofs;
mod error;
mod hex;
mod key;
mod layer;
mod layout;
pub mod luks2;
mod tree;
mod verify;
mod verity;
mod write;

use std::fs::File;
use std::path::Path;

pub use build::{Built, Options, Progress};
pub use error::{Error, HeaderError};
pub use key::{MAX_KEY_FILE, Unlock, VolumeKey};
pub use layer::LayerDir;
pub use layout::Layout;
pub use luks2::{Inspection, Keyslot, inspect};
pub use tree::{Archive, Markers, Tree, WHITEOUTS};
pub use verify::verify;

/// Version of everything that shapes an image. Part of every identity, so that a cache never hands out an image in
/// a format of the past. Raise it with any change that alters the bytes made from an unchanged tree.
pub const FORMAT_VERSION: u32 = 1;

/// Size in bytes of a block of EROFS and of dm-verity, and of a sector of dm-crypt.
pub const BLOCK: usize = 4096;

/// Converts the directory `rootfs` into `image`, an empty regular file open for reading and writing.
///
/// Short for [`Tree::scan`] followed by [`Tree::build`].
///
/// # Errors
/// Any [`Error`] of the two. The image has no valid header then, and should be deleted.
pub fn build(rootfs: &Path, image: &File, unlock: &Unlock, options: &Options<'_>) -> Result<Built, Error> {
    Tree::scan(rootfs)?.build(image, unlock, options)
}

/// The identity of the directory `rootfs`, short for [`Tree::scan`] followed by [`Tree::identity`].
///
/// # Errors
/// Any [`Error`] of the scan.
pub fn scan_identity(rootfs: &Path) -> Result<[u8; 32], Error> {
    Ok(Tree::scan(rootfs)?.identity())
}

/// `value` as a `u64`. Lossless: no platform of this crate has a `usize` beyond 64 bits.
pub(crate) const fn widen(value: usize) -> u64 {
    value as u64
}
