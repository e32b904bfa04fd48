//! Where things lie in a finished image: all that is needed to open it, given the key.
//!
//! ```text
//!   image:    0 ── LUKS2 header ── payload_offset ──────────── payload_bytes ───────────────┐
//!   payload:  0 ── EROFS ── verity_superblock_offset ── hash_tree_offset ── hash tree ── end
//! ```

use serde::{Deserialize, Serialize};

use crate::verity::Geometry;
use crate::{BLOCK, Error, hex, widen};

/// Offset in bytes of the payload in every image that this crate makes: room for both copies of the header and
/// three key slots.
pub(crate) const PAYLOAD_OFFSET: u64 = 1 << 20;

/// The shape of an image. A guest takes it from a trusted source, never from the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Offset in bytes of the dm-crypt payload in the image.
    pub payload_offset: u64,
    /// Length in bytes of the payload; the image ends with it.
    pub payload_bytes: u64,
    /// dm-crypt sector size in bytes: 4096. The initialisation vector of a sector is its number counted in units of
    /// 512 bytes from the start of the payload (no `iv_large_sectors`).
    pub sector_size: u32,
    /// Blocks of 4096 bytes that dm-verity protects: the EROFS file system, from the start of the payload.
    pub data_blocks: u64,
    /// Offset in bytes, within the payload, of the 4096-byte block with the verity superblock
    /// (`veritysetup --hash-offset`).
    pub verity_superblock_offset: u64,
    /// Offset in bytes, within the payload, of the top of the hash tree (in units of 4096 bytes: `hash_start_block`
    /// of the device-mapper table).
    pub hash_tree_offset: u64,
    /// Salt of every hash.
    #[serde(with = "hex")]
    pub salt: [u8; 32],
    /// SHA-256 that fixes each byte of the file system.
    #[serde(with = "hex")]
    pub root_hash: [u8; 32],
    /// UUID of the EROFS file system and of the verity superblock; a function of the tree.
    #[serde(with = "hex")]
    pub uuid: [u8; 16],
}

impl Layout {
    /// The layout of an image with `data_blocks` blocks of file system.
    pub(crate) fn new(data_blocks: u64, salt: [u8; 32], root_hash: [u8; 32], uuid: [u8; 16]) -> Self {
        let block = widen(BLOCK);
        let verity_superblock_offset = data_blocks * block;
        let hash_tree_offset = verity_superblock_offset + block;
        Self {
            payload_offset: PAYLOAD_OFFSET,
            payload_bytes: hash_tree_offset + Geometry::new(data_blocks).blocks() * block,
            sector_size: 4096,
            data_blocks,
            verity_superblock_offset,
            hash_tree_offset,
            salt,
            root_hash,
            uuid,
        }
    }

    /// Length in bytes of the whole image.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.payload_offset.saturating_add(self.payload_bytes)
    }

    /// Checks that every figure follows from `data_blocks` as in images that this crate makes.
    ///
    /// # Errors
    /// [`Error::Layout`] naming the first figure that does not.
    pub fn check(&self) -> Result<(), Error> {
        // EROFS addresses blocks with 32 bits; within that bound nothing below can overflow.
        if self.data_blocks == 0 || self.data_blocks > u64::from(u32::MAX) {
            return Err(Error::Layout {
                reason: format!(
                    "data_blocks is {} and should be 1 to 4294967295",
                    self.data_blocks
                ),
            });
        }
        let right = Self::new(self.data_blocks, self.salt, self.root_hash, self.uuid);
        let figures = [
            ("payload_offset", self.payload_offset, right.payload_offset),
            ("payload_bytes", self.payload_bytes, right.payload_bytes),
            ("sector_size", self.sector_size.into(), right.sector_size.into()),
            (
                "verity_superblock_offset",
                self.verity_superblock_offset,
                right.verity_superblock_offset,
            ),
            ("hash_tree_offset", self.hash_tree_offset, right.hash_tree_offset),
        ];
        match figures.into_iter().find(|(_, is, should)| is != should) {
            None => Ok(()),
            Some((name, is, should)) => Err(Error::Layout {
                reason: format!("{name} is {is} and should be {should}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_from_the_block_count() {
        let layout = Layout::new(129, [1; 32], [2; 32], [3; 16]);
        assert_eq!(layout.verity_superblock_offset, 129 * 4096);
        assert_eq!(layout.hash_tree_offset, 130 * 4096);
        // 129 leaves: two blocks of hashes and one above them.
        assert_eq!(layout.payload_bytes, 133 * 4096);
        layout.check().unwrap();
    }

    #[test]
    fn wrong_figures_are_named() {
        let good = Layout::new(129, [1; 32], [2; 32], [3; 16]);
        let name = |layout: Layout| layout.check().unwrap_err().to_string();
        assert!(
            name(Layout {
                payload_bytes: 1,
                ..good.clone()
            })
            .contains("payload_bytes is 1")
        );
        assert!(
            name(Layout {
                data_blocks: u64::MAX,
                ..good.clone()
            })
            .contains("data_blocks")
        );
        assert!(
            name(Layout {
                data_blocks: 0,
                ..good.clone()
            })
            .contains("data_blocks")
        );
        assert!(
            name(Layout {
                sector_size: 512,
                ..good
            })
            .contains("sector_size")
        );
    }

    #[test]
    fn json_both_ways() {
        let layout = Layout::new(2, [0xa1; 32], [0xb2; 32], [0xc3; 16]);
        let json = serde_json::to_string(&layout).unwrap();
        assert!(json.contains(&"b2".repeat(32)));
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), layout);
    }
}
