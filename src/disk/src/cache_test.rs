//! One conversion for many callers, eviction that spares what is in use, and recovery from every kind of leftover.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::*;

const NO_LIMIT: u64 = u64::MAX;

/// A root file system with one file of `size` bytes.
fn source(size: usize) -> (tempfile::TempDir, Tree) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), vec![7; size]).unwrap();
    let tree = Tree::scan(directory.path()).unwrap();
    (directory, tree)
}

fn cache(limit: u64) -> (tempfile::TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(&directory.path().join("cache"), limit).unwrap();
    (directory, cache)
}

fn get(cache: &Cache, tree: &Tree) -> Entry {
    cache.get_or_build(tree, &Options::default()).unwrap()
}

fn names(cache: &Cache) -> HashSet<String> {
    fs::read_dir(&cache.path)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn the_second_time_is_cached() {
    let ((_source, tree), (_directory, cache)) = (source(10_000), cache(NO_LIMIT));
    let first = get(&cache, &tree);
    let second = get(&cache, &tree);
    assert!(!first.cached && second.cached);
    assert_eq!(
        (first.layout.clone(), first.key.as_bytes()),
        (second.layout.clone(), second.key.as_bytes())
    );
    for entry in [first, second] {
        verify(&entry.image, &entry.key, &entry.layout).unwrap();
        assert!(entry.image.write_at(b"x", 0).is_err(), "read-only");
    }
    let slot = cache.slot(&hex::encode(&tree.identity()));
    assert_eq!(fs::metadata(slot.entry.join(KEY)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&cache.path).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn ten_callers_convert_once() {
    let ((_source, tree), (_directory, cache)) = (source(3_000_000), cache(NO_LIMIT));
    let barrier = Barrier::new(10);
    let built = thread::scope(|scope| {
        let callers: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    !get(&cache, &tree).cached
                })
            })
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .filter(|built| *built)
            .count()
    });
    assert_eq!(built, 1);
}

#[test]
fn a_changed_tree_is_another_entry() {
    let ((source, tree), (_directory, cache)) = (source(100), cache(NO_LIMIT));
    get(&cache, &tree);
    thread::sleep(Duration::from_millis(12));
    fs::write(source.path().join("file"), "changed").unwrap();
    assert!(!get(&cache, &Tree::scan(source.path()).unwrap()).cached);
}

#[test]
fn the_least_recently_used_goes_first() {
    let trees: Vec<_> = (0..3).map(|_| source(1_000_000)).collect();
    // Room for two images of about 1.3 MB each.
    let (_directory, cache) = cache(3_500_000);
    drop(get(&cache, &trees[0].1));
    thread::sleep(Duration::from_millis(20));
    drop(get(&cache, &trees[1].1));
    thread::sleep(Duration::from_millis(20));
    assert!(get(&cache, &trees[0].1).cached);
    thread::sleep(Duration::from_millis(20));
    drop(get(&cache, &trees[2].1));
    let kept = |number: usize| names(&cache).contains(&hex::encode(&trees[number].1.identity()));
    assert_eq!([kept(0), kept(1), kept(2)], [true, false, true]);
    assert!(!names(&cache).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn what_is_in_use_is_not_evicted() {
    let (first, second) = (source(1_000_000), source(1_000_000));
    let (_directory, cache) = cache(1);
    let used = get(&cache, &first.1);
    drop(get(&cache, &second.1));
    assert!(names(&cache).contains(&hex::encode(&first.1.identity())));
    // A duplicate of the descriptor, as a child process has it, counts as use too.
    let duplicate = used.image.try_clone().unwrap();
    drop(used);
    drop(get(&cache, &second.1));
    assert!(get(&cache, &first.1).cached);
    drop(duplicate);
    let third = source(10);
    drop(get(&cache, &third.1));
    assert!(!names(&cache).contains(&hex::encode(&first.1.identity())));
}

#[test]
fn leftovers_of_the_dead_are_removed() {
    let ((_source, tree), (_directory, cache)) = (source(100), cache(NO_LIMIT));
    let (own, other, busy) = (hex::encode(&tree.identity()), "a".repeat(64), "b".repeat(64));
    for name in [&own, &other, &busy] {
        fs::create_dir(cache.path.join(format!("{name}.tmp"))).unwrap();
        fs::write(cache.path.join(format!("{name}.tmp/image")), "half").unwrap();
    }
    fs::write(cache.path.join(format!("{}.lock", "c".repeat(64))), "").unwrap();
    fs::write(cache.path.join("README"), "not ours").unwrap();
    let lock = Lock::wait(&cache.path.join(format!("{busy}.lock"))).unwrap();
    get(&cache, &tree);
    let expected = [
        own.clone(),
        format!("{own}.lock"),
        format!("{busy}.tmp"),
        format!("{busy}.lock"),
        "README".into(),
    ];
    assert_eq!(names(&cache), HashSet::from(expected));
    drop(lock);
}

#[test]
fn damaged_entries_are_made_again() {
    let ((_source, tree), (_directory, cache)) = (source(50_000), cache(NO_LIMIT));
    let slot = cache.slot(&hex::encode(&tree.identity()));
    type Damage = fn(&Slot);
    let damages: [Damage; 6] = [
        |slot| fs::write(slot.entry.join(RECORD), "{").unwrap(),
        |slot| fs::write(slot.entry.join(KEY), "short").unwrap(),
        |slot| fs::remove_file(slot.entry.join(KEY)).unwrap(),
        |slot| fs::remove_file(slot.entry.join(IMAGE)).unwrap(),
        |slot| fs::write(slot.entry.join(IMAGE), "short").unwrap(),
        |slot| {
            // From before a power failure, and torn by it.
            let record = fs::read_to_string(slot.entry.join(RECORD)).unwrap();
            fs::write(
                slot.entry.join(RECORD),
                record.replace(boot_id().unwrap(), "another boot"),
            )
            .unwrap();
            let image = OpenOptions::new()
                .write(true)
                .open(slot.entry.join(IMAGE))
                .unwrap();
            image.write_all_at(&[0; 512], (1 << 20) + 8192).unwrap();
        },
    ];
    drop(get(&cache, &tree));
    for (number, damage) in damages.into_iter().enumerate() {
        fs::set_permissions(slot.entry.join(IMAGE), PermissionsExt::from_mode(0o600)).unwrap();
        damage(&slot);
        let entry = get(&cache, &tree);
        assert!(!entry.cached, "damage {number}");
        verify(&entry.image, &entry.key, &entry.layout).unwrap();
        drop(entry);
        assert!(get(&cache, &tree).cached);
    }
}

#[test]
fn entries_of_an_earlier_boot_are_verified_once() {
    let ((_source, tree), (_directory, cache)) = (source(50_000), cache(NO_LIMIT));
    drop(get(&cache, &tree));
    let record = cache.slot(&hex::encode(&tree.identity())).entry.join(RECORD);
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace(boot_id().unwrap(), "another boot")).unwrap();
    assert!(get(&cache, &tree).cached);
    assert_eq!(fs::read_to_string(&record).unwrap(), text);
}

#[test]
fn a_failed_conversion_leaves_nothing() {
    let ((source, tree), (_directory, cache)) = (source(50_000), cache(NO_LIMIT));
    fs::remove_file(source.path().join("file")).unwrap();
    let result = cache.get_or_build(&tree, &Options::default());
    assert!(matches!(result, Err(Error::Changed { .. })));
    assert_eq!(
        names(&cache),
        HashSet::from([format!("{}.lock", hex::encode(&tree.identity()))])
    );
}

#[test]
fn an_open_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(
        Cache::open(directory.path(), 0),
        Err(Error::CacheDirectory { .. })
    ));
    let missing = directory.path().join("a/b");
    let error = Cache::open(&missing, 0).err().unwrap().to_string();
    assert_eq!(error, format!("cannot create {missing:?} in the disk cache"));
}

#[test]
fn what_nobody_uses_makes_room() {
    use std::cell::Cell;
    let ((_first, used), (_second, idle)) = (source(10_000), source(20_000));
    let (_directory, cache) = cache(NO_LIMIT);
    let full = || Error::Image {
        action: "write",
        source: io::ErrorKind::StorageFull.into(),
    };
    let used = get(&cache, &used);
    drop(get(&cache, &idle));
    let calls = Cell::new(0);
    let work = |fails: u32| {
        calls.set(0);
        cache.with_room(|| {
            calls.set(calls.get() + 1);
            if calls.get() <= fails { Err(full()) } else { Ok(()) }
        })
    };
    work(1).unwrap();
    assert_eq!(
        (calls.get(), cache.list().unwrap().len()),
        (2, 1),
        "the idle one went"
    );
    assert!(work(1).unwrap_err().is_out_of_room());
    assert_eq!(
        (calls.get(), cache.list().unwrap().len()),
        (1, 1),
        "nothing to gain"
    );
    drop(used);
    assert!(work(2).is_err());
    assert_eq!(
        (calls.get(), cache.list().unwrap().len()),
        (2, 0),
        "tried once more only"
    );
}
