//! Headers as `buildah mkcw` writes them, and headers that lie.

use super::*;

/// Length of the disks here.
pub(crate) const END: u64 = 4 << 20;

/// A header with the figures of `buildah mkcw`, but for few iterations.
pub(crate) fn sample() -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, MAGIC);
    put(6, &1u16.to_be_bytes());
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4040u32.to_be_bytes());
    put(108, &64u32.to_be_bytes());
    put(112, &[1; 52]);
    put(164, &4000u32.to_be_bytes());
    put(168, b"162466e4-3674-4e4e-87e4-794b5b945024");
    for slot in 0..8u32 {
        let at = 208 + 48 * slot as usize;
        put(at, &(if slot == 0 { ACTIVE } else { UNUSED }).to_be_bytes());
        put(at + 4, &1000u32.to_be_bytes());
        put(at + 8, &[slot as u8; 32]);
        put(at + 40, &(8 + 504 * slot).to_be_bytes());
        put(at + 44, &4000u32.to_be_bytes());
    }
    header
}

fn refused(header: &[u8; HEADER_LEN]) -> String {
    match Header::parse(header, END) {
        Ok(header) => panic!("accepted: {header:?}"),
        Err(Error::Header(cause)) => cause.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The message about a header with other bytes at `at`.
fn with(at: usize, bytes: &[u8]) -> String {
    let mut header = sample();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    refused(&header)
}

#[test]
fn what_mkcw_writes() {
    let header = Header::parse(&sample(), END + 4095).unwrap();
    assert_eq!(header.uuid(), "162466e4-3674-4e4e-87e4-794b5b945024");
    assert_eq!(header.payload(), 4040 * 512..END);
    assert_eq!(header.iterations(), 5000);
    assert_eq!(header.slots.len(), 1);
    assert_eq!(header.slots[0].offset, 4096);
}

#[test]
fn the_hash_of_a_header_is_of_every_bit_that_was_read() {
    let hash = |bytes: &[u8; HEADER_LEN]| Header::parse(bytes, END).unwrap().sha256();
    let own = hash(&sample());
    assert_eq!(own, <[u8; 32]>::from(Sha256::digest(sample())));
    // The volume key's digest, a salt in use, a salt that is not: nothing else would tell.
    for at in [112, 216, 264] {
        let mut other = sample();
        other[at] ^= 1;
        assert_ne!(hash(&other), own, "byte {at}");
        let header = Header::parse(&other, END).unwrap();
        let Err(Error::OtherHeader(cause)) = header.expect(&own) else {
            panic!("taken for another")
        };
        assert_eq!(cause.field, "SHA-256");
        assert_eq!(cause.expected, super::hex(&own));
    }
    assert!(Header::parse(&sample(), END).unwrap().expect(&own).is_ok());
}

#[test]
fn ciphers_are_refused_by_name() {
    let texts = [
        (8, "cipher_null", "cipher-name", "aes"),
        (8, "", "cipher-name", "aes"),
        (8, "aesx", "cipher-name", "aes"),
        (8, "aes\0x", "cipher-name", "aes"),
        (8, "AES", "cipher-name", "aes"),
        (8, "serpent", "cipher-name", "aes"),
        (40, "ecb", "cipher-mode", "xts-plain64"),
        (40, "xts-plain", "cipher-mode", "xts-plain64"),
        (40, "cbc-essiv:sha256", "cipher-mode", "xts-plain64"),
        (40, "xts-plain64-random", "cipher-mode", "xts-plain64"),
        (40, "", "cipher-mode", "xts-plain64"),
        (72, "sha1", "hash-spec", "sha256"),
        (72, "sha512", "hash-spec", "sha256"),
        (72, "crc32", "hash-spec", "sha256"),
    ];
    for (at, text, field, expected) in texts {
        let mut bytes = [0; 32];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        assert_eq!(
            with(at, &bytes),
            format!("{field} is {text:?} and should be {expected}")
        );
    }
}

#[test]
fn numbers() {
    let be = u32::to_be_bytes;
    for (at, bytes, expected) in [
        (6, &[0, 2][..], "version is 2 and should be 1"),
        (108, &be(32), "key-bytes is 32 and should be 64"),
        (108, &be(0), "key-bytes is 0 and should be 64"),
        (108, &be(u32::MAX), "key-bytes is 4294967295 and should be 64"),
        (
            164,
            &be(999),
            "mk-digest-iter is 999 and should be 1000 to 10000000",
        ),
        (
            164,
            &be(u32::MAX),
            "mk-digest-iter is 4294967295 and should be 1000 to 10000000",
        ),
        (
            212,
            &be(0),
            "iterations of key slot 0 is 0 and should be 1000 to 10000000",
        ),
        (
            212,
            &be(10_000_000),
            "sum of all iterations is 10004000 and should be 10000000 or less",
        ),
        (104, &be(0), "payload-offset is 0 and should be a multiple of 8"),
        (
            104,
            &be(4041),
            "payload-offset is 4041 and should be a multiple of 8",
        ),
        (
            104,
            &be(8192),
            "payload-offset is 8192 and should be 8184 or less, in a disk of 4194304 bytes",
        ),
        (
            104,
            &be(504),
            "key-material-offset of key slot 0 is 8 and should be 2 to 4, between header and payload",
        ),
        (252, &be(3999), "stripes of key slot 0 is 3999 and should be 4000"),
        (
            252,
            &be(u32::MAX),
            "stripes of key slot 0 is 4294967295 and should be 4000",
        ),
        (
            248,
            &be(1),
            "key-material-offset of key slot 0 is 1 and should be 2 to 3540, between header and payload",
        ),
        (
            248,
            &be(3541),
            "key-material-offset of key slot 0 is 3541 and should be 2 to 3540, between header and payload",
        ),
        (
            248,
            &be(u32::MAX),
            "key-material-offset of key slot 0 is 4294967295 and should be 2 to 3540, between header and payload",
        ),
        (
            208,
            &be(0),
            "active of key slot 0 is 0x00000000 and should be 0x00ac71f3 or 0x0000dead",
        ),
        (
            208,
            &be(UNUSED),
            "number of key slots in use is 0 and should be 1 to 8",
        ),
        (
            544,
            &be(1),
            "active of key slot 7 is 0x00000001 and should be 0x00ac71f3 or 0x0000dead",
        ),
        (
            176,
            b"x",
            "uuid is \"162466e4x3674-4e4e-87e4-794b5b945024\\0\\0\\0\\0\" and should be a UUID in hexadecimal",
        ),
    ] {
        assert_eq!(with(at, bytes), expected);
    }
    assert_eq!(with(0, b"SKUL"), "the disk does not start with the LUKS magic");
    assert!(with(204, b"5").starts_with("uuid is"));
}

#[test]
fn key_slots_must_not_overlap() {
    let second = |offset: u32| {
        let mut header = sample();
        header[256..260].copy_from_slice(&ACTIVE.to_be_bytes());
        header[296..300].copy_from_slice(&offset.to_be_bytes());
        header
    };
    for offset in [2, 8, 507] {
        assert_eq!(
            refused(&second(offset)),
            format!(
                "key-material-offset of key slot 1 is {offset} and should be clear of the material of key slot 0"
            )
        );
    }
    for offset in [508, 512] {
        let header = Header::parse(&second(offset), END).unwrap();
        assert_eq!((header.slots.len(), header.iterations()), (2, 10_000));
    }
}

#[test]
fn short_disks() {
    let header = sample();
    assert!(matches!(
        Header::read(&header[..591], 591),
        Err(Error::Short("LUKS1 header"))
    ));
    for end in [0, 592, 4040 * 512, 4040 * 512 + 4095] {
        let message = match Header::read(&header[..], end) {
            Err(Error::Header(cause)) => cause.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(message.starts_with("payload-offset is 4040"), "{message}");
    }
    let found = Header::read(&header[..], END).unwrap();
    assert!(matches!(
        found.unlock(&header[..], b"x"),
        Err(Error::Short("key slot"))
    ));
}
