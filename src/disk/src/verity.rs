//! dm-verity, format version 1: the shape of the hash tree and the superblock that `veritysetup` reads.
//!
//! ```text
//!   superblock │ top level (one block) │ … │ level 1 │ level 0: hashes of the data blocks
//!   one block  │ ◄──────────────── hash tree: levels from the top down ───────────────►
//! ```
//!
//! A hash block holds 128 SHA-256 digests of the blocks below it, padded with zeros. Digest of a block:
//! SHA-256(salt ‖ block). The root hash is the digest of the top block; without any level (one data block in all) it
//! is the digest of that data block. See the kernel's `Documentation/admin-guide/device-mapper/verity.rst`.

use sha2::{Digest, Sha256};

use crate::{BLOCK, widen};

/// A digest of the tree.
pub(crate) type Hash = [u8; 32];

/// Digests in one hash block.
pub(crate) const HASHES_PER_BLOCK: usize = BLOCK / 32;

#[cfg(target_arch = "x86_64")]
mod pair;

/// Hashes blocks under one salt.
pub(crate) struct Hasher {
    salted: Sha256,
    #[cfg(target_arch = "x86_64")]
    pair: Option<(pair::Pair, [u8; 32])>,
}

impl Hasher {
    pub(crate) fn new(salt: &[u8; 32]) -> Self {
        Self {
            salted: Sha256::new_with_prefix(salt),
            #[cfg(target_arch = "x86_64")]
            pair: pair::Pair::detect().map(|pair| (pair, *salt)),
        }
    }

    /// The digest of one block of 4096 bytes.
    pub(crate) fn hash(&self, block: &[u8]) -> Hash {
        self.salted.clone().chain_update(block).finalize().into()
    }

    /// The digests of two blocks of 4096 bytes: faster than one after the other where the processor helps.
    pub(crate) fn hash_two(&self, blocks: [&[u8; BLOCK]; 2]) -> [Hash; 2] {
        #[cfg(target_arch = "x86_64")]
        if let Some((pair, salt)) = &self.pair {
            return pair.hash(salt, blocks);
        }
        blocks.map(|block| self.hash(block))
    }
}

/// One hash block: up to 128 digests, then zeros.
pub(crate) fn hash_block(hashes: &[Hash]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (place, hash) in block.chunks_exact_mut(32).zip(hashes) {
        place.copy_from_slice(hash);
    }
    block
}

/// The place of each level of a hash tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// From level 0 (the hashes of data) up to the top.
    pub(crate) levels: Vec<Level>,
}

/// One level of the tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// First block, counted from the top of the tree.
    pub(crate) start: u64,
    /// Length in blocks.
    pub(crate) blocks: u64,
}

impl Geometry {
    /// The tree over `data_blocks` blocks, at least one.
    pub(crate) fn new(data_blocks: u64) -> Self {
        let mut sizes = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(widen(HASHES_PER_BLOCK));
            sizes.push(below);
        }
        let mut start = 0;
        let mut levels: Vec<Level> = sizes
            .into_iter()
            .rev()
            .map(|blocks| {
                let level = Level { start, blocks };
                start += blocks;
                level
            })
            .collect();
        levels.reverse();
        Self { levels }
    }

    /// Length of the tree in blocks, without the superblock.
    pub(crate) fn blocks(&self) -> u64 {
        self.levels.iter().map(|level| level.blocks).sum()
    }
}

/// The superblock, alone in its block of 4096 bytes.
pub(crate) fn superblock(uuid: &[u8; 16], salt: &[u8; 32], data_blocks: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"verity\0\0");
    put(8, &1u32.to_le_bytes()); // version of the superblock
    put(12, &1u32.to_le_bytes()); // hash type: salt first
    put(16, uuid);
    put(32, b"sha256");
    put(64, &4096u32.to_le_bytes()); // data block
    put(68, &4096u32.to_le_bytes()); // hash block
    put(72, &data_blocks.to_le_bytes());
    put(80, &32u16.to_le_bytes()); // length of the salt
    put(88, salt);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(data_blocks: u64) -> Vec<(u64, u64)> {
        Geometry::new(data_blocks)
            .levels
            .iter()
            .map(|level| (level.start, level.blocks))
            .collect()
    }

    #[test]
    fn levels_lie_top_down() {
        assert_eq!(shape(1), []);
        assert_eq!(shape(2), [(0, 1)]);
        assert_eq!(shape(128), [(0, 1)]);
        assert_eq!(shape(129), [(1, 2), (0, 1)]);
        assert_eq!(shape(128 * 128 + 1), [(3, 129), (1, 2), (0, 1)]);
        assert_eq!(Geometry::new(128 * 128 + 1).blocks(), 132);
    }

    #[test]
    fn salt_comes_first() {
        let expected = Sha256::digest([vec![7u8; 32], vec![9u8; 4096]].concat());
        assert_eq!(Hasher::new(&[7; 32]).hash(&[9; 4096])[..], expected[..]);
    }

    proptest::proptest! {
        #[test]
        fn two_at_once_are_as_one_by_one(
            salt: [u8; 32],
            (a, b) in (proptest::collection::vec(0u8.., BLOCK), proptest::collection::vec(0u8.., BLOCK)),
        ) {
            let hasher = Hasher::new(&salt);
            let blocks = [&a, &b].map(|block| block.as_slice().try_into().expect("a block"));
            assert_eq!(hasher.hash_two(blocks), [hasher.hash(&a), hasher.hash(&b)]);
        }
    }
}
