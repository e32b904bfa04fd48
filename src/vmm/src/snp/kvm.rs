//! The calls of a launch, and those calls on the real KVM.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_regs,
    kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update, kvm_sregs, kvm_userspace_memory_region2, sev_cmd_id_KVM_SEV_INIT2,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::firmware::SevError;
use super::pages::Backing;
use super::{Identity, Page, Range};

/// Every call that a launch makes, with the kernel's own structures. One implementation makes them, another records them for tests.
pub trait SevVm {
    /// `KVM_SEV_INIT2`.
    fn init(&mut self, parameters: &kvm_sev_init) -> Result<(), SevError>;
    /// `KVM_CREATE_GUEST_MEMFD`. The descriptor stays with the implementation; the number is for regions.
    fn create_guest_memfd(&mut self, parameters: &kvm_create_guest_memfd) -> Result<u32, SevError>;
    /// `KVM_SET_USER_MEMORY_REGION2`, over memory that outlives the VM.
    fn set_memory_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), SevError>;
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    fn set_memory_attributes(&mut self, attributes: &kvm_memory_attributes) -> Result<(), SevError>;
    /// `KVM_ENABLE_CAP` on the VM.
    fn enable_capability(&mut self, capability: &kvm_enable_cap) -> Result<(), SevError>;
    /// `KVM_SEV_SNP_LAUNCH_START`.
    fn launch_start(&mut self, parameters: &kvm_sev_snp_launch_start) -> Result<(), SevError>;
    /// `KVM_SEV_SNP_LAUNCH_UPDATE`. `uaddr` points into `source` or is 0; the kernel moves `gfn_start`, `uaddr` and `len` over what it
    /// has done, and the firmware may write its corrections of a CPUID page into `source`.
    fn launch_update(
        &mut self,
        parameters: &mut kvm_sev_snp_launch_update,
        source: &mut [u8],
    ) -> Result<(), SevError>;
    /// `KVM_CREATE_VCPU` and what all vCPUs need besides.
    fn create_vcpu(&mut self, index: u8) -> Result<(), SevError>;
    /// `KVM_GET_SREGS`: those after reset.
    fn sregs(&mut self, index: u8) -> Result<kvm_sregs, SevError>;
    /// `KVM_SET_REGS`, then `KVM_SET_SREGS`.
    fn set_registers(&mut self, index: u8, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), SevError>;
    /// `KVM_SEV_SNP_LAUNCH_FINISH`. The addresses in `parameters` are those of `identity`.
    fn launch_finish(
        &mut self,
        parameters: &kvm_sev_snp_launch_finish,
        identity: Option<&Identity>,
    ) -> Result<(), SevError>;
}

/// Makes a vCPU with its index.
pub type MakeVcpu<'a> = Box<dyn FnMut(u8) -> Result<VcpuFd, SevError> + 'a>;

/// KVM itself.
pub struct KvmSev<'a> {
    /// The VM, of type `KVM_X86_SNP_VM`.
    pub vm: &'a VmFd,
    /// `/dev/sev`, open.
    pub sev: &'a File,
    /// How a vCPU is made.
    pub make_vcpu: MakeVcpu<'a>,
    /// What was made so far.
    pub memfds: Vec<OwnedFd>,
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuFd>,
}

impl KvmSev<'_> {
    /// One `KVM_MEMORY_ENCRYPT_OP`. `data` points to the structure that belongs to `id`, which outlives the call.
    fn command(&self, id: u32, data: u64) -> Result<(), SevError> {
        let mut command = kvm_sev_cmd {
            id,
            data,
            error: 0,
            // A descriptor number.
            sev_fd: self.sev.as_raw_fd() as u32,
            ..Default::default()
        };
        self.vm.encrypt_op_sev(&mut command).map_err(|error| SevError {
            errno: error.errno(),
            firmware: command.error,
        })
    }

    fn vcpu(&self, index: u8) -> Result<&VcpuFd, SevError> {
        self.vcpus
            .get(usize::from(index))
            .ok_or(SevError::kernel(libc::ENOENT))
    }
}

fn kernel(error: kvm_ioctls::Error) -> SevError {
    SevError::kernel(error.errno())
}

impl SevVm for KvmSev<'_> {
    fn init(&mut self, parameters: &kvm_sev_init) -> Result<(), SevError> {
        self.command(sev_cmd_id_KVM_SEV_INIT2, &raw const *parameters as u64)
    }

    fn create_guest_memfd(&mut self, parameters: &kvm_create_guest_memfd) -> Result<u32, SevError> {
        let fd = self.vm.create_guest_memfd(*parameters).map_err(kernel)?;
        // SAFETY: KVM has just made this descriptor for us, and nobody else knows of it.
        self.memfds.push(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(fd as u32)
    }

    fn set_memory_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), SevError> {
        // SAFETY: by this trait's contract the range is memory that outlives the VM; `launch` gives each region a slot of its own.
        unsafe { self.vm.set_user_memory_region2(*region) }.map_err(kernel)
    }

    fn set_memory_attributes(&mut self, attributes: &kvm_memory_attributes) -> Result<(), SevError> {
        self.vm.set_memory_attributes(*attributes).map_err(kernel)
    }

    fn enable_capability(&mut self, capability: &kvm_enable_cap) -> Result<(), SevError> {
        self.vm.enable_cap(capability).map_err(kernel)
    }

    fn launch_start(&mut self, parameters: &kvm_sev_snp_launch_start) -> Result<(), SevError> {
        self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, &raw const *parameters as u64)
    }

    fn launch_update(
        &mut self,
        parameters: &mut kvm_sev_snp_launch_update,
        _source: &mut [u8],
    ) -> Result<(), SevError> {
        self.command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, &raw mut *parameters as u64)
    }

    fn create_vcpu(&mut self, index: u8) -> Result<(), SevError> {
        let vcpu = (self.make_vcpu)(index)?;
        self.vcpus.push(vcpu);
        Ok(())
    }

    fn sregs(&mut self, index: u8) -> Result<kvm_sregs, SevError> {
        self.vcpu(index)?.get_sregs().map_err(kernel)
    }

    fn set_registers(&mut self, index: u8, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), SevError> {
        let vcpu = self.vcpu(index)?;
        vcpu.set_regs(regs).map_err(kernel)?;
        vcpu.set_sregs(sregs).map_err(kernel)
    }

    fn launch_finish(
        &mut self,
        parameters: &kvm_sev_snp_launch_finish,
        _identity: Option<&Identity>,
    ) -> Result<(), SevError> {
        self.command(
            sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH,
            &raw const *parameters as u64,
        )
    }
}

/// One piece of RAM with both of its sides.
#[derive(Debug)]
struct Sides {
    gpa: u64,
    bytes: u64,
    shared: *mut u8,
    private: OwnedFd,
}

/// Both sides of all RAM of a VM that runs.
#[derive(Debug)]
pub struct KvmBacking {
    vm: Arc<VmFd>,
    sides: Vec<Sides>,
    // Keeps the shared sides mapped.
    _memory: Arc<crate::memory::Ram>,
}

// SAFETY: `shared` is used for madvise(2) only, which may be called from any thread while the range is mapped; `_memory` keeps it so.
unsafe impl Send for KvmBacking {}
// SAFETY: as above.
unsafe impl Sync for KvmBacking {}

impl KvmBacking {
    /// For `ram`, whose shared sides lie in `memory` and whose private sides are `private`, in the same order.
    pub fn new(
        vm: Arc<VmFd>,
        memory: Arc<crate::memory::Ram>,
        ram: &[Range],
        private: Vec<OwnedFd>,
    ) -> KvmBacking {
        let sides = ram
            .iter()
            .zip(private)
            .map(|(range, private)| Sides {
                gpa: range.gpa,
                bytes: range.bytes,
                shared: range.shared as *mut u8,
                private,
            })
            .collect();
        KvmBacking {
            vm,
            sides,
            _memory: memory,
        }
    }

    /// The region that holds this range, and the range's offset in it.
    fn sides(&self, gpa: u64, bytes: u64) -> io::Result<(&Sides, u64)> {
        let found = self.sides.iter().find_map(|sides| {
            let offset = gpa.checked_sub(sides.gpa)?;
            (offset.checked_add(bytes)? <= sides.bytes).then_some((sides, offset))
        });
        found.ok_or(io::ErrorKind::InvalidInput.into())
    }
}

impl Backing for KvmBacking {
    fn set_private(&self, gpa: u64, bytes: u64, private: bool) -> io::Result<()> {
        let attributes = kvm_memory_attributes {
            address: gpa,
            size: bytes,
            attributes: if private {
                KVM_MEMORY_ATTRIBUTE_PRIVATE.into()
            } else {
                0
            },
            flags: 0,
        };
        loop {
            match self.vm.set_memory_attributes(attributes) {
                Ok(()) => return Ok(()),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
            }
        }
    }

    fn discard_shared(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let (sides, offset) = self.sides(gpa, bytes)?;
        // Within the region, which is mapped.
        let start = sides.shared.wrapping_add(offset as usize);
        // SAFETY: the range is part of a private anonymous mapping that `_memory` keeps; it has no Rust references, and reads as zero
        // afterwards.
        match unsafe { libc::madvise(start.cast(), bytes as usize, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn discard_private(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let (sides, offset) = self.sides(gpa, bytes)?;
        punch(&sides.private, offset, bytes)
    }
}

fn punch(fd: &OwnedFd, offset: u64, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use std::os::fd::AsFd;
    let fd: BorrowedFd<'_> = fd.as_fd();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match fallocate(fd, flags, offset, bytes) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The address of a page that outlives the call it is for.
pub fn address(page: &Page) -> u64 {
    page.as_ptr() as u64
}
