//! ID block and ID authentication information (AMD 56860 §8.18, tables 75 and 76).

use sha2::{Digest, Sha384};

use super::{LaunchDigest, Policy, PolicyError};

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
    #[error("the ID block's policy is not valid")]
    Policy(#[from] PolicyError),
}
