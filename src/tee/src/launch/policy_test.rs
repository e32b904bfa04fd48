//! Policies as bits and as texts.

use proptest::prelude::*;

use super::*;

#[test]
fn policies_read_as_people_write_them() {
    let policy: Policy = "abi=1.55,smt,single-socket".parse().unwrap();
    assert_eq!(policy.bits(), 0x0013_0137);
    assert_eq!(policy.abi(), AbiVersion { major: 1, minor: 55 });
    assert!(policy.has(Policy::SMT | Policy::SINGLE_SOCKET) && !policy.has(Policy::DEBUG));
    assert_eq!(policy.to_string(), "abi=1.55,smt,single-socket");
    assert_eq!(
        "0x30000".parse::<Policy>().unwrap(),
        Policy::STRICT.with(Policy::SMT)
    );
    assert_eq!("smt".parse::<Policy>().unwrap(), "0x30000".parse().unwrap());
    assert_eq!(Policy::STRICT.to_string(), "abi=0.0");
}

#[test]
fn every_bit_has_the_place_that_the_specification_gives_it() {
    let names = [
        (16, "smt"),
        (18, "migration-agent"),
        (19, "debug"),
        (20, "single-socket"),
        (21, "cxl"),
        (22, "aes-256-xts"),
        (23, "rapl-disabled"),
        (24, "ciphertext-hiding"),
        (25, "page-swap-disabled"),
    ];
    for (bit, name) in names {
        assert_eq!(
            name.parse::<Policy>().unwrap().bits(),
            1 << 17 | 1 << bit,
            "{name}"
        );
    }
}

#[test]
fn what_is_no_policy_is_refused() {
    let refused = |text: &str| text.parse::<Policy>().unwrap_err().to_string();
    assert_eq!(
        refused("0x10000"),
        "guest policy 0x10000 lacks bit 17, which must be one"
    );
    assert_eq!(refused("0x4030000"), "guest policy 0x4030000 has reserved bits");
    assert_eq!(refused("smt,smt"), "\"smt\" is given twice");
    assert_eq!(refused("abi=1.0,abi=1.1"), "\"abi\" is given twice");
    for text in [
        "",
        "smt,",
        "SMT",
        "abi=1",
        "abi=256.0",
        "abi=1.2.3",
        "0x",
        "0x+30000",
        "0x10000000000030000",
        "196608",
    ] {
        assert!(
            refused(text).contains("is not a part of a guest policy"),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn every_known_policy_survives_its_text(flags in 0u64..1 << 10, abi: u16) {
        let policy = Policy::from_bits(flags << 16 | 1 << 17 | u64::from(abi)).unwrap();
        prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        prop_assert_eq!(format!("{:#x}", policy.bits()).parse(), Ok(policy));
    }

    #[test]
    fn any_text_ends(text: String) {
        let _ = text.parse::<Policy>();
    }

    #[test]
    fn any_bits_are_taken_whole_or_refused(bits: u64) {
        if let Ok(policy) = Policy::from_bits(bits) {
            prop_assert_eq!(policy.bits(), bits);
        }
    }
}
