//! The launch digest, computed from the calls that the VMM makes, is the one that is predicted.

use std::io::Write as _;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use tee::launch::{Chain, LaunchDigest, VMSA_GPA};
use vmm::snp::recording::{Call, Fake, Registers};
use vmm::snp::{self, Range};

use super::*;

const GUEST_COUNTS: [u8; 5] = [1, 2, 3, 8, 64];

/// An image like stage0's: code, hashes, secrets, CPUID and two pages of zeros, in the order of their addresses.
fn image() -> Image {
    const TYPES: [(u32, u64, u64); 5] = [
        (1, 0x10_0000, 5 * 4096),
        (0x6063_7701, 0x10_5000, 4096),
        (0x6063_7702, 0x10_6000, 4096),
        (0x6063_7703, 0x10_7000, 4096),
        (0x6063_7704, 0x10_8000, 2 * 4096),
    ];
    let mut elf = vec![0; 64 + 56 * TYPES.len()];
    elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (at, value) in [
        (16, 2u16),
        (18, 62),
        (52, 64),
        (54, 56),
        (56, TYPES.len() as u16),
        (58, 64),
    ] {
        elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    elf[20..24].copy_from_slice(&1u32.to_le_bytes());
    elf[24..32].copy_from_slice(&0x10_1000u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    for (index, (kind, gpa, size)) in TYPES.into_iter().enumerate() {
        let at = 64 + 56 * index;
        let in_file = if kind == 1 { size } else { 0 };
        elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        elf[at + 4..at + 8].copy_from_slice(&(if kind == 1 { 7u32 } else { 6 }).to_le_bytes());
        for (offset, value) in [
            (8, 4096),
            (16, gpa),
            (24, gpa),
            (32, in_file),
            (40, size),
            (48, 4096),
        ] {
            elf[at + offset..at + offset + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    elf.resize(4096, 0);
    elf.extend((0..5 * 4096u32).map(|at| (at * 7 + at / 256) as u8));
    Image::parse(&elf).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn boot_files() -> BootFiles {
    BootFiles::new(file(&[1; 10_000]), file(&[2; 5000])).unwrap()
}

/// What the VMM passes to KVM for this guest.
fn record(image: &Image, vcpus: u8, cpu: CpuModel) -> (Fake, Plan) {
    record_with(image, vcpus, cpu, None)
}

fn record_with(image: &Image, vcpus: u8, cpu: CpuModel, identity: Option<&snp::Identity>) -> (Fake, Plan) {
    let files = boot_files();
    let plan = files.plan(image, vcpus, cpu, Variant::Linux6_11).unwrap();
    let firmware = files.simulate(&plan, 1024);
    let range = |gpa, bytes| Range {
        gpa,
        bytes,
        shared: 0x7000_0000_0000,
    };
    let mut fake = Fake::default();
    let launch = snp::Launch {
        ram: &[range(0, 1 << 30)],
        staging: range(0xc000_0000, 1 << 24),
        pages: &firmware.pages,
        vcpus: &firmware.vcpus,
        cpuid: &[Default::default()],
        policy: 0x3_0000,
        host_data: [3; 32],
        identity,
    };
    snp::launch(&mut fake, &launch).unwrap();
    (fake, plan)
}

/// What KVM makes of the registers that were set, by the layout of the save area.
fn vmsa(set: &Registers, features: u64) -> Box<tee::Page> {
    let (regs, sregs) = (&set.regs, &set.sregs);
    let state = vmsa::VcpuState {
        es: from_kvm(&sregs.es),
        cs: from_kvm(&sregs.cs),
        ss: from_kvm(&sregs.ss),
        ds: from_kvm(&sregs.ds),
        fs: from_kvm(&sregs.fs),
        gs: from_kvm(&sregs.gs),
        ldtr: from_kvm(&sregs.ldt),
        tr: from_kvm(&sregs.tr),
        gdtr: vmsa::Table {
            base: sregs.gdt.base,
            limit: sregs.gdt.limit,
        },
        idtr: vmsa::Table {
            base: sregs.idt.base,
            limit: sregs.idt.limit,
        },
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        ..general(regs, sregs)
    };
    vmsa::page(&state, SevFeatures(features | 1), Variant::Linux6_11)
}

fn general(regs: &kvm_regs, _sregs: &kvm_sregs) -> vmsa::VcpuState {
    vmsa::VcpuState {
        rflags: regs.rflags,
        rip: regs.rip,
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        ..vmsa::VcpuState::reset(CpuModel::Milan)
    }
}

/// `svm_set_segment`.
fn from_kvm(segment: &kvm_segment) -> vmsa::Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let present = u8::from(segment.present == 1 && segment.unusable == 0);
    let attributes = u16::from(segment.type_ & 0xf)
        | bit(segment.s, 4)
        | u16::from(segment.dpl & 3) << 5
        | bit(present, 7)
        | bit(segment.avl, 8)
        | bit(segment.l, 9)
        | bit(segment.db, 10)
        | bit(segment.g, 11);
    vmsa::Segment {
        selector: segment.selector,
        attributes,
        limit: segment.limit,
        base: segment.base,
    }
}

/// The firmware's digest of what was passed to it: pages in their order, then each vCPU.
fn digest(fake: &Fake) -> LaunchDigest {
    let features = fake.calls.iter().find_map(|call| match call {
        Call::Init { features, .. } => Some(*features),
        _ => None,
    });
    let mut chain = Chain::new();
    for (gpa, kind, bytes) in fake.pages() {
        let kind = [
            PageType::Normal,
            PageType::Zero,
            PageType::Secrets,
            PageType::Cpuid,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
        .unwrap();
        chain.add(kind, tee::Gpa(gpa), bytes);
    }
    for set in &fake.registers {
        let page = vmsa(set.as_ref().unwrap(), features.unwrap());
        chain.add(PageType::Vmsa, VMSA_GPA, &page);
    }
    chain.digest()
}

#[test]
fn the_digest_of_the_recorded_calls_is_the_predicted_one() {
    let image = image();
    let mut seen = Vec::new();
    for cpu in CpuModel::ALL {
        for vcpus in GUEST_COUNTS {
            let (fake, plan) = record(&image, vcpus, cpu);
            assert_eq!(digest(&fake), plan.digest(), "{cpu}, {vcpus} vCPUs");
            assert_eq!(fake.registers.len(), usize::from(vcpus));
            seen.push(plan.digest());
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), CpuModel::ALL.len() * GUEST_COUNTS.len());
}

#[test]
fn what_is_recorded_is_what_the_plan_counts() {
    let (fake, plan) = record(&image(), 1, CpuModel::Genoa);
    let normal = fake.pages().filter(|(_, kind, _)| *kind == 1).count();
    // Pages of contents, and the one save area.
    assert_eq!((normal + fake.registers.len()) * 4096, plan.measured());
    assert_eq!(normal, 6);
}

#[test]
fn pages_that_follow_each_other_go_in_one_call() {
    let image = image();
    let plan = boot_files()
        .plan(&image, 1, CpuModel::Milan, Variant::Linux6_11)
        .unwrap();
    let pages = launch_pages(&plan);
    let gpas: Vec<_> = pages.iter().map(|pages| pages.gpa).collect();
    assert_eq!(gpas, [0x10_0000, 0x10_6000, 0x10_7000, 0x10_8000]);
}

#[test]
fn a_changed_bit_in_any_boot_file_changes_the_digest() {
    let image = image();
    let digest = |kernel: &[u8], initrd: &[u8]| {
        let files = BootFiles::new(file(kernel), file(initrd)).unwrap();
        let plan = files.plan(&image, 1, CpuModel::Milan, Variant::Linux6_11);
        plan.unwrap().digest()
    };
    let (kernel, initrd) = (vec![1; 9000], vec![2; 3000]);
    let whole = digest(&kernel, &initrd);
    assert_eq!(digest(&kernel, &initrd), whole);
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x10;
        bytes
    };
    for at in [0, 4096, 8999] {
        assert_ne!(digest(&flipped(&kernel, at), &initrd), whole);
    }
    for at in [0, 2999] {
        assert_ne!(digest(&kernel, &flipped(&initrd, at)), whole);
    }
    assert_ne!(digest(&kernel[..8999], &initrd), whole);
    assert_ne!(digest(&initrd, &kernel), whole);
}

#[test]
fn a_changed_bit_of_the_command_line_changes_the_digest() {
    let image = image();
    let digest = |files: &BootFiles| {
        let plan = files.plan(&image, 1, CpuModel::Milan, Variant::Linux6_11);
        plan.unwrap().digest()
    };
    let usual = digest(&boot_files());
    let mut changed = boot_files();
    let mut line = changed.cmdline.clone().into_bytes();
    line[0] ^= 1;
    changed.expected.cmdline.sha256 = Sha256::digest(&line).into();
    assert_ne!(digest(&changed), usual);
    let mut longer = boot_files();
    longer.expected.cmdline.len += 1;
    assert_ne!(digest(&longer), usual);
}

/// The owner's block for a launch, as the VMM passes it on: the firmware compares its digest with what it has measured.
#[test]
fn an_identity_block_for_the_predicted_digest_goes_with_the_launch_that_has_it() {
    use tee::launch::{IdBlock, Policy};
    let (fake, plan) = record(&image(), 2, CpuModel::Genoa);
    let block = IdBlock {
        digest: plan.digest(),
        family_id: [1; 16],
        image_id: [2; 16],
        guest_svn: 3,
        policy: Policy::from_bits(0x3_0000).unwrap(),
    };
    let identity = snp::Identity {
        block: block.to_bytes(),
        authentication: Box::new([4; 4096]),
        author: true,
    };
    let (again, _) = record_with(&image(), 2, CpuModel::Genoa, Some(&identity));
    assert_eq!(digest(&again), digest(&fake), "it changes nothing of the launch");
    assert_eq!(digest(&again), block.digest);
    let finish = again.calls.last().unwrap();
    assert!(matches!(
        finish,
        Call::Finish {
            identity: true,
            author: true,
            ..
        }
    ));
}

#[test]
fn the_staging_descriptor_is_one_that_stage0_takes() {
    let image = image();
    let files = boot_files();
    let plan = files
        .plan(&image, 3, CpuModel::Milan, Variant::Linux6_11)
        .unwrap();
    let firmware = files.simulate(&plan, 1024);
    let Source::Bytes(bytes) = &firmware.staged[0].source else {
        panic!("the descriptor is bytes");
    };
    let staging = Staging::decode(bytes.as_slice().try_into().unwrap()).unwrap();
    assert_eq!((staging.vcpus, staging.ram), (3, 1 << 30));
    assert_eq!((staging.kernel.len, staging.initrd.len), (10_000, 5000));
    for (extent, staged) in [
        (staging.cmdline, &firmware.staged[1]),
        (staging.kernel, &firmware.staged[2]),
        (staging.initrd, &firmware.staged[3]),
    ] {
        assert_eq!(extent.gpa, staged.gpa);
    }
}

#[test]
fn terminations_have_sentences() {
    let image = image();
    let firmware = |snp: bool| {
        let files = boot_files();
        let plan = files
            .plan(&image, 1, CpuModel::Milan, Variant::Linux6_11)
            .unwrap();
        let description = Snp {
            sev: file(b""),
            policy: 0x3_0000,
            host_data: [0; 32],
            identity: None,
        };
        match snp {
            true => files.launch(&plan, 1024, description),
            false => files.simulate(&plan, 1024),
        }
        .termination
    };
    let msr = Termination::KernelHash.ghcb_msr();
    assert_eq!(firmware(true)(msr), Some("the kernel is not the measured one"));
    assert_eq!(firmware(true)(Termination::KernelHash as u64), None);
    assert_eq!(
        firmware(false)(Termination::KernelHash as u64),
        Some("the kernel is not the measured one")
    );
    assert_eq!(firmware(false)(msr), None);
}

/// The promise of the design, of the real image.
#[test]
#[ignore = "needs target/guest, which `make guest` builds"]
fn the_launch_of_the_real_image_measures_at_most_96_kib() {
    let guest = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let open = |name: &str| File::open(guest.join(name)).unwrap();
    let image = read_image(&open("stage0")).unwrap();
    let (fake, plan) = record(&image, 1, CpuModel::Milan);
    assert_eq!(digest(&fake), plan.digest());
    let normal = fake.pages().filter(|(_, kind, _)| *kind == 1).count();
    let measured = (normal + 1) * 4096;
    println!("{measured} bytes in {normal} pages and 1 save area");
    assert!(measured <= 96 << 10, "{measured}");
}
