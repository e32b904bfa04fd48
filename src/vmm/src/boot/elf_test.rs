//! Good and hostile kernel files.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::memory::allocate;

/// A file with one code segment at 2 MiB (with 16 zero bytes after its contents) and one data segment at 4 MiB.
fn kernel() -> Vec<u8> {
    let mut file = vec![0u8; 0x200];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..18].copy_from_slice(&2u16.to_le_bytes());
    file[18..20].copy_from_slice(&62u16.to_le_bytes());
    file[20..24].copy_from_slice(&1u32.to_le_bytes());
    file[24..32].copy_from_slice(&0x20_0004u64.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&2u16.to_le_bytes());
    segment(&mut file, 0, 0x200, 0x20_0000, 8, 24);
    segment(&mut file, 1, 0x208, 0x40_0000, 4, 0x1000);
    file.extend_from_slice(b"codecodedata");
    file
}

fn segment(file: &mut [u8], index: usize, offset: u64, address: u64, in_file: u64, in_memory: u64) {
    let at = 64 + index * 56;
    file[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
    for (field, value) in [(8, offset), (24, address), (32, in_file), (40, in_memory)] {
        file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
    }
}

fn try_load(bytes: &[u8]) -> (memory::Ram, Result<Image, Error>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let memory = allocate(64).unwrap();
    let image = load(&memory, &file);
    (memory, image)
}

fn fails(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut file = kernel();
    change(&mut file);
    try_load(&file).1.unwrap_err().to_string()
}

#[test]
fn segments_land_at_their_physical_addresses() {
    let (memory, image) = try_load(&kernel());
    assert_eq!(
        image.unwrap(),
        Image {
            entry: 0x20_0004,
            end: 0x40_1000
        }
    );
    let mut code = [0u8; 10];
    memory.read_slice(&mut code, GuestAddress(0x20_0000)).unwrap();
    assert_eq!(&code, b"codecode\0\0");
    let mut data = [0u8; 6];
    memory.read_slice(&mut data, GuestAddress(0x40_0000)).unwrap();
    assert_eq!(&data, b"data\0\0");
}

/// Page-aligned contents longer than a page, with a tail, so that every way of loading meets both.
#[test]
fn contents_are_whole_and_followed_by_zeros() {
    let mut file = kernel();
    file.resize(0x2000, 0xee);
    file.extend((0..0x2345u32).map(|i| i as u8 | 1));
    file.extend([0xee; 0x3000]);
    segment(&mut file, 0, 0x2000, 0x20_0000, 0x2345, 0x6000);
    let (memory, image) = try_load(&file);
    image.unwrap();
    let mut seen = vec![0u8; 0x6000];
    memory.read_slice(&mut seen, GuestAddress(0x20_0000)).unwrap();
    assert!(
        seen[..0x2345]
            .iter()
            .enumerate()
            .all(|(i, &byte)| byte == i as u8 | 1)
    );
    assert!(seen[0x2345..].iter().all(|&byte| byte == 0));
}

#[test]
fn other_files_are_refused_by_name() {
    assert!(try_load(b"").1.unwrap_err().to_string().contains("not an ELF"));
    assert!(
        try_load(b"\x1f\x8b")
            .1
            .unwrap_err()
            .to_string()
            .contains("not an ELF")
    );
    assert!(fails(|file| file[0] = 0).contains("not an ELF"));
    assert!(fails(|file| file[4] = 1).contains("not a 64-bit"));
    assert!(fails(|file| file[16] = 3).contains("not a 64-bit"));
    assert!(fails(|file| file[18] = 3).contains("not a 64-bit"));
    assert!(fails(|file| file[54] = 32).contains("e_phentsize = 32"));
    assert!(fails(|file| file[56] = 0).contains("e_phnum = 0"));
    assert!(fails(|file| file[57] = 1).contains("e_phnum = 258"));
    assert!(fails(|file| file[24] = 0xff).contains("entry point 0x2000ff"));
    assert!(fails(|file| file.truncate(100)).contains("program headers"));
}

#[test]
fn segments_out_of_range_are_refused() {
    let problem = |offset, address, in_file, in_memory| {
        fails(|file| segment(file, 1, offset, address, in_file, in_memory))
    };
    assert!(problem(0x200, 0x40_0000, 5, 4).contains("more bytes in the file"));
    assert!(problem(0x200, 0x40_0000, 100, 100).contains("beyond the end of the file"));
    assert!(problem(u64::MAX, 0x40_0000, 1, 1).contains("beyond the end of the file"));
    assert!(problem(0x200, 0x9000, 1, 1).contains("below 1 MiB"));
    assert!(problem(0x200, 0x400_0000, 1, 1).contains("beyond guest memory"));
    assert!(problem(0x200, 0x3ff_ffff, 1, 2).contains("beyond guest memory"));
    assert!(problem(0x200, u64::MAX, 1, 2).contains("wraps around"));
    assert!(problem(0x200, 0x20_0010, 4, 4).contains("overlaps"));
    assert!(fails(|file| file[64] = 6).contains("entry point"));
    let nothing = |file: &mut Vec<u8>| (file[64], file[120]) = (6, 6);
    assert!(fails(nothing).contains("nothing to load"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((0usize..0x20c, any::<u8>()), 1..8), cut in 0usize..0x20c) {
        let mut file = kernel();
        for (at, byte) in changes {
            file[at] = byte;
        }
        let _ = try_load(&file);
        file.truncate(cut);
        let _ = try_load(&file);
    }
}
