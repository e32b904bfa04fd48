//! The registers with which a vCPU starts, as they are measured.
//!
//! KVM makes the measured save area (VMSA; AMD 24593 appendix B, table B-4) of what is set here and of its own reset values for the
//! rest. Nothing but these two calls may set what the save area shows.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// A segment register with its hidden part, as the save area has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Bits 3:0 type, 4 S, 6:5 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G (the descriptor's bits 55:52 and 47:40).
    pub attributes: u16,
    /// Last offset.
    pub limit: u32,
    /// First address.
    pub base: u64,
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Table {
    /// First address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// What a vCPU starts with. What KVM adds to control registers (SVME to EFER, MCE to CR4) is not in here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// CR0, CR2, CR3, CR4.
    pub control: [u64; 4],
    /// Extended features.
    pub efer: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// First instruction.
    pub rip: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: in the order of their numbers in instructions.
    pub general: [u64; 16],
}

impl VcpuState {
    /// For `KVM_SET_REGS`.
    pub fn regs(&self) -> kvm_regs {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.general;
        kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.rip,
            rflags: self.rflags,
        }
    }

    /// Puts this state's part of `KVM_SET_SREGS` into what KVM has after reset.
    pub fn put_sregs(&self, sregs: &mut kvm_sregs) {
        let [es, cs, ss, ds, fs, gs] = self.segments.map(kvm_form);
        (sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs) = (es, cs, ss, ds, fs, gs);
        sregs.tr = kvm_form(self.tr);
        sregs.ldt = kvm_form(self.ldtr);
        sregs.gdt = table_form(self.gdtr);
        sregs.idt = table_form(self.idtr);
        [sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4] = self.control;
        sregs.efer = self.efer;
    }
}

fn table_form(table: Table) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}

fn kvm_form(segment: Segment) -> kvm_segment {
    let bits = |from: u16, mask: u16| (segment.attributes >> from & mask) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(8, 1),
        l: bits(9, 1),
        db: bits(10, 1),
        g: bits(11, 1),
        unusable: u8::from(bits(7, 1) == 0),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_apart_as_the_descriptor_has_them() {
        let code = kvm_form(Segment {
            selector: 0x10,
            attributes: 0xa9b,
            limit: u32::MAX,
            base: 0,
        });
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.avl, code.l, code.db, code.g), (0, 1, 0, 1));
        assert_eq!(code.unusable, 0);
        assert_eq!(kvm_form(Segment::default()).unusable, 1);
    }

    #[test]
    fn general_registers_have_the_order_of_instructions() {
        let state = VcpuState {
            general: std::array::from_fn(|index| index as u64),
            ..VcpuState::default()
        };
        let regs = state.regs();
        assert_eq!((regs.rax, regs.rcx, regs.rdx, regs.rbx), (0, 1, 2, 3));
        assert_eq!((regs.rsp, regs.rbp, regs.rsi, regs.rdi), (4, 5, 6, 7));
        assert_eq!((regs.r8, regs.r15), (8, 15));
    }
}
