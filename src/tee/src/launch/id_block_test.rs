//! ID blocks and who signed them.

use p384::NonZeroScalar;
use proptest::prelude::*;

use super::*;

fn block() -> IdBlock {
    IdBlock {
        digest: LaunchDigest([1; 48]),
        family_id: [2; 16],
        image_id: [3; 16],
        guest_svn: 4,
        policy: Policy::STRICT.with(Policy::SMT),
    }
}

fn auth(block: &IdBlock, with_author: bool) -> IdAuth {
    let [id, author] = [1, 2].map(|byte| NonZeroScalar::try_from(&[byte; 48][..]).unwrap());
    let id_key = PublicKey::of(&id);
    let author = with_author.then(|| {
        (
            Signature::sign(&author, &id_key.to_bytes()),
            PublicKey::of(&author),
        )
    });
    IdAuth {
        block_signature: Signature::sign(&id, &block.to_bytes()),
        id_key,
        author,
    }
}

#[test]
fn a_block_has_its_fields_where_the_firmware_looks() {
    let bytes = block().to_bytes();
    assert_eq!(bytes[0x2f..0x32], [1, 2, 2]);
    assert_eq!(bytes[0x3f..0x41], [2, 3]);
    assert_eq!(
        bytes[0x50..0x60],
        [1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]
    );
    assert_eq!(IdBlock::parse(&bytes), Ok(block()));
}

#[test]
fn blocks_of_other_versions_and_policies_are_refused() {
    let with = |at: usize, byte| {
        let mut bytes = block().to_bytes();
        bytes[at] = byte;
        IdBlock::parse(&bytes).unwrap_err().to_string()
    };
    assert_eq!(
        with(0x50, 2),
        "the ID block has version 2, and 1 is the only one known"
    );
    assert_eq!(
        with(0x5f, 1),
        "the ID block's policy is not valid: guest policy 0x100000000030000 has reserved bits"
    );
}

#[test]
fn the_firmware_takes_a_block_that_its_keys_signed() {
    for with_author in [false, true] {
        let auth = auth(&block(), with_author);
        assert_eq!(auth.check(&block()), Ok(()));
        assert_eq!(IdAuth::parse(&auth.to_bytes()), Ok(auth));
    }
}

#[test]
fn what_was_signed_for_something_else_is_refused() {
    let other = IdBlock {
        guest_svn: 5,
        ..block()
    };
    assert_eq!(
        auth(&block(), true).check(&other),
        Err(IdBlockError::Signature("ID block"))
    );
    let mut swapped = auth(&block(), true);
    swapped.author = swapped.author.map(|(_, key)| (swapped.block_signature, key));
    assert_eq!(swapped.check(&block()), Err(IdBlockError::Signature("ID key")));
}

#[test]
fn reserved_bytes_and_algorithms_are_looked_at() {
    let [alone, authored] = [false, true].map(|with_author| auth(&block(), with_author).to_bytes());
    let with = |with_author, at: usize, byte| {
        let mut bytes = if with_author {
            authored.clone()
        } else {
            alone.clone()
        };
        bytes[at] = byte;
        IdAuth::parse(&bytes).unwrap_err()
    };
    for at in (0x008..0x040).chain(0x644..0x680).chain(0xc84..0x1000) {
        assert!(matches!(with(true, at, 1), IdBlockError::Reserved(_)), "{at:#x}");
    }
    assert_eq!(with(true, 0, 2), IdBlockError::Algorithm(2));
    assert_eq!(with(true, 4, 2), IdBlockError::Algorithm(2));
    assert_eq!(with(true, 4, 0), IdBlockError::Reserved(0x680));
    assert_eq!(with(false, 0x700, 1), IdBlockError::Reserved(0x680));
}

proptest! {
    #[test]
    fn any_block_ends(bytes in prop::collection::vec(any::<u8>(), ID_BLOCK_SIZE)) {
        let _ = IdBlock::parse(bytes.first_chunk().unwrap());
    }

    #[test]
    fn any_change_of_the_authentication_is_seen(at in 0..ID_AUTH_SIZE, bit in 0u32..8) {
        let mut bytes = auth(&block(), true).to_bytes();
        bytes[at] ^= 1 << bit;
        if let Ok(auth) = IdAuth::parse(&bytes) {
            prop_assert!(auth.check(&block()).is_err());
        }
    }
}
