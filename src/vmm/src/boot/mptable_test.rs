//! Reads the tables back as a guest does.

use super::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Splits the entries by their type, with the sizes that the specification gives them.
fn entries(table: &[u8]) -> Vec<&[u8]> {
    let mut rest = &table[FLOATING_POINTER_SIZE + HEADER_SIZE..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
        found.push(entry);
        rest = after;
    }
    found
}

#[test]
fn both_parts_have_valid_checksums_and_lengths() {
    for vcpus in [1, 2, 8, 64, 253] {
        let table = build(vcpus).unwrap();
        let (pointer, config) = table.split_at(16);
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(sum(pointer), 0);
        assert_eq!(u32::from_le_bytes(pointer[4..8].try_into().unwrap()), 0xf0010);
        assert_eq!(&config[..4], b"PCMP");
        assert_eq!(sum(config), 0);
        assert_eq!(
            usize::from(u16::from_le_bytes(config[4..6].try_into().unwrap())),
            config.len()
        );
        let count = u16::from_le_bytes(config[34..36].try_into().unwrap());
        assert_eq!(usize::from(count), entries(&table).len());
        assert_eq!(config[36..40], 0xfee0_0000u32.to_le_bytes());
    }
}

#[test]
fn every_vcpu_is_there_once_and_the_first_boots() {
    let table = build(3).unwrap();
    let processors: Vec<_> = entries(&table)
        .into_iter()
        .filter(|entry| entry[0] == 0)
        .map(|e| (e[1], e[3]))
        .collect();
    assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
}

#[test]
fn every_line_leads_to_the_same_input_of_the_io_apic() {
    let table = build(3).unwrap();
    let entries = entries(&table);
    let io_apic = entries.iter().find(|entry| entry[0] == 2).unwrap();
    assert_eq!(io_apic[1..], [4, 0x11, 1, 0, 0, 0xc0, 0xfe]);
    let lines: Vec<_> = entries
        .iter()
        .filter(|entry| entry[0] == 3)
        .map(|e| (e[5], e[6], e[7]))
        .collect();
    assert_eq!(lines, (0..24).map(|line| (line, 4, line)).collect::<Vec<_>>());
}

#[test]
fn too_many_vcpus_have_no_table() {
    assert!(build(253).is_some());
    assert!(build(254).is_none());
    assert!(build(255).is_none());
}
