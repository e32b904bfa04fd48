//! `kill -9` at any moment leaves a cache that works, with nothing in it that a next use does not remove.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use disk::cache::{Cache, Verdict};
use disk::{Options, Tree};
use support::source;

/// Room for one image, so that every second conversion evicts.
const LIMIT: u64 = 4 << 20;

/// Two trees and a cache.
fn places(directory: &Path) -> ([PathBuf; 2], PathBuf) {
    (
        ["a", "b"].map(|name| directory.join(name)),
        directory.join("cache"),
    )
}

#[test]
fn killed_at_random_moments() {
    let directory = tempfile::tempdir().expect("a directory");
    let (trees, cache) = places(directory.path());
    for tree in &trees {
        fs::create_dir(tree).expect("a directory");
        fs::write(tree.join("file"), source::data(2_500_000)).expect("a file");
    }
    let rounds = if std::env::var_os("CWRUN_SOAK").is_some() {
        400
    } else {
        60
    };
    let begun = directory.path().join("begun");
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["started_by_a_test_convert_forever", "--ignored", "--exact"])
            .env("DIRECTORY", directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child");
        while !begun.exists() {
            assert_eq!(child.try_wait().expect("a child"), None, "it runs");
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::remove_file(&begun).expect("it is there");
        std::thread::sleep(Duration::from_micros(round * 7919 % 120_000));
        child.kill().expect("a kill");
        assert_eq!(
            child.wait().expect("a status").signal(),
            Some(libc::SIGKILL),
            "it runs until it is killed"
        );
    }
    check(&trees, &cache);
}

/// Both trees can be had, are whole, and the names in the cache are those of complete entries.
fn check(trees: &[PathBuf], path: &Path) {
    let cache = Cache::open(path, LIMIT).expect("the cache");
    cache
        .verify(|entry, verdict| assert_eq!(verdict, Verdict::Good, "{entry:?}"))
        .expect("the cache can be read");
    for tree in trees {
        let tree = Tree::scan(tree).expect("a tree");
        let entry = cache.get_or_build(&tree, &Options::default()).expect("an entry");
        disk::verify(&entry.image, &entry.key, &entry.layout).expect("an image without fault");
    }
    for name in fs::read_dir(path).expect("the cache") {
        let name = name.expect("a name").file_name().into_string().expect("text");
        assert!(!name.ends_with(".tmp"), "{name}");
        if name.len() == 64 {
            let mut files: Vec<_> = fs::read_dir(path.join(name))
                .expect("an entry")
                .map(|file| file.expect("a file").file_name())
                .collect();
            files.sort();
            assert_eq!(files, ["image", "key", "record.json"]);
        }
    }
}

/// The child: converts one tree, then the other, until it is killed.
#[test]
#[ignore = "the child of killed_at_random_moments"]
fn started_by_a_test_convert_forever() {
    let directory = PathBuf::from(std::env::var_os("DIRECTORY").expect("started by the parent"));
    let (trees, cache) = places(&directory);
    fs::write(directory.join("begun"), "").expect("a file");
    let cache = Cache::open(&cache, LIMIT).expect("the cache");
    loop {
        for tree in &trees {
            cache
                .get_or_build(&Tree::scan(tree).expect("a tree"), &Options::default())
                .expect("an entry");
        }
    }
}
