//! AES-256-XTS (IEEE 1619) with the `plain64` initialisation vector of dm-crypt.
//!
//! A sector is a run of 16-byte blocks. Its tweak is E(k2, number of the sector, little endian); each block is
//! XORed with the tweak, encrypted under k1, and XORed again; from block to block the tweak is doubled in GF(2^128).
//! The tweaks of a sector are computed first, so that the cipher sees all blocks of a sector at once and can keep
//! its pipelines (AES-NI, VAES) full.

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

use crate::KEY_LEN;

/// The largest sector of dm-crypt in bytes.
const MAX_SECTOR: usize = 4096;

/// Length of an AES block in bytes.
const AES_BLOCK: usize = 16;

/// An initialisation vector counts sectors of 512 bytes, whatever the real sector size.
const IV_UNIT: usize = 512;

/// The two AES keys of a disk or key slot, expanded.
pub struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    /// The cipher of a disk, or of a key slot's area.
    #[must_use]
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        let (data, tweak) = key.split_at(KEY_LEN / 2);
        // Both halves are 32 bytes, which is the length that AES-256 asks for.
        let cipher = |half: &[u8]| Aes256::new_from_slice(half).expect("half a volume key is an AES-256 key");
        Self {
            data: cipher(data),
            tweak: cipher(tweak),
        }
    }

    /// Encrypts whole sectors of `sector_size` bytes (a multiple of 16, at most 4096) in place. `offset` is the
    /// place of the first in bytes from where the vector counts.
    pub fn encrypt(&self, data: &mut [u8], offset: u64, sector_size: usize) {
        self.each_sector(data, offset, sector_size, |blocks| {
            self.data.encrypt_blocks(blocks)
        });
    }

    /// The inverse of [`encrypt`](Self::encrypt).
    pub fn decrypt(&self, data: &mut [u8], offset: u64, sector_size: usize) {
        self.each_sector(data, offset, sector_size, |blocks| {
            self.data.decrypt_blocks(blocks)
        });
    }

    fn each_sector(
        &self,
        data: &mut [u8],
        offset: u64,
        sector_size: usize,
        cipher: impl Fn(&mut [aes::Block]),
    ) {
        debug_assert!(data.len().is_multiple_of(sector_size) && sector_size <= MAX_SECTOR);
        let mut tweaks = Zeroizing::new([0u128; MAX_SECTOR / AES_BLOCK]);
        let tweaks = &mut tweaks[..sector_size / AES_BLOCK];
        for (sector, vector) in data
            .chunks_exact_mut(sector_size)
            .zip((0..).step_by(sector_size / IV_UNIT))
        {
            self.tweaks(offset / IV_UNIT as u64 + vector, tweaks);
            xor(sector, tweaks);
            let (blocks, _) = aes::Block::slice_as_chunks_mut(sector);
            cipher(blocks);
            xor(sector, tweaks);
        }
    }

    /// The tweaks of the sector with initialisation vector `vector`, one for each block.
    fn tweaks(&self, vector: u64, tweaks: &mut [u128]) {
        let mut first = aes::Block::from(u128::from(vector).to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        for place in tweaks {
            *place = tweak;
            tweak = double(tweak);
        }
    }
}

/// Multiplies by x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, without a branch on secret bits.
const fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 & (tweak >> 127).wrapping_neg())
}

fn xor(sector: &mut [u8], tweaks: &[u128]) {
    let (blocks, _) = sector.as_chunks_mut::<AES_BLOCK>();
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

#[cfg(test)]
#[path = "xts_test.rs"]
mod tests;
