//! Wrong input: configurations that are changed at random, in their structure and in their bytes, end in a value or in a sentence.

use super::conformance::{pointers, remove};
use super::tests::{TestBundle, full};
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

/// How often each property is tried: in a soak, much more often.
fn tries() -> ProptestConfig {
    let long = std::env::var_os("CWRUN_SOAK").is_some();
    ProptestConfig::with_cases(if long { 100_000 } else { 2000 })
}

/// One change of a configuration.
#[derive(Debug, Clone)]
enum Mutation {
    Drop(Index),
    Replace(Index, Value),
    Repeat(Index),
    /// What is at one place comes to another as well.
    Graft(Index, Index),
    Add(Index, String, Value),
}

/// Values that something may trip over.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1 << 31),
            json!(1.5),
            json!(1e300),
            json!(""),
            json!("/"),
            json!(".."),
            json!("../../../../etc/passwd"),
            json!("/proc/self/ns/uts"),
            json!("/dev/null"),
            json!("\u{0}"),
            json!("a\nb\u{1b}[31m"),
            json!("\u{202e}\u{feff}ü"),
            json!("=".repeat(5000)),
            json!("max"),
            json!("0-99999999"),
            json!("9999999999999999999999"),
            json!([]),
            json!({}),
            json!([null]),
            json!([[], {}, ""]),
            json!({"path": "/x", "type": "c"}),
        ]),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        2 => index().prop_map(Mutation::Drop),
        4 => (index(), value()).prop_map(|(at, value)| Mutation::Replace(at, value)),
        1 => index().prop_map(Mutation::Repeat),
        1 => (index(), index()).prop_map(|(from, to)| Mutation::Graft(from, to)),
        1 => (index(), "\\PC{0,8}", value()).prop_map(|(at, key, value)| Mutation::Add(at, key, value)),
    ]
}

fn apply(config: &mut Value, mutation: &Mutation) {
    let places = pointers(config);
    match mutation {
        Mutation::Drop(at) => drop(remove(config, &places[at.index(places.len())])),
        Mutation::Replace(at, value) => {
            if let Some(place) = config.pointer_mut(&places[at.index(places.len())]) {
                *place = value.clone();
            }
        }
        Mutation::Repeat(at) => {
            if let Some(Value::Array(items)) = config.pointer_mut(&places[at.index(places.len())]) {
                items.extend(items.clone());
            }
        }
        Mutation::Graft(from, to) => {
            let value = config.pointer(&places[from.index(places.len())]).cloned();
            if let (Some(place), Some(value)) = (config.pointer_mut(&places[to.index(places.len())]), value) {
                *place = value;
            }
        }
        Mutation::Add(at, key, value) => match config.pointer_mut(&places[at.index(places.len())]) {
            Some(Value::Object(fields)) => drop(fields.insert(key.clone(), value.clone())),
            Some(Value::Array(items)) => items.push(value.clone()),
            _ => {}
        },
    }
}

/// A panic fails the test by itself; what is left to see is that a refusal says something.
fn is_a_sentence<T>(result: Result<T>) {
    if let Err(error) = result {
        let sentence = format!("{error:#}");
        assert!(
            sentence.len() > 10 && !sentence.contains("panicked"),
            "{sentence:?}"
        );
    }
}

proptest! {
    #![proptest_config(tries())]

    #[test]
    fn configurations_changed_in_structure(mutations in prop::collection::vec(mutation(), 1..6)) {
        let mut config = full();
        mutations.iter().for_each(|mutation| apply(&mut config, mutation));
        is_a_sentence(TestBundle::new(&config).split());
    }

    #[test]
    fn configurations_changed_in_bytes(changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..3), 1..6)) {
        let mut text = full().to_string().into_bytes();
        for (at, byte, how) in changes {
            let at = at.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.drain(at..(at + usize::from(byte)).min(text.len() - 1))),
            }
        }
        let bundle = TestBundle::new(&full());
        bundle.write(&text);
        is_a_sentence(bundle.split());
    }

    #[test]
    fn processes_changed_in_structure(mutations in prop::collection::vec(mutation(), 1..6)) {
        let mut process = full()["process"].take();
        mutations.iter().for_each(|mutation| apply(&mut process, mutation));
        is_a_sentence(parse_process(process.to_string().as_bytes()).and_then(|process| {
            guest::refuse_unsupported_process(&process)?;
            guest::console_size(&process);
            guest::process(&process, &Default::default())
        }));
    }
}
