//! Everything that a launch passes to the firmware, in order: what the VMM launches and what predicts the digest.
//!
//! ```text
//!   SNP_LAUNCH_UPDATE   the image's pages by ascending address: NORMAL, SECRETS, CPUID, ZERO
//!   SNP_LAUNCH_FINISH   the VMSA of each vCPU, by ascending index
//! ```

use crate::image::{Image, Kind};
use crate::launch::{Chain, LaunchDigest, PageType, VMSA_GPA};
use crate::vmsa::{self, CpuModel, SevFeatures, Variant, VcpuState};
use crate::{Gpa, PAGE_SIZE, Page};

/// The most bytes whose contents the firmware may have to measure for a guest of one vCPU: it takes about a millisecond for
/// 4 KiB, one guest at a time.
pub const MAX_MEASURED: usize = 96 << 10;

pub use stage0::abi::MAX_VCPUS;

/// What a launch is made of.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// stage0.
    pub image: &'a Image,
    /// Hashes of what stage0 loads.
    pub hash_page: &'a Page,
    /// Address of the page tables that stage0 starts with: [`Image::page_tables`].
    pub page_tables: Gpa,
    /// From 1.
    pub vcpus: u32,
    /// What the guest's processors claim to be.
    pub cpu: CpuModel,
    /// SEV_FEATURES.
    pub features: SevFeatures,
    /// The kernel that launches.
    pub variant: Variant,
}

/// Why there is no such launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No vCPU, or too many.
    #[error("a guest has from 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u32),
    /// More to measure than promised.
    #[error("{0} bytes would be measured for a guest of one vCPU, and {MAX_MEASURED} is the most")]
    TooMuch(usize),
    /// The page tables are not a page of the image.
    #[error("the page tables at {0} are not on a page that the image loads")]
    PageTables(Gpa),
}

/// A page as it is launched.
#[derive(Clone, PartialEq, Eq)]
pub struct PlannedPage {
    /// Where the guest has it; [`VMSA_GPA`] for a VMSA.
    pub gpa: Gpa,
    /// What the firmware makes of it.
    pub page_type: PageType,
    /// Its bytes before the launch: zeros where the launcher (CPUID) or the firmware (SECRETS) fills it.
    pub bytes: Box<Page>,
}

impl std::fmt::Debug for PlannedPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {}", self.page_type, self.gpa)
    }
}

/// A launch, page by page.
#[derive(Debug, Clone)]
pub struct Plan {
    pages: Vec<PlannedPage>,
    states: Vec<VcpuState>,
    digest: LaunchDigest,
}

impl Plan {
    /// The plan of a launch.
    pub fn new(launch: &Launch) -> Result<Self, Error> {
        if launch.vcpus == 0 || launch.vcpus > MAX_VCPUS {
            return Err(Error::Vcpus(launch.vcpus));
        }
        let mut pages = image_pages(launch);
        let tables = pages.iter().find(|page| page.gpa == launch.page_tables);
        if tables.is_none_or(|page| page.page_type != PageType::Normal) {
            return Err(Error::PageTables(launch.page_tables));
        }
        let measured = (measured_pages(&pages) + 1) * PAGE_SIZE;
        if measured > MAX_MEASURED {
            return Err(Error::TooMuch(measured));
        }
        let states: Vec<_> = (0..launch.vcpus).map(|index| launch.vcpu(index)).collect();
        pages.extend(states.iter().map(|state| launch.vmsa(state)));
        let mut chain = Chain::new();
        pages
            .iter()
            .for_each(|page| chain.add(page.page_type, page.gpa, &page.bytes));
        Ok(Self {
            pages,
            states,
            digest: chain.digest(),
        })
    }

    /// All pages in the order in which they are launched, VMSAs last.
    pub fn pages(&self) -> &[PlannedPage] {
        &self.pages
    }

    /// The pages that the VMM passes to SNP_LAUNCH_UPDATE: all but the VMSAs, which KVM makes.
    pub fn updates(&self) -> impl Iterator<Item = &PlannedPage> {
        self.pages.iter().filter(|page| page.page_type != PageType::Vmsa)
    }

    /// The registers of each vCPU, by index.
    pub fn states(&self) -> &[VcpuState] {
        &self.states
    }

    /// The launch digest.
    pub fn digest(&self) -> LaunchDigest {
        self.digest
    }

    /// Bytes whose contents the firmware measures: NORMAL and VMSA pages.
    pub fn measured(&self) -> usize {
        measured_pages(&self.pages) * PAGE_SIZE
    }
}

impl Launch<'_> {
    /// The registers of a vCPU.
    fn vcpu(&self, index: u32) -> VcpuState {
        match index {
            0 => VcpuState::boot(self.image.entry(), self.page_tables, self.cpu),
            _ => VcpuState::reset(self.cpu),
        }
    }

    fn vmsa(&self, state: &VcpuState) -> PlannedPage {
        let bytes = vmsa::page(state, self.features, self.variant);
        PlannedPage {
            gpa: VMSA_GPA,
            page_type: PageType::Vmsa,
            bytes,
        }
    }
}

fn image_pages(launch: &Launch) -> Vec<PlannedPage> {
    let planned = |page: &crate::image::ImagePage| {
        let (page_type, bytes) = match page.kind {
            Kind::Load => (PageType::Normal, page.bytes.clone()),
            Kind::Hashes => (PageType::Normal, Box::new(*launch.hash_page)),
            Kind::Secrets => (PageType::Secrets, page.bytes.clone()),
            Kind::Cpuid => (PageType::Cpuid, page.bytes.clone()),
            Kind::Scratch => (PageType::Zero, page.bytes.clone()),
        };
        PlannedPage {
            gpa: page.gpa,
            page_type,
            bytes,
        }
    };
    launch.image.pages().iter().map(planned).collect()
}

fn measured_pages(pages: &[PlannedPage]) -> usize {
    pages
        .iter()
        .filter(|page| page.page_type.measures_contents())
        .count()
}

#[cfg(test)]
#[path = "measure_test.rs"]
mod measure_test;
