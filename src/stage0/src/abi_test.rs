use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn good() -> Staging {
    let extent = |page: u64, len| Extent {
        gpa: STAGING_START + page * PAGE,
        len,
    };
    Staging {
        vcpus: 4,
        ram: 256 * MIB,
        kernel: extent(1, 8 * MIB),
        initrd: extent(4096, 2 * MIB),
        cmdline: extent(8192, 300),
    }
}

fn decoded(change: impl FnOnce(&mut Staging)) -> Result<Staging, Termination> {
    let mut staging = good();
    change(&mut staging);
    Staging::decode(&staging.encode())
}

#[test]
fn what_is_encoded_is_decoded() {
    assert_eq!(decoded(|_| ()), Ok(good()));
    let page = HashPage {
        kernel: Expected {
            sha256: [1; 32],
            len: 7,
        },
        initrd: Expected {
            sha256: [2; 32],
            len: 8,
        },
        cmdline: Expected {
            sha256: [3; 32],
            len: 9,
        },
    };
    assert_eq!(HashPage::decode(&page.encode()), Ok(page));
}

#[test]
fn a_hash_page_of_another_layout_is_refused() {
    let page = HashPage::default().encode();
    for at in (0..16).chain(136..4096) {
        let mut altered = page;
        altered[at] ^= 1;
        assert_eq!(
            HashPage::decode(&altered),
            Err(Termination::HashPage),
            "byte {at}"
        );
    }
}

#[test]
fn a_descriptor_of_another_layout_is_refused() {
    for at in 0..12 {
        let mut altered = good().encode();
        altered[at] ^= 1;
        assert_eq!(
            Staging::decode(&altered),
            Err(Termination::StagingFormat),
            "byte {at}"
        );
    }
}

#[test]
fn files_outside_the_window_are_refused() {
    let cases = [
        (0x10_0000, 8),
        (STAGING_START - 8, 8),
        (STAGING_START, 8),
        (STAGING_START + 71, 8),
        (STAGING_END - 7, 8),
        (STAGING_END, 8),
        (STAGING_START + PAGE, u64::MAX - STAGING_START),
        (u64::MAX, u64::MAX),
        (STAGING_START + PAGE, u64::MAX),
    ];
    for (gpa, len) in cases {
        for which in 0..3 {
            let refused = decoded(|staging| {
                *[&mut staging.kernel, &mut staging.initrd, &mut staging.cmdline][which] =
                    Extent { gpa, len };
            });
            assert_eq!(refused, Err(Termination::StagingRange), "{gpa:#x} {len:#x}");
        }
    }
}

#[test]
fn overlapping_files_are_refused_and_touching_ones_are_not() {
    assert!(decoded(|s| s.initrd.gpa = s.kernel.gpa + s.kernel.len).is_ok());
    for refused in [
        decoded(|s| s.initrd.gpa = s.kernel.gpa + s.kernel.len - 1),
        decoded(|s| s.initrd = s.kernel),
        decoded(|s| s.cmdline.gpa = s.kernel.gpa + 5),
        decoded(|s| s.cmdline.gpa = s.initrd.gpa - 1),
    ] {
        assert_eq!(refused, Err(Termination::StagingOverlap));
    }
}

#[test]
fn impossible_machines_are_refused() {
    for ram in [
        0,
        PAGE,
        MIN_RAM - PAGE,
        MIN_RAM + 1,
        MAX_RAM + PAGE,
        u64::MAX,
        1 << 63,
    ] {
        assert_eq!(decoded(|s| s.ram = ram), Err(Termination::RamSize), "{ram:#x}");
    }
    assert!(decoded(|s| s.ram = MIN_RAM).is_ok() && decoded(|s| s.ram = MAX_RAM).is_ok());
    for vcpus in [0, MAX_VCPUS + 1, u32::MAX] {
        assert_eq!(
            decoded(|s| s.vcpus = vcpus),
            Err(Termination::VcpuCount),
            "{vcpus}"
        );
    }
}

#[test]
fn terminations_survive_the_way_through_the_ghcb() {
    for &termination in Termination::ALL {
        assert_eq!(
            Termination::from_ghcb_msr(termination.ghcb_msr()),
            Some(termination)
        );
        assert_eq!(
            Termination::from_reason(0xc, termination as u8),
            Some(termination)
        );
        assert_eq!(termination.ghcb_msr() & 0xfff, 0x100);
        assert!(termination.sentence().len() > 20);
    }
}

#[test]
fn other_terminations_are_not_ours() {
    // Linux' "no SNP" and the specification's general one.
    for msr in [
        0x0003_1100,
        0x100,
        0x0001_c101,
        0x0000_c100,
        0x00ff_c100,
        0x0100_0000_0001_c100,
    ] {
        assert_eq!(Termination::from_ghcb_msr(msr), None, "{msr:#x}");
    }
    assert_eq!(Termination::from_reason(1, 1), None);
}

#[test]
fn files_are_placed_one_after_the_other() {
    let staging = Staging::place(2, 64 * MIB, 5000, 0, 1).unwrap();
    let places = [staging.kernel, staging.initrd, staging.cmdline]
        .map(|file| ((file.gpa - STAGING_START) / PAGE, file.len));
    assert_eq!(places, [(1, 5000), (3, 0), (3, 1)]);
}

#[test]
fn files_that_do_not_fit_are_refused_when_they_are_placed() {
    let window = STAGING_END - STAGING_START;
    assert!(Staging::place(1, 64 * MIB, window - 3 * PAGE, PAGE, PAGE).is_ok());
    for [kernel, initrd, cmdline] in [
        [window, 1, 1],
        [1, window, 1],
        [PAGE, window - 3 * PAGE, PAGE + 1],
        [u64::MAX, 1, 1],
    ] {
        assert_eq!(
            Staging::place(1, 64 * MIB, kernel, initrd, cmdline),
            Err(Termination::StagingRange)
        );
    }
    assert_eq!(Staging::place(0, 64 * MIB, 1, 1, 1), Err(Termination::VcpuCount));
}

proptest! {
    #[test]
    fn any_descriptor_that_passes_is_one_that_can_be_used(bytes in any::<[u8; Staging::LEN]>(), valid in any::<bool>()) {
        let mut bytes = bytes;
        if valid {
            bytes[..12].copy_from_slice(&good().encode()[..12]);
        }
        if let Ok(staging) = Staging::decode(&bytes) {
            prop_assert_eq!(staging.encode(), bytes);
            for file in [staging.kernel, staging.initrd, staging.cmdline] {
                prop_assert!(file.gpa >= STAGING_START && file.end().unwrap() <= STAGING_END);
            }
        }
    }

    #[test]
    fn descriptors_with_small_changes_never_panic(at in 0..Staging::LEN, byte in any::<u8>()) {
        let mut bytes = good().encode();
        bytes[at] = byte;
        let _ = Staging::decode(&bytes);
    }

    #[test]
    fn hash_pages_decode_to_what_encodes_them(fill in any::<[u8; 32]>(), len in any::<u64>()) {
        let page = HashPage { kernel: Expected { sha256: fill, len }, ..HashPage::default() };
        prop_assert_eq!(HashPage::decode(&page.encode()), Ok(page));
    }
}
