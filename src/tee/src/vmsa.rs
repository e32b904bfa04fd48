//! The registers that a vCPU starts with, and the page that the firmware encrypts and measures for it.
//!
//! [`VcpuState`] holds what the VMM sets: its KVM_SET_SREGS and KVM_SET_REGS and the page here are made of the same
//! value. KVM adds the rest when it makes the page from its own state (`sev_es_sync_vmsa` in arch/x86/kvm/svm/sev.c):
//!
//! ```text
//!   VcpuState ──► KVM_SET_SREGS, KVM_SET_REGS ──► KVM's vCPU ──┐
//!       │                                                      ├──► the page that is launched
//!       │          EFER.SVME, CR4.MCE, DR6, DR7, PAT, XCR0, ───┘                 ║ equal
//!       └─► page() SEV_FEATURES, x87 and SSE control        ────► the page that is predicted
//! ```
//!
//! That holds as long as the VMM sets nothing else that the page shows: no KVM_SET_MSRS of the system call and
//! debugging MSRs, PAT, XSS or SPEC_CTRL, no KVM_SET_XCRS, KVM_SET_FPU, KVM_SET_XSAVE or KVM_SET_DEBUGREGS with other
//! values than those of a reset, and KVM's quirk KVM_X86_QUIRK_CD_NW_CLEARED stays on.
//!
//! Layout: AMD64 Architecture Programmer's Manual, volume 2 (AMD 24593), table B-4.

use std::fmt;
use std::str::FromStr;

use crate::{Gpa, PAGE_SIZE, Page};

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// What the guest sees in the register.
    pub selector: u16,
    /// Bits 55:52 and 47:40 of a descriptor, as the VMCB has them: type in 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attributes: u16,
    /// In bytes, whatever G says.
    pub limit: u32,
    /// Linear address.
    pub base: u64,
}

impl Segment {
    /// A flat, writable data segment as 64-bit code has it.
    const FLAT_DATA: Self = Self {
        selector: 0x10,
        attributes: 0xc93,
        limit: u32::MAX,
        base: 0,
    };
    /// A flat 64-bit code segment.
    const FLAT_CODE: Self = Self {
        selector: 0x08,
        attributes: 0xa9b,
        limit: u32::MAX,
        base: 0,
    };
    /// A data segment after reset.
    const RESET_DATA: Self = Self {
        selector: 0,
        attributes: 0x93,
        limit: 0xffff,
        base: 0,
    };
    /// The code segment after reset: the last 64 KiB below 4 GiB.
    const RESET_CODE: Self = Self {
        selector: 0xf000,
        attributes: 0x9b,
        limit: 0xffff,
        base: 0xffff_0000,
    };
    /// LDTR after reset.
    const RESET_LDT: Self = Self {
        selector: 0,
        attributes: 0x82,
        limit: 0xffff,
        base: 0,
    };
    /// A busy TSS.
    const RESET_TSS: Self = Self {
        selector: 0,
        attributes: 0x8b,
        limit: 0xffff,
        base: 0,
    };

    /// The type field: 4 bits.
    pub fn type_(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }

    /// S: a code or data segment, not a system segment.
    pub fn s(&self) -> bool {
        self.bit(4)
    }

    /// Descriptor privilege level: 0 to 3.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// P: present.
    pub fn present(&self) -> bool {
        self.bit(7)
    }

    /// AVL: for software.
    pub fn avl(&self) -> bool {
        self.bit(8)
    }

    /// L: 64-bit code.
    pub fn l(&self) -> bool {
        self.bit(9)
    }

    /// D/B: 32-bit code or stack.
    pub fn db(&self) -> bool {
        self.bit(10)
    }

    /// G: the descriptor's limit counts pages.
    pub fn g(&self) -> bool {
        self.bit(11)
    }

    fn bit(&self, bit: u32) -> bool {
        self.attributes >> bit & 1 == 1
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Linear address.
    pub base: u64,
    /// Length in bytes less one.
    pub limit: u16,
}

/// The registers that the VMM gives a vCPU before SNP_LAUNCH_FINISH. What KVM itself adds to control registers is not in
/// here: what is here goes into KVM_SET_SREGS and KVM_SET_REGS as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct VcpuState {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_MCE: u64 = 1 << 6;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const EFER_SVME: u64 = 1 << 12;
const RFLAGS_FIXED: u64 = 1 << 1;

impl VcpuState {
    /// The boot vCPU: at `entry` in 64-bit mode with the page tables at `page_tables`, interrupts off, no stack.
    ///
    /// CR3 holds a plain address although the tables are encrypted: walks of page tables are always private in an SEV guest
    /// (AMD 24593, §15.34.5), and KVM refuses a CR3 that is wider than the guest's physical addresses. The C-bit is in the
    /// tables' entries. SSE is on, so that compiled code just runs.
    pub fn boot(entry: Gpa, page_tables: Gpa, cpu: CpuModel) -> Self {
        Self {
            es: Segment::FLAT_DATA,
            cs: Segment::FLAT_CODE,
            ss: Segment::FLAT_DATA,
            ds: Segment::FLAT_DATA,
            fs: Segment::FLAT_DATA,
            gs: Segment::FLAT_DATA,
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
            cr3: page_tables.0,
            cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
            efer: EFER_LME | EFER_LMA | EFER_NXE,
            rip: entry.0,
            ..Self::reset(cpu)
        }
    }

    /// Any other vCPU: as a reset leaves it. It never runs in this state: the guest gives it another VMSA (AP creation of
    /// the GHCB protocol).
    pub fn reset(cpu: CpuModel) -> Self {
        Self {
            es: Segment::RESET_DATA,
            cs: Segment::RESET_CODE,
            ss: Segment::RESET_DATA,
            ds: Segment::RESET_DATA,
            fs: Segment::RESET_DATA,
            gs: Segment::RESET_DATA,
            ldtr: Segment::RESET_LDT,
            tr: Segment::RESET_TSS,
            gdtr: Table {
                base: 0,
                limit: 0xffff,
            },
            idtr: Table {
                base: 0,
                limit: 0xffff,
            },
            // A reset sets CD and NW as well; KVM takes them off what it launches.
            cr0: CR0_ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            rflags: RFLAGS_FIXED,
            rip: 0xfff0,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: cpu.signature().into(),
            rsi: 0,
            rdi: 0,
            rsp: 0,
            rbp: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
        }
    }
}

/// A processor generation with SEV-SNP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// EPYC 7003: Zen 3.
    Milan,
    /// EPYC 9004 and 8004: Zen 4.
    Genoa,
    /// EPYC 9005: Zen 5.
    Turin,
}

impl CpuModel {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// CPUID Fn0000_0001_EAX of the CPU model that guests get: RDX after a reset.
    ///
    /// It is the model of QEMU's EPYC-Milan, EPYC-Genoa and EPYC-Turin, not the stepping of the host's processor: the
    /// digest has to be the same on every host of a generation.
    pub fn signature(self) -> u32 {
        let (family, model, stepping) = match self {
            Self::Milan => (0x19, 0x01, 1),
            Self::Genoa => (0x19, 0x11, 0),
            Self::Turin => (0x1a, 0x00, 0),
        };
        // AMD 25481: families above 0xf are split, models above 0xf too.
        let (extended, base): (u32, u32) = (family - 0xf, 0xf);
        extended << 20 | (model >> 4) << 16 | base << 8 | (model & 0xf) << 4 | stepping
    }

    /// The name that texts have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
            Self::Turin => "turin",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no CPU model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CPU model with SEV-SNP (milan, genoa, turin)")]
pub struct UnknownCpu(pub String);

impl FromStr for CpuModel {
    type Err = UnknownCpu;

    fn from_str(text: &str) -> Result<Self, UnknownCpu> {
        let found = Self::ALL.into_iter().find(|model| model.name() == text);
        found.ok_or_else(|| UnknownCpu(text.to_owned()))
    }
}

/// SEV_FEATURES (AMD 24593, table B-4, offset 0x3b0): what protects the guest from its hypervisor. KVM_SEV_INIT2 takes the
/// same bits, without SNP_ACTIVE, which KVM adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SevFeatures(pub u64);

impl SevFeatures {
    /// SNP_ACTIVE alone: what an SNP guest can't be without.
    pub const SNP: Self = Self(1);
    /// DEBUG_SWAP, beside others: debug registers are swapped with the guest's.
    pub const DEBUG_SWAP: u64 = 1 << 5;
    /// SECURE_TSC, beside others.
    pub const SECURE_TSC: u64 = 1 << 9;

    /// Bits for `vmsa_features` of KVM_SEV_INIT2.
    pub fn for_init2(self) -> u64 {
        self.0 & !Self::SNP.0
    }
}

/// What KVM puts into the page beside what the VMM set, by version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Variant {
    /// Linux 6.11 and later, the first with SNP guests: x87 and SSE state of a reset is in the page.
    #[serde(rename = "linux-6.11")]
    Linux6_11,
    /// AMD's host kernels before KVM_SEV_INIT2 (snp-host-v12 and earlier): x87 and SSE state is zero.
    #[serde(rename = "amd-snp-host-v12")]
    AmdSnpHostV12,
}

impl Variant {
    /// All of them, the one that cwrun launches on first.
    pub const ALL: [Self; 2] = [Self::Linux6_11, Self::AmdSnpHostV12];

    /// The name that texts have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux6_11 => "linux-6.11",
            Self::AmdSnpHostV12 => "amd-snp-host-v12",
        }
    }

    /// Which kernels that is, for a person.
    pub fn kernels(self) -> &'static str {
        match self {
            Self::Linux6_11 => "Linux 6.11 and later",
            Self::AmdSnpHostV12 => "AMD's SNP host kernels before KVM_SEV_INIT2 (snp-host-v12 and earlier)",
        }
    }
}

/// The VMSA page that KVM makes of a vCPU in this state.
pub fn page(state: &VcpuState, features: SevFeatures, variant: Variant) -> Box<Page> {
    let mut page = SaveArea(Box::new([0; PAGE_SIZE]));
    page.put_segments(state);
    page.put_control(state);
    page.put_general(state);
    page.put_kvm(features, variant);
    page.0
}

struct SaveArea(Box<Page>);

impl SaveArea {
    /// Every offset here is a constant inside the page.
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }

    fn put64(&mut self, offset: usize, value: u64) {
        self.put(offset, value.to_le_bytes());
    }

    fn put_segment(&mut self, offset: usize, segment: &Segment) {
        self.put(offset, segment.selector.to_le_bytes());
        self.put(offset + 2, segment.attributes.to_le_bytes());
        self.put(offset + 4, segment.limit.to_le_bytes());
        self.put64(offset + 8, segment.base);
    }

    fn put_table(&mut self, offset: usize, table: &Table) {
        let (limit, base) = (table.limit.into(), table.base);
        self.put_segment(
            offset,
            &Segment {
                selector: 0,
                attributes: 0,
                limit,
                base,
            },
        );
    }

    fn put_segments(&mut self, state: &VcpuState) {
        self.put_segment(0x00, &state.es);
        self.put_segment(0x10, &state.cs);
        self.put_segment(0x20, &state.ss);
        self.put_segment(0x30, &state.ds);
        self.put_segment(0x40, &state.fs);
        self.put_segment(0x50, &state.gs);
        self.put_table(0x60, &state.gdtr);
        self.put_segment(0x70, &state.ldtr);
        self.put_table(0x80, &state.idtr);
        self.put_segment(0x90, &state.tr);
        // CPL is the DPL of SS.
        self.put(0xcb, [state.ss.dpl()]);
    }

    fn put_control(&mut self, state: &VcpuState) {
        // KVM runs guests with EFER.SVME, and with the host's CR4.MCE, which Linux sets on all its processors.
        self.put64(0xd0, state.efer | EFER_SVME);
        self.put64(0x148, state.cr4 | CR4_MCE);
        self.put64(0x150, state.cr3);
        self.put64(0x158, state.cr0);
        self.put64(0x170, state.rflags);
        self.put64(0x178, state.rip);
        self.put64(0x240, state.cr2);
    }

    fn put_general(&mut self, state: &VcpuState) {
        self.put64(0x1d8, state.rsp);
        self.put64(0x1f8, state.rax);
        let rest = [
            (0x308, state.rcx),
            (0x310, state.rdx),
            (0x318, state.rbx),
            (0x328, state.rbp),
            (0x330, state.rsi),
            (0x338, state.rdi),
            (0x340, state.r8),
            (0x348, state.r9),
            (0x350, state.r10),
            (0x358, state.r11),
            (0x360, state.r12),
            (0x368, state.r13),
            (0x370, state.r14),
            (0x378, state.r15),
        ];
        rest.into_iter()
            .for_each(|(offset, value)| self.put64(offset, value));
    }

    /// What no KVM_SET_SREGS and KVM_SET_REGS say: KVM's own reset state.
    fn put_kvm(&mut self, features: SevFeatures, variant: Variant) {
        const DR7_FIXED: u64 = 0x400;
        const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
        const PAT_RESET: u64 = 0x0007_0406_0007_0406;
        const XCR0_X87: u64 = 1;
        self.put64(0x160, DR7_FIXED);
        self.put64(0x168, DR6_ACTIVE_LOW);
        self.put64(0x268, PAT_RESET);
        self.put64(0x3b0, features.0 | SevFeatures::SNP.0);
        self.put64(0x3e8, XCR0_X87);
        if variant == Variant::Linux6_11 {
            const MXCSR_DEFAULT: u32 = 0x1f80;
            const FCW_DEFAULT: u16 = 0x37f;
            self.put(0x408, MXCSR_DEFAULT.to_le_bytes());
            self.put(0x410, FCW_DEFAULT.to_le_bytes());
        }
    }
}

#[cfg(test)]
#[path = "vmsa_test.rs"]
mod vmsa_test;
