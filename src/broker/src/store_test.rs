use super::*;
use proptest::prelude::*;
use tempfile::TempDir;

struct Place {
    directory: TempDir,
    key: StoreKey,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            directory: tempfile::tempdir().unwrap(),
            key: StoreKey::generate().unwrap(),
        };
        Store::create(&place.path(), &place.key).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn open(&self) -> Result<Store, Error> {
        Store::open(&self.path(), &self.key)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

fn value(store: &Store, name: &str) -> Option<Vec<u8>> {
    store.get(name).unwrap().map(|value| value.to_vec())
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let place = Place::new();
    let store = place.open().unwrap();
    assert!(store.put("a", b"one").unwrap());
    assert!(!store.put("a", b"two").unwrap());
    assert!(store.put("b", b"").unwrap());
    assert!(store.put("c", b"gone").unwrap());
    assert!(store.delete("c").unwrap());
    assert!(!store.delete("c").unwrap());
    assert!(!store.put_new("a", b"three").unwrap());
    assert!(store.put_new("d", b"four").unwrap());
    drop(store);
    let store = place.open().unwrap();
    assert_eq!(store.names(), ["a", "b", "d"]);
    assert_eq!(value(&store, "a").unwrap(), b"two");
    assert_eq!(value(&store, "b").unwrap(), b"");
    assert_eq!(value(&store, "d").unwrap(), b"four");
    assert_eq!(value(&store, "c"), None);
}

#[test]
fn no_secret_is_readable_in_the_file_and_a_deleted_one_leaves_it() {
    let place = Place::new();
    let store = place.open().unwrap();
    store.put("a", b"plaintext-of-a-secret").unwrap();
    let with = place.bytes();
    assert!(!with.windows(9).any(|window| window == b"plaintext"));
    store.delete("a").unwrap();
    assert!(place.bytes().len() < with.len());
}

#[test]
fn a_store_has_one_writer() {
    let place = Place::new();
    let _first = place.open().unwrap();
    assert!(matches!(place.open(), Err(Error::Locked(_))));
}

#[test]
fn another_stores_key_is_refused_by_name() {
    let place = Place::new();
    let refused = Store::open(&place.path(), &StoreKey::generate().unwrap());
    assert!(matches!(refused, Err(Error::WrongKey(_))));
}

#[test]
fn a_store_is_never_made_over_another_file() {
    let place = Place::new();
    assert!(Store::create(&place.path(), &place.key).is_err());
    std::fs::write(place.path(), "something else").unwrap();
    assert!(matches!(place.open(), Err(Error::Foreign(_))));
}

#[test]
fn values_that_are_replaced_do_not_fill_the_disk() {
    let place = Place::new();
    let store = place.open().unwrap();
    store.put("other", b"stays").unwrap();
    for round in 0..40_u8 {
        store.put("a", &vec![round; 100_000]).unwrap();
    }
    assert!(place.bytes().len() < 2_000_000);
    drop(store);
    let store = place.open().unwrap();
    assert_eq!(value(&store, "a").unwrap(), vec![39; 100_000]);
    assert_eq!(value(&store, "other").unwrap(), b"stays");
}

#[test]
fn too_long_a_value_is_refused_and_changes_nothing() {
    let place = Place::new();
    let store = place.open().unwrap();
    assert!(matches!(
        store.put("a", &vec![0; MAX_VALUE + 1]),
        Err(Error::TooLong)
    ));
    assert!(matches!(store.put(&"n".repeat(256), b""), Err(Error::TooLong)));
    assert!(store.is_empty());
}

/// A store with three values, as bytes, and the length of each prefix of values.
fn three() -> (Place, Vec<u8>, Vec<u64>) {
    let place = Place::new();
    let store = place.open().unwrap();
    let mut ends = vec![DATA];
    for name in ["a", "b", "c"] {
        store.put(name, name.repeat(50).as_bytes()).unwrap();
        ends.push(store.state().committed);
    }
    drop(store);
    let bytes = place.bytes();
    (place, bytes, ends)
}

#[test]
fn a_write_that_was_cut_off_before_it_was_committed_is_dropped() {
    let (place, bytes, ends) = three();
    // The third value was being written: the slots still say two.
    let mut before = bytes.clone();
    let slot = slot_bytes(2, ends[2]);
    before[SLOTS[0] as usize..][..slot.len()].copy_from_slice(&slot);
    before[SLOTS[1] as usize..][..slot.len()].copy_from_slice(&slot_bytes(1, ends[1]));
    for cut in ends[2]..ends[3] {
        std::fs::write(place.path(), &before[..cut as usize]).unwrap();
        let store = place.open().unwrap();
        assert_eq!(store.names(), ["a", "b"], "cut at {cut}");
        store.put("d", b"after").unwrap();
        drop(store);
        assert_eq!(place.open().unwrap().names(), ["a", "b", "d"]);
    }
    std::fs::write(place.path(), &before).unwrap();
    assert_eq!(
        place.open().unwrap().names(),
        ["a", "b", "c"],
        "a whole entry counts"
    );
}

#[test]
fn a_commit_that_was_cut_off_counts_as_its_entry_is_whole() {
    let (place, mut bytes, _) = three();
    bytes[SLOTS[1] as usize..][..20].fill(0xaa);
    std::fs::write(place.path(), &bytes).unwrap();
    assert_eq!(place.open().unwrap().names(), ["a", "b", "c"]);
}

#[test]
fn a_file_that_lost_its_end_is_damaged() {
    let (place, bytes, ends) = three();
    for cut in [0, 11, 12, 60, 4095, 4100, 9000, DATA, ends[1], ends[3] - 1] {
        std::fs::write(place.path(), &bytes[..cut as usize]).unwrap();
        let error = place.open().err().unwrap();
        assert!(
            matches!(error, Error::Damaged { .. } | Error::Foreign(_)),
            "cut at {cut}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("CWRUN_SOAK").is_some() { 20_000 } else { 300 }))]

    #[test]
    fn a_damaged_file_is_an_error_or_holds_everything_and_never_panics(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        run in 1_usize..600,
    ) {
        let (place, mut bytes, _) = three();
        for (at, value) in places {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + run);
            bytes[at..end].fill(value);
        }
        std::fs::write(place.path(), &bytes).unwrap();
        match place.open() {
            // Bytes that mean nothing, or a slot whose twin is still whole.
            Ok(store) => prop_assert_eq!(store.names(), ["a", "b", "c"]),
            Err(error) => prop_assert!(matches!(error, Error::Damaged { .. } | Error::Foreign(_) | Error::WrongKey(_)), "{}", error),
        }
    }
}
