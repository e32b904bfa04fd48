//! ECDSA on P-384 with SHA-384 as SNP firmware has it: little-endian numbers in fields of 72 bytes (AMD 56860, tables 135 to
//! 137).
//!
//! ```text
//!   signature   0 R [72] │ 72 S [72] │ 144 zeros                     512 bytes
//!   public key  0 curve u32 = 2 │ 4 QX [72] │ 76 QY [72] │ 148 zeros  1028 bytes
//! ```

use ecdsa::hazmat::sign_prehashed_rfc6979;
use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature as Raw, VerifyingKey};
use p384::{NistP384, NonZeroScalar};
use sha2::{Digest, Sha384};

/// Length of a signature in bytes.
pub const SIGNATURE_SIZE: usize = 512;

/// Length of a public key in bytes.
pub const PUBLIC_KEY_SIZE: usize = 1028;

/// Length of a number's field, and of what P-384 uses of it.
const FIELD: usize = 72;
const NUMBER: usize = 48;

const CURVE_P384: u32 = 2;

/// Why bytes are no signature or public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that the layout keeps zero.
    #[error("bytes that must be zero are not")]
    Reserved,
    /// R or S outside 1 to the curve's order.
    #[error("R or S is out of range")]
    Range,
    /// Another curve.
    #[error("curve {0} is not P-384")]
    Curve(u32),
    /// QX and QY are no point of the curve.
    #[error("QX and QY are no point of P-384")]
    Point,
}

/// A signature with numbers in range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature(Raw);

impl Signature {
    /// Reads the firmware's layout.
    pub fn parse(bytes: &[u8; SIGNATURE_SIZE]) -> Result<Self, Error> {
        let (r, rest) = number(bytes)?;
        let (s, rest) = number(rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(Error::Reserved);
        }
        Raw::from_scalars(r, s).map(Self).map_err(|_| Error::Range)
    }

    /// Writes the firmware's layout.
    pub fn to_bytes(&self) -> [u8; SIGNATURE_SIZE] {
        let (r, s) = self.0.split_bytes();
        let mut bytes = [0; SIGNATURE_SIZE];
        put_number(&mut bytes[..FIELD], &r);
        put_number(&mut bytes[FIELD..2 * FIELD], &s);
        bytes
    }

    /// Signs a message (deterministically, RFC 6979). Of the key it takes what it needs: a `SigningKey` has its public half computed, which
    /// takes as long as the signature.
    pub fn sign(key: &NonZeroScalar, message: &[u8]) -> Self {
        let digest = Sha384::digest(message);
        Self(sign_prehashed_rfc6979::<NistP384, Sha384>(key, &digest, &[]).0)
    }
}

/// A point of P-384.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the firmware's layout.
    pub fn parse(bytes: &[u8; PUBLIC_KEY_SIZE]) -> Result<Self, Error> {
        let (curve, rest) = bytes.split_at(4);
        let curve = u32::from_le_bytes([curve[0], curve[1], curve[2], curve[3]]);
        if curve != CURVE_P384 {
            return Err(Error::Curve(curve));
        }
        let (x, rest) = number(rest)?;
        let (y, rest) = number(rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(Error::Reserved);
        }
        Self::from_sec1(&[&[4], x.as_slice(), y.as_slice()].concat())
    }

    /// Reads the uncompressed form that certificates have.
    pub(crate) fn from_sec1(bytes: &[u8]) -> Result<Self, Error> {
        VerifyingKey::from_sec1_bytes(bytes)
            .map(Self)
            .map_err(|_| Error::Point)
    }

    /// The public half of a key.
    pub fn of(key: &NonZeroScalar) -> Self {
        Self(VerifyingKey::from(p384::PublicKey::from_secret_scalar(key)))
    }

    /// Writes the firmware's layout.
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY_SIZE] {
        let point = self.0.to_sec1_point(false);
        let mut bytes = [0; PUBLIC_KEY_SIZE];
        bytes[..4].copy_from_slice(&CURVE_P384.to_le_bytes());
        // An uncompressed point is 4, X and Y.
        put_number(&mut bytes[4..4 + FIELD], &point.as_bytes()[1..1 + NUMBER]);
        put_number(
            &mut bytes[4 + FIELD..4 + 2 * FIELD],
            &point.as_bytes()[1 + NUMBER..],
        );
        bytes
    }

    /// SHA-384 of the key in the firmware's layout: ID_KEY_DIGEST and AUTHOR_KEY_DIGEST of a report.
    pub fn digest(&self) -> [u8; 48] {
        Sha384::digest(self.to_bytes()).into()
    }

    /// Whether the signature is this key's over the message.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        self.0.verify(message, &signature.0).is_ok()
    }
}

/// The number at the front in big-endian order, and what follows. Callers have fields enough.
fn number(bytes: &[u8]) -> Result<([u8; NUMBER], &[u8]), Error> {
    let (field, rest) = bytes.split_at(FIELD);
    if field[NUMBER..].iter().any(|byte| *byte != 0) {
        return Err(Error::Reserved);
    }
    let mut number = [0; NUMBER];
    number.copy_from_slice(&field[..NUMBER]);
    number.reverse();
    Ok((number, rest))
}

/// Writes a big-endian number of `NUMBER` bytes.
fn put_number(field: &mut [u8], number: &[u8]) {
    field[..NUMBER].copy_from_slice(number);
    field[..NUMBER].reverse();
}

#[cfg(test)]
#[path = "ecdsa_test.rs"]
mod ecdsa_test;
