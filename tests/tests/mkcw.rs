//! Disks that the real `buildah mkcw` made (`tests/testbed/mkcw-sample`).

use crate::attest::Broker;
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

    /// Says in the footer, and where crun looks, what the sample would say if it had been made with this `--attestation_url`.
    fn set_attestation_url(&self, url: &str) {
        let path = self.dir.path().join("krun-sev.json");
        let said = fs::read_to_string(&path).expect("it was copied");
        let disk = self.disk();
        let length = disk.metadata().expect("it is open").len();
        let start = length - 12 - said.len() as u64;
        let said = said.replace(
            "\"attestation_url\":\"\"",
            &format!("\"attestation_url\":\"{url}\""),
        );
        assert!(said.contains(url), "{said}");
        fs::write(&path, &said).expect("the bed is writable");
        let tail = [said.as_bytes(), b"KRUN", &(said.len() as u64).to_le_bytes()].concat();
        // It ends with a sector, as what buildah writes does: the zeros are in front.
        let end = (start + tail.len() as u64).next_multiple_of(512);
        let zeros = vec![0; (end - start) as usize - tail.len()];
        disk.write_all_at(&[zeros, tail].concat(), start)
            .expect("the bed is writable");
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
    assert!(
        message.contains("/krun-sev.json in the image: SEV-SNP is demanded"),
        "{message}"
    );
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

/// The passphrase is with the broker that the image names, as buildah has registered it, and goes to the guest that the broker's
/// administrator admits. In the simulated TEE, which protects nothing and goes the same way.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_guest_gets_the_passphrase_from_the_images_broker_once_its_launch_is_admitted() {
    let (cwrun, image) = (Cwrun::new(), Image::new());
    let launches = cwrun.path("launches");
    fs::create_dir(&launches).expect("the bed is writable");
    let more = format!("[mkcw]\nenabled = true\nopen_registration = true\nlaunches = {launches:?}\n");
    let broker = Broker::start_with(&cwrun.path("broker"), &more);
    image.set_attestation_url(&broker.url);
    let passphrase = fs::read_to_string(passphrase()).expect("make test makes the sample");
    // What buildah sends that finds no firmware of krun's to measure.
    let document = format!(
        r#"{{"workload_id":"sample","launch_measurement":"","passphrase":"{passphrase}","tee_config":"{{\"flags\":{{\"bits\":15}},\"minfw\":{{\"major\":0,\"minor\":0}}}}"}}"#
    );
    broker.send("POST /kbs/v0/register_workload HTTP/1.1\r\n", &document);
    let bundle = image
        .bundle()
        .annotation("io.cwrun.tee", "sim")
        .annotation("krun.cpus", "1");
    let run = || cwrun.run("mkcw", &bundle).deadline(180).finish();
    let refused = run().expect(1);
    assert!(
        refused
            .stderr
            .contains("the key broker refuses the resource sample/key/disk: launches: buildah registered sample for krun"),
        "{}",
        refused.stderr
    );
    assert_eq!(broker.last_verdict(), ["resource", "refused", "launches"]);
    let measured = cwrun.ok(["measure", "--policy", bundle.path().to_str().expect("ASCII")]);
    fs::write(launches.join("sample.toml"), measured).expect("the bed is writable");
    assert_eq!(run().ok().text(), "hello, world from /home as nobody\n");
    assert_eq!(broker.last_verdict(), ["resource", "released", ""]);
}
