//! The anti-forensic splitter (LUKS1 specification §2.4; LUKS2 specification §4), with SHA-256.
//!
//! ```text
//!   stripes s1 … s3999 random; d0 = 0, d(i) = H(d(i-1) ⊕ s(i)); s4000 = d(3999) ⊕ key
//! ```

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::KEY_LEN;

/// Stripes of a key slot, in all LUKS headers there are.
pub const STRIPES: usize = 4000;

/// Length in bytes of a key slot's material.
pub const MATERIAL_LEN: usize = STRIPES * KEY_LEN;

/// A key in a key slot, or d(n).
type Key = Zeroizing<[u8; KEY_LEN]>;

/// Stretches a key over `material` ([`MATERIAL_LEN`] bytes), whose stripes but the last are random already: any missing
/// bit of them makes the key unknown. Replaces the last stripe.
pub fn split(key: &[u8; KEY_LEN], material: &mut [u8]) {
    let (stripes, last) = material.split_at_mut(material.len().saturating_sub(KEY_LEN));
    last.copy_from_slice(&*fold(stripes));
    xor(last, key);
}

/// The inverse of [`split`].
#[must_use]
pub fn merge(material: &[u8]) -> Key {
    let (stripes, last) = material.split_at(material.len().saturating_sub(KEY_LEN));
    let mut key = fold(stripes);
    xor(&mut *key, last);
    key
}

/// d(n) over n stripes.
fn fold(stripes: &[u8]) -> Key {
    let mut state = Zeroizing::new([0; KEY_LEN]);
    for stripe in stripes.chunks_exact(KEY_LEN) {
        xor(&mut *state, stripe);
        // H: SHA-256 of each half behind its number, big endian.
        for (number, half) in (0u32..).zip(state.chunks_exact_mut(32)) {
            let hash = Sha256::new_with_prefix(number.to_be_bytes())
                .chain_update(&*half)
                .finalize();
            half.copy_from_slice(&hash);
        }
    }
    state
}

fn xor(to: &mut [u8], with: &[u8]) {
    to.iter_mut().zip(with).for_each(|(to, with)| *to ^= with);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_and_merging() {
        let key = std::array::from_fn(|i| i as u8);
        let mut material: Vec<u8> = (0..MATERIAL_LEN).map(|i| (i % 251) as u8).collect();
        split(&key, &mut material);
        assert_eq!(*merge(&material), key);
        material[100_000] ^= 1;
        assert_ne!(*merge(&material), key);
    }
}
