//! What a confidential guest is made of, and how one tells that it is what it should be. Bytes and types: no I/O, no KVM.
//!
//! ```text
//!   stage0 ELF ─► image ─┐                                 report ◄─ the guest's firmware
//!   hash page ───────────┤                                    │
//!   CPU model ─► vmsa ───┴► measure ─► launch ─► digest ──────┤   certs ◄─ AMD, or sim
//!                              │                              ▼      │
//!                              ▼                           appraise ◄┘
//!                        the VMM's launch                     │
//!                                                             ▼
//!                                               accepted, or the clause that failed
//! ```
//!
//! | module | its job | where it runs |
//! |---|---|---|
//! | `launch` | the launch digest, guest policies, ID blocks | VMM, `cwrun measure`, broker |
//! | `vmsa` | the registers a vCPU starts with, and the page that the firmware measures for it | VMM, `cwrun measure` |
//! | `image` | the pages of stage0's ELF | VMM, `cwrun measure` |
//! | `measure` | everything that a launch passes to the firmware, in order | VMM, `cwrun measure` |
//! | `ecdsa` | P-384 signatures and keys in the firmware's layout | all of the following |
//! | `report` | attestation reports, versions 2 to 5 | guest, broker |
//! | `certs` | ARK ─► ASK ─► VCEK or VLEK, pinned roots, revocation lists | broker |
//! | `evidence` | a report with its certificates, as JSON or as the firmware gives it | guest, broker |
//! | `appraise` | policy, and a verdict that names the clause | broker |
//! | `sim` | the software TEE | VMM, tests |
//!
//! SECURITY: reports, certificates, images and policies come from outside. All parsers here take any bytes, allocate no
//! more than their stated limits, and end.

#![forbid(unsafe_code)]

pub mod appraise;
pub mod certs;
pub mod ecdsa;
pub mod evidence;
mod hex;
pub mod image;
pub mod launch;
pub mod measure;
pub mod report;
pub mod sim;
pub mod vmsa;

/// Size in bytes of a page, as the firmware measures them.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of a page.
pub type Page = [u8; PAGE_SIZE];

/// A guest physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl std::fmt::Display for Gpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
