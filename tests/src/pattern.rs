//! Reproducible bytes and choices.

use sha2::{Digest, Sha256};
use std::io::BufRead;

/// A small generator (xorshift64*): tests need neither secrecy nor quality, but the same run from the same seed.
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    /// From `CWRUN_SEED`, else from the clock. The seed is printed, so that a failing run can be repeated.
    pub fn new() -> Self {
        let now = || {
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |elapsed| elapsed.as_nanos() as u64)
        };
        let seed = std::env::var("CWRUN_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(now);
        eprintln!("CWRUN_SEED={seed}");
        Self(seed | 1)
    }

    /// From a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_number() % limit.max(1)
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

impl Default for Choices {
    fn default() -> Self {
        Self::new()
    }
}

/// `length` bytes that compress badly, repeat nowhere and hold every byte value.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut choices = Choices::seeded(0x5eed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&choices.next_number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SHA-256 in hexadecimal, as sha256sum(1) prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where `needle` is in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, _) = needle.split_first()?;
    let last = haystack.len().checked_sub(needle.len())?;
    let mut from = 0;
    while from <= last {
        // The standard library's own search for a byte is fast in a debug build, too. What it skips ends with the byte, or with the slice.
        let skipped = (&haystack[from..=last])
            .skip_until(*first)
            .expect("reading memory does not fail");
        let at = from + skipped - 1;
        if haystack[at] != *first {
            return None;
        }
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_are_found_at_any_place() {
        for (haystack, needle, at) in [
            ("abcabd", "abd", Some(3)),
            ("aab", "ab", Some(1)),
            ("abc", "abc", Some(0)),
            ("ab", "abc", None),
            ("xyz", "q", None),
            ("", "q", None),
        ] {
            assert_eq!(
                find(haystack.as_bytes(), needle.as_bytes()),
                at,
                "{needle} in {haystack}"
            );
        }
    }

    #[test]
    fn bytes_repeat_with_the_seed_and_hold_every_value() {
        let bytes = bytes(100_003);
        assert_eq!(bytes.len(), 100_003);
        assert_eq!(bytes, super::bytes(100_003));
        assert!((0..=255).all(|value| bytes.contains(&value)));
    }
}
