//! Opens a JWE (RFC 7516) in flattened JSON that was encrypted to the guest's key: ECDH-ES+A256KW (RFC 7518 §4.6) on P-256, and A256GCM.
//!
//! ```text
//!   protected      base64url of {"alg", "enc", "epk", "apu"?, "apv"?}; its ASCII is the additional data of the cipher
//!   encrypted_key  the content key, wrapped under the key that both sides derive from epk and the guest's key
//!   iv, ciphertext, tag
//! ```
//!
//! One algorithm each and no negotiation: the header may only say what is expected.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use aes_kw::KwAes256;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{PublicKey, SecretKey};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// How the content key is wrapped.
pub const ALGORITHM: &str = "ECDH-ES+A256KW";
/// The curve.
pub const CURVE: &str = "P-256";
const CONTENT: &str = "A256GCM";

/// Bytes of a content key, and of a wrapping key.
const KEY: usize = 32;
/// Bytes that wrapping adds (RFC 3394 §2.2.1).
const WRAPPING: usize = 8;

/// Why a JWE does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a JWE, or a part of it is not base64url.
    #[error("it is not a JWE in flattened JSON")]
    Shape,
    /// Another algorithm, curve or extension.
    #[error("it is not encrypted with ECDH-ES+A256KW on P-256 and A256GCM")]
    Algorithm,
    /// Its ephemeral key is not a point of the curve.
    #[error("its ephemeral key is not a point of P-256")]
    Point,
    /// It was encrypted to another key, or altered.
    #[error("it was encrypted to another key, or altered on its way")]
    Unauthentic,
}

/// There are no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the random number generator failed")]
pub struct NoRandom;

/// The guest's ephemeral key. Wiped when dropped, and never shown.
pub struct GuestKey(SecretKey);

#[derive(Deserialize)]
struct Jwe {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    epk: Ephemeral,
    #[serde(default)]
    apu: String,
    #[serde(default)]
    apv: String,
    /// Extensions that must be understood (RFC 7515 §4.1.11), of which none is.
    #[serde(default)]
    crit: Value,
    /// Compression, which there is none of.
    #[serde(default)]
    zip: Value,
}

#[derive(Deserialize)]
struct Ephemeral {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl GuestKey {
    /// Draws one.
    pub fn generate() -> Result<Self, NoRandom> {
        SecretKey::try_generate().map(Self).map_err(|_| NoRandom)
    }

    /// Coordinates of its public half, base64url without padding.
    pub fn coordinates(&self) -> (String, String) {
        let point = self.0.public_key().to_sec1_point(false);
        // An uncompressed point: 4, then two coordinates of 32 bytes.
        let (x, y) = point
            .as_bytes()
            .get(1..)
            .unwrap_or_default()
            .split_at_checked(KEY)
            .unwrap_or_default();
        (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
    }

    /// What a JWE's JSON text holds.
    pub fn open(&self, json: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let jwe: Jwe = serde_json::from_slice(json).map_err(|_| Error::Shape)?;
        let header: Header =
            serde_json::from_slice(&decode(&jwe.protected)?).map_err(|_| Error::Algorithm)?;
        let content_key = self.unwrap(&header, &decode(&jwe.encrypted_key)?)?;
        let iv: [u8; 12] = decode(&jwe.iv)?.try_into().map_err(|_| Error::Shape)?;
        let tag: [u8; 16] = decode(&jwe.tag)?.try_into().map_err(|_| Error::Shape)?;
        let mut text = Zeroizing::new(decode(&jwe.ciphertext)?);
        Aes256Gcm::new(&(*content_key).into())
            .decrypt_inout_detached(
                &Nonce::from(iv),
                jwe.protected.as_bytes(),
                text.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .map_err(|_| Error::Unauthentic)?;
        Ok(text)
    }

    fn unwrap(&self, header: &Header, wrapped: &[u8]) -> Result<Zeroizing<[u8; KEY]>, Error> {
        let epk = &header.epk;
        let named = [&*header.alg, &*header.enc, &*epk.kty, &*epk.crv] == [ALGORITHM, CONTENT, "EC", CURVE];
        if !named || !header.crit.is_null() || !header.zip.is_null() {
            return Err(Error::Algorithm);
        }
        if wrapped.len() != KEY + WRAPPING {
            return Err(Error::Shape);
        }
        let theirs = point(&epk.x, &epk.y)?;
        let shared = p256::ecdh::diffie_hellman(self.0.to_nonzero_scalar(), theirs.as_affine());
        let (apu, apv) = (decode(&header.apu)?, decode(&header.apv)?);
        let wrapping_key = concat_kdf(shared.raw_secret_bytes(), ALGORITHM, &apu, &apv, KEY);
        let mut key = Zeroizing::new([0; KEY]);
        KwAes256::new_from_slice(&wrapping_key)
            .map_err(|_| Error::Unauthentic)?
            .unwrap_key(wrapped, &mut *key)
            .map_err(|_| Error::Unauthentic)?;
        Ok(key)
    }
}

fn decode(text: &str) -> Result<Vec<u8>, Error> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Shape)
}

/// SECURITY: a point that is not on the curve would tell bits of our key. The parser refuses it.
fn point(x: &str, y: &str) -> Result<PublicKey, Error> {
    let mut sec1 = vec![4];
    for coordinate in [x, y] {
        let coordinate: [u8; KEY] = decode(coordinate)?.try_into().map_err(|_| Error::Point)?;
        sec1.extend_from_slice(&coordinate);
    }
    PublicKey::from_sec1_bytes(&sec1).map_err(|_| Error::Point)
}

/// The Concat KDF (NIST SP 800-56A §5.8.1) with SHA-256 as RFC 7518 §4.6.2 uses it. `length`: of the result, at most 32 bytes.
fn concat_kdf(shared: &[u8], algorithm: &str, apu: &[u8], apv: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    for field in [algorithm.as_bytes(), apu, apv] {
        // Lengths of parts of a message that is much shorter than 4 GiB.
        hash.update((field.len() as u32).to_be_bytes());
        hash.update(field);
    }
    hash.update((length as u32 * 8).to_be_bytes());
    let mut key = Zeroizing::new(hash.finalize().to_vec());
    key.truncate(length);
    key
}

#[cfg(test)]
#[path = "jwe_test.rs"]
mod tests;
