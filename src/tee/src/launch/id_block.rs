//! ID block and ID authentication information (AMD 56860 §8.18, tables 75 and 76).

use sha2::{Digest, Sha384};

use super::{LaunchDigest, Policy, PolicyError};
use crate::ecdsa::{self, PUBLIC_KEY_SIZE, PublicKey, SIGNATURE_SIZE, Signature};

/// Length of an ID block in bytes.
pub const ID_BLOCK_SIZE: usize = 96;

/// Length of the ID authentication information in bytes: a page.
pub const ID_AUTH_SIZE: usize = 4096;

/// The only version of ID blocks.
const VERSION: u32 = 1;

/// What the guest's owner expects of a launch. The firmware refuses to finish one that differs.
///
/// ```text
///   0x00        0x30       0x40      0x50     0x54       0x58    0x60
///   ┌───────────┬──────────┬─────────┬────────┬──────────┬───────┐
///   │ LD        │FAMILY_ID │IMAGE_ID │VERSION │GUEST_SVN │POLICY │
///   └───────────┴──────────┴─────────┴────────┴──────────┴───────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdBlock {
    /// The launch digest that must come out.
    pub digest: LaunchDigest,
    /// The owner's name for a family of guests; in the report.
    pub family_id: [u8; 16],
    /// The owner's name for an image; in the report.
    pub image_id: [u8; 16],
    /// The owner's security version of the image; in the report.
    pub guest_svn: u32,
    /// The policy that the launch must have.
    pub policy: Policy,
}

impl IdBlock {
    /// As SNP_LAUNCH_FINISH takes it.
    pub fn to_bytes(&self) -> [u8; ID_BLOCK_SIZE] {
        let mut bytes = [0; ID_BLOCK_SIZE];
        bytes[0x00..0x30].copy_from_slice(&self.digest.0);
        bytes[0x30..0x40].copy_from_slice(&self.family_id);
        bytes[0x40..0x50].copy_from_slice(&self.image_id);
        bytes[0x50..0x54].copy_from_slice(&VERSION.to_le_bytes());
        bytes[0x54..0x58].copy_from_slice(&self.guest_svn.to_le_bytes());
        bytes[0x58..0x60].copy_from_slice(&self.policy.bits().to_le_bytes());
        bytes
    }

    /// What the ID key signs: SHA-384 of the block.
    pub fn signing_digest(&self) -> [u8; 48] {
        Sha384::digest(self.to_bytes()).into()
    }

    /// Reads a block: of the right version, with a policy whose bits are known.
    pub fn parse(bytes: &[u8; ID_BLOCK_SIZE]) -> Result<Self, IdBlockError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(0x50) != VERSION {
            return Err(IdBlockError::Version(u32_at(0x50)));
        }
        let policy = u64::from(u32_at(0x5c)) << 32 | u64::from(u32_at(0x58));
        Ok(Self {
            digest: LaunchDigest(array(bytes, 0x00)),
            family_id: array(bytes, 0x30),
            image_id: array(bytes, 0x40),
            guest_svn: u32_at(0x54),
            policy: Policy::from_bits(policy)?,
        })
    }
}

/// Who signed an ID block, and who signed for the signer.
///
/// ```text
///   0x000 ID_KEY_ALGO   0x004 AUTHOR_KEY_ALGO (1: ECDSA P-384 with SHA-384)
///   0x040 ID_BLOCK_SIG [512]   0x240 ID_KEY [1028]     over the ID block
///   0x680 ID_KEY_SIG [512]     0x880 AUTHOR_KEY [1028] over ID_KEY; zeros without an author key
///   0xc84 zeros                                        0x1000
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdAuth {
    /// The ID key's signature over the block.
    pub block_signature: Signature,
    /// The ID key.
    pub id_key: PublicKey,
    /// The author key's signature over the ID key, and the author key.
    pub author: Option<(Signature, PublicKey)>,
}

const ALGO_ECDSA_P384: u32 = 1;

impl IdAuth {
    /// Reads the structure. Signatures are not verified: [`IdAuth::check`].
    pub fn parse(bytes: &[u8; ID_AUTH_SIZE]) -> Result<Self, IdBlockError> {
        let algorithm = |at: usize| u32::from_le_bytes(array(bytes, at));
        if algorithm(0) != ALGO_ECDSA_P384 {
            return Err(IdBlockError::Algorithm(algorithm(0)));
        }
        for range in [0x008..0x040, 0x644..0x680, 0xc84..ID_AUTH_SIZE] {
            if bytes[range.clone()].iter().any(|byte| *byte != 0) {
                return Err(IdBlockError::Reserved(range.start));
            }
        }
        let author = match algorithm(4) {
            0 if bytes[0x680..].iter().all(|byte| *byte == 0) => None,
            0 => return Err(IdBlockError::Reserved(0x680)),
            ALGO_ECDSA_P384 => Some(pair(bytes, 0x680, 0x880)?),
            other => return Err(IdBlockError::Algorithm(other)),
        };
        let (block_signature, id_key) = pair(bytes, 0x040, 0x240)?;
        Ok(Self {
            block_signature,
            id_key,
            author,
        })
    }

    /// As SNP_LAUNCH_FINISH takes it.
    pub fn to_bytes(&self) -> Box<[u8; ID_AUTH_SIZE]> {
        let mut bytes = Box::new([0; ID_AUTH_SIZE]);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0x000, &ALGO_ECDSA_P384.to_le_bytes());
        put(0x040, &self.block_signature.to_bytes());
        put(0x240, &self.id_key.to_bytes());
        if let Some((signature, key)) = &self.author {
            put(0x004, &ALGO_ECDSA_P384.to_le_bytes());
            put(0x680, &signature.to_bytes());
            put(0x880, &key.to_bytes());
        }
        bytes
    }

    /// Whether this is for that block: the firmware refuses the launch otherwise.
    pub fn check(&self, block: &IdBlock) -> Result<(), IdBlockError> {
        if !self.id_key.verifies(&block.to_bytes(), &self.block_signature) {
            return Err(IdBlockError::Signature("ID block"));
        }
        match &self.author {
            Some((signature, key)) if !key.verifies(&self.id_key.to_bytes(), signature) => {
                Err(IdBlockError::Signature("ID key"))
            }
            _ => Ok(()),
        }
    }
}

/// A signature and the key that made it.
fn pair(
    bytes: &[u8; ID_AUTH_SIZE],
    signature: usize,
    key: usize,
) -> Result<(Signature, PublicKey), IdBlockError> {
    let signature = Signature::parse(&array::<SIGNATURE_SIZE>(bytes, signature))?;
    Ok((
        signature,
        PublicKey::parse(&array::<PUBLIC_KEY_SIZE>(bytes, key))?,
    ))
}

/// `N` bytes at `at`; callers stay inside.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Why bytes are no ID block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdBlockError {
    /// Another version of the structure.
    #[error("the ID block has version {0}, and {VERSION} is the only one known")]
    Version(u32),
    /// A policy that can't be.
    #[error("the ID block's policy is not valid: {0}")]
    Policy(#[from] PolicyError),
    /// A key algorithm that the firmware does not have.
    #[error(
        "the ID authentication names key algorithm {0}, and ECDSA P-384 with SHA-384 (1) is the only one"
    )]
    Algorithm(u32),
    /// Bytes that the structure keeps zero.
    #[error("reserved bytes at {0:#x} of the ID authentication are not zero")]
    Reserved(usize),
    /// A signature or key that is none.
    #[error("a signature or key of the ID authentication is not valid: {0}")]
    Key(#[from] ecdsa::Error),
    /// Signed by another key, or something else.
    #[error("the signature of the {0} is not that of its key")]
    Signature(&'static str),
}

#[cfg(test)]
#[path = "id_block_test.rs"]
mod id_block_test;
