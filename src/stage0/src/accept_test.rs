use proptest::prelude::*;

use super::*;
use crate::model::{GHCB, Model};
use crate::platform::Image;
use crate::ram;

fn image(pages: u64) -> Image {
    Image {
        start: 0x10_0000,
        end: 0x10_0000 + pages * PAGE,
        hashes: 0,
        secrets: 0,
        cpuid: 0,
        ghcb: GHCB,
    }
}

/// The ranges that pages make when they are put together.
fn merged(pages: &[(u64, PageSize)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = vec![];
    for &(gpa, size) in pages {
        match ranges.last_mut() {
            Some((_, end)) if *end == gpa => *end = gpa + size.bytes(),
            _ => ranges.push((gpa, gpa + size.bytes())),
        }
    }
    ranges
}

fn wanted(ranges: &[Range]) -> Vec<(u64, u64)> {
    let used = ranges.iter().filter(|range| range.len() > 0);
    used.map(|range| (range.start, range.end)).collect()
}

proptest! {
    #[test]
    fn every_page_is_assigned_and_validated_once_in_order(pages in 0x4000u64..0x100_0000, image_pages in 1u64..256) {
        let ranges = ram::ranges(pages * PAGE, &image(image_pages));
        let mut model = Model::default();
        prop_assert_eq!(accept(&mut model, GHCB, &ranges), Ok(()));
        prop_assert_eq!(&model.assigned, &model.validated);
        prop_assert_eq!(merged(&model.validated), wanted(&ranges));
        // Small pages only where a range does not begin or end with a large one: less than 512 at each of five ends.
        prop_assert!(model.validated.iter().filter(|(_, size)| *size == PageSize::Small).count() < 5 * 512);
        prop_assert_eq!(model.exits, model.validated.len().div_ceil(MAX_ENTRIES));
    }

    #[test]
    fn large_pages_that_the_host_split_are_validated_as_small_ones(split in proptest::collection::vec(any::<bool>(), 32)) {
        let ranges = ram::ranges(64 << 20, &image(16));
        let mut model = Model {
            pvalidate: Box::new(|gpa, size| match size == PageSize::Large && split[(gpa / LARGE_PAGE) as usize] {
                true => Pvalidate::SizeMismatch,
                false => Pvalidate::Changed,
            }),
            ..Model::default()
        };
        prop_assert_eq!(accept(&mut model, GHCB, &ranges), Ok(()));
        prop_assert_eq!(merged(&model.validated), wanted(&ranges));
    }

    #[test]
    fn one_page_that_does_not_become_valid_ends_everything(at in 0usize..430, small in any::<bool>(), bad in 0usize..3) {
        let ranges = ram::ranges(64 << 20, &image(16));
        let mut calls = 0;
        let (outcome, termination) = [
            (Pvalidate::Unchanged, Termination::AlreadyValid),
            (Pvalidate::Failed, Termination::PageNotValidated),
            (Pvalidate::Unchanged, Termination::AlreadyValid),
        ][bad];
        let mut model = Model {
            pvalidate: Box::new(|_, size| {
                calls += 1;
                match calls > at {
                    true => outcome,
                    false if small && size == PageSize::Large => Pvalidate::SizeMismatch,
                    false => Pvalidate::Changed,
                }
            }),
            ..Model::default()
        };
        prop_assert_eq!(accept(&mut model, GHCB, &ranges), Err(termination));
        drop(model);
        // Nothing is tried after it.
        prop_assert_eq!(calls, at + 1);
    }
}

#[test]
fn a_size_mismatch_of_a_small_page_is_no_reason_to_go_on() {
    let mut model = Model {
        pvalidate: Box::new(|_, _| Pvalidate::SizeMismatch),
        ..Model::default()
    };
    let range = Range {
        start: PAGE,
        end: 2 * PAGE,
    };
    assert_eq!(
        accept(&mut model, GHCB, &[range]),
        Err(Termination::PageNotValidated)
    );
}

#[test]
fn nothing_is_asked_for_empty_ranges() {
    let mut model = Model::default();
    assert_eq!(accept(&mut model, GHCB, &[Range::default(); 4]), Ok(()));
    assert_eq!(model.exits, 0);
}
