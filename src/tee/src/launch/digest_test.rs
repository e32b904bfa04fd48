//! The chain, link by link. `tests/sev_snp_measure.rs` compares it with an independent implementation.

use super::*;
use crate::PAGE_SIZE;

#[test]
fn no_page_leaves_the_digest_of_the_start() {
    assert_eq!(Chain::new().digest().to_string(), "00".repeat(48));
}

#[test]
fn a_zero_page_hashes_its_address_and_not_its_contents() {
    let digest = |byte| {
        let mut chain = Chain::new();
        chain.add(PageType::Zero, Gpa(0x1000), &[byte; PAGE_SIZE]);
        chain.digest()
    };
    assert_eq!(digest(0), digest(1));
}

#[test]
fn type_address_contents_and_order_all_change_the_digest() {
    let digest = |pages: &[(PageType, u64, u8)]| {
        let mut chain = Chain::new();
        pages
            .iter()
            .for_each(|(kind, gpa, byte)| chain.add(*kind, Gpa(*gpa), &[*byte; PAGE_SIZE]));
        chain.digest()
    };
    use PageType::*;
    let all = [
        digest(&[(Normal, 0x1000, 0), (Normal, 0x2000, 0)]),
        digest(&[(Normal, 0x2000, 0), (Normal, 0x1000, 0)]),
        digest(&[(Normal, 0x1000, 1), (Normal, 0x2000, 0)]),
        digest(&[(Normal, 0x1000, 0), (Normal, 0x2000, 1)]),
        digest(&[(Normal, 0x1000, 0)]),
        digest(&[(Zero, 0x1000, 0)]),
        digest(&[(Unmeasured, 0x1000, 0)]),
        digest(&[(Secrets, 0x1000, 0)]),
        digest(&[(Cpuid, 0x1000, 0)]),
        digest(&[(Vmsa, 0x1000, 0)]),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[at + 1..].contains(one), "number {at} is there twice");
    }
}

#[test]
fn a_vmsa_is_measured_at_the_firmwares_address() {
    let digest = |gpa| {
        let mut chain = Chain::new();
        chain.add(PageType::Vmsa, Gpa(gpa), &[7; PAGE_SIZE]);
        chain.digest()
    };
    assert_eq!(digest(0), digest(0xffff_ffff_f000));
}

#[test]
fn digests_are_read_as_they_are_written() {
    let digest = LaunchDigest(std::array::from_fn(|at| at as u8 * 5));
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert_eq!(
        "00".parse::<LaunchDigest>().unwrap_err().to_string(),
        "2 characters instead of 96 hexadecimal digits"
    );
    let wrong = format!("{}zz", "0".repeat(94)).parse::<LaunchDigest>();
    assert_eq!(wrong.unwrap_err().to_string(), "'z' is no hexadecimal digit");
    assert!("é".repeat(96).parse::<LaunchDigest>().is_err());
}
