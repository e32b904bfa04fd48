use super::*;
use workload::Hex;

fn key() -> VolumeKey {
    VolumeKey::from_bytes([0xab; VolumeKey::LEN])
}

#[test]
fn the_crypt_table_is_what_cryptsetup_would_load() {
    let shape = Crypt {
        offset: 1 << 20,
        length: 8 << 20,
        sector_size: 4096,
    };
    let target = Target::crypt("/dev/vda", &key(), &shape, &[]);
    let expected = format!(
        "aes-xts-plain64 {} 0 /dev/vda 2048 1 sector_size:4096",
        "ab".repeat(64)
    );
    assert_eq!(*target.parameters, expected);
    assert_eq!(target.sectors, 16384);

    let small = Crypt {
        sector_size: 512,
        ..shape.clone()
    };
    let plain = Target::crypt("/dev/vda", &key(), &small, &[]);
    assert!(plain.parameters.ends_with(" 0 /dev/vda 2048"));
    let two = Target::crypt("/dev/vda", &key(), &shape, &["allow_discards"]);
    assert!(two.parameters.ends_with(" 2 sector_size:4096 allow_discards"));
}

#[test]
fn the_verity_table_names_the_tree_and_its_root() {
    let shape = Verity {
        data_blocks: 100,
        hash_start_block: 101,
        salt: Hex([1; 32]),
        root_hash: Hex([2; 32]),
    };
    let target = Target::verity("/dev/dm-0", &shape);
    let expected = format!(
        "1 /dev/dm-0 /dev/dm-0 4096 4096 100 101 sha256 {} {}",
        "02".repeat(32),
        "01".repeat(32)
    );
    assert_eq!(*target.parameters, expected);
    assert_eq!(target.sectors, 800);
}

#[test]
fn the_authenticated_table_has_room_for_nonce_and_tag() {
    let integrity = Target::integrity("/dev/vdb", "/dev/dm-0", 1 << 20);
    assert!(integrity.parameters.starts_with("/dev/vdb 0 32 D "));
    let target = Target::authenticated_crypt("/dev/dm-1", &[0xcd; AUTHENTICATED_KEY], 1 << 20);
    let expected = format!(
        "capi:aegis128-random {} 0 /dev/dm-1 0 2 integrity:32:aead sector_size:4096",
        "cd".repeat(16)
    );
    assert_eq!(*target.parameters, expected);
    assert_eq!(target.sectors, 2048);
}

#[test]
fn a_request_has_the_kernel_s_layout() {
    let shape = Crypt {
        offset: 0,
        length: 4096,
        sector_size: 4096,
    };
    let target = Target::crypt("/dev/vdb", &key(), &shape, &[]);
    let request = encode("layer0", READONLY | SECURE_DATA, Some(&target));
    let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(8)), (4, 0, 0));
    assert_eq!((word(12) as usize, word(16)), (request.len(), 312));
    assert_eq!((word(20), word(28)), (1, READONLY | SECURE_DATA));
    assert_eq!(&request[48..55], b"layer0\0");
    assert_eq!(&request[320..328], &8u64.to_ne_bytes());
    assert_eq!(word(332) as usize, request.len() - 312);
    assert_eq!(&request[336..342], b"crypt\0");
    assert!(request[352..].starts_with(b"aes-xts-plain64 abab"));
    assert_eq!(request.last(), Some(&0));
    assert!(request.len().is_multiple_of(8));
}

#[test]
fn device_numbers_decode_beyond_eight_bits() {
    assert_eq!(minor(254 << 8 | 7), 7);
    assert_eq!(minor(254 << 8 | 0x34 | 1 << 20), 0x134);
}
