//! The order of a launch, what each call is given, and what becomes of every way in which one can fail.

use super::recording::{Call, Fake, Trouble};
use super::*;

const MIB: u64 = 1 << 20;
const POLICY: u64 = 0x3_0000;
const HOST_DATA: [u8; 32] = [0xa5; 32];
const RAM: [Range; 2] = [
    Range {
        gpa: 0,
        bytes: 3 << 30,
        shared: 0x7000_0000_0000,
    },
    Range {
        gpa: 4 << 30,
        bytes: MIB,
        shared: 0x7100_0000_0000,
    },
];
const STAGING: Range = Range {
    gpa: 0xc000_0000,
    bytes: 16 * MIB,
    shared: 0x7200_0000_0000,
};

fn measured(gpa: u64, pages: usize, fill: u8) -> LaunchPages {
    LaunchPages {
        gpa,
        content: Content::Measured(vec![fill; pages * PAGE_BYTES]),
    }
}

fn pages() -> Vec<LaunchPages> {
    let one = |gpa, content| LaunchPages { gpa, content };
    vec![
        measured(0x10_0000, 3, 7),
        measured(0x10_3000, 1, 8),
        one(0x10_4000, Content::Secrets),
        one(0x10_5000, Content::Cpuid),
        one(0x10_6000, Content::Zero(2)),
    ]
}

fn cpuid() -> Vec<kvm_cpuid_entry2> {
    let entry = |function, eax, ecx| kvm_cpuid_entry2 {
        function,
        eax,
        ecx,
        ..Default::default()
    };
    vec![entry(0, 0x10, 0), entry(1, 0xa0_0f11, 1 << 30 | 1 << 2)]
}

fn boot() -> VcpuState {
    let mut state = VcpuState {
        rip: 0x10_0000,
        rflags: 2,
        efer: 0x500,
        ..VcpuState::default()
    };
    state.control = [0x8000_0011, 0, 0x10_2000, 0x20];
    state
}

/// What is other than usual.
#[derive(Default)]
struct Other<'a> {
    pages: Option<&'a [LaunchPages]>,
    identity: Option<&'a Identity>,
    no_vcpus: bool,
}

fn run(fake: &mut Fake) -> Result<(), Error> {
    run_other(fake, Other::default())
}

fn run_other(fake: &mut Fake, other: Other<'_>) -> Result<(), Error> {
    let (pages, cpuid) = (pages(), cpuid());
    let states = [boot(), VcpuState::default()];
    let description = Launch {
        ram: &RAM,
        staging: STAGING,
        pages: other.pages.unwrap_or(&pages),
        vcpus: if other.no_vcpus { &[] } else { &states },
        cpuid: &cpuid,
        policy: POLICY,
        host_data: HOST_DATA,
        identity: other.identity,
    };
    launch(fake, &description)
}

fn kinds(fake: &Fake) -> Vec<(u64, u8)> {
    fake.pages().map(|(gpa, kind, _)| (gpa, kind)).collect()
}

const ALL_PAGES: [(u64, u8); 8] = [
    (0x10_0000, 1),
    (0x10_1000, 1),
    (0x10_2000, 1),
    (0x10_3000, 1),
    (0x10_4000, 5),
    (0x10_5000, 6),
    (0x10_6000, 3),
    (0x10_7000, 3),
];

#[test]
fn a_launch_makes_these_calls_in_this_order() {
    let mut fake = Fake::default();
    run(&mut fake).unwrap();
    let region = |slot, range: Range, private| Call::Region {
        slot,
        gpa: range.gpa,
        bytes: range.bytes,
        private,
    };
    let attributes = |range: Range| Call::Attributes {
        gpa: range.gpa,
        bytes: range.bytes,
        attributes: 8,
    };
    let before = [
        Call::Init { features: 0, ghcb: 2 },
        Call::Memfd { bytes: 3 << 30 },
        region(0, RAM[0], true),
        Call::Memfd { bytes: MIB },
        region(1, RAM[1], true),
        region(2, STAGING, false),
        attributes(RAM[0]),
        attributes(RAM[1]),
        Call::Capability {
            capability: 201,
            argument: 1 << 12,
        },
        Call::Start { policy: POLICY },
    ];
    assert_eq!(fake.calls[..before.len()], before);
    assert_eq!(kinds(&fake), ALL_PAGES);
    let after = [
        Call::Vcpu(0),
        Call::Vcpu(1),
        Call::Registers(0),
        Call::Registers(1),
        Call::Finish {
            host_data: HOST_DATA,
            identity: false,
            author: false,
        },
    ];
    assert_eq!(fake.calls[before.len() + ALL_PAGES.len()..], after);
}

#[test]
fn pages_hold_what_they_should() {
    let mut fake = Fake::default();
    run(&mut fake).unwrap();
    let bytes: Vec<_> = fake.pages().map(|(_, _, bytes)| *bytes).collect();
    assert!(bytes[..3].iter().all(|page| *page == [7; PAGE_BYTES]));
    assert_eq!(bytes[3], [8; PAGE_BYTES]);
    assert_eq!(bytes[4], [0; PAGE_BYTES]);
    assert_eq!(bytes[5], *cpuid_page::build(&cpuid()).unwrap());
}

#[test]
fn every_vcpu_starts_as_it_was_told() {
    let mut fake = Fake::default();
    run(&mut fake).unwrap();
    let first = fake.registers[0].unwrap();
    assert_eq!((first.regs.rip, first.regs.rflags), (0x10_0000, 2));
    assert_eq!((first.sregs.cr3, first.sregs.efer), (0x10_2000, 0x500));
    // What KVM has made stays.
    assert_eq!(first.sregs.apic_base, 0xfee0_0900);
    let second = fake.registers[1].unwrap();
    assert_eq!((second.regs.rip, second.sregs.apic_base), (0, 0xfee0_0800));
}

#[test]
fn a_busy_kernel_and_one_that_stops_early_get_all_pages_once() {
    let troubles = [
        Trouble::Again,
        Trouble::Again,
        Trouble::OnePage,
        Trouble::Again,
        Trouble::Stall,
        Trouble::OnePage,
    ];
    let mut fake = Fake {
        troubles: troubles.into(),
        ..Fake::default()
    };
    run(&mut fake).unwrap();
    assert_eq!(kinds(&fake), ALL_PAGES);
}

#[test]
fn a_kernel_that_never_goes_on_is_given_up() {
    for trouble in [Trouble::Again, Trouble::Stall] {
        let mut fake = Fake {
            troubles: vec![trouble; 2000].into(),
            ..Fake::default()
        };
        let error = run(&mut fake).unwrap_err();
        assert!(matches!(error, Error::NoProgress(_)), "{error}");
    }
}

/// Before the CPUID page come two updates of measured pages and one of the secrets page; no troubles there.
fn before_cpuid(then: &[Trouble]) -> Fake {
    // A page at a time is no trouble: the second has one page, the third too, and the first goes on.
    let quiet = [
        Trouble::OnePage,
        Trouble::OnePage,
        Trouble::OnePage,
        Trouble::OnePage,
        Trouble::OnePage,
    ];
    Fake {
        troubles: quiet.into_iter().chain(then.iter().cloned()).collect(),
        ..Fake::default()
    }
}

/// ECX of the second entry.
const ECX: usize = 16 + 48 + 32;

#[test]
fn the_firmware_may_correct_the_cpuid_page_once() {
    let mut fake = before_cpuid(&[Trouble::Correct(ECX, 1 << 30)]);
    run(&mut fake).unwrap();
    assert_eq!(kinds(&fake), ALL_PAGES);
    let page = fake.pages().find(|(_, kind, _)| *kind == 6).unwrap().2;
    assert_eq!(page[ECX..ECX + 4], (1u32 << 30).to_le_bytes());
}

#[test]
fn the_firmware_may_not_correct_it_twice() {
    let mut fake = before_cpuid(&[Trouble::Correct(ECX, 1 << 30), Trouble::Correct(ECX, 3 << 30)]);
    let error = run(&mut fake).unwrap_err();
    assert!(matches!(error, Error::Cpuid(CpuidError::Again)), "{error}");
}

#[test]
fn a_correction_that_weakens_ends_the_launch() {
    let mut fake = before_cpuid(&[Trouble::Correct(ECX, 1 << 2)]);
    let error = run(&mut fake).unwrap_err();
    assert!(
        matches!(error, Error::Cpuid(CpuidError::Weaker { name: "RDRAND", .. })),
        "{error}"
    );
    assert!(!kinds(&fake).iter().any(|(_, kind)| *kind == 6));
}

#[test]
fn a_refusal_has_the_firmwares_name() {
    let mut fake = Fake {
        troubles: [Trouble::Refuse(0x1a)].into(),
        ..Fake::default()
    };
    let error = run(&mut fake).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error.to_string(), "SEV-SNP: KVM_SEV_SNP_LAUNCH_UPDATE failed");
    assert!(cause.contains("INVALID_PAGE_STATE (0x1a"), "{cause}");
}

#[test]
fn too_few_asids_and_a_policy_that_cant_be_kept_are_told_in_words() {
    let mut fake = Fake {
        init: Some(SevError::kernel(libc::EBUSY)),
        ..Fake::default()
    };
    let error = run(&mut fake).unwrap_err().to_string();
    assert!(
        error.contains("all encryption keys (ASIDs) for SNP guests are in use"),
        "{error}"
    );
    let mut fake = Fake {
        start: Some(SevError {
            errno: libc::EIO,
            firmware: 0x07,
        }),
        ..Fake::default()
    };
    let error = run(&mut fake).unwrap_err().to_string();
    assert!(error.contains("the guest policy demands"), "{error}");
}

fn identity(policy: u64) -> Identity {
    let mut block = [1; IDENTITY_BLOCK];
    block[88..].copy_from_slice(&policy.to_le_bytes());
    Identity {
        block,
        authentication: Box::new([2; PAGE_BYTES]),
        author: true,
    }
}

#[test]
fn an_identity_block_goes_along_and_must_fit_the_policy() {
    let (good, bad) = (identity(POLICY), identity(POLICY | 1));
    let mut fake = Fake::default();
    let with = |identity| Other {
        identity: Some(identity),
        ..Other::default()
    };
    run_other(&mut fake, with(&good)).unwrap();
    let last = fake.calls.last().unwrap();
    assert!(matches!(
        last,
        Call::Finish {
            identity: true,
            author: true,
            ..
        }
    ));
    let mut fake = Fake::default();
    let error = run_other(&mut fake, with(&bad)).unwrap_err();
    assert!(
        matches!(error, Error::Policy(PolicyError::Identity { .. })),
        "{error}"
    );
    assert!(fake.calls.is_empty(), "nothing is begun that can't be finished");
}

#[test]
fn pages_that_cant_be_launched_are_refused_before_anything_happens() {
    let cases = [
        (vec![measured(0x10_0001, 1, 0)], "are not whole pages"),
        (vec![measured(0x10_0000, 0, 0)], "are not whole pages"),
        (vec![measured(0xc000_0000, 1, 0)], "don't lie in guest memory"),
        (vec![measured(0xbfff_f000, 2, 0)], "don't lie in guest memory"),
        (
            vec![measured(0x10_0000, 2, 0), measured(0x10_1000, 1, 0)],
            "overlap others",
        ),
        (
            vec![LaunchPages {
                gpa: !0xfff,
                content: Content::Zero(1),
            }],
            "run over the end of memory",
        ),
    ];
    for (pages, problem) in cases {
        let mut fake = Fake::default();
        let other = Other {
            pages: Some(&pages),
            ..Other::default()
        };
        let error = run_other(&mut fake, other).unwrap_err();
        assert!(error.to_string().ends_with(problem), "{error}");
        assert!(fake.calls.is_empty());
    }
    let mut fake = Fake::default();
    assert!(matches!(
        run_other(
            &mut fake,
            Other {
                no_vcpus: true,
                ..Other::default()
            }
        ),
        Err(Error::Vcpus(0))
    ));
}
