use proptest::prelude::*;

use super::*;
use crate::model::{GHCB, Model};

const BUFFER: u64 = GHCB + 0x800;

fn pages(count: u64) -> Vec<Page> {
    (0..count)
        .map(|index| Page {
            gpa: index * 0x20_0000,
            size: PageSize::Large,
        })
        .collect()
}

fn answer(
    model: Model,
    action: impl FnOnce(&mut Model) -> Result<u64, Termination>,
) -> Result<u64, Termination> {
    let mut model = model;
    action(&mut model)
}

#[test]
fn a_change_within_an_entry_is_progress() {
    // The host stops in the middle of a large page, again and again.
    let mut model = Model {
        on_exit: Box::new(|shared, call| {
            match call {
                0 => shared.insert(BUFFER, 1 << 16),
                511 => shared.insert(BUFFER, 1 << 16 | 2),
                _ => None,
            };
            *shared.get_mut(&(BUFFER + 8)).unwrap() += 1;
        }),
        ..Model::default()
    };
    assert_eq!(make_private(&mut model, GHCB, &pages(2)), Ok(()));
    assert_eq!(model.exits, 512);
}

#[test]
fn the_whole_buffer_can_be_used() {
    let mut model = Model::default();
    assert_eq!(make_private(&mut model, GHCB, &pages(MAX_ENTRIES as u64)), Ok(()));
    let last = BUFFER + 8 + 252 * 8;
    assert_eq!(last + 8, GHCB + 0x800 + 2032);
    assert_eq!(model.shared[&last], 1 << 56 | 1 << 52 | 252 << 21);
}

proptest! {
    #[test]
    fn any_host_ends_or_completes(
        headers in proptest::collection::vec(any::<u64>(), 1..20),
        close in any::<bool>(),
        count in 1u64..=253,
    ) {
        let mut model = Model {
            on_exit: Box::new(|shared, call| {
                let mut header = headers[call % headers.len()];
                if close {
                    header = ((count - 1) << 16) | (header % (count + 2));
                }
                shared.insert(BUFFER, header);
            }),
            ..Model::default()
        };
        let outcome = make_private(&mut model, GHCB, &pages(count));
        let header = model.shared[&BUFFER];
        match outcome {
            Ok(()) => prop_assert_eq!(header, (count - 1) << 16 | count),
            Err(error) => {
                prop_assert!(matches!(error, Termination::PageStateHeader | Termination::PageStateProgress));
            }
        }
        // Each call must get further.
        prop_assert!(model.exits as u64 <= count + 1);
    }

    #[test]
    fn answers_of_the_msr_protocol_are_taken_only_when_they_fit(value in any::<u64>(), code in 0u64..0x100) {
        for value in [value, value & !0xfff | code] {
            let model = || Model { msr: Box::new(move |_| value), ..Model::default() };
            if let Ok(bit) = answer(model(), |model| negotiate(model)) {
                prop_assert_eq!(value & 0xfff, 1);
                prop_assert!(value >> 32 & 0xffff <= 2 && value >> 48 >= 2 && bit == value >> 24 & 0xff);
            }
            if answer(model(), |model| features(model).map(|()| 0)).is_ok() {
                prop_assert_eq!(value & 0x3fff, 0x3081);
            }
            if answer(model(), |model| make_shared(model, GHCB).map(|()| 0)).is_ok() {
                prop_assert_eq!((value & 0xfff, value >> 32), (0x15, 0));
            }
            if answer(model(), |model| register(model, GHCB).map(|()| 0)).is_ok() {
                prop_assert_eq!(value, GHCB | 0x13);
            }
        }
    }
}
