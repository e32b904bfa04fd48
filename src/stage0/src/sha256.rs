//! SHA-256 (FIPS 180-4) of memory that is all there, with the SHA extensions where the caller knows that they are.

use core::arch::x86_64::*;

/// First 32 bits of the fractional parts of the square roots of the first 8 primes (§5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// First 32 bits of the fractional parts of the cube roots of the first 64 primes (§4.2.2).
static K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

const BLOCK: usize = 64;

/// How to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sha256 {
    /// With instructions that every x86-64 processor has.
    Portable,
    /// With the SHA extensions.
    Extensions,
}

impl Sha256 {
    /// Chooses by whether the processor has the SHA extensions (CPUID leaf 7.0, EBX bit 29).
    ///
    /// # Safety
    /// `has_sha` is true only on a processor that has SHA, SSSE3 and SSE4.1, with SSE enabled.
    pub unsafe fn choose(has_sha: bool) -> Self {
        match has_sha {
            true => Sha256::Extensions,
            false => Sha256::Portable,
        }
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> [u8; 32] {
        let mut state = INITIAL;
        let whole = data.len() - data.len() % BLOCK;
        let (blocks, rest) = data.split_at(whole);
        self.compress(&mut state, blocks);
        // Padding (§5.1.1): a one bit, zeros, and the length in bits; in one block or two.
        let mut end = [0; 2 * BLOCK];
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let used = if rest.len() < BLOCK - 8 { BLOCK } else { 2 * BLOCK };
        end[used - 8..used].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
        self.compress(&mut state, &end[..used]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    /// Takes whole blocks into `state`.
    fn compress(self, state: &mut [u32; 8], blocks: &[u8]) {
        match self {
            Sha256::Portable => blocks
                .chunks_exact(BLOCK)
                .for_each(|block| portable(state, block)),
            // SAFETY: whoever chose this variant promised that the processor has the extensions.
            Sha256::Extensions => unsafe { extensions(state, blocks) },
        }
    }
}

/// One block (§6.2.2).
fn portable(state: &mut [u32; 8], block: &[u8]) {
    // The last 16 words of the message schedule.
    let mut w = [0u32; 16];
    for (word, bytes) in w.iter_mut().zip(block.chunks_exact(4)) {
        *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (t, k) in K.iter().enumerate() {
        if t >= 16 {
            let (w15, w2) = (w[(t + 1) & 15], w[(t + 14) & 15]);
            let s0 = w15.rotate_right(7) ^ w15.rotate_right(18) ^ w15 >> 3;
            let s1 = w2.rotate_right(17) ^ w2.rotate_right(19) ^ w2 >> 10;
            w[t & 15] = w[t & 15]
                .wrapping_add(s0)
                .wrapping_add(w[(t + 9) & 15])
                .wrapping_add(s1);
        }
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choose = e & f ^ !e & g;
        let t1 = h
            .wrapping_add(s1)
            .wrapping_add(choose)
            .wrapping_add(*k)
            .wrapping_add(w[t & 15]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = a & b ^ a & c ^ b & c;
        (h, g, f, e, d, c, b, a) = (
            g,
            f,
            e,
            d.wrapping_add(t1),
            c,
            b,
            a,
            t1.wrapping_add(s0).wrapping_add(majority),
        );
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

/// Whole blocks with SHA256RNDS2, SHA256MSG1 and SHA256MSG2, which keep the state as the halves ABEF and CDGH. Everything stays in registers:
/// a loop over the 64 rounds, which finds its words in memory, takes three times the instructions.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn extensions(state: &mut [u32; 8], blocks: &[u8]) {
    let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
    let mut abef = _mm_set_epi32(a, b, e, f);
    let mut cdgh = _mm_set_epi32(c, d, g, h);
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    for block in blocks.chunks_exact(BLOCK) {
        let (abef_before, cdgh_before) = (abef, cdgh);
        // Four words of the block.
        macro_rules! words {
            ($at:literal) => {{
                // SAFETY: a block has 64 bytes, and the load needs no alignment.
                let loaded = unsafe { _mm_loadu_si128(block.as_ptr().add(16 * $at).cast()) };
                _mm_shuffle_epi8(loaded, big_endian)
            }};
        }
        // Four rounds with the words `$w`, whose first has number 4 * `$at`.
        macro_rules! rounds {
            ($at:expr, $w:ident) => {
                // SAFETY: `K` has 64 words, and the load needs no alignment.
                let constants = unsafe { _mm_loadu_si128(K.as_ptr().add(4 * $at).cast()) };
                let sum = _mm_add_epi32($w, constants);
                cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
                abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0x0e>(sum));
            };
        }
        // The four words that come 16 after `$w0`, in its place.
        macro_rules! schedule {
            ($w0:ident, $w1:ident, $w2:ident, $w3:ident) => {
                let partial = _mm_add_epi32(
                    _mm_sha256msg1_epu32($w0, $w1),
                    _mm_alignr_epi8::<4>($w3, $w2),
                );
                $w0 = _mm_sha256msg2_epu32(partial, $w3);
            };
        }
        let (mut w0, mut w1, mut w2, mut w3) = (words!(0), words!(1), words!(2), words!(3));
        for at in [0, 4, 8] {
            rounds!(at, w0);
            schedule!(w0, w1, w2, w3);
            rounds!(at + 1, w1);
            schedule!(w1, w2, w3, w0);
            rounds!(at + 2, w2);
            schedule!(w2, w3, w0, w1);
            rounds!(at + 3, w3);
            schedule!(w3, w0, w1, w2);
        }
        rounds!(12, w0);
        rounds!(13, w1);
        rounds!(14, w2);
        rounds!(15, w3);
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    let (lanes_abef, lanes_cdgh) = (lanes(abef), lanes(cdgh));
    let ([f, e, b, a], [h, g, d, c]) = (lanes_abef, lanes_cdgh);
    *state = [a, b, c, d, e, f, g, h];
}

/// The four words of a register, lowest first.
#[target_feature(enable = "sse2")]
fn lanes(register: __m128i) -> [u32; 4] {
    let mut words = [0; 4];
    // SAFETY: the array has 16 bytes, and the store needs no alignment.
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), register) };
    words
}

#[cfg(test)]
#[path = "sha256_test.rs"]
mod tests;
