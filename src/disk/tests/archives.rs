//! Archives that GNU tar makes give the very image that the directory gives.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use disk::{Archive, Built, Markers, Options, Tree, VolumeKey};
use proptest::prelude::*;
use support::source;

/// A tar archive of the directory `top`. Everything that has a name there can be in one, but for sockets.
fn pack(top: &Path) -> Archive {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let status = Command::new("tar")
        .args([
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--warning=no-file-ignored",
            "-C",
        ])
        .arg(top)
        .arg("-cf")
        .arg(file.path())
        .arg(".")
        .status()
        .expect("tar");
    assert!(status.success());
    Archive {
        file: File::open(file.path()).expect("the archive"),
        digest: [0; 32],
    }
}

fn remove_sockets_and_whiteouts(top: &Path) {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    for item in source::walk(top) {
        let path = top.join(item.path);
        let metadata = fs::symlink_metadata(&path).expect("an entry");
        if metadata.file_type().is_socket() || (metadata.file_type().is_char_device() && metadata.rdev() == 0)
        {
            fs::remove_file(&path).expect("a socket or whiteout");
        }
    }
}

fn build(tree: &Tree) -> Built {
    let (image, key) = (
        tempfile::tempfile().expect("an image"),
        VolumeKey::generate().expect("a key"),
    );
    tree.build_payload(&image, &key, &Options::default())
        .expect("a conversion")
}

fn assert_same_image(top: &Path) {
    remove_sockets_and_whiteouts(top);
    source::set_mtime(top, (1, 2));
    let scanned = Tree::scan_as(top, Markers::Shown).expect("a scan");
    let unpacked = Tree::from_archives(vec![pack(top)], Markers::Shown).expect("an archive");
    assert_eq!(build(&unpacked), build(&scanned));
}

#[test]
fn one_of_everything() {
    let tree = tempfile::tempdir().expect("a directory");
    source::sample(tree.path());
    assert_same_image(tree.path());
}

#[test]
fn a_payload_is_the_same_wherever_it_lies() {
    use std::os::unix::fs::FileExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    source::sample(directory.path());
    let tree = Tree::scan_as(directory.path(), Markers::Shown).expect("a scan");
    let key = VolumeKey::generate().expect("a key");
    let options = Options {
        salt: Some([7; 32]),
        ..Options::default()
    };
    let [image, file] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
    let alone = tree.build_payload(&image, &key, &options).expect("an image");
    file.write_all_at(b"before", 0).expect("a file");
    let within = tree
        .build_payload_at(&file, 1536, &key, &options)
        .expect("a payload");
    assert_eq!(within.layout.root_hash, alone.layout.root_hash);
    assert_eq!((within.layout.salt, within.layout.payload_offset), ([7; 32], 0));
    assert_ne!(
        build(&tree).layout.root_hash,
        alone.layout.root_hash,
        "another salt"
    );
    let read = |file: &File, at: u64| {
        let mut bytes = vec![0; within.layout.payload_bytes as usize];
        file.read_exact_at(&mut bytes, at).expect("the payload");
        bytes
    };
    assert!(read(&image, alone.layout.payload_offset) == read(&file, 1536));
    let mut before = [0; 8];
    file.read_exact_at(&mut before, 0).expect("what was there");
    assert_eq!(&before, b"before\0\0");
}

#[test]
fn single_files_are_read_whole_and_through_no_link() {
    let directory = tempfile::tempdir().expect("a directory");
    let top = directory.path();
    fs::create_dir(top.join("etc")).expect("a directory");
    fs::write(top.join("etc/passwd"), "root").expect("a file");
    std::os::unix::fs::symlink("passwd", top.join("etc/link")).expect("a link");
    std::os::unix::fs::symlink("etc", top.join("other")).expect("a link");
    let scanned = Tree::scan_as(top, Markers::Shown).expect("a scan");
    let unpacked = Tree::from_archives(vec![pack(top)], Markers::Shown).expect("an archive");
    for tree in [&scanned, &unpacked] {
        for path in ["/etc/passwd", "etc//passwd"] {
            assert_eq!(tree.read_file(path, 4).expect("a file"), Some(b"root".to_vec()));
            assert_eq!(tree.find_file(path), Some(4));
        }
        for path in [
            "/etc/link",
            "/other/passwd",
            "/etc",
            "/",
            "/none",
            "/etc/passwd/x",
        ] {
            assert_eq!(tree.read_file(path, 4).expect("no file"), None, "{path}");
            assert_eq!(tree.find_file(path), None, "{path}");
        }
        let error = tree.read_file("/etc/passwd", 3).expect_err("a long file");
        assert!(error.to_string().contains("longer than 3 bytes"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_trees(steps in source::steps(40)) {
        let tree = tempfile::tempdir().expect("a directory");
        source::make(tree.path(), &steps);
        assert_same_image(tree.path());
    }
}
