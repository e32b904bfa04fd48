use super::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

#[test]
fn tables_of_any_size_add_up_and_fit() {
    for vcpus in [1, 2, 64, MAX_VCPUS] {
        let mut page = [0; PAGE as usize];
        write(&mut page, 0x9f000, vcpus);
        let len = u32::from_le_bytes(page[MADT + 4..MADT + 8].try_into().unwrap()) as usize;
        assert_eq!(len, 44 + vcpus as usize * 8 + 12 + 6);
        assert_eq!(sum(&page[MADT..MADT + len]), 0);
        assert_eq!(sum(&page[XSDT..XSDT + XSDT_LEN]), 0);
        assert_eq!((sum(&page[..20]), sum(&page[..36])), (0, 0));
        assert!(page[MADT + len..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn the_io_apic_has_an_id_of_its_own() {
    let mut page = [0; PAGE as usize];
    write(&mut page, 0x9f000, MAX_VCPUS);
    let at = MADT + 44 + MAX_VCPUS as usize * 8;
    assert_eq!(page[at..at + 12], [1, 12, 254, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}
