//! What a verifier asks a running guest with, and where the answer has it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha512};

/// A verifier's nonce: 16 to 256 visible ASCII characters, which mean nothing but themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

/// A text that is no nonce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is {least} to {most} visible ASCII characters", least = Nonce::MIN, most = Nonce::MAX)]
pub struct NotANonce;

impl Nonce {
    /// Fewest characters: 64 bits as hexadecimal digits.
    pub const MIN: usize = 16;
    /// Most characters.
    pub const MAX: usize = 256;
    /// What the hash begins with, so that a report for a verifier is never one for anything else.
    pub const DOMAIN: &'static [u8] = b"cwrun attest 1\0";

    /// The nonce that this text is.
    pub fn parse(text: &str) -> Result<Self, NotANonce> {
        let sound =
            (Self::MIN..=Self::MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        sound.then(|| Self(text.to_owned())).ok_or(NotANonce)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// REPORT_DATA of the answer: SHA-512 of [`Nonce::DOMAIN`] and the text.
    ///
    /// SECURITY: the host carries the question, so it may ask whatever it likes. If it could choose REPORT_DATA it would have a report
    /// for a key of its own, and with it the workload's keys from a broker. It chooses what is hashed, and the hash begins like no other.
    pub fn report_data(&self) -> [u8; 64] {
        Sha512::new()
            .chain_update(Self::DOMAIN)
            .chain_update(&self.0)
            .finalize()
            .into()
    }
}

impl std::str::FromStr for Nonce {
    type Err = NotANonce;

    fn from_str(text: &str) -> Result<Self, NotANonce> {
        Self::parse(text)
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "nonce_test.rs"]
mod tests;
