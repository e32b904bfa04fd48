use proptest::prelude::*;
use sha2::{Digest, Sha256 as Reference};

use super::*;

/// What this processor can do.
fn variants() -> Vec<Sha256> {
    let has_sha = is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1");
    // SAFETY: the processor says so, and user programs have SSE.
    let chosen = unsafe { Sha256::choose(has_sha) };
    vec![Sha256::Portable, chosen]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn examples_of_the_standard_hold() {
    for variant in variants() {
        for (data, digest) in [
            (
                "",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            assert_eq!(
                hex(&variant.digest(data.as_bytes())),
                digest,
                "{variant:?} {data}"
            );
        }
    }
}

#[test]
fn every_length_around_a_block_is_padded_right() {
    let data: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
    for variant in variants() {
        for len in 0..data.len() {
            assert_eq!(
                variant.digest(&data[..len])[..],
                Reference::digest(&data[..len])[..],
                "{variant:?} {len}"
            );
        }
    }
}

proptest! {
    #[test]
    fn digests_equal_those_of_another_implementation(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
        for variant in variants() {
            prop_assert_eq!(&variant.digest(&data)[..], &Reference::digest(&data)[..]);
        }
    }
}
