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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_trees(steps in source::steps(40)) {
        let tree = tempfile::tempdir().expect("a directory");
        source::make(tree.path(), &steps);
        assert_same_image(tree.path());
    }
}
