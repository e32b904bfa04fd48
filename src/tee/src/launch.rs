//! What the firmware makes of a launch: the digest of its pages, the policy it enforces, the ID block it compares with.
//! (SEV Secure Nested Paging Firmware ABI Specification, AMD 56860: §4.3, §8.16, §8.17, §8.18.)
//!
//! Each page that SNP_LAUNCH_UPDATE takes adds a link to a chain:
//!
//! ```text
//!   digest n ─────┐
//!   SHA-384(page) ┼► PAGE_INFO, 0x70 bytes ─ SHA-384 ─► digest n+1
//!   type, GPA ────┘
//! ```

mod digest;
mod id_block;
mod policy;

pub use digest::{Chain, LaunchDigest, PageType, VMSA_GPA};
pub use id_block::{ID_AUTH_SIZE, ID_BLOCK_SIZE, IdAuth, IdBlock, IdBlockError};
pub use policy::{AbiVersion, Policy, PolicyError};
