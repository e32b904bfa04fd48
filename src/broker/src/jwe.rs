//! Encrypts a resource to the guest's key: JWE (RFC 7516) in flattened JSON, as trustee makes it.
//!
//! ```text
//!   protected      base64url of {"alg", "enc": "A256GCM", "epk"?}; its ASCII is the additional data of the cipher
//!   encrypted_key  the content key, wrapped for the guest: ECDH-ES+A256KW (RFC 7518 §4.6) or RSA-OAEP-256 (§4.3)
//!   iv, ciphertext, tag
//! ```
//!
//! The guest's key comes from the guest, that is, from anybody: [`EncryptionKey::parse`] checks it once.

use aes_gcm::aead::{AeadInOut as _, Generate as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use aes_kw::KwAes256;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, Oaep, PublicKey as RsaPublicKey};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::protocol::{TeePublicKey, shown};

const ECDH_ES_A256KW: &str = "ECDH-ES+A256KW";
const RSA_OAEP_256: &str = "RSA-OAEP-256";
const A256GCM: &str = "A256GCM";
/// Sizes of RSA keys that are accepted, in bits. Larger ones cost time for nothing.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2048..=4096;

/// Why a key is not one to encrypt to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not one of the two kinds.
    #[error("tee-pubkey is for {0}, and should be EC P-256 for ECDH-ES+A256KW or RSA for RSA-OAEP-256")]
    Algorithm(String),
    /// Coordinates of no point, not base64url, or the point at infinity.
    #[error("tee-pubkey is not a point of the curve P-256")]
    Point,
    /// Modulus or exponent out of range.
    #[error("tee-pubkey is not an RSA key of 2048 to 4096 bits")]
    Rsa,
    /// The random number generator or a cipher refused.
    #[error("the resource can't be encrypted")]
    Encrypt,
}

/// A guest's key that has been checked.
#[derive(Clone, Debug)]
pub enum EncryptionKey {
    /// On P-256.
    P256(p256::PublicKey),
    /// 2048 to 4096 bits.
    Rsa(RsaPublicKey),
}

/// An encrypted resource.
#[derive(Debug, Serialize)]
pub struct Jwe {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

impl EncryptionKey {
    /// Takes a key that somebody sent.
    pub fn parse(key: &TeePublicKey) -> Result<Self, Error> {
        match key {
            TeePublicKey::EC { crv, alg, x, y } if crv == "P-256" && alg == ECDH_ES_A256KW => {
                parse_point(x, y)
            }
            TeePublicKey::RSA { alg, n, e } if alg == RSA_OAEP_256 => Ok(Self::Rsa(parse_rsa(
                &URL_SAFE_NO_PAD.decode(n).map_err(|_| Error::Rsa)?,
                &URL_SAFE_NO_PAD.decode(e).map_err(|_| Error::Rsa)?,
            )?)),
            TeePublicKey::EC { crv, alg, .. } => {
                Err(Error::Algorithm(format!("{} with EC {}", shown(alg), shown(crv))))
            }
            TeePublicKey::RSA { alg, .. } => Err(Error::Algorithm(format!("{} with RSA", shown(alg)))),
        }
    }

    /// Encrypts `plaintext` so that only the key's owner reads it.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Jwe, Error> {
        let content_key = Zeroizing::new(<[u8; 32]>::try_generate().map_err(|_| Error::Encrypt)?);
        let (header, encrypted_key) = match self {
            Self::P256(key) => wrap_for_point(key, &content_key)?,
            Self::Rsa(key) => (
                format!(r#"{{"alg":"{RSA_OAEP_256}","enc":"{A256GCM}"}}"#),
                key.encrypt(
                    &mut getrandom::SysRng,
                    Oaep::<Sha256>::new(),
                    content_key.as_slice(),
                )
                .map_err(|_| Error::Encrypt)?,
            ),
        };
        let protected = URL_SAFE_NO_PAD.encode(header);
        let iv = Nonce::try_generate().map_err(|_| Error::Encrypt)?;
        let mut ciphertext = plaintext.to_vec();
        let tag = Aes256Gcm::new(&(*content_key).into())
            .encrypt_inout_detached(&iv, protected.as_bytes(), ciphertext.as_mut_slice().into())
            .map_err(|_| Error::Encrypt)?;
        Ok(Jwe {
            protected,
            encrypted_key: URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(ciphertext),
            tag: URL_SAFE_NO_PAD.encode(tag),
        })
    }
}

fn parse_point(x: &str, y: &str) -> Result<EncryptionKey, Error> {
    let mut sec1 = vec![4];
    for coordinate in [x, y] {
        let coordinate = URL_SAFE_NO_PAD.decode(coordinate).map_err(|_| Error::Point)?;
        let coordinate: [u8; 32] = coordinate.try_into().map_err(|_| Error::Point)?;
        sec1.extend_from_slice(&coordinate);
    }
    // Refuses points that are not on the curve, which would leak bits of our ephemeral key.
    p256::PublicKey::from_sec1_bytes(&sec1)
        .map(EncryptionKey::P256)
        .map_err(|_| Error::Point)
}

/// `modulus` and `exponent` are big-endian.
pub(crate) fn parse_rsa(modulus: &[u8], exponent: &[u8]) -> Result<RsaPublicKey, Error> {
    if modulus.len() > 512 || exponent.len() > 8 {
        return Err(Error::Rsa);
    }
    let key = RsaPublicKey::new(
        BoxedUint::from_be_slice_vartime(modulus),
        BoxedUint::from_be_slice_vartime(exponent),
    )
    .map_err(|_| Error::Rsa)?;
    if RSA_BITS.contains(&key.n().as_ref().bit_width_vartime()) {
        Ok(key)
    } else {
        Err(Error::Rsa)
    }
}

/// The protected header and the wrapped content key.
fn wrap_for_point(key: &p256::PublicKey, content_key: &[u8; 32]) -> Result<(String, Vec<u8>), Error> {
    let ephemeral = p256::ecdh::EphemeralSecret::try_generate().map_err(|_| Error::Encrypt)?;
    let shared = ephemeral.diffie_hellman(key);
    let wrapping_key = concat_kdf(shared.raw_secret_bytes(), ECDH_ES_A256KW, b"", b"", 32);
    let mut wrapped = vec![0; 40];
    KwAes256::new_from_slice(&wrapping_key)
        .map_err(|_| Error::Encrypt)?
        .wrap_key(content_key, &mut wrapped)
        .map_err(|_| Error::Encrypt)?;
    let point = ephemeral.public_key().to_sec1_point(false);
    let (Some(x), Some(y)) = (point.x(), point.y()) else {
        return Err(Error::Encrypt);
    };
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let header = format!(
        r#"{{"alg":"{ECDH_ES_A256KW}","enc":"{A256GCM}","epk":{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}}}"#
    );
    Ok((header, wrapped))
}

/// The Concat KDF (NIST SP 800-56A §5.8.1) with SHA-256 as RFC 7518 §4.6.2 uses it. `length`: of the result, at most 32 bytes.
fn concat_kdf(shared: &[u8], algorithm: &str, apu: &[u8], apv: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    for field in [algorithm.as_bytes(), apu, apv] {
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
