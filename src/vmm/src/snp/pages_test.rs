//! Which changes are made, in which order, and which are refused.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Set(u64, u64, bool),
    DiscardShared(u64, u64),
    DiscardPrivate(u64, u64),
}

#[derive(Debug, Default, Clone)]
struct Record(Arc<Mutex<Vec<Step>>>);

impl Record {
    fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn add(&self, step: Step) -> io::Result<()> {
        self.0.lock().unwrap().push(step);
        Ok(())
    }
}

impl Backing for Record {
    fn set_private(&self, gpa: u64, bytes: u64, private: bool) -> io::Result<()> {
        self.add(Step::Set(gpa, bytes, private))
    }

    fn discard_shared(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        self.add(Step::DiscardShared(gpa, bytes))
    }

    fn discard_private(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        self.add(Step::DiscardPrivate(gpa, bytes))
    }
}

const LOW: (u64, u64) = (0, 0x10_0000);
const NEXT: (u64, u64) = (0x10_0000, 0x10_0000);
const HIGH: (u64, u64) = (0x1_0000_0000, 0x8000);

fn pages() -> (Pages, Record) {
    let record = Record::default();
    (Pages::new(&[LOW, NEXT, HIGH], Box::new(record.clone())), record)
}

#[test]
fn the_attribute_is_set_before_the_side_that_lost_is_discarded() {
    let (pages, record) = pages();
    pages.convert(0x2000, 0x3000, true).unwrap();
    assert_eq!(
        record.take(),
        [
            Step::Set(0x2000, 0x3000, true),
            Step::DiscardShared(0x2000, 0x3000)
        ]
    );
    pages.convert(0x3000, 0x1000, false).unwrap();
    assert_eq!(
        record.take(),
        [
            Step::Set(0x3000, 0x1000, false),
            Step::DiscardPrivate(0x3000, 0x1000)
        ]
    );
    assert!(pages.are_shared(0x3000, 0x1000));
    assert!(!pages.are_shared(0x3fff, 2));
    assert!(pages.are_shared(0x3fff, 1));
}

#[test]
fn a_state_that_holds_already_costs_no_call() {
    let (pages, record) = pages();
    pages.convert(0, 0x10_0000, true).unwrap();
    record.take();
    pages.convert(0x5000, 0x2000, true).unwrap();
    assert_eq!(record.take(), []);
    assert_eq!(pages.statistics().conversions, 1);
}

#[test]
fn a_range_over_two_regions_is_one_request_and_two_changes() {
    let (pages, record) = pages();
    assert_eq!(pages.map_gpa_range([0xf_f000, 2, 1 << 4, 0, 0, 0]), 0);
    assert_eq!(
        record.take(),
        [
            Step::Set(0xf_f000, 0x1000, true),
            Step::DiscardShared(0xf_f000, 0x1000),
            Step::Set(0x10_0000, 0x1000, true),
            Step::DiscardShared(0x10_0000, 0x1000)
        ]
    );
}

#[test]
fn the_attributes_are_bits() {
    let (pages, record) = pages();
    // Page sizes are hints, and no wish for private pages.
    for size in 0..=2 {
        assert_eq!(pages.map_gpa_range([0, 1, size, 0, 0, 0]), 0);
        assert_eq!(record.take(), []);
    }
    assert_eq!(pages.map_gpa_range([0, 1, 1 << 4 | 1, 0, 0, 0]), 0);
    assert_eq!(record.take()[0], Step::Set(0, 0x1000, true));
    for reserved in 5..64 {
        assert_eq!(pages.map_gpa_range([0, 1, 1 << reserved, 0, 0, 0]), INVALID);
        assert_eq!(
            pages.map_gpa_range([0, 1, 1 << reserved | 1 << 4, 0, 0, 0]),
            INVALID
        );
    }
    assert_eq!(record.take(), []);
}

#[test]
fn what_is_not_memory_is_refused() {
    let (pages, record) = pages();
    for (gpa, number) in [
        (0x1000, 0),
        (0x1001, 1),
        (0x20_0000, 1),
        (0x1f_f000, 2),
        (0xd000_0000, 1),
        (0x1_0000_0000, 9),
        (0xffff_f000, 2),
        (0, u64::MAX),
        (0, 1 << 52),
        (!0xfff, 1),
        (0x1000, u64::MAX / 4096),
    ] {
        assert_eq!(
            pages.map_gpa_range([gpa, number, 1 << 4, 0, 0, 0]),
            INVALID,
            "{gpa:#x} {number:#x}"
        );
    }
    assert_eq!(record.take(), []);
    assert_eq!(pages.statistics().refused, 11);
    assert_eq!(pages.statistics().shared_pages, 0x208);
}

#[test]
fn a_memory_fault_asks_for_the_state_of_the_access() {
    let (pages, record) = pages();
    pages.memory_fault(1 << 3, 0x4000, 0x1000).unwrap();
    assert_eq!(record.take()[0], Step::Set(0x4000, 0x1000, true));
    pages.memory_fault(0, 0x4000, 0x1000).unwrap();
    assert_eq!(record.take()[0], Step::Set(0x4000, 0x1000, false));
    for flags in [1, 1 << 4, 1 << 3 | 1] {
        assert!(matches!(
            pages.memory_fault(flags, 0x4000, 0x1000),
            Err(Error::Flags(_))
        ));
    }
    assert!(matches!(
        pages.memory_fault(0, 0xd000_0000, 0x1000),
        Err(Error::Range { .. })
    ));
}

#[derive(Debug)]
struct Broken;

impl Backing for Broken {
    fn set_private(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::OutOfMemory.into())
    }

    fn discard_shared(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard_private(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_change_that_fails_changes_nothing_and_is_told() {
    let pages = Pages::new(&[LOW], Box::new(Broken));
    assert_eq!(pages.map_gpa_range([0, 1, 1 << 4, 0, 0, 0]), FAILED);
    assert!(pages.are_shared(0, 0x1000));
    assert!(matches!(
        pages.memory_fault(1 << 3, 0, 0x1000),
        Err(Error::Host { .. })
    ));
}

proptest! {
    /// Whatever a guest asks for, the state is that of a plain list of pages, and a change never leaves RAM.
    #[test]
    fn any_sequence_of_requests_leads_where_a_list_of_pages_does(
        requests in proptest::collection::vec((0u64..0x240, 0u64..0x40, 0u64..0x40, any::<bool>()), 0..60),
    ) {
        let (pages, record) = pages();
        let mut model = vec![true; 0x200];
        for (first, number, attributes, odd) in requests {
            let gpa = first * PAGE + u64::from(odd && number % 7 == 0);
            let answer = pages.map_gpa_range([gpa, number, attributes, 0, 0, 0]);
            let sound = gpa.is_multiple_of(PAGE) && number > 0 && first + number <= 0x200 && attributes < 0x20;
            prop_assert_eq!(answer == 0, sound);
            if sound {
                let private = attributes & 0x10 != 0;
                model[first as usize..(first + number) as usize].fill(!private);
            }
        }
        for (page, shared) in model.iter().enumerate() {
            prop_assert_eq!(pages.are_shared(page as u64 * PAGE, PAGE), *shared);
        }
        let shared = model.iter().filter(|shared| **shared).count() as u64 + 8;
        prop_assert_eq!(pages.statistics().shared_pages, shared);
        for step in record.take() {
            let (Step::Set(gpa, bytes, _) | Step::DiscardShared(gpa, bytes) | Step::DiscardPrivate(gpa, bytes)) = step;
            prop_assert!(gpa + bytes <= 0x20_0000);
        }
    }
}
