//! The tools that everybody uses accept our images: erofs-utils, veritysetup, cryptsetup. All of this runs without
//! the kernel's device mapper; `kernel.rs` is for the rest.

mod support;

use std::fs;
use std::path::Path;

use disk::Unlock;
use support::{Image, hex, source, text, tool};

fn sample() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    source::sample(tree.path());
    tree
}

/// Cuts the plaintext to the file system alone.
fn file_system(image: &Image) -> std::path::PathBuf {
    let path = image.plaintext_file();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("the plaintext");
    file.set_len(image.built.layout.verity_superblock_offset)
        .expect("cutting");
    path
}

#[test]
fn erofs_utils_find_no_fault() {
    let tree = sample();
    let image = Image::build(tree.path());
    let path = file_system(&image);
    let out = image.directory.path().join("extracted");
    tool("fsck.erofs", &["-d3", "--extract", text(&path)]);
    let report = tool("dump.erofs", &["-s", text(&path)]);
    assert!(report.contains("sb_csum") && report.contains("mtime"), "{report}");
    let report = tool("dump.erofs", &["--path=/usr/share/link-to-inline", text(&path)]);
    assert!(
        report.contains("Links: 2") && report.contains("Size: 4032"),
        "{report}"
    );
    tool(
        "fsck.erofs",
        &[&format!("--extract={}", text(&out)), "--preserve", text(&path)],
    );
    assert_same_but_for_what_fsck_leaves_out(tree.path(), &out);
}

/// `fsck.erofs --extract` (1.5) sets no extended attributes, makes copies of hard links, skips sockets, and gives
/// times only to directories and files.
fn assert_same_but_for_what_fsck_leaves_out(source: &Path, extracted: &Path) {
    let simple = |path: &Path| -> Vec<_> {
        let items = source::walk(path).into_iter();
        let items = items.filter(|item| item.mode & 0o170_000 != 0o140_000);
        items
            .map(|item| (item.path, item.mode, item.uid, item.gid, item.content))
            .collect()
    };
    for (left, right) in simple(source).into_iter().zip(simple(extracted)) {
        assert_eq!(left, right);
    }
}

#[test]
fn veritysetup_verifies_and_notices_damage() {
    let tree = sample();
    let image = Image::build(tree.path());
    let path = image.plaintext_file();
    let layout = &image.built.layout;
    let (offset, root) = (
        format!("--hash-offset={}", layout.verity_superblock_offset),
        hex(&layout.root_hash),
    );
    tool(
        "veritysetup",
        &["verify", text(&path), text(&path), &root, &offset],
    );
    let dump = tool("veritysetup", &["dump", text(&path), &offset]);
    assert!(dump.contains(&hex(&layout.salt)), "{dump}");
    let mut damaged = fs::read(&path).expect("the plaintext");
    damaged[5000] ^= 1;
    fs::write(&path, damaged).expect("the plaintext");
    let output = support::run(
        "veritysetup",
        &["verify", text(&path), text(&path), &root, &offset],
    );
    assert!(!output.status.success());
}

/// Trees of one block (no hash tree at all), of one level, and around a full hash block.
#[test]
fn veritysetup_verifies_trees_of_any_height() {
    for size in [0, 5000, 125 << 12, 126 << 12, 127 << 12, 128 << 12, 300 << 12] {
        let tree = tempfile::tempdir().expect("a directory");
        if size > 0 {
            fs::write(tree.path().join("file"), source::data(size)).expect("a file");
        }
        let image = Image::build(tree.path());
        let (path, layout) = (image.plaintext_file(), &image.built.layout);
        let offset = format!("--hash-offset={}", layout.verity_superblock_offset);
        tool(
            "veritysetup",
            &[
                "verify",
                text(&path),
                text(&path),
                &hex(&layout.root_hash),
                &offset,
            ],
        );
        disk::verify(&image.file, image.unlock.volume_key(), layout).expect("an image without fault");
    }
}

#[test]
fn cryptsetup_reads_the_header_and_opens_the_key_slot() {
    let tree = sample();
    let image = Image::build(tree.path());
    let (path, key) = (image.path(), image.key_file());
    let dump = tool("cryptsetup", &["luksDump", text(&path)]);
    for expected in [
        "cipher: aes-xts-plain64",
        "sector: 4096 [bytes]",
        "offset: 1048576 [bytes]",
        "0: cwrun",
    ] {
        assert!(dump.contains(expected), "{expected} in {dump}");
    }
    tool(
        "cryptsetup",
        &["open", "--test-passphrase", "--key-file", text(&key), text(&path)],
    );
    tool(
        "cryptsetup",
        &[
            "open",
            "--test-passphrase",
            "--volume-key-file",
            text(&key),
            text(&path),
        ],
    );
    fs::write(&key, [1; 64]).expect("a wrong key");
    let wrong = support::run(
        "cryptsetup",
        &["open", "--test-passphrase", "--key-file", text(&key), text(&path)],
    );
    assert!(!wrong.status.success());
}

#[test]
fn cryptsetup_opens_a_passphrase_slot() {
    let tree = sample();
    let unlock = Unlock::from_key_file(b"correct horse battery staple\n").expect("a passphrase");
    let image = Image::build_with(tree.path(), unlock, 1);
    let key = image.directory.path().join("passphrase");
    fs::write(&key, "correct horse battery staple\n").expect("a key file");
    let dump = tool("cryptsetup", &["luksDump", text(&image.path())]);
    assert!(dump.contains("argon2id"), "{dump}");
    tool(
        "cryptsetup",
        &[
            "open",
            "--test-passphrase",
            "--key-file",
            text(&key),
            text(&image.path()),
        ],
    );
    let opened = disk::luks2::unlock(&image.file, b"correct horse battery staple\n").expect("the volume key");
    assert_eq!(opened.as_bytes(), image.unlock.volume_key().as_bytes());
}

/// The other direction: our reader of key slots against material that `cryptsetup` made is not possible, as our
/// reader takes our own headers only; but a key slot that `cryptsetup` adds must open the same payload.
#[test]
fn cryptsetup_can_add_a_key_slot() {
    let tree = sample();
    let image = Image::build(tree.path());
    let (path, key) = (image.path(), image.key_file());
    let second = image.directory.path().join("second");
    fs::write(&second, "another passphrase").expect("a key file");
    let pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let arguments = [
        "luksAddKey",
        "-q",
        "--key-file",
        text(&key),
        text(&path),
        text(&second),
    ];
    tool("cryptsetup", &[&pbkdf[..], &arguments].concat());
    tool(
        "cryptsetup",
        &[
            "open",
            "--test-passphrase",
            "--key-file",
            text(&second),
            text(&path),
        ],
    );
    disk::verify(&image.file, image.unlock.volume_key(), &image.built.layout).expect("the payload untouched");
}
