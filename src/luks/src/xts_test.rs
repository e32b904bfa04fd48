//! AES-256-XTS against IEEE 1619-2007 annex B, and its sector numbering.

use super::*;

/// Vector 10: 512 bytes 00 01 … ff 00 01 … ff in data unit 0xff.
#[test]
fn ieee_1619_vector_10() {
    let key = hex::<64>(
        "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197\
         169399375105820974944592",
    );
    let mut data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    Xts::new(&key).encrypt(&mut data, 0xff * 512, 512);
    assert_eq!(data[..16], hex::<16>("1c3b3a102f770386e4836c99e370cf9b"));
}

fn hex<const N: usize>(text: &str) -> [u8; N] {
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
}

#[test]
fn large_sectors_count_in_units_of_512() {
    let xts = Xts::new(&std::array::from_fn(|i| i as u8));
    let mut disk = vec![5u8; 4 * 4096];
    xts.encrypt(&mut disk, 0, 4096);
    // The third sector alone, at its own offset, has vector 16.
    let mut third = vec![5u8; 4096];
    xts.encrypt(&mut third, 2 * 4096, 4096);
    assert_eq!(disk[2 * 4096..3 * 4096], third);
    // Its first 512 bytes agree with small sector number 16: the tweak is the same.
    let mut small = vec![5u8; 512];
    xts.encrypt(&mut small, 16 * 512, 512);
    assert_eq!(third[..512], small);
    xts.decrypt(&mut disk, 0, 4096);
    assert_eq!(disk, vec![5u8; 4 * 4096]);
}

/// Another implementation of XTS computes the same.
#[test]
fn agrees_with_the_crate_xts_mode() {
    let key: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
    let other = xts_mode::Xts128::new(
        Aes256::new_from_slice(&key[..32]).unwrap(),
        Aes256::new_from_slice(&key[32..]).unwrap(),
    );
    for sector_size in [512, 4096] {
        let plain: Vec<u8> = (0..3 * sector_size).map(|i| (i % 251) as u8).collect();
        let mut ours = plain.clone();
        Xts::new(&key).encrypt(&mut ours, 1 << 40, sector_size);
        let mut theirs = plain;
        for (i, sector) in theirs.chunks_exact_mut(sector_size).enumerate() {
            let vector = ((1u128 << 40) + (i * sector_size) as u128) / 512;
            other.encrypt_sector(sector, vector.to_le_bytes().into());
        }
        assert_eq!(ours, theirs);
    }
}
