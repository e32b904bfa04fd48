//! Virtual processors: one thread each, which runs guest code until KVM hands something over.
//!
//! ```text
//!            ┌────────────► KVM_RUN ──────────┐
//!            │                                ▼
//!   clear kick, look at orders          exit reason: port or memory access → bus
//!            ▲                                │        reset, fault        → end of the VM
//!            └────────────────────────────────┘
//! ```
//!
//! Another thread gets a vCPU's attention with a *kick*: it sets `immediate_exit` in the vCPU's shared page, so that a
//! KVM_RUN that has not begun returns at once, and sends a signal, so that one that has begun is broken off. The vCPU
//! thread clears the flag before it looks at its orders, so no order is missed.

mod control;
mod cpuid;
mod registers;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SEV_TERM,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryError;

pub use control::Control;

use crate::bus::{Bus, Outcome};
use crate::exit::Exit;
use crate::firmware::Confidential;
use crate::memory::GuestMemory;
use crate::snp;

/// What a hypercall that there is not answers (`-KVM_ENOSYS`).
const NO_SUCH_CALL: u64 = -1000i64 as u64;

/// Why vCPUs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guest needs at least one.
    #[error("the number of vCPUs is 0, but a guest needs at least 1")]
    None,
    /// More than this host's KVM takes.
    #[error("the number of vCPUs is {asked}, more than the {max} that this machine's KVM supports")]
    TooMany {
        /// What the caller wants.
        asked: u8,
        /// KVM's limit.
        max: usize,
    },
    /// An ioctl on a vCPU failed.
    #[error("KVM refuses to set {what} of vCPU {vcpu}")]
    Setup {
        /// What was set.
        what: &'static str,
        /// Index of the vCPU.
        vcpu: u8,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
    /// KVM's CPUID table can't be had.
    #[error("KVM does not tell what its guests' CPUID may be")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    /// The CPUID table has more entries than KVM takes.
    #[error("the CPUID table for vCPU {0} is too long")]
    CpuidTooLong(u8),
    /// The boot tables don't fit.
    #[error("boot tables don't fit into guest memory")]
    Tables(#[from] GuestMemoryError),
    /// A thread could not be started.
    #[error("can't start the thread of vCPU {vcpu}")]
    Thread {
        /// Index of the vCPU.
        vcpu: u8,
        /// The host's error.
        source: io::Error,
    },
}

/// A vCPU that is ready to run.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    confidential: Option<Arc<Confidential>>,
}

/// Makes `count` vCPUs, the first of which starts at `entry` in long mode.
pub fn create(kvm: &Kvm, vm: &VmFd, memory: &GuestMemory, count: u8, entry: u64) -> Result<Vec<Vcpu>, Error> {
    let maker = Maker::new(kvm, vm, count)?;
    registers::write_tables(memory)?;
    let vcpus = (0..count).map(|index| {
        let fd = maker.make(index)?;
        if index == 0 {
            registers::boot_vcpu(&fd, entry).map_err(|source| Error::Setup {
                what: "the boot registers",
                vcpu: index,
                source,
            })?;
        }
        Ok(Vcpu::new(index, fd, None))
    });
    vcpus.collect()
}

/// Makes a VM's vCPUs one by one.
pub struct Maker<'a> {
    vm: &'a VmFd,
    supported: CpuId,
    shape: cpuid::Shape,
}

impl<'a> Maker<'a> {
    /// For `count` vCPUs, if KVM takes so many.
    pub fn new(kvm: &Kvm, vm: &'a VmFd, count: u8) -> Result<Maker<'a>, Error> {
        if count == 0 {
            return Err(Error::None);
        }
        let max = kvm.get_max_vcpus();
        if usize::from(count) > max {
            return Err(Error::TooMany { asked: count, max });
        }
        Ok(Maker {
            vm,
            supported: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(Error::SupportedCpuid)?,
            shape: cpuid::Shape {
                vcpus: count,
                tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            },
        })
    }

    /// An SNP guest's CPUID table.
    pub fn table(&self, index: u8) -> Vec<kvm_cpuid_entry2> {
        let mut table = cpuid::for_vcpu(self.supported.as_slice(), self.shape, index);
        snp::mask_cpuid(&mut table);
        table
    }

    /// A vCPU with its CPUID table and the registers that all have in common.
    pub fn make(&self, index: u8) -> Result<VcpuFd, Error> {
        let table = cpuid::for_vcpu(self.supported.as_slice(), self.shape, index);
        let fd = self.make_with(index, &table)?;
        registers::common(&fd).map_err(|source| Error::Setup {
            what: "the common registers",
            vcpu: index,
            source,
        })?;
        Ok(fd)
    }

    /// A vCPU of an SNP guest, as KVM resets it: what else is set here would be measured.
    pub fn make_bare(&self, index: u8) -> Result<VcpuFd, Error> {
        self.make_with(index, &self.table(index))
    }

    fn make_with(&self, index: u8, table: &[kvm_cpuid_entry2]) -> Result<VcpuFd, Error> {
        let failed = |what| {
            move |source| Error::Setup {
                what,
                vcpu: index,
                source,
            }
        };
        let fd = self
            .vm
            .create_vcpu(index.into())
            .map_err(failed("the existence"))?;
        let table = CpuId::from_entries(table).map_err(|_| Error::CpuidTooLong(index))?;
        fd.set_cpuid2(&table).map_err(failed("the CPUID table"))?;
        Ok(fd)
    }
}

/// Makes the one vCPU of a guest that starts at `entry` in long mode.
pub fn create_boot_vcpu(kvm: &Kvm, vm: &VmFd, memory: &GuestMemory, entry: u64) -> Result<VcpuFd, Error> {
    let vcpu = create(kvm, vm, memory, 1, entry)?.into_iter().next();
    // One was asked for.
    vcpu.map(|vcpu| vcpu.fd).ok_or(Error::None)
}

/// How often a vCPU came out of the guest, by cause. For finding out where boot time goes.
#[derive(Debug, Default)]
struct Counts {
    port: u64,
    memory: u64,
    kicked: u64,
}

impl Vcpu {
    /// The vCPU with this index, perhaps of a guest that started in a firmware.
    pub fn new(index: u8, fd: VcpuFd, confidential: Option<Arc<Confidential>>) -> Vcpu {
        Vcpu {
            index,
            fd,
            confidential,
        }
    }

    /// Starts the thread. It ends when the VM ends.
    pub fn spawn(self, control: Arc<Control>, bus: Arc<Bus>) -> Result<JoinHandle<()>, Error> {
        let vcpu = self.index;
        std::thread::Builder::new()
            .name(format!("vcpu{vcpu}"))
            .spawn(move || self.run(&control, &bus))
            .map_err(|source| Error::Thread { vcpu, source })
    }

    fn run(mut self, control: &Control, bus: &Bus) {
        let index = self.index;
        let kick = control.enlist(index, &mut self.fd);
        let mut counts = Counts::default();
        while kick.go_on(|| self.note_pause()) {
            if let Some(exit) = self.run_once(bus, &mut counts) {
                control.end(exit);
            }
        }
        tracing::debug!(
            vcpu = index,
            port = counts.port,
            memory = counts.memory,
            kicked = counts.kicked,
            "vCPU ended"
        );
        // `kick` takes the vCPU off the list before its shared page is unmapped.
        drop(kick);
    }

    /// Tells the guest's clock that time was taken from it, so that its watchdogs don't blame the guest.
    fn note_pause(&self) {
        // Fails if the guest does not use KVM's clock (yet); then there is nobody to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs guest code up to the next exit and serves that. Returns why the VM is over, if it is.
    fn run_once(&mut self, bus: &Bus, counts: &mut Counts) -> Option<Exit> {
        let vcpu = self.index;
        let fault = |reason: String| Some(Exit::Fault { vcpu, reason });
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                counts.port += 1;
                if let Some(guest) = &self.confidential
                    && guest.termination_port == Some(port)
                {
                    return Some(guest.terminated(code_of(data)));
                }
                (bus.port_write(port, data) == Outcome::Reset).then_some(Exit::Reset)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                counts.port += 1;
                bus.port_read(port, data);
                None
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                counts.memory += 1;
                bus.memory_write(gpa, data);
                None
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                counts.memory += 1;
                bus.memory_read(gpa, data);
                None
            }
            Ok(VcpuExit::Intr) => {
                counts.kicked += 1;
                None
            }
            Ok(VcpuExit::Shutdown) => Some(Exit::TripleFault),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Some(Exit::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(Exit::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                fault("the guest reported a crash".into())
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SEV_TERM, data)) => {
                let code = data.first().copied().unwrap_or_default();
                match &self.confidential {
                    Some(guest) => Some(guest.terminated(code)),
                    None => fault("a guest without SNP ended itself as one with it".into()),
                }
            }
            Ok(VcpuExit::Hypercall(call)) => {
                let answer = match &self.confidential {
                    Some(guest) if call.nr == snp::MAP_GPA_RANGE => guest.pages.map_gpa_range(call.args),
                    _ => NO_SUCH_CALL,
                };
                *call.ret = answer;
                None
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                let served = match &self.confidential {
                    Some(guest) => guest.pages.memory_fault(flags, gpa, size),
                    None => return fault(format!("no memory for the guest at {gpa:#x}")),
                };
                served.err().and_then(|error| fault(error.to_string()))
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => fault(format!(
                "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
            )),
            Ok(VcpuExit::InternalError) => {
                let suberror = internal_suberror(&mut self.fd);
                fault(format!(
                    "KVM internal error {suberror} ({})",
                    suberror_name(suberror)
                ))
            }
            Ok(other) => fault(format!("unexpected exit {other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                counts.kicked += 1;
                None
            }
            Err(error) => fault(format!("KVM_RUN failed: {error}")),
        }
    }
}

/// The number in what a guest writes to a port.
fn code_of(data: &[u8]) -> u64 {
    data.iter()
        .take(8)
        .rev()
        .fold(0, |code, byte| code << 8 | u64::from(*byte))
}

/// Which internal error KVM reported at the last exit.
pub fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: after KVM_EXIT_INTERNAL_ERROR the union holds `internal`; it is made of integers, so that any bytes there
    // are a valid value in every case.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// KVM's names for its internal errors.
pub fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that can't be emulated",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event that can't be delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unknown exit of the processor",
        _ => "of no known kind",
    }
}
