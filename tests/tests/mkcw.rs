//! Disks that the real `buildah mkcw` made (`tests/testbed/mkcw-sample`).

use e2e::{Bundle, Cwrun, Finished, bed};
use serde_json::json;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PASSPHRASE_FILE: &str = "io.cwrun.development.passphrase-file";

/// A container's root file system as an engine unpacks it from such an image.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let dir = bed().scratch();
        let sample = sample();
        fs::copy(sample.join("quick.img"), dir.path().join("disk.img")).expect("make test makes the sample");
        fs::copy(sample.join("krun-sev.json"), dir.path().join("krun-sev.json"))
            .expect("the bed is writable");
        fs::write(dir.path().join("entrypoint"), "says that this host can't run it")
            .expect("the bed is writable");
        Self { dir }
    }

    fn bundle(&self) -> Bundle {
        // A terminal, user and program that are the host's wishes: the disk decides.
        Bundle::on(self.dir.path(), ["/entrypoint"]).with(|config| {
            config["process"]["user"] = json!({"uid": 1, "gid": 2});
            config["process"]["env"] = json!(["GREETING=goodbye"]);
        })
    }

    /// A machine's settings that allow a passphrase from a file, or not.
    fn settings(&self, allowed: bool) -> String {
        let path = self.dir.path().with_extension("toml");
        fs::write(&path, format!("[development]\npassphrase_file = {allowed}\n"))
            .expect("the bed is writable");
        path.to_str().expect("ASCII").to_owned()
    }

    /// `cwrun run` on a machine that allows it.
    fn run(&self, cwrun: &Cwrun, bundle: &Bundle) -> Finished {
        cwrun
            .run("mkcw", bundle)
            .env("CWRUN_CONFIG", self.settings(true))
            .finish()
    }

    fn disk(&self) -> fs::File {
        let path = self.dir.path().join("disk.img");
        fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("it was copied")
    }
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mkcw-sample")
}

fn passphrase() -> String {
    sample().join("passphrase").to_str().expect("ASCII").to_owned()
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_disk_of_mkcw_runs_its_own_entry_point() {
    let (cwrun, image) = (Cwrun::new(), Image::new());
    let before = fs::read(image.dir.path().join("disk.img")).unwrap();
    let bundle = image.bundle().annotation(PASSPHRASE_FILE, &passphrase());
    let ran = image.run(&cwrun, &bundle).ok();
    assert_eq!(ran.text(), "hello, world from /home as nobody\n");
    let after = fs::read(image.dir.path().join("disk.img")).unwrap();
    assert!(before == after, "the disk is attached copy-on-write");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn without_the_right_passphrase_it_does_not_start() {
    let (cwrun, image) = (Cwrun::new(), Image::new());
    let refused = |bundle: &Bundle| {
        let finished = image.run(&cwrun, bundle);
        assert_ne!(finished.code, 0);
        finished.stderr
    };
    let bundle = image.bundle().annotation(PASSPHRASE_FILE, &passphrase());
    let finished = cwrun
        .run("mkcw", &bundle)
        .env("CWRUN_CONFIG", image.settings(false))
        .finish();
    assert_ne!(finished.code, 0);
    assert!(
        finished.stderr.contains("not allowed by cwrun.toml"),
        "{}",
        finished.stderr
    );
    let message = refused(&image.bundle());
    assert!(message.contains("no key broker is configured"), "{message}");
    let wrong = cwrun.path("wrong");
    fs::write(&wrong, "not this one").unwrap();
    let message = refused(
        &image
            .bundle()
            .annotation(PASSPHRASE_FILE, wrong.to_str().unwrap()),
    );
    assert!(
        message.contains("mkcw disk: ") && message.contains("passphrase"),
        "{message}"
    );
    let message = refused(&image.bundle().annotation(PASSPHRASE_FILE, "/does/not/exist"));
    assert!(message.contains("/does/not/exist"), "{message}");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_header_that_names_no_cipher_is_refused_by_name() {
    let (cwrun, image) = (Cwrun::new(), Image::new());
    // The cipher's name in a LUKS1 header: 32 bytes at 8.
    let mut name = [0; 32];
    name[..11].copy_from_slice(b"cipher_null");
    image.disk().write_all_at(&name, 8).unwrap();
    let bundle = image.bundle().annotation(PASSPHRASE_FILE, &passphrase());
    let finished = image.run(&cwrun, &bundle);
    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("cipher_null"), "{}", finished.stderr);
}
