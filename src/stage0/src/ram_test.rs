use proptest::prelude::*;

use super::*;
use crate::abi::{MAX_RAM, MIN_RAM, PAGE, STAGING_END, STAGING_START};

proptest! {
    #[test]
    fn ranges_neither_touch_the_image_nor_staging_nor_each_other(pages in MIN_RAM / PAGE..=MAX_RAM / PAGE, image_pages in 1u64..=256) {
        let ram = pages * PAGE;
        let image = Image { start: BIOS_END, end: BIOS_END + image_pages * PAGE, hashes: 0, secrets: 0, cpuid: 0, ghcb: 0 };
        let ranges = ranges(ram, &image);
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].start <= pair[0].end && pair[0].end <= pair[1].start);
        }
        for range in &ranges {
            prop_assert!(range.end <= image.start || range.start >= image.end);
            prop_assert!(range.end <= STAGING_START || range.start >= STAGING_END);
        }
        let total: u64 = ranges.iter().map(Range::len).sum();
        prop_assert_eq!(total, ram - (BIOS_END - CONVENTIONAL_END) - (image.end - image.start));
    }
}
