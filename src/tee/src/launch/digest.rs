//! The chain of PAGE_INFO structures (AMD 56860 §8.17.2).

use sha2::{Digest, Sha384};

use crate::hex::hex_bytes;
use crate::{Gpa, Page};

hex_bytes! {
    /// The launch digest, MEASUREMENT in a report: what the guest was made of, page by page.
    LaunchDigest, 48
}

/// Where the firmware thinks that a VMSA page is: KVM's INITIAL_VMSA_GPA, whatever the vCPU.
pub const VMSA_GPA: Gpa = Gpa(0xffff_ffff_f000);

/// Length of PAGE_INFO in bytes.
const PAGE_INFO: u16 = 0x70;

/// PAGE_TYPE of SNP_LAUNCH_UPDATE (AMD 56860 §8.17, table 65), which KVM's interface has from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PageType {
    /// Encrypted with its contents, which are measured.
    Normal = 1,
    /// A vCPU's registers, measured. KVM makes it at SNP_LAUNCH_FINISH.
    Vmsa = 2,
    /// Zeros for the guest; measured as such.
    Zero = 3,
    /// Encrypted with its contents, of which only the address is measured.
    Unmeasured = 4,
    /// Where the firmware writes the keys of the guest's messages; the address is measured.
    Secrets = 5,
    /// CPUID leaves that the firmware has checked; the address is measured.
    Cpuid = 6,
}

impl PageType {
    /// Whether the bytes of such a page go into the digest, not just its address.
    pub fn measures_contents(self) -> bool {
        matches!(self, Self::Normal | Self::Vmsa)
    }
}

/// A launch digest as it grows.
#[derive(Debug, Clone)]
pub struct Chain(LaunchDigest);

impl Default for Chain {
    fn default() -> Self {
        Self(LaunchDigest([0; 48]))
    }
}

impl Chain {
    /// The chain after SNP_LAUNCH_START, without a page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a page. The bytes of a type that does not measure its contents are not looked at, and a VMSA's address is
    /// the firmware's whatever `gpa` says.
    pub fn add(&mut self, page_type: PageType, gpa: Gpa, page: &Page) {
        let contents = match page_type.measures_contents() {
            true => Sha384::digest(page).into(),
            false => [0; 48],
        };
        let gpa = if page_type == PageType::Vmsa {
            VMSA_GPA
        } else {
            gpa
        };
        // IMI_PAGE and the permissions of VMPL 3, 2 and 1 are zero: KVM sets none.
        let mut info = [0; PAGE_INFO as usize];
        info[0x00..0x30].copy_from_slice(&self.0.0);
        info[0x30..0x60].copy_from_slice(&contents);
        info[0x60..0x62].copy_from_slice(&PAGE_INFO.to_le_bytes());
        info[0x62] = page_type as u8;
        info[0x68..0x70].copy_from_slice(&gpa.0.to_le_bytes());
        self.0 = LaunchDigest(Sha384::digest(info).into());
    }

    /// The digest of the pages added so far.
    pub fn digest(&self) -> LaunchDigest {
        self.0
    }
}

#[cfg(test)]
#[path = "digest_test.rs"]
mod digest_test;
