//! The page's layout, and which corrections are taken.

use super::*;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn table() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0x10, 1, 2, 3]),
        entry(1, 0, [0xa0_0f11, 0, 1 << 30 | 1 << 24, 4]),
        entry(7, 0, [0, 1 << 20 | 1 << 18 | 1 << 7 | 2, 1 << 2, 0x3f << 26]),
        entry(0xd, 0, [7, 0x340, 0x340, 0]),
        entry(0xd, 1, [0xf, 0x340, 0, 0]),
        entry(0xd, 2, [0x100, 0x240, 0, 0]),
        entry(0x8000_0008, 0, [0x3030, 1 << 25 | 1 << 12, 0, 0]),
        entry(0x8000_001f, 0, [0x1a, 51, 0, 0]),
    ]
}

#[test]
fn entries_are_where_the_firmware_reads_them() {
    let page = build(&table()).unwrap();
    assert_eq!(page[..16], [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let second = &page[16 + 48..16 + 96];
    assert_eq!(second[..4], 1u32.to_le_bytes());
    assert_eq!(second[24..28], 0xa0_0f11u32.to_le_bytes());
    assert_eq!(second[36..40], 4u32.to_le_bytes());
    assert_eq!(second[40..], [0; 8]);
    assert!(page[16 + 8 * 48..].iter().all(|byte| *byte == 0));
}

#[test]
fn xsave_starts_small() {
    let page = build(&table()).unwrap();
    let at = |index: usize| &page[16 + index * 48..16 + index * 48 + 48];
    for index in [3, 4] {
        assert_eq!(at(index)[8..16], 1u64.to_le_bytes());
        assert_eq!(at(index)[28..32], 0x240u32.to_le_bytes());
    }
    assert_eq!(at(5)[8..16], [0; 8]);
    assert_eq!(at(5)[28..32], 0x240u32.to_le_bytes());
}

#[test]
fn no_more_than_sixty_four_entries() {
    let many = vec![entry(1, 0, [0; 4]); 64];
    assert!(build(&many).is_ok());
    let more = vec![entry(1, 0, [0; 4]); 65];
    assert_eq!(build(&more), Err(Error::TooMany(65)));
}

#[test]
fn features_of_emulation_are_not_offered() {
    let mut table = table();
    mask(&mut table);
    assert_eq!(table[1].ecx, 1 << 30);
    assert_eq!(table[2].ebx & 2, 0);
    assert_eq!(table[2].edx, 0);
    assert_eq!(table[6].ebx, 1 << 12);
}

/// The page with one word changed.
fn corrected(index: usize, offset: usize, change: impl Fn(u32) -> u32) -> Box<Page> {
    let mut page = build(&table()).unwrap();
    let at = 16 + index * 48 + offset;
    let value = change(word(&page[at..at + 4], 0));
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
    page
}

#[test]
fn a_correction_of_values_is_taken() {
    let offered = build(&table()).unwrap();
    let page = corrected(1, 32, |ecx| ecx & !(1 << 24));
    assert_eq!(check_correction(&offered, &page), Ok(()));
    assert_eq!(
        differences(&offered, &page),
        ["0x1[0x0] ecx 0x41000000 -> 0x40000000"]
    );
    let page = corrected(6, 28, |ebx| ebx & !(1 << 25));
    assert_eq!(check_correction(&offered, &page), Ok(()));
}

#[test]
fn a_correction_that_weakens_is_refused() {
    let offered = build(&table()).unwrap();
    for (index, offset, bit, name) in [
        (1, 32, 30, "RDRAND"),
        (2, 28, 7, "SMEP"),
        (2, 28, 18, "RDSEED"),
        (2, 28, 20, "SMAP"),
        (2, 32, 2, "UMIP"),
        (6, 28, 12, "controls of speculation"),
        (7, 24, 4, "memory encryption"),
    ] {
        let page = corrected(index, offset, |value| value & !(1 << bit));
        let result = check_correction(&offered, &page);
        assert!(
            matches!(result, Err(Error::Weaker { name: told, .. }) if told == name),
            "{name}: {result:?}"
        );
    }
    let page = corrected(7, 28, |ebx| ebx - 4);
    assert_eq!(check_correction(&offered, &page), Err(Error::EncryptionBit));
}

#[test]
fn a_correction_that_answers_something_else_is_refused() {
    let offered = build(&table()).unwrap();
    assert_eq!(check_correction(&offered, &offered), Err(Error::Unchanged));
    for (index, offset) in [(0, 0), (3, 4), (4, 8), (5, 16)] {
        let page = corrected(index, offset, |value| value + 1);
        assert_eq!(check_correction(&offered, &page), Err(Error::OtherLeaves));
    }
    let mut page = build(&table()).unwrap();
    page[0] = 65;
    assert_eq!(check_correction(&offered, &page), Err(Error::OtherLeaves));
}
