//! Plans of launches: order, digest, limits.

use super::*;
use crate::image::image_test::{ENTRY, elf, rows};

fn image() -> Image {
    Image::parse(&elf(&rows(), ENTRY)).unwrap()
}

fn launch(image: &Image) -> Launch<'_> {
    Launch {
        image,
        hash_page: &[0xaa; PAGE_SIZE],
        page_tables: Gpa(0x10_2000),
        vcpus: 2,
        cpu: CpuModel::Milan,
        features: SevFeatures::SNP,
        variant: Variant::Linux6_11,
    }
}

#[test]
fn a_plan_is_the_image_and_a_vmsa_for_each_vcpu() {
    let image = image();
    let plan = Plan::new(&launch(&image)).unwrap();
    use PageType::*;
    let types: Vec<_> = plan.pages().iter().map(|page| page.page_type).collect();
    assert_eq!(
        types,
        [
            Normal, Normal, Normal, Normal, Normal, Secrets, Cpuid, Zero, Zero, Zero, Vmsa, Vmsa
        ]
    );
    assert_eq!(plan.pages()[4].bytes[..], [0xaa; PAGE_SIZE]);
    assert_eq!(plan.updates().count(), 10);
    assert_eq!(plan.states()[0].rip, ENTRY);
    assert_eq!(plan.states()[0].cr3, 0x10_2000);
    assert_eq!(plan.states()[1], VcpuState::reset(CpuModel::Milan));
    assert_eq!(plan.measured(), 7 * PAGE_SIZE);
}

#[test]
fn the_digest_is_that_of_the_pages_in_their_order() {
    let image = image();
    let plan = Plan::new(&launch(&image)).unwrap();
    let mut chain = Chain::new();
    plan.pages()
        .iter()
        .for_each(|page| chain.add(page.page_type, page.gpa, &page.bytes));
    assert_eq!(plan.digest(), chain.digest());
}

#[test]
fn everything_that_makes_a_launch_changes_the_digest() {
    let image = image();
    let other = Image::parse(&elf(&rows(), ENTRY + 1)).unwrap();
    let base = launch(&image);
    let launches = [
        base,
        Launch {
            image: &other,
            ..base
        },
        Launch {
            hash_page: &[0xab; PAGE_SIZE],
            ..base
        },
        Launch {
            page_tables: Gpa(0x10_3000),
            ..base
        },
        Launch { vcpus: 1, ..base },
        Launch {
            cpu: CpuModel::Turin,
            ..base
        },
        Launch {
            features: SevFeatures(0x21),
            ..base
        },
        Launch {
            variant: Variant::AmdSnpHostV12,
            ..base
        },
    ];
    let digests = launches.map(|launch| Plan::new(&launch).unwrap().digest());
    for (at, digest) in digests.iter().enumerate() {
        assert!(!digests[at + 1..].contains(digest), "number {at} is there twice");
    }
}

#[test]
fn launches_that_cannot_be_are_refused() {
    let image = image();
    let base = launch(&image);
    let refused = |launch: Launch| Plan::new(&launch).unwrap_err().to_string();
    assert_eq!(
        refused(Launch { vcpus: 0, ..base }),
        "a guest has from 1 to 254 vCPUs, not 0"
    );
    assert_eq!(
        refused(Launch { vcpus: 255, ..base }),
        "a guest has from 1 to 254 vCPUs, not 255"
    );
    for gpa in [0x10_2010, 0x10_5000, 0x20_0000] {
        let message = format!("the page tables at {gpa:#x} are not on a page that the image loads");
        assert_eq!(
            refused(Launch {
                page_tables: Gpa(gpa),
                ..base
            }),
            message
        );
    }
}

#[test]
fn no_more_than_96_kib_are_measured_for_one_vcpu() {
    let with = |pages: u64| {
        let mut rows = rows();
        rows.push((1, 6, 0x20_0000, vec![], pages << 12));
        let image = Image::parse(&elf(&rows, ENTRY)).unwrap();
        Plan::new(&Launch {
            vcpus: 1,
            ..launch(&image)
        })
        .map(|plan| plan.measured())
    };
    assert_eq!(with(18), Ok(96 << 10));
    assert_eq!(with(19), Err(Error::TooMuch(100 << 10)));
}
