//! The launch of an SEV-SNP guest (AMD 56860; Linux `Documentation/virt/kvm/x86/amd-memory-encryption.rst`).
//!
//! ```text
//!   KVM_SEV_INIT2                        features of the save area, version of the GHCB protocol
//!   guest_memfd, memory regions          each piece of RAM has a private and a shared side
//!   memory attributes                    all RAM private; the staging window has no private side
//!   KVM_CAP_EXIT_HYPERCALL               the guest's changes of page states come to `pages`
//!   LAUNCH_START        policy
//!   LAUNCH_UPDATE …     firmware's pages: what is measured, the secrets page, the CPUID page, zeros
//!   vCPUs               the boot vCPU's registers; the others stay as reset
//!   LAUNCH_FINISH       measures the vCPUs; host data, identity block
//! ```
//!
//! This module knows the order and the structures, and nothing of what the pages hold: the caller has them. Whatever is in shared
//! memory (kernel, initrd) is for the guest's firmware to copy and check.

mod cpuid_page;
mod firmware;
mod kvm;
mod pages;
mod policy;
#[cfg(any(test, feature = "recording"))]
pub mod recording;
mod state;
mod support;

use std::fmt;
use std::fs::File;

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_SEV_SNP_PAGE_TYPE_CPUID,
    KVM_SEV_SNP_PAGE_TYPE_NORMAL, KVM_SEV_SNP_PAGE_TYPE_SECRETS, KVM_SEV_SNP_PAGE_TYPE_ZERO,
    kvm_cpuid_entry2, kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_sev_init,
    kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
    kvm_userspace_memory_region2,
};

pub use cpuid_page::Error as CpuidError;
pub(crate) use cpuid_page::mask as mask_cpuid;
pub use firmware::SevError;
pub use kvm::SevVm;
pub(crate) use kvm::{KvmBacking, KvmSev};
pub use pages::{Backing, Error as PagesError, MAP_GPA_RANGE, Pages, Statistics};
pub use policy::{HostTraits, PolicyError, check_policy};
pub use state::{Segment, Table, VcpuState};
pub use support::{Facts, Missing, Support, cpuid_facts};

/// Size of a page, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Contents of a page.
pub type Page = [u8; PAGE_BYTES];

/// Version of the GHCB protocol that guests and KVM have to speak: the first with page state changes.
const GHCB_VERSION: u16 = 2;
/// How often a call that may succeed when it is made again is made again, at most.
const RETRIES: u32 = 1000;
/// Length of the identity block, in bytes (AMD 56860 §8.18, table 75).
pub const IDENTITY_BLOCK: usize = 96;

/// What a launch puts at an address before the guest runs.
#[derive(Clone, PartialEq, Eq)]
pub struct LaunchPages {
    /// Guest-physical address of the first page.
    pub gpa: u64,
    /// What lies there.
    pub content: Content,
}

/// Kinds of launch pages (AMD 56860 §8.17.2).
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Measured bytes, a whole number of pages.
    Measured(Vec<u8>),
    /// So many pages of zeros; that they are is measured, without their content being read.
    Zero(u64),
    /// The firmware puts the guest's keys for talking to it here.
    Secrets,
    /// The vCPUs' CPUID table, checked by the firmware.
    Cpuid,
}

/// A block that the guest's owner has signed, and its signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The ID block: expected digest, names, version, policy.
    pub block: [u8; IDENTITY_BLOCK],
    /// The ID authentication information structure: keys and signatures.
    pub authentication: Box<Page>,
    /// The structure has an author's key as well.
    pub author: bool,
}

/// What the firmware of this machine is asked for.
#[derive(Debug)]
pub struct Snp {
    /// `/dev/sev`, opened for reading and writing.
    pub sev: File,
    /// The guest policy, as the firmware takes it.
    pub policy: u64,
    /// What the host vouches for; it is in every report of the guest.
    pub host_data: [u8; 32],
    /// The owner's block.
    pub identity: Option<Identity>,
}

/// A piece of memory: its shared side is memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes, whole pages.
    pub bytes: u64,
    /// Where the shared side is mapped here.
    pub shared: u64,
}

/// Everything that a launch is made of.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// RAM, ascending.
    pub ram: &'a [Range],
    /// Memory that is only ever shared: what the guest's firmware takes kernel and initrd from.
    pub staging: Range,
    /// In the order in which they are measured.
    pub pages: &'a [LaunchPages],
    /// How each vCPU starts, by index.
    pub vcpus: &'a [VcpuState],
    /// The boot vCPU's CPUID table.
    pub cpuid: &'a [kvm_cpuid_entry2],
    /// The guest policy.
    pub policy: u64,
    /// For every report.
    pub host_data: [u8; 32],
    /// The owner's block.
    pub identity: Option<&'a Identity>,
}

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of the launch.
    #[error("SEV-SNP: {step} failed{hint}")]
    Step {
        /// The step.
        step: &'static str,
        /// What to do about it, after a colon; often empty.
        hint: &'static str,
        /// What was answered.
        source: SevError,
    },
    /// Retried too often.
    #[error("SEV-SNP: {0} makes no progress: the host was asked {RETRIES} times")]
    NoProgress(&'static str),
    /// No vCPU, or too many.
    #[error("SEV-SNP: a guest has 1 to 255 vCPUs, not {0}")]
    Vcpus(usize),
    /// Pages of a launch that can't be.
    #[error("SEV-SNP: launch pages at {gpa:#x} {problem}")]
    Pages {
        /// Where.
        gpa: u64,
        /// What is wrong, as a phrase.
        problem: &'static str,
    },
    /// The CPUID page.
    #[error("SEV-SNP: the guest's CPUID can't be vouched for")]
    Cpuid(#[from] CpuidError),
    /// The policy.
    #[error("SEV-SNP: the guest policy can't be kept")]
    Policy(#[from] PolicyError),
}

impl fmt::Debug for LaunchPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = match &self.content {
            Content::Measured(bytes) => format!("{} measured bytes", bytes.len()),
            Content::Zero(pages) => format!("{pages} pages of zeros"),
            Content::Secrets => "secrets".to_owned(),
            Content::Cpuid => "CPUID".to_owned(),
        };
        write!(f, "LaunchPages({:#x}: {content})", self.gpa)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// The policy that the block was made for: its last eight bytes.
    fn policy(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.block[IDENTITY_BLOCK - 8..]);
        u64::from_le_bytes(bytes)
    }
}

impl Content {
    /// Length in bytes.
    fn bytes(&self) -> u64 {
        match self {
            Content::Measured(bytes) => bytes.len() as u64,
            Content::Zero(pages) => pages.saturating_mul(PAGE_BYTES as u64),
            Content::Secrets | Content::Cpuid => PAGE_BYTES as u64,
        }
    }
}

/// Launches: from a VM of the right type to one whose vCPUs can run. Nothing of it can be changed afterwards.
pub fn launch(vm: &mut impl SevVm, launch: &Launch<'_>) -> Result<(), Error> {
    check_pages(launch)?;
    if let Some(identity) = launch.identity {
        let (block, policy) = (identity.policy(), launch.policy);
        if block != policy {
            return Err(PolicyError::Identity { block, policy }.into());
        }
    }
    init(vm)?;
    add_memory(vm, launch)?;
    make_private(vm, launch.ram)?;
    exit_on_hypercalls(vm)?;
    start(vm, launch.policy)?;
    for pages in launch.pages {
        update(vm, pages, launch.cpuid)?;
    }
    make_vcpus(vm, launch.vcpus)?;
    finish(vm, launch)
}

/// Makes a call until it is answered for good.
fn retry(
    step: &'static str,
    hint: impl Fn(SevError) -> &'static str,
    mut call: impl FnMut() -> Result<(), SevError>,
) -> Result<(), Error> {
    for _ in 0..RETRIES {
        match call() {
            Err(error) if error.is_transient() => std::thread::yield_now(),
            result => {
                return result.map_err(|source| Error::Step {
                    step,
                    hint: hint(source),
                    source,
                });
            }
        }
    }
    Err(Error::NoProgress(step))
}

fn no_hint(_: SevError) -> &'static str {
    ""
}

fn init(vm: &mut impl SevVm) -> Result<(), Error> {
    let parameters = kvm_sev_init {
        // No features beyond SNP itself, which KVM adds: each would be measured.
        vmsa_features: 0,
        flags: 0,
        ghcb_version: GHCB_VERSION,
        ..Default::default()
    };
    let hint = |error: SevError| match error.errno {
        libc::EBUSY => {
            ": all encryption keys (ASIDs) for SNP guests are in use; end other confidential guests, or give SNP more in the firmware (\"SEV-ES ASID space limit\")"
        }
        libc::EINVAL | libc::ENOTTY => {
            ": this kernel's kvm_amd is older than Linux 6.11, or SNP is off in it (kvm_amd.sev_snp)"
        }
        _ => "",
    };
    retry("KVM_SEV_INIT2", hint, || vm.init(&parameters))
}

/// RAM has both sides; the staging window, in the slot after it, only the shared one.
fn add_memory(vm: &mut impl SevVm, launch: &Launch<'_>) -> Result<(), Error> {
    for (slot, range) in (0u32..).zip(launch.ram) {
        let parameters = kvm_create_guest_memfd {
            size: range.bytes,
            flags: 0,
            ..Default::default()
        };
        let mut memfd = 0;
        retry("KVM_CREATE_GUEST_MEMFD", no_hint, || {
            memfd = vm.create_guest_memfd(&parameters)?;
            Ok(())
        })?;
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            guest_memfd: memfd,
            ..shared_region(slot, range)
        };
        add_region(vm, &region)?;
    }
    // RAM has two pieces at most.
    add_region(vm, &shared_region(launch.ram.len() as u32, &launch.staging))
}

fn shared_region(slot: u32, range: &Range) -> kvm_userspace_memory_region2 {
    kvm_userspace_memory_region2 {
        slot,
        guest_phys_addr: range.gpa,
        memory_size: range.bytes,
        userspace_addr: range.shared,
        ..Default::default()
    }
}

fn add_region(vm: &mut impl SevVm, region: &kvm_userspace_memory_region2) -> Result<(), Error> {
    retry("KVM_SET_USER_MEMORY_REGION2", no_hint, || {
        vm.set_memory_region(region)
    })
}

/// All RAM starts private, so that the guest's changes to private pages, which are most of them, have nothing to do.
fn make_private(vm: &mut impl SevVm, ram: &[Range]) -> Result<(), Error> {
    for range in ram {
        let attributes = kvm_memory_attributes {
            address: range.gpa,
            size: range.bytes,
            attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE.into(),
            flags: 0,
        };
        retry("KVM_SET_MEMORY_ATTRIBUTES", no_hint, || {
            vm.set_memory_attributes(&attributes)
        })?;
    }
    Ok(())
}

fn exit_on_hypercalls(vm: &mut impl SevVm) -> Result<(), Error> {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_EXIT_HYPERCALL,
        ..Default::default()
    };
    capability.args[0] = 1 << MAP_GPA_RANGE;
    retry("KVM_CAP_EXIT_HYPERCALL", no_hint, || {
        vm.enable_capability(&capability)
    })
}

fn start(vm: &mut impl SevVm, policy: u64) -> Result<(), Error> {
    let parameters = kvm_sev_snp_launch_start {
        policy,
        ..Default::default()
    };
    let hint = |error: SevError| match (error.errno, error.firmware) {
        (_, 0x07) => {
            ": the guest policy demands what this machine does not give (its firmware's version, SMT off, or a single socket)"
        }
        (libc::EINVAL, _) => {
            ": this kernel takes no guest policy that forbids SMT or demands a single socket"
        }
        _ => "",
    };
    retry("KVM_SEV_SNP_LAUNCH_START", hint, || vm.launch_start(&parameters))
}

/// Puts pages into the launch. The firmware may correct a CPUID page once.
fn update(vm: &mut impl SevVm, pages: &LaunchPages, cpuid: &[kvm_cpuid_entry2]) -> Result<(), Error> {
    let gfn = pages.gpa / PAGE_BYTES as u64;
    match &pages.content {
        Content::Measured(bytes) => update_pages(
            vm,
            gfn,
            KVM_SEV_SNP_PAGE_TYPE_NORMAL,
            Some(&mut bytes.clone()),
            bytes.len(),
        ),
        Content::Zero(count) => {
            // The range was checked to be RAM of this process's guest.
            let bytes = *count as usize * PAGE_BYTES;
            update_pages(vm, gfn, KVM_SEV_SNP_PAGE_TYPE_ZERO, None, bytes)
        }
        Content::Secrets => {
            let mut zeros = vec![0; PAGE_BYTES];
            update_pages(
                vm,
                gfn,
                KVM_SEV_SNP_PAGE_TYPE_SECRETS,
                Some(&mut zeros),
                PAGE_BYTES,
            )
        }
        Content::Cpuid => update_cpuid(vm, gfn, cpuid),
    }
}

fn update_cpuid(vm: &mut impl SevVm, gfn: u64, cpuid: &[kvm_cpuid_entry2]) -> Result<(), Error> {
    let offered = cpuid_page::build(cpuid)?;
    let mut page = offered.clone();
    let put = |vm: &mut _, page: &mut Page| {
        update_pages(
            vm,
            gfn,
            KVM_SEV_SNP_PAGE_TYPE_CPUID,
            Some(page.as_mut_slice()),
            PAGE_BYTES,
        )
    };
    let corrected = |result: &Result<(), Error>| matches!(result, Err(Error::Step { source, .. }) if source.firmware == firmware::INVALID_PARAM);
    let first = put(vm, &mut page);
    if !corrected(&first) {
        return first;
    }
    cpuid_page::check_correction(&offered, &page)?;
    for difference in cpuid_page::differences(&offered, &page) {
        tracing::debug!("the firmware corrects CPUID {difference}");
    }
    let second = put(vm, &mut page);
    match corrected(&second) {
        true => Err(CpuidError::Again.into()),
        false => second,
    }
}

/// Goes on until the kernel has taken all of the pages: it may stop after any of them.
fn update_pages(
    vm: &mut impl SevVm,
    gfn_start: u64,
    kind: u32,
    mut source: Option<&mut [u8]>,
    bytes: usize,
) -> Result<(), Error> {
    const STEP: &str = "KVM_SEV_SNP_LAUNCH_UPDATE";
    let uaddr = source.as_deref().map_or(0, |source| source.as_ptr() as u64);
    let mut parameters = kvm_sev_snp_launch_update {
        gfn_start,
        uaddr,
        len: bytes as u64,
        // The types are small numbers.
        type_: kind as u8,
        ..Default::default()
    };
    for _ in 0..RETRIES {
        let before = parameters.len;
        let buffer = source.as_deref_mut().unwrap_or_default();
        match vm.launch_update(&mut parameters, buffer) {
            Err(error) if error.is_transient() => std::thread::yield_now(),
            Err(error) => {
                return Err(Error::Step {
                    step: STEP,
                    hint: "",
                    source: error,
                });
            }
            Ok(()) if parameters.len == 0 => return Ok(()),
            Ok(()) if parameters.len < before => {}
            Ok(()) => std::thread::yield_now(),
        }
    }
    Err(Error::NoProgress(STEP))
}

fn make_vcpus(vm: &mut impl SevVm, states: &[VcpuState]) -> Result<(), Error> {
    for index in indices(states) {
        retry("making a vCPU", no_hint, || vm.create_vcpu(index))?;
    }
    for (index, state) in indices(states).zip(states) {
        let mut sregs = Default::default();
        retry("reading a vCPU's registers", no_hint, || {
            sregs = vm.sregs(index)?;
            Ok(())
        })?;
        state.put_sregs(&mut sregs);
        retry("setting a vCPU's registers", no_hint, || {
            vm.set_registers(index, &state.regs(), &sregs)
        })?;
    }
    Ok(())
}

fn indices(states: &[VcpuState]) -> impl Iterator<Item = u8> + use<> {
    // Their number was checked.
    0..states.len() as u8
}

fn finish(vm: &mut impl SevVm, launch: &Launch<'_>) -> Result<(), Error> {
    let mut parameters = kvm_sev_snp_launch_finish {
        host_data: launch.host_data,
        ..Default::default()
    };
    if let Some(identity) = launch.identity {
        parameters.id_block_en = 1;
        parameters.id_block_uaddr = identity.block.as_ptr() as u64;
        parameters.id_auth_uaddr = kvm::address(&identity.authentication);
        parameters.auth_key_en = identity.author.into();
    }
    let hint = |error: SevError| match error.firmware {
        0x0a => ": a signature of the identity block is wrong",
        0x0b => ": the identity block expects another launch digest",
        0x07 => ": the identity block was made for another guest policy",
        _ => "",
    };
    retry("KVM_SEV_SNP_LAUNCH_FINISH", hint, || {
        vm.launch_finish(&parameters, launch.identity)
    })
}

/// What a launch puts somewhere must be whole pages of RAM, each at most once.
fn check_pages(launch: &Launch<'_>) -> Result<(), Error> {
    let refuse = |gpa, problem| Err(Error::Pages { gpa, problem });
    if launch.vcpus.is_empty() || launch.vcpus.len() > usize::from(u8::MAX) {
        return Err(Error::Vcpus(launch.vcpus.len()));
    }
    let page = PAGE_BYTES as u64;
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for pages in launch.pages {
        let (gpa, bytes) = (pages.gpa, pages.content.bytes());
        let Some(end) = gpa.checked_add(bytes) else {
            return refuse(gpa, "run over the end of memory");
        };
        if bytes == 0 || !gpa.is_multiple_of(page) || !bytes.is_multiple_of(page) {
            return refuse(gpa, "are not whole pages");
        }
        let holds = |range: &Range| gpa >= range.gpa && end <= range.gpa + range.bytes;
        if !launch.ram.iter().any(holds) {
            return refuse(gpa, "don't lie in guest memory");
        }
        if taken.iter().any(|(start, stop)| gpa < *stop && *start < end) {
            return refuse(gpa, "overlap others");
        }
        taken.push((gpa, end));
    }
    Ok(())
}

#[cfg(test)]
#[path = "launch_test.rs"]
mod tests;
