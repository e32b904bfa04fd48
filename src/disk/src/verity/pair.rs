//! SHA-256 of two blocks at once, with the SHA extensions of x86.
//!
//! Each of the 64 rounds waits for the one before, so one message leaves the unit idle half of the time; the rounds
//! of a second, independent message go there. FIPS 180-4 §6.2; registers as in Intel's "SHA Extensions" (2013).

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_loadu_si128, _mm_set_epi32,
    _mm_set_epi64x, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
    _mm_shuffle_epi32,
};

use super::Hash;
use crate::BLOCK;

/// Two messages.
const LANES: usize = 2;

/// Length in bytes of a block of SHA-256.
const CHUNK: usize = 64;

/// Where the chunks start that lie in a block wholly: the salt comes first.
const SALT: usize = 32;

/// FIPS 180-4 §4.2.2.
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// What a processor can do that has passed [`Pair::detect`].
#[derive(Clone, Copy)]
pub(super) struct Pair(());

/// State of one message: words A, B, E, F and C, D, G, H, the first in the highest place.
type State = [__m128i; 2];

impl Pair {
    /// Something if this processor has the instructions.
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        there.then_some(Self(()))
    }

    /// SHA-256(salt ‖ block) of both blocks.
    pub(super) fn hash(self, salt: &[u8; SALT], blocks: [&[u8; BLOCK]; LANES]) -> [Hash; LANES] {
        // SAFETY: a `Pair` comes from `detect` alone, which has found the features that `hash` is compiled for.
        unsafe { hash(salt, blocks) }
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn hash(salt: &[u8; SALT], blocks: [&[u8; BLOCK]; LANES]) -> [Hash; LANES] {
    // FIPS 180-4 §5.3.3.
    let first: State = [
        words([0x6a09_e667, 0xbb67_ae85, 0x510e_527f, 0x9b05_688c]),
        words([0x3c6e_f372, 0xa54f_f53a, 0x1f83_d9ab, 0x5be0_cd19]),
    ];
    let mut states = [first; LANES];
    let mut ends = [[[0; CHUNK]; LANES]; 2];
    for lane in 0..LANES {
        let (head, tail) = (&blocks[lane][..CHUNK - SALT], &blocks[lane][BLOCK - SALT..]);
        ends[0][lane][..SALT].copy_from_slice(salt);
        ends[0][lane][SALT..].copy_from_slice(head);
        ends[1][lane][..SALT].copy_from_slice(tail);
        ends[1][lane][SALT] = 0x80;
        let bits = (SALT + BLOCK) as u64 * 8;
        ends[1][lane][CHUNK - 8..].copy_from_slice(&bits.to_be_bytes());
    }
    compress(&mut states, ends[0].each_ref());
    let chunks = blocks.map(|block| block[CHUNK - SALT..BLOCK - SALT].as_chunks::<CHUNK>().0);
    for (a, b) in chunks[0].iter().zip(chunks[1]) {
        compress(&mut states, [a, b]);
    }
    compress(&mut states, ends[1].each_ref());
    states.map(|state| digest(state))
}

/// Takes one chunk of each message into its state.
#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn compress(states: &mut [State; LANES], chunks: [&[u8; CHUNK]; LANES]) {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut w = chunks.map(|chunk| {
        let words = chunk.as_chunks::<16>().0;
        [0, 1, 2, 3].map(|place| _mm_shuffle_epi8(load(&words[place]), big_endian))
    });
    let before = *states;
    for k in K[..48].as_chunks::<16>().0 {
        four_by_four::<true>(states, &mut w, k);
    }
    four_by_four::<false>(states, &mut w, &K[48..].as_chunks().0[0]);
    for (state, before) in states.iter_mut().zip(before) {
        state[0] = _mm_add_epi32(state[0], before[0]);
        state[1] = _mm_add_epi32(state[1], before[1]);
    }
}

/// Sixteen rounds; `SCHEDULE` also replaces the words by those of sixteen rounds later.
#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn four_by_four<const SCHEDULE: bool>(
    states: &mut [State; LANES],
    w: &mut [[__m128i; 4]; LANES],
    k: &[u32; 16],
) {
    macro_rules! four_rounds {
        ($group:literal) => {
            let [k0, k1, k2, k3] = [
                k[4 * $group],
                k[4 * $group + 1],
                k[4 * $group + 2],
                k[4 * $group + 3],
            ];
            let k = words([k3, k2, k1, k0]);
            for (state, w) in states.iter_mut().zip(w.iter_mut()) {
                let wk = _mm_add_epi32(w[$group], k);
                state[1] = _mm_sha256rnds2_epu32(state[1], state[0], wk);
                state[0] = _mm_sha256rnds2_epu32(state[0], state[1], _mm_shuffle_epi32(wk, 0x0e));
                if SCHEDULE {
                    let (w1, w2, w3) = (
                        w[($group + 1) % 4],
                        w[($group + 2) % 4],
                        w[($group + 3) % 4],
                    );
                    let sum = _mm_add_epi32(
                        _mm_sha256msg1_epu32(w[$group], w1),
                        _mm_alignr_epi8(w3, w2, 4),
                    );
                    w[$group] = _mm_sha256msg2_epu32(sum, w3);
                }
            }
        };
    }
    four_rounds!(0);
    four_rounds!(1);
    four_rounds!(2);
    four_rounds!(3);
}

#[target_feature(enable = "sse4.1")]
#[inline]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the pointer is to 16 readable bytes; the instruction asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The first word in the highest place.
#[target_feature(enable = "sse4.1")]
fn words([a, b, c, d]: [u32; 4]) -> __m128i {
    _mm_set_epi32(a as i32, b as i32, c as i32, d as i32)
}

#[target_feature(enable = "sse4.1")]
fn digest([abef, cdgh]: State) -> Hash {
    let mut digest = [0; 32];
    let words = [
        _mm_extract_epi32(abef, 3),
        _mm_extract_epi32(abef, 2),
        _mm_extract_epi32(cdgh, 3),
        _mm_extract_epi32(cdgh, 2),
        _mm_extract_epi32(abef, 1),
        _mm_extract_epi32(abef, 0),
        _mm_extract_epi32(cdgh, 1),
        _mm_extract_epi32(cdgh, 0),
    ];
    for (place, word) in digest.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    digest
}
