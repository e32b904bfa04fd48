//! What both versions of LUKS are made of: AES-256-XTS over sectors, and the anti-forensic splitter of key slots.
//!
//! | module | its job | used for |
//! |---|---|---|
//! | `xts` | a cipher over sectors of a disk or of a key slot's area | disks of our own (LUKS2), disks of others (LUKS1) |
//! | `af` | spreads a key over 4000 stripes, and gathers it again | key slots of both |
//!
//! Headers are not read here: they are for the crates `disk` (LUKS2) and `mkcw` (LUKS1).

#![forbid(unsafe_code)]

mod af;
mod xts;

pub use af::{MATERIAL_LEN, STRIPES, merge, split};
pub use xts::Xts;

/// Length of a volume key in bytes: two AES-256 keys, for data and for tweaks.
pub const KEY_LEN: usize = 64;
