//! Disks that `buildah mkcw` made: what they promise at their end, how they are unlocked, what runs in them.
//!
//! ```text
//!   0        4 KiB                       1.97 MiB                          end
//!   ┌────────┬────────┬─────────────────┬──────────────────────┬─────┬────────────────┐
//!   │ LUKS1  │ key    │ room for seven  │ dm-crypt payload:    │zeros│ footer:        │
//!   │ header │ slot 0 │ more key slots  │ ext4, AES-256-XTS in │     │ workload JSON, │
//!   │ 592 B  │ 250 KiB│                 │ 512-byte sectors     │     │ KRUN, length   │
//!   └────────┴────────┴─────────────────┴──────────────────────┴─────┴────────────────┘
//! ```
//!
//! | module | its job | where it runs |
//! |---|---|---|
//! | `footer` | the workload configuration behind the payload: who attests what, and with which resources | host, guest |
//! | `header` | a LUKS1 header, as one that this crate accepts or not at all | guest |
//! | `unlock` | passphrase ─► volume key | guest |
//! | `inner` | the image's configuration, a file in the root of the file system | guest |
//!
//! SECURITY: the host can write every byte of such a disk. All parsers here take any bytes, allocate no more than their
//! stated limits, and end. The payload is encrypted but **not** integrity-protected, and no root hash covers it: a host
//! can garble single 16-byte blocks and bring back old ciphertext. That is what the format offers.

#![forbid(unsafe_code)]

mod error;
mod footer;
mod header;
mod inner;
mod read_at;
mod unlock;

pub use error::{Error, WrongField};
pub use footer::{Footer, MAX_WORKLOAD, Tee, WorkloadConfig};
pub use header::{Header, MAX_ITERATIONS, MIN_ITERATIONS};
pub use inner::{INNER_CONFIG, InnerConfig, MAX_INNER_CONFIG};
pub use read_at::ReadAt;
pub use unlock::{Opened, VolumeKey};

/// Size in bytes of a dm-crypt sector of such a disk: LUKS1 knows no other.
pub const SECTOR: usize = 512;

/// Longest passphrase of such a disk, in bytes.
pub const MAX_PASSPHRASE: usize = 8192;

/// What payloads are aligned to, in bytes: their offset, and their length.
pub const BLOCK: u64 = 4096;

#[cfg(test)]
mod mutation_test;
