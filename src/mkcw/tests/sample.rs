//! A disk that `buildah mkcw` made; `tests/testbed/mkcw-sample` provides one, which takes ten seconds the first time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use luks::Xts;
use mkcw::{Footer, Header, InnerConfig, Opened, SECTOR, Tee, WorkloadConfig};

/// What the script chose.
const PASSPHRASE: &str = "correct horse battery staple";

fn sample() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/testbed/mkcw-sample");
    let output = Command::new(script).output().expect("the script runs");
    let (said, why) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}{why}");
    PathBuf::from(said.lines().last().expect("a path"))
}

/// The payload in the clear.
fn decrypt(disk: &File, opened: &Opened) -> Vec<u8> {
    let mut payload = vec![0; opened.payload_bytes as usize];
    disk.read_exact_at(&mut payload, opened.payload_offset)
        .expect("the payload");
    Xts::new(opened.key.as_bytes()).decrypt(&mut payload, 0, SECTOR);
    payload
}

fn debugfs(image: &Path, request: &str) -> Vec<u8> {
    let output = Command::new("debugfs").args(["-R", request]).arg(image).output();
    output.expect("debugfs is installed").stdout
}

/// One test, as unlocking a real one takes seconds.
#[test]
fn a_real_disk() {
    let directory = sample();
    let disk = File::open(directory.join("disk.img")).expect("the disk");
    let footer = Footer::read(&disk).expect("a valid footer").expect("a footer");
    let json = fs::read(directory.join("krun-sev.json")).expect("the workload configuration");
    assert_eq!(
        WorkloadConfig::parse(&json).expect("a valid one"),
        footer.workload
    );
    assert_eq!(
        (footer.workload.tee, &*footer.workload.workload_id),
        (Tee::Snp, "sample")
    );
    assert_eq!(footer.workload.tee_data, r#"{"gen":"milan"}"#);

    let header = Header::read(&disk, footer.offset).expect("a valid header");
    assert_eq!(header.payload().start, 4040 * 512);
    let opened = header.unlock(&disk, PASSPHRASE.as_bytes()).expect("the key");
    let payload = decrypt(&disk, &opened);
    assert_eq!(payload[1024 + 56..1024 + 58], [0x53, 0xef], "ext4's magic number");
    let blocks = u32::from_le_bytes(payload[1024 + 4..1024 + 8].try_into().expect("four bytes"));
    let block = 1024 << payload[1024 + 24];
    assert_eq!(
        u64::from(blocks) * block,
        opened.payload_bytes,
        "the file system fills the payload"
    );

    let quick = File::open(directory.join("quick.img")).expect("the disk");
    let cheap = Header::read(&quick, footer.offset).expect("a valid header");
    assert!(cheap.iterations() < 10_000);
    let same = cheap.unlock(&quick, PASSPHRASE.as_bytes()).expect("the key");
    assert_eq!(same.key.as_bytes(), opened.key.as_bytes());

    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("ext4");
    fs::write(&image, payload).expect("the file system");
    let inner = InnerConfig::parse(&debugfs(&image, "cat /.krun_config.json")).expect("a valid one");
    assert_eq!(
        inner.args(),
        ["/bin/sh", "-c", "echo \"$GREETING from $(pwd) as $(id -un)\""]
    );
    assert!(inner.env.contains(&"GREETING=hello, world".to_owned()));
    assert_eq!((&*inner.user, &*inner.working_dir), ("nobody", "/home"));
    let listing = String::from_utf8(debugfs(&image, "ls /")).expect("plain names");
    for name in ["lost+found", "bin", "etc", ".krun_config.json"] {
        assert!(listing.contains(name), "{name} in {listing}");
    }
}
