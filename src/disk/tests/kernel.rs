//! A stock kernel opens our images: loop device, `cryptsetup open`, `veritysetup open`, a mount, and a walk that must
//! show what the source shows. Needs root, device mapper and EROFS:
//!
//! ```text
//! cargo test -p disk --test kernel --no-run
//! tests/testbed/run -- target/debug/deps/kernel-… --ignored --test-threads=1
//! ```

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use disk::Unlock;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::source::{self, assert_same};
use support::{Image, hex, run, text, tool};

/// Loads what the mounts need.
fn prepare() {
    // Built in or loaded already in some kernels: what matters is whether the mounts work.
    for module in ["loop", "ext4", "dm_mod", "dm_crypt", "dm_verity", "erofs"] {
        run("modprobe", &["-q", module]);
    }
}

/// An ext4 file system of its own: unlike tmpfs, every kernel's has all kinds of extended attributes.
struct Source {
    directory: tempfile::TempDir,
}

impl Source {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (device, mount) = (directory.path().join("ext4"), directory.path().join("tree"));
        fs::create_dir(&mount).expect("a directory");
        fs::File::create(&device)
            .and_then(|file| file.set_len(512 << 20))
            .expect("a file");
        tool("mkfs.ext4", &["-q", "-N", "150000", "-F", text(&device)]);
        tool("mount", &["-o", "loop", text(&device), text(&mount)]);
        let source = Self { directory };
        fs::create_dir(source.top()).expect("a directory");
        source
    }

    /// Where the tree goes: beside lost+found.
    fn top(&self) -> PathBuf {
        self.directory.path().join("tree/top")
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        run("umount", &[text(&self.directory.path().join("tree"))]);
    }
}

/// An image, opened and mounted.
struct Mounted {
    name: String,
    device: String,
    mount: PathBuf,
}

impl Mounted {
    /// `open` makes the name appear in /dev/mapper for a loop device.
    fn new(image: &Image, key: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "cwrun-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let mount = image.directory.path().join("mount");
        fs::create_dir_all(&mount).expect("a directory");
        let device = tool(
            "losetup",
            &["--find", "--show", "--read-only", text(&image.path())],
        )
        .trim()
        .to_owned();
        let mounted = Self { name, device, mount };
        let (crypt, verity) = (mounted.path("crypt"), mounted.path("verity"));
        let open = ["open", "--readonly", &mounted.device, &mounted.mapping("crypt")];
        tool("cryptsetup", &[&open[..], key].concat());
        let layout = &image.built.layout;
        let offset = format!("--hash-offset={}", layout.verity_superblock_offset);
        let root = hex(&layout.root_hash);
        tool(
            "veritysetup",
            &["open", &crypt, &mounted.mapping("verity"), &crypt, &root, &offset],
        );
        tool(
            "mount",
            &["-t", "erofs", "-o", "ro", &verity, text(&mounted.mount)],
        );
        mounted
    }

    fn mapping(&self, kind: &str) -> String {
        format!("{}-{kind}", self.name)
    }

    fn path(&self, kind: &str) -> String {
        format!("/dev/mapper/{}", self.mapping(kind))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[text(&self.mount)]);
        run("veritysetup", &["close", &self.mapping("verity")]);
        run("cryptsetup", &["close", &self.mapping("crypt")]);
        run("losetup", &["--detach", &self.device]);
    }
}

fn with_key_file(image: &Image) -> Mounted {
    Mounted::new(image, &["--key-file", text(&image.key_file())])
}

fn round_trip(top: &Path) {
    let image = Image::build(top);
    let mounted = with_key_file(&image);
    assert_same(&source::walk(top), &source::walk(&mounted.mount));
}

#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn a_stock_kernel_shows_the_same_tree() {
    prepare();
    let source = Source::new();
    source::sample(&source.top());
    round_trip(&source.top());
}

#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn random_trees() {
    prepare();
    let mut runner = TestRunner::deterministic();
    for _ in 0..8 {
        let source = Source::new();
        let steps = source::steps(60).new_tree(&mut runner).expect("a tree").current();
        source::make(&source.top(), &steps);
        round_trip(&source.top());
    }
}

#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn very_many_files() {
    prepare();
    let source = Source::new();
    let soak = std::env::var_os("CWRUN_SOAK").is_some();
    for number in 0..if soak { 100_000 } else { 10_000 } {
        fs::write(
            source.top().join(format!("{number}-{}", "n".repeat(number % 60))),
            number.to_string(),
        )
        .expect("a file");
    }
    round_trip(&source.top());
}

#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn the_key_file_is_the_volume_key_too() {
    prepare();
    let source = Source::new();
    source::sample(&source.top());
    let image = Image::build(&source.top());
    let mounted = Mounted::new(&image, &["--volume-key-file", text(&image.key_file())]);
    assert_same(&source::walk(&source.top()), &source::walk(&mounted.mount));
}

#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn a_passphrase_opens_it() {
    prepare();
    let source = Source::new();
    source::sample(&source.top());
    let image = Image::build_with(
        &source.top(),
        Unlock::from_key_file(b"a passphrase").expect("a passphrase"),
        2,
    );
    let key = image.directory.path().join("passphrase");
    fs::write(&key, "a passphrase").expect("a key file");
    let mounted = Mounted::new(&image, &["--key-file", text(&key)]);
    assert_same(&source::walk(&source.top()), &source::walk(&mounted.mount));
}

/// dm-verity: a damaged block gives an I/O error, never wrong data; the rest is still there.
#[test]
#[ignore = "needs device mapper: run in the testbed"]
fn damage_is_an_io_error() {
    prepare();
    let source = Source::new();
    let data = source::data(4 << 20);
    for name in ["a", "b"] {
        fs::write(source.top().join(name), &data).expect("a file");
    }
    let image = Image::build(&source.top());
    let layout = &image.built.layout;
    // In the middle of the last of the two files, which ends where the file system does.
    let at = layout.payload_offset + layout.verity_superblock_offset - (2 << 20);
    let mut byte = [0];
    image.file.read_exact_at(&mut byte, at).expect("a byte");
    image.file.write_all_at(&[byte[0] ^ 4], at).expect("a byte");
    let mounted = with_key_file(&image);
    assert!(fs::read(mounted.mount.join("a")).expect("the file without damage") == data);
    let mut file = fs::File::open(mounted.mount.join("b")).expect("the file with damage");
    let mut seen = Vec::new();
    let error = file.read_to_end(&mut seen).expect_err("an error");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(
        data.starts_with(&seen),
        "what was read before the damage is right"
    );
}
