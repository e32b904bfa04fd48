use proptest::prelude::*;

use super::*;

#[test]
fn sha_is_believed_only_from_a_sound_page() {
    let mut page = [0; PAGE as usize];
    assert!(!has_sha(&page));
    page[0] = 1;
    page[16] = 7;
    assert!(!has_sha(&page));
    page[16 + 28..16 + 32].copy_from_slice(&FEATURE_SHA.to_le_bytes());
    assert!(has_sha(&page));
    page[0] = 65;
    assert!(!has_sha(&page));
}

#[test]
fn the_first_entry_of_a_leaf_counts() {
    let mut page = [0; PAGE as usize];
    page[0] = 2;
    for (at, bit) in [(16, 51u32), (64, 47)] {
        page[at..at + 4].copy_from_slice(&LEAF_ENCRYPTION.to_le_bytes());
        page[at + 24..at + 28].copy_from_slice(&ENCRYPTION_SNP.to_le_bytes());
        page[at + 28..at + 32].copy_from_slice(&bit.to_le_bytes());
    }
    assert_eq!(encryption_bit(&page), Ok(51));
}

proptest! {
    #[test]
    fn no_page_makes_it_panic(page in proptest::collection::vec(any::<u8>(), 4096), count in 0u32..70, small in any::<bool>()) {
        let mut page = page;
        if small {
            page[..4].copy_from_slice(&count.to_le_bytes());
        }
        if let Ok(entry) = leaf(&page, 0) {
            prop_assert_eq!(entry.len(), 48);
        }
        let _ = encryption_bit(&page);
    }
}
