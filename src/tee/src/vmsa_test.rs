//! Registers and the pages made of them. `tests/sev_snp_measure.rs` compares pages with an independent implementation.

use super::*;

fn u64_at(page: &Page, at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
}

#[test]
fn signatures_are_those_of_the_guests_cpu_models() {
    let signatures = CpuModel::ALL.map(CpuModel::signature);
    assert_eq!(signatures, [0x00a0_0f11, 0x00a1_0f10, 0x00b0_0f00]);
}

#[test]
fn the_boot_vcpu_starts_in_64_bit_mode() {
    let state = VcpuState::boot(Gpa(0x10_1000), Gpa(0x10_5000), CpuModel::Milan);
    assert!(state.cs.l() && !state.cs.db() && state.cs.present() && state.cs.s() && state.cs.g());
    assert_eq!((state.cs.type_(), state.cs.dpl(), state.ss.type_()), (0xb, 0, 3));
    let page = page(&state, SevFeatures::SNP, Variant::Linux6_11);
    assert_eq!(u64_at(&page, 0x178), 0x10_1000);
    assert_eq!(u64_at(&page, 0x150), 0x10_5000);
    assert_eq!(u64_at(&page, 0x158), 0x8001_0031);
    assert_eq!(u64_at(&page, 0x148), 0x660);
    assert_eq!(u64_at(&page, 0xd0), 0x1d00);
    assert_eq!(u64_at(&page, 0x310), 0x00a0_0f11);
    assert_eq!(page[0x10..0x18], [0x08, 0, 0x9b, 0x0a, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn every_register_has_a_place_of_its_own() {
    let base = VcpuState::reset(CpuModel::Milan);
    type Change = fn(&mut VcpuState);
    let changes: [(&str, Change); 33] = [
        ("es", |s| s.es.base = 1),
        ("cs", |s| s.cs.base = 1),
        ("ss", |s| s.ss.base = 1),
        ("ds", |s| s.ds.base = 1),
        ("fs", |s| s.fs.base = 1),
        ("gs", |s| s.gs.base = 1),
        ("ldtr", |s| s.ldtr.base = 1),
        ("tr", |s| s.tr.base = 1),
        ("gdtr", |s| s.gdtr.base = 1),
        ("idtr", |s| s.idtr.base = 1),
        ("cr0", |s| s.cr0 = 1),
        ("cr2", |s| s.cr2 = 1),
        ("cr3", |s| s.cr3 = 1),
        ("cr4", |s| s.cr4 = 1),
        ("efer", |s| s.efer = 1),
        ("rflags", |s| s.rflags = 1),
        ("rip", |s| s.rip = 1),
        ("rax", |s| s.rax = 1),
        ("rbx", |s| s.rbx = 1),
        ("rcx", |s| s.rcx = 1),
        ("rdx", |s| s.rdx = 1),
        ("rsi", |s| s.rsi = 1),
        ("rdi", |s| s.rdi = 1),
        ("rsp", |s| s.rsp = 1),
        ("rbp", |s| s.rbp = 1),
        ("r8", |s| s.r8 = 1),
        ("r9", |s| s.r9 = 1),
        ("r10", |s| s.r10 = 1),
        ("r11", |s| s.r11 = 1),
        ("r12", |s| s.r12 = 1),
        ("r13", |s| s.r13 = 1),
        ("r14", |s| s.r14 = 1),
        ("r15", |s| s.r15 = 1),
    ];
    let made = |state: &VcpuState| page(state, SevFeatures::SNP, Variant::Linux6_11);
    let mut seen = vec![made(&base)];
    for (name, change) in changes {
        let mut state = base.clone();
        change(&mut state);
        let page = made(&state);
        assert!(!seen.contains(&page), "{name}");
        seen.push(page);
    }
}

#[test]
fn variants_differ_in_the_floating_point_state_alone() {
    let state = VcpuState::reset(CpuModel::Genoa);
    let [new, old] = Variant::ALL.map(|variant| page(&state, SevFeatures::SNP, variant));
    assert_eq!(new[..0x400], old[..0x400]);
    assert_eq!(new[0x408..0x412], [0x80, 0x1f, 0, 0, 0, 0, 0, 0, 0x7f, 0x03]);
    assert!(old[0x400..].iter().all(|byte| *byte == 0));
}

#[test]
fn snp_is_active_whatever_else_is() {
    let state = VcpuState::reset(CpuModel::Turin);
    let features = SevFeatures(SevFeatures::DEBUG_SWAP);
    assert_eq!(u64_at(&page(&state, features, Variant::Linux6_11), 0x3b0), 0x21);
    assert_eq!(SevFeatures(0x21).for_init2(), 0x20);
}

#[test]
fn cpu_models_are_read_by_name() {
    for model in CpuModel::ALL {
        assert_eq!(model.to_string().parse(), Ok(model));
    }
    let message = "rome".parse::<CpuModel>().unwrap_err().to_string();
    assert_eq!(
        message,
        "\"rome\" is not a CPU model with SEV-SNP (milan, genoa, turin)"
    );
}
