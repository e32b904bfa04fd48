//! stage0: the guest firmware that SEV-SNP measures instead of a kernel and an initrd.
//!
//! ```text
//! image (entry, page tables) ─► boot ─┬─► snp      the host answers the GHCB protocol, the C-bit is where we have it
//!                                     ├─► accept   every page of RAM becomes private and valid, once
//!                                     ├─► load     staging ─copy─► private memory ─hash─► compare with the hash page
//!                                     └─► handover boot_params, e820, ACPI, CC blob ─► the kernel's 64-bit entry
//! ```
//!
//! [`abi`] is what other crates use: the definition of everything that crosses between stage0 and launcher, VMM, runtime. The
//! rest is the logic over a [`Platform`], which the image in `image/` implements with instructions and the tests with a model. No
//! part allocates, and none keeps state but in what it is given.

#![cfg_attr(not(test), no_std)]

pub mod abi;
mod accept;
mod acpi;
mod boot;
mod boot_params;
mod bzimage;
mod ghcb;
mod load;
mod platform;
mod ram;
mod sha256;
mod snp;

#[cfg(test)]
mod model;

pub use abi::Termination;
pub use boot::{Handover, confidential, plain};
pub use platform::{Image, PageSize, Platform, Pvalidate};
pub use sha256::Sha256;
