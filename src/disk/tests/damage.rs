//! Damage anywhere in the payload is found, and hostile headers are refused with a sentence.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use disk::{Error, VolumeKey};
use proptest::prelude::*;
use support::{Image, source};

/// An image of a small tree with a hash tree of two levels.
static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let tree = tempfile::tempdir().expect("a directory");
    fs::write(tree.path().join("a"), source::data(900_000)).expect("a file");
    fs::write(tree.path().join("b"), source::data(100)).expect("a file");
    Image::build(tree.path())
});

/// A copy of the image that a test may write to.
fn copy() -> fs::File {
    let copy = tempfile::tempfile().expect("a file");
    copy.write_all_at(&fs::read(IMAGE.path()).expect("the image"), 0)
        .expect("copying");
    copy
}

fn verify(image: &fs::File) -> Result<(), Error> {
    disk::verify(image, IMAGE.unlock.volume_key(), &IMAGE.built.layout)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn one_flipped_bit_anywhere(position in 0..IMAGE.built.layout.payload_bytes, bit in 0..8u32) {
        let (image, at) = (copy(), IMAGE.built.layout.payload_offset + position);
        let mut byte = [0];
        image.read_exact_at(&mut byte, at).expect("a byte");
        image.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("a byte");
        let result = verify(&image);
        let bad = position / 4096;
        prop_assert!(matches!(result, Err(Error::BadBlock { block, .. }) if block == bad), "{result:?}");
    }

    /// Any change of either copy of the header is refused.
    #[test]
    fn a_changed_header_byte(position in 0..32768usize, value: u8) {
        let image = copy();
        let mut byte = [0];
        image.read_exact_at(&mut byte, position as u64).expect("a byte");
        prop_assume!(byte[0] != value);
        image.write_all_at(&[value], position as u64).expect("a byte");
        prop_assert!(matches!(disk::inspect(&image), Err(Error::Header(_))));
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..40_000)) {
        let image = tempfile::tempfile().expect("a file");
        image.write_all_at(&bytes, 0).expect("noise");
        prop_assert!(disk::inspect(&image).is_err());
        prop_assert!(disk::luks2::unlock(&image, b"x").is_err());
    }
}

#[test]
fn an_image_without_fault() {
    verify(&copy()).expect("no fault");
    let inspection = disk::inspect(&copy()).expect("a header");
    assert_eq!(inspection.layout, IMAGE.built.layout);
    assert_eq!(
        (inspection.label.as_str(), inspection.keyslots.len()),
        ("test", 1)
    );
    let key = disk::luks2::unlock(&copy(), IMAGE.unlock.volume_key().as_bytes()).expect("the key");
    assert_eq!(key.as_bytes(), IMAGE.unlock.volume_key().as_bytes());
    assert!(matches!(
        disk::luks2::unlock(&copy(), b"wrong"),
        Err(Error::WrongPassphrase)
    ));
}

#[test]
fn another_key_opens_nothing() {
    let key = VolumeKey::generate().expect("a key");
    let result = disk::verify(&copy(), &key, &IMAGE.built.layout);
    assert!(matches!(result, Err(Error::BadBlock { .. })), "{result:?}");
}

#[test]
fn swapped_blocks_are_found() {
    let (image, layout) = (copy(), &IMAGE.built.layout);
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    image
        .read_exact_at(&mut a, layout.payload_offset + 10 * 4096)
        .expect("a block");
    image
        .read_exact_at(&mut b, layout.payload_offset + 11 * 4096)
        .expect("a block");
    image
        .write_all_at(&b, layout.payload_offset + 10 * 4096)
        .expect("a block");
    image
        .write_all_at(&a, layout.payload_offset + 11 * 4096)
        .expect("a block");
    assert!(matches!(
        verify(&image),
        Err(Error::BadBlock {
            part: "data",
            block: 10
        })
    ));
}

#[test]
fn a_wrong_length_is_named() {
    let image = copy();
    let length = IMAGE.built.image_bytes;
    image.set_len(length - 4096).expect("cutting");
    let expected = format!(
        "the disk image is {} bytes long and should be {length}",
        length - 4096
    );
    assert_eq!(verify(&image).expect_err("an error").to_string(), expected);
    assert_eq!(disk::inspect(&image).expect_err("an error").to_string(), expected);
}
