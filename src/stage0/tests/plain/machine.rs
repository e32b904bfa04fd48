//! The least machine that boots Linux: RAM, a staging window, KVM's interrupt controllers and timer, a serial port.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use sha2::{Digest, Sha256};
use stage0::Termination;
use stage0::abi::{self, Expected, HashPage, STAGING_START, Staging, segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const RAM: u64 = 256 << 20;
const STAGING: u64 = 64 << 20;
const KVM_TSS: usize = 0xfffb_d000;
/// In the emulated machine of the testbed, booting takes tens of seconds.
const DEADLINE: Duration = Duration::from_secs(600);

/// What the guest is made of.
pub struct Files {
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
    pub cmdline: String,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The kernel said what was waited for.
    Said,
    /// stage0 ended it.
    Terminated(Option<Termination>),
    /// The kernel reset the machine.
    Reset,
    /// A triple fault.
    Shutdown,
    /// Something that the machine does not have.
    Unexpected(String),
    /// It took too long.
    Deadline,
}

enum Event {
    Serial(u8),
    End(End),
}

/// Boots `staged` with an image whose hash page says `measured`, until the kernel has said `awaited`. Returns the serial log too.
pub fn run(image: &[u8], measured: &Files, staged: &Files, vcpus: u32, awaited: &str) -> (End, String) {
    let kvm = Kvm::new().expect("/dev/kvm opens");
    let vm = kvm.create_vm().expect("a VM");
    vm.set_tss_address(KVM_TSS).expect("a place for the TSS");
    vm.create_irq_chip().expect("interrupt controllers");
    vm.create_pit2(kvm_pit_config::default()).expect("a timer");
    // The vCPUs' threads outlive the test, so the memory does too.
    let memory = Box::leak(Box::new(memory()));
    register(&vm, memory);
    let (entry, tables) = load_image(memory, image, &hashes(measured));
    stage(memory, staged, vcpus);
    let (sender, events) = channel();
    for id in 0..vcpus {
        let vcpu = vm.create_vcpu(id.into()).expect("a vCPU");
        set_cpuid(&kvm, &vcpu, id);
        if id == 0 {
            enter(&vcpu, entry, tables);
        }
        let sender = sender.clone();
        std::thread::spawn(move || run_vcpu(vcpu, &sender));
    }
    listen(&events, awaited)
}

fn memory() -> GuestMemoryMmap {
    let ranges = [
        (GuestAddress(0), RAM as usize),
        (GuestAddress(STAGING_START), STAGING as usize),
    ];
    GuestMemoryMmap::from_ranges(&ranges).expect("guest memory")
}

fn register(vm: &VmFd, memory: &GuestMemoryMmap) {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(region.start_addr()).expect("mapped") as u64,
            flags: 0,
        };
        // SAFETY: the memory is leaked, so it stays mapped; Rust has no references into it.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM takes the memory");
    }
}

fn hashes(files: &Files) -> HashPage {
    let expected = |file: &[u8]| Expected {
        sha256: Sha256::digest(file).into(),
        len: file.len() as u64,
    };
    HashPage {
        kernel: expected(&files.kernel),
        initrd: expected(&files.initrd),
        cmdline: expected(files.cmdline.as_bytes()),
    }
}

/// Puts the image's pages where its program headers say; returns its entry and its first page.
fn load_image(memory: &GuestMemoryMmap, file: &[u8], hashes: &HashPage) -> (u64, u64) {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
    let mut first = u64::MAX;
    for index in 0..usize::from(file[56]) {
        let at = u64_at(32) as usize + index * 56;
        let kind = u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes"));
        let (offset, gpa, len) = (u64_at(at + 8) as usize, u64_at(at + 24), u64_at(at + 32) as usize);
        first = first.min(gpa);
        match kind {
            segment::HASHES => memory.write_slice(&hashes.encode(), GuestAddress(gpa)),
            _ => memory.write_slice(&file[offset..offset + len], GuestAddress(gpa)),
        }
        .expect("the image is in RAM");
    }
    (u64_at(24), first)
}

fn stage(memory: &GuestMemoryMmap, files: &Files, vcpus: u32) {
    let [kernel, initrd, cmdline] = [&*files.kernel, &files.initrd, files.cmdline.as_bytes()];
    let len = |file: &[u8]| file.len() as u64;
    let staging = Staging::place(vcpus, RAM, len(kernel), len(initrd), len(cmdline)).expect("they fit");
    let contents = [
        (staging.kernel, kernel),
        (staging.initrd, initrd),
        (staging.cmdline, cmdline),
    ];
    for (extent, file) in contents {
        memory
            .write_slice(file, GuestAddress(extent.gpa))
            .expect("the window is large enough");
    }
    memory
        .write_slice(&staging.encode(), GuestAddress(STAGING_START))
        .expect("the window is mapped");
}

fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd, id: u32) {
    let mut table: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .expect("KVM's CPUID table");
    for entry in table.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => entry.edx = id,
            0x8000_001e => entry.eax = id,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&table).expect("KVM takes its own table");
}

/// 64-bit mode with the image's page tables, as the ABI says.
fn enter(vcpu: &VcpuFd, entry: u64, tables: u64) {
    let mut sregs: kvm_sregs = vcpu.get_sregs().expect("registers");
    let segment = |selector, type_, l| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db: 1 - l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0x10, 0xb, 1);
    let data = segment(0x18, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = 1 << 31 | 1 << 4 | 1;
    sregs.cr3 = tables;
    sregs.cr4 = 1 << 5;
    sregs.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs).expect("KVM takes the registers");
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rflags: 2,
        ..Default::default()
    })
    .expect("KVM takes the registers");
}

fn run_vcpu(mut vcpu: VcpuFd, events: &Sender<Event>) {
    loop {
        // When nobody listens any more, the test is over.
        let sent = match vcpu.run() {
            Ok(VcpuExit::IoOut(0x3f8, data)) => {
                data.iter().try_for_each(|&byte| events.send(Event::Serial(byte)))
            }
            Ok(VcpuExit::IoOut(0x64, [0xfe])) => events.send(Event::End(End::Reset)),
            Ok(VcpuExit::IoOut(abi::PLAIN_TERMINATION_PORT, &[code])) => {
                return drop(events.send(Event::End(End::Terminated(Termination::from_code(code)))));
            }
            Ok(VcpuExit::IoIn(0x3fd, data)) => {
                // The transmitter is empty.
                data.fill(0x60);
                Ok(())
            }
            Ok(VcpuExit::IoIn(0x3f8..=0x3ff | 0x64, data)) => {
                data.fill(0);
                Ok(())
            }
            Ok(VcpuExit::IoIn(_, data)) => {
                data.fill(0xff);
                Ok(())
            }
            Ok(VcpuExit::IoOut(..)) => Ok(()),
            Ok(VcpuExit::Shutdown) => return drop(events.send(Event::End(End::Shutdown))),
            Ok(other) => events.send(Event::End(End::Unexpected(format!("{other:?}")))),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => Ok(()),
            Err(error) => return drop(events.send(Event::End(End::Unexpected(error.to_string())))),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn listen(events: &Receiver<Event>, awaited: &str) -> (End, String) {
    let deadline = Instant::now() + DEADLINE;
    let mut log = String::new();
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Serial(byte)) => log.push(char::from(byte)),
            Ok(Event::End(end)) => return (end, log),
            Err(_) => return (End::Deadline, log),
        }
        if log.ends_with(awaited) {
            return (End::Said, log);
        }
    }
}
