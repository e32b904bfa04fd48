//! The state in which a vCPU starts.
//!
//! The boot vCPU is in long mode with the low GiB mapped one to one, as Linux' 64-bit boot protocol wants it. The others stay
//! as KVM made them: waiting for the boot vCPU's INIT and SIPI.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_HUGE: u64 = 1 << 7;

/// GDT entries: null, 64-bit code at 0x10, data at 0x18 (`__BOOT_CS` and `__BOOT_DS` of Linux), TSS at 0x20.
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// Interrupts off; bit 1 is always set.
const RFLAGS: u64 = 2;

/// Model-specific registers of AMD64 (AMD 24593 appendix A) that have a meaning at start.
const MSR_TSC: u32 = 0x10;
const MSR_SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory types on, write-back where no range says otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE.
const MSR_SYSCALL: [u32; 5] = [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102];

/// Local vector table entries of the local APIC, as offsets into its page.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE: u32 = 0x700;
const APIC_MODE_NMI: u32 = 0x400;
const APIC_MODE_EXTINT: u32 = 0x700;

/// Writes the GDT and the page tables that [`boot_vcpu`] points to.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    for (index, entry) in (0u64..).zip(GDT) {
        memory.write_obj(entry, GuestAddress(layout::GDT + index * 8))?;
    }
    memory.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(
        layout::PAGE_DIRECTORY | PAGE_PRESENT_WRITABLE,
        GuestAddress(layout::PDPT),
    )?;
    let mut directory = Vec::with_capacity(layout::PAGE as usize);
    for page in 0u64..512 {
        directory.extend((page << 21 | PAGE_HUGE | PAGE_PRESENT_WRITABLE).to_le_bytes());
    }
    memory.write_slice(&directory, GuestAddress(layout::PAGE_DIRECTORY))
}

/// Sets what every vCPU has: floating point unit, model-specific registers, the local APIC's inputs.
pub fn common(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })?;
    set_msrs(vcpu)?;
    let mut lapic = vcpu.get_lapic()?;
    // The PIC's output arrives at LINT0, NMI at LINT1 (MP specification 3.6.2.2, virtual wire mode).
    set_delivery_mode(&mut lapic, APIC_LVT_LINT0, APIC_MODE_EXTINT);
    set_delivery_mode(&mut lapic, APIC_LVT_LINT1, APIC_MODE_NMI);
    vcpu.set_lapic(&lapic)
}

/// Makes `vcpu` start at `entry` in long mode.
pub fn boot_vcpu(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let regs = kvm_regs {
        rip: entry,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::BOOT_PARAMS,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs)?;
    let mut sregs = vcpu.get_sregs()?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)
}

/// Flat 64-bit segments and paging by the boot page tables.
fn long_mode(sregs: &mut kvm_sregs) {
    let data = segment(DATA_SELECTOR);
    sregs.cs = segment(CODE_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS_SELECTOR);
    sregs.gdt.base = layout::GDT;
    // The limit is the offset of the last byte.
    sregs.gdt.limit = size_of_val(&GDT) as u16 - 1;
    // No interrupt table: an exception before the kernel has its own is a triple fault.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// The hidden part of the segment register that `selector` loads from [`GDT`]: base 0, limit 4 GiB.
fn segment(selector: u16) -> kvm_segment {
    let entry = GDT[usize::from(selector / 8)];
    let bit = |at: u32| (entry >> at & 1) as u8;
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: (entry >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (entry >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        unusable: 0,
        padding: 0,
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let zero = [MSR_TSC]
        .into_iter()
        .chain(MSR_SYSENTER)
        .chain(MSR_SYSCALL)
        .map(|index| (index, 0));
    let set = [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let entries: Vec<_> = zero
        .chain(set)
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    let invalid = || kvm_ioctls::Error::new(libc::EINVAL);
    let msrs = Msrs::from_entries(&entries).map_err(|_| invalid())?;
    // KVM returns how many it has set and stops at the first that it does not know.
    match vcpu.set_msrs(&msrs)? {
        count if count == entries.len() => Ok(()),
        _ => Err(invalid()),
    }
}

/// Changes the delivery mode of one entry of the local vector table.
fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = lapic.regs[offset + at] as u8;
    }
    let value = u32::from_le_bytes(bytes) & !APIC_MODE | mode;
    for (at, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[offset + at] = byte as _;
    }
}
