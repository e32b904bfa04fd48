//! Finds out whether this machine's KVM can *run* a guest, by running one.
//!
//! A `/dev/kvm` that opens proves little. Some hosts have one without hardware virtualization behind it: it creates
//! VMs and vCPUs, and then interprets an ordinary guest instruction by instruction, or never lets it get anywhere. So the
//! probe boots a guest of a few instructions in the mode in which a kernel runs, and makes it work:
//!
//! ```text
//!   long mode, paging on, second-level translation of 2 MiB of RAM
//!   out 0x80, 'a'            the guest runs at all
//!   4 million loop turns     at the speed of a processor, not of an interpreter
//!   write to 256 pages       memory is there
//!   out 0x80, 'z'            done
//! ```

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::{self, Ram};
use crate::vcpu::{self, Control};
use crate::vm::KVM_API_VERSION;

/// What KVM can do here, besides running a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How long the test guest took, from its first instruction to its last.
    pub elapsed: Duration,
    /// The most vCPUs a guest can have.
    pub max_vcpus: usize,
}

/// Why no guest can run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not KVM, or one of another time.
    #[error("the KVM device speaks API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// KVM lacks something that guests need.
    #[error("KVM on this machine lacks {0}, which guests need")]
    Capability(&'static str),
    /// KVM refuses to make a VM: another hypervisor has the processor, or the host is short of something.
    #[error("KVM can't {what} on this machine")]
    Setup {
        /// The step, as a verb phrase.
        what: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The guest was entered and KVM gave up.
    #[error("KVM accepts a guest but can't run it: {0}")]
    DoesNotRun(String),
    /// The guest got nowhere.
    #[error(
        "KVM accepts a guest, which then makes no progress ({progress} within {deadline:?}): there is no hardware \
         virtualization behind it"
    )]
    NoProgress {
        /// How far it got.
        progress: Progress,
        /// The time it had.
        deadline: Duration,
    },
}

/// How far the test guest got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Not one instruction is known to have been executed.
    Nothing,
    /// It ran, but too slowly for work.
    Started,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Progress::Nothing => "not one instruction",
            Progress::Started => "a few instructions",
        })
    }
}

/// What a guest of ours needs of KVM.
const REQUIRED: [(Cap, &str); 8] = [
    (
        Cap::Irqchip,
        "interrupt controllers in the kernel (KVM_CAP_IRQCHIP)",
    ),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications by eventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::Pit2, "a timer in the kernel (KVM_CAP_PIT2)"),
    (
        Cap::UserMemory,
        "memory of the process as guest memory (KVM_CAP_USER_MEMORY)",
    ),
    (Cap::SetTssAddr, "a place for the TSS (KVM_CAP_SET_TSS_ADDR)"),
    (Cap::ExtCpuid, "its CPUID table (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "an immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
];

/// Where the guest reports its progress: the port of a PC's power-on self test.
const PORT: u16 = 0x80;
const CODE: u64 = layout::HIGH_RAM;
/// The guest writes to 256 pages from here on.
const PAGES: u64 = layout::HIGH_RAM + 0x10_0000;

/// Machine code for 64-bit mode.
#[rustfmt::skip]
const PROGRAM: [u8; 46] = [
    0xb0, b'a',                                     // mov al, 'a'
    0xe6, PORT as u8,                               // out 0x80, al
    0xb9, 0x00, 0x00, 0x40, 0x00,                   // mov ecx, 4 Mi
    0x48, 0xff, 0xc9,                               // turn: dec rcx
    0x75, 0xfb,                                     // jnz turn
    0xbf, 0x00, 0x00, 0x20, 0x00,                   // mov edi, PAGES
    0xb9, 0x00, 0x01, 0x00, 0x00,                   // mov ecx, 256
    0x48, 0x89, 0x3f,                               // page: mov [rdi], rdi
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,       // add rdi, 4096
    0x48, 0xff, 0xc9,                               // dec rcx
    0x75, 0xf1,                                     // jnz page
    0xb0, b'z',                                     // mov al, 'z'
    0xe6, PORT as u8,                               // out 0x80, al
    0xf4,                                           // stop: hlt
    0xeb, 0xfd,                                     // jmp stop
];

/// Runs a guest of a few instructions on `kvm` (an open `/dev/kvm`), for at most `deadline`, and says what came of it.
///
/// Uses a thread and the signal of [`Vm::start`](crate::Vm::start). A vCPU that KVM does not even let be interrupted leaves
/// its thread behind.
pub fn probe(kvm: BorrowedFd<'_>, deadline: Duration) -> Result<Probe, ProbeError> {
    let fd = kvm.try_clone_to_owned().map_err(failed("be used by two"))?;
    // SAFETY: the descriptor is open and its ownership moves to `Kvm`. If it is not KVM, its first ioctl says so.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    match kvm.get_api_version() {
        KVM_API_VERSION => {}
        other => return Err(ProbeError::ApiVersion(other)),
    }
    if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(ProbeError::Capability(name));
    }
    let elapsed = run_guest(&kvm, deadline)?;
    Ok(Probe {
        elapsed,
        max_vcpus: kvm.get_max_vcpus(),
    })
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl Fn(E) -> ProbeError {
    move |source| ProbeError::Setup {
        what,
        source: source.into(),
    }
}

/// What the guest's thread reports.
enum Report {
    Started,
    Finished,
    Failed(String),
}

fn run_guest(kvm: &Kvm, deadline: Duration) -> Result<Duration, ProbeError> {
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(failed("place the TSS"))?;
    vm.create_irq_chip()
        .map_err(failed("emulate interrupt controllers"))?;
    let memory = memory::allocate(memory::MIN_MEMORY_MIB).map_err(failed("be given memory"))?;
    memory::register(&vm, &memory).map_err(failed("be given memory"))?;
    memory
        .write_slice(&PROGRAM, GuestAddress(CODE))
        .map_err(failed("be given memory"))?;
    let vcpu = vcpu::create_boot_vcpu(kvm, &vm, &memory, CODE).map_err(failed("set up a vCPU"))?;
    let control = Arc::new(Control::new(1).map_err(failed("have a signal handler"))?);

    let (sender, reports) = mpsc::channel();
    let started = Instant::now();
    let guest = Guest {
        vcpu,
        control: Arc::clone(&control),
        sender,
        _vm: vm,
        memory,
    };
    let thread = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || guest.run());
    let thread = thread.map_err(failed("be given a thread"))?;

    let mut progress = Progress::Nothing;
    let outcome = loop {
        match reports.recv_timeout(deadline.saturating_sub(started.elapsed())) {
            Ok(Report::Started) => progress = Progress::Started,
            Ok(Report::Finished) => break Ok(started.elapsed()),
            Ok(Report::Failed(reason)) => break Err(ProbeError::DoesNotRun(reason)),
            Err(RecvTimeoutError::Timeout) => break Err(ProbeError::NoProgress { progress, deadline }),
            Err(RecvTimeoutError::Disconnected) => {
                break Err(ProbeError::DoesNotRun("its thread ended without a word".into()));
            }
        }
    };
    control.end(crate::Exit::Stopped);
    join_within(thread, Duration::from_millis(200));
    outcome
}

/// Joins `thread` if it ends soon. One that doesn't hangs in KVM_RUN, where only the end of the process reaches it.
fn join_within(thread: std::thread::JoinHandle<()>, grace: Duration) {
    let started = Instant::now();
    while !thread.is_finished() && started.elapsed() < grace {
        std::thread::sleep(Duration::from_millis(1));
    }
    if thread.is_finished() {
        let _ = thread.join();
    }
}

/// The test guest and everything it needs, owned by its thread.
struct Guest {
    vcpu: VcpuFd,
    control: Arc<Control>,
    sender: mpsc::Sender<Report>,
    // Dropped after the vCPU, in this order.
    _vm: kvm_ioctls::VmFd,
    memory: Ram,
}

impl Guest {
    fn run(mut self) {
        let control = Arc::clone(&self.control);
        let kick = control.enlist(0, &mut self.vcpu);
        while kick.go_on(|| ()) {
            let report = self.run_once();
            let last = !matches!(report, None | Some(Report::Started));
            // The receiver goes away at the deadline; then the order to stop is on its way.
            report
                .into_iter()
                .for_each(|report| drop(self.sender.send(report)));
            if last {
                break;
            }
        }
        drop(kick);
    }

    fn run_once(&mut self) -> Option<Report> {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, b"a")) => Some(Report::Started),
            Ok(VcpuExit::IoOut(PORT, b"z")) => Some(self.check_memory()),
            Ok(VcpuExit::Intr) => None,
            Ok(VcpuExit::InternalError) => {
                let suberror = vcpu::internal_suberror(&mut self.vcpu);
                let name = vcpu::suberror_name(suberror);
                Some(Report::Failed(format!("internal error {suberror} ({name})")))
            }
            Ok(VcpuExit::FailEntry(reason, _)) => Some(Report::Failed(format!("entry failure {reason:#x}"))),
            Ok(other) => Some(Report::Failed(format!("unexpected exit {other:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => Some(Report::Failed(format!("KVM_RUN: {error}"))),
        }
    }

    /// Whether what the guest wrote has arrived.
    fn check_memory(&self) -> Report {
        let last = PAGES + 255 * layout::PAGE;
        match self.memory.read_obj::<u64>(GuestAddress(last)) {
            Ok(value) if value == last => Report::Finished,
            _ => Report::Failed("memory does not hold what the guest wrote".into()),
        }
    }
}
