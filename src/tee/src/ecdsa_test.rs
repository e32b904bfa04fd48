//! Signatures and keys, there and back.

use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> NonZeroScalar {
    NonZeroScalar::try_from(&[byte; 48][..]).unwrap()
}

#[test]
fn a_signature_verifies_over_its_message_alone() {
    let signature = Signature::sign(&key(1), b"message");
    let public = PublicKey::of(&key(1));
    assert!(public.verifies(b"message", &signature));
    assert!(!public.verifies(b"massage", &signature));
    assert!(!PublicKey::of(&key(2)).verifies(b"message", &signature));
}

#[test]
fn layouts_are_read_as_they_are_written() {
    let signature = Signature::sign(&key(1), b"message");
    assert_eq!(Signature::parse(&signature.to_bytes()), Ok(signature));
    let public = PublicKey::of(&key(1));
    assert_eq!(PublicKey::parse(&public.to_bytes()), Ok(public));
}

#[test]
fn every_byte_that_must_be_zero_is_looked_at() {
    let signature = Signature::sign(&key(1), b"message").to_bytes();
    for at in (48..72).chain(120..512) {
        let mut bytes = signature;
        bytes[at] = 1;
        assert_eq!(
            Signature::parse(&bytes),
            Err(Error::Reserved),
            "byte {at} of a signature"
        );
    }
    let public = PublicKey::of(&key(1)).to_bytes();
    for at in (52..76).chain(124..1028) {
        let mut bytes = public;
        bytes[at] = 1;
        assert_eq!(
            PublicKey::parse(&bytes),
            Err(Error::Reserved),
            "byte {at} of a key"
        );
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert_eq!(Signature::parse(&[0; SIGNATURE_SIZE]), Err(Error::Range));
    let mut bytes = Signature::sign(&key(1), b"message").to_bytes();
    bytes[..48].fill(0xff);
    assert_eq!(Signature::parse(&bytes), Err(Error::Range));
    let mut bytes = PublicKey::of(&key(1)).to_bytes();
    bytes[4] ^= 1;
    assert_eq!(PublicKey::parse(&bytes), Err(Error::Point));
    bytes[0] = 1;
    assert_eq!(PublicKey::parse(&bytes), Err(Error::Curve(1)));
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), PUBLIC_KEY_SIZE), curve: bool) {
        let _ = Signature::parse(bytes.first_chunk().unwrap());
        let mut key: [u8; PUBLIC_KEY_SIZE] = bytes.try_into().unwrap();
        if curve {
            key[..4].copy_from_slice(&2u32.to_le_bytes());
            key[52..76].fill(0);
            key[124..].fill(0);
        }
        let _ = PublicKey::parse(&key);
    }
}
