//! Images as stage0's linker script makes them, and images that lie.

use proptest::prelude::*;

use super::*;

/// p_type, p_flags, p_paddr, file bytes, p_memsz.
type Row = (u32, u32, u64, Vec<u8>, u64);

/// Code, page tables and all special pages.
pub(crate) fn rows() -> Vec<Row> {
    vec![
        (PT_LOAD, 5, 0x10_0000, vec![0x90; 0x1800], 0x1800),
        (PT_LOAD, 6, 0x10_2000, vec![0x11; 0x10], 0x2000),
        (PT_HASHES, 4, 0x10_4000, vec![], 0x1000),
        (PT_SECRETS, 4, 0x10_5000, vec![0; 0x1000], 0x1000),
        (PT_CPUID, 4, 0x10_6000, vec![], 0x1000),
        (PT_SCRATCH, 6, 0x10_7000, vec![], 0x3000),
        (PT_GNU_STACK, 6, 0, vec![], 0),
    ]
}

/// An executable with these segments and this entry point.
pub(crate) fn elf(rows: &[Row], entry: u64) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, rows.len() as u8, 0, 64, 0, 0, 0, 0, 0]);
    let mut offset = 64 + 56 * rows.len() as u64;
    for (p_type, flags, gpa, bytes, memory) in rows {
        file.extend(p_type.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for field in [offset, *gpa, *gpa, bytes.len() as u64, *memory, 0x1000] {
            file.extend(field.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    rows.iter().for_each(|row| file.extend(&row.3));
    file
}

pub(crate) const ENTRY: u64 = 0x10_0010;

fn refused(change: impl FnOnce(&mut Vec<Row>)) -> String {
    let mut rows = rows();
    change(&mut rows);
    match Image::parse(&elf(&rows, ENTRY)) {
        Ok(image) => panic!("accepted: {image:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_image_is_its_program_headers() {
    let image = Image::parse(&elf(&rows(), ENTRY)).unwrap();
    let kinds: Vec<_> = image
        .pages()
        .iter()
        .map(|page| (page.gpa.0 >> 12, page.kind))
        .collect();
    use Kind::*;
    let expected = [
        (0x100, Load),
        (0x101, Load),
        (0x102, Load),
        (0x103, Load),
        (0x104, Hashes),
        (0x105, Secrets),
        (0x106, Cpuid),
        (0x107, Scratch),
        (0x108, Scratch),
        (0x109, Scratch),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(image.entry(), Gpa(ENTRY));
    assert_eq!(image.page_tables(), Gpa(0x10_0000));
    assert_eq!(image.hash_page(), Gpa(0x10_4000));
    assert_eq!(image.secrets_page(), Gpa(0x10_5000));
    assert_eq!(image.cpuid_page(), Gpa(0x10_6000));
}

#[test]
fn bytes_come_from_the_file_and_zeros_after_them() {
    let image = Image::parse(&elf(&rows(), ENTRY)).unwrap();
    assert_eq!(image.pages()[0].bytes[..], [0x90; 0x1000]);
    assert_eq!(image.pages()[1].bytes[..0x800], [0x90; 0x800]);
    assert_eq!(image.pages()[1].bytes[0x800..], [0; 0x800]);
    assert_eq!(
        image.pages()[2].bytes[..0x11],
        [[0x11; 16].as_slice(), &[0]].concat()
    );
    assert_eq!(image.pages()[3].bytes[..], [0; 0x1000]);
}

#[test]
fn pages_are_in_order_whatever_the_order_of_program_headers() {
    let mut rows = rows();
    rows.reverse();
    let image = Image::parse(&elf(&rows, ENTRY)).unwrap();
    assert!(image.pages().is_sorted_by_key(|page| page.gpa));
}

#[test]
fn segments_that_cannot_be_launched_are_refused_by_name() {
    assert_eq!(
        refused(|rows| rows[1].2 = 0x10_2010),
        "program header 1: p_paddr 0x102010 is not page-aligned"
    );
    assert_eq!(refused(|rows| rows[1].4 = 0), "program header 1: p_memsz is 0");
    assert_eq!(
        refused(|rows| rows[1].4 = 4),
        "program header 1: p_filesz 0x10 exceeds p_memsz 0x4"
    );
    assert_eq!(
        refused(|rows| rows[1].0 = 2),
        "program header 1: p_type 0x2 has no place in an image"
    );
    assert_eq!(
        refused(|rows| rows[1].2 = 0xffff_f000),
        "program header 1: it ends above 4 GiB"
    );
    assert_eq!(
        refused(|rows| rows[1].2 = u64::MAX << 12),
        "program header 1: it ends above 4 GiB"
    );
    assert_eq!(
        refused(|rows| rows[3].3[9] = 1),
        "program header 3: it may not have bytes other than zero"
    );
    assert_eq!(
        refused(|rows| rows[5].4 = 0x1000_0000),
        "the image has 65543 pages and should have at least one and at most 1024"
    );
}

#[test]
fn segments_share_no_page() {
    assert_eq!(
        refused(|rows| rows[1].2 = 0x10_1000),
        "two segments lie on page 0x101000"
    );
    assert_eq!(
        refused(|rows| rows[5].2 = 0x10_4000),
        "two segments lie on page 0x104000"
    );
}

#[test]
fn special_pages_are_there_once() {
    assert_eq!(
        refused(|rows| drop(rows.remove(2))),
        "the image has 0 hash pages and should have one"
    );
    assert_eq!(
        refused(|rows| rows[3].0 = PT_CPUID),
        "the image has 0 secrets pages and should have one"
    );
    assert_eq!(
        refused(|rows| rows[5].0 = PT_CPUID),
        "the image has 4 CPUID pages and should have one"
    );
}

#[test]
fn the_entry_point_is_code_of_the_file() {
    for entry in [0, 0xf_ffff, 0x10_1800, 0x10_2000, 0x10_4000, u64::MAX] {
        let error = Image::parse(&elf(&rows(), entry)).unwrap_err();
        assert_eq!(error, Error::Entry(Gpa(entry)));
    }
}

#[test]
fn other_files_are_refused_by_the_field() {
    let with = |at: usize, byte| {
        let mut file = elf(&rows(), ENTRY);
        file[at] = byte;
        Image::parse(&file).unwrap_err().to_string()
    };
    let fields = [
        (0, "e_ident[EI_MAG]"),
        (4, "e_ident[EI_CLASS]"),
        (5, "e_ident[EI_DATA]"),
        (6, "e_ident[EI_VERSION]"),
        (16, "e_type"),
        (18, "e_machine"),
        (20, "e_version"),
        (52, "e_ehsize"),
        (54, "e_phentsize"),
        (56, "e_phnum"),
    ];
    for (at, field) in fields {
        assert_eq!(
            with(at, 0xee),
            format!("the file is no static ELF executable for x86-64: {field} is wrong")
        );
    }
    assert_eq!(with(39, 0xff), "the file ends inside the program headers");
    assert_eq!(
        Image::parse(&vec![0; MAX_FILE + 1]).unwrap_err(),
        Error::FileTooLarge
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = elf(&rows(), ENTRY);
    for length in (0..700).chain(file.len() - 40..file.len()) {
        Image::parse(&file[..length]).unwrap_err();
    }
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Image::parse(&bytes);
    }

    #[test]
    fn changed_headers_end_without_overlaps(changes in prop::collection::vec((0usize..64 + 56 * 7, any::<u8>()), 1..6)) {
        let mut file = elf(&rows(), ENTRY);
        for (at, byte) in changes {
            file[at] = byte;
        }
        if let Ok(image) = Image::parse(&file) {
            prop_assert!(image.pages().is_sorted_by(|a, b| a.gpa < b.gpa));
            prop_assert!(image.pages().len() <= MAX_PAGES);
        }
    }
}
