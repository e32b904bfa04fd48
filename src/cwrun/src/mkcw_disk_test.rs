//! Images with the documents of a disk of mkcw, and without its content, which is the guest's to read.

use super::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::os::unix::fs::FileExt as _;
use workload::TeeKind;

/// Where the payload ends.
const END: u64 = 4 << 20;
const SIM: Tee = Tee {
    kind: TeeKind::Sim,
    exec: false,
};

/// The header's 592 bytes, with the figures of `buildah mkcw`; this byte is in the salt of the only key slot.
fn header(salt: u8) -> [u8; 592] {
    let mut header = [0; 592];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, b"LUKS\xba\xbe\0\x01aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4040u32.to_be_bytes());
    put(108, &64u32.to_be_bytes());
    put(164, &4000u32.to_be_bytes());
    put(168, b"162466e4-3674-4e4e-87e4-794b5b945024");
    for slot in 0..8u32 {
        let at = 208 + 48 * slot as usize;
        put(
            at,
            &(if slot == 0 { 0x00ac_71f3 } else { 0x0000_deadu32 }).to_be_bytes(),
        );
        put(at + 4, &1000u32.to_be_bytes());
        put(at + 8, &[salt; 32]);
        put(at + 40, &(8 + 504 * slot).to_be_bytes());
        put(at + 44, &4000u32.to_be_bytes());
    }
    header
}

fn said() -> Value {
    json!({
        "tee": "snp",
        "tee_data": "{\"gen\":\"milan\"}",
        "workload_id": "nginx",
        "cpus": 2,
        "ram_mib": 512,
        "attestation_url": "http://kbs.example.org:8080",
    })
}

/// The root file system of an image that says this.
fn image(salt: u8, said: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let disk = File::create(dir.path().join(DISK)).unwrap();
    let json = said.to_string();
    let length = (json.len() as u64).to_le_bytes();
    disk.write_all_at(&header(salt), 0).unwrap();
    disk.write_all_at(&[json.as_bytes(), b"KRUN", &length].concat(), END)
        .unwrap();
    fs::write(dir.path().join(CONFIG), json).unwrap();
    dir
}

fn sealed(salt: u8, said: &Value) -> Result<Image, String> {
    let dir = image(salt, said);
    let disk = find(dir.path()).unwrap().unwrap();
    disk.seal(SIM).map_err(|error| format!("{error:#}"))
}

#[test]
fn what_identifies_an_image_is_its_id_and_the_header_of_its_disk() {
    let own = sealed(1, &said()).unwrap().contents.workload;
    assert_eq!(own.sealed.as_ref().unwrap().id, "nginx");
    let header: [u8; 32] = Sha256::digest(header(1)).into();
    assert_eq!(own.root, RootFs::Mkcw { header: Hex(header) });
    assert_eq!(own.tee, Some(SIM));
    let digest = |salt, said: &Value| sealed(salt, said).unwrap().contents.workload.digest();
    assert_ne!(digest(2, &said()), own.digest());
    let with = |key: &str, value: Value| {
        let mut said = said();
        said[key] = value;
        digest(1, &said)
    };
    assert_ne!(with("workload_id", "other".into()), own.digest());
    // What the host is told for itself.
    assert_eq!(with("attestation_url", "".into()), own.digest());
    assert_eq!(with("cpus", 7.into()), own.digest());
    assert_eq!(with("ram_mib", 4096.into()), own.digest());
}

#[test]
fn the_broker_of_an_image_is_its_attestation_url() {
    let image = sealed(1, &said()).unwrap();
    assert_eq!(image.contents.broker.unwrap().url, "http://kbs.example.org:8080");
    assert!(image.named_by.contains("attestation_url"));
    let mut none = said();
    none["attestation_url"] = "".into();
    assert_eq!(sealed(1, &none).unwrap().contents.broker, None);
}

#[test]
fn an_id_that_is_no_brokers_is_refused() {
    for id in ["../admin", ".x", "a b", &"x".repeat(65)] {
        let mut other = said();
        other["workload_id"] = id.into();
        let error = sealed(1, &other).unwrap_err();
        assert!(error.starts_with("/krun-sev.json: workload_id: "), "{error}");
    }
}

fn bundle(rootfs: &Path, annotations: Value) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"ociVersion": "1.0.2", "root": {"path": rootfs}, "annotations": annotations});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(dir.path(), None).unwrap();
    (dir, bundle)
}

#[test]
fn the_broker_has_the_passphrase_unless_a_file_on_this_host_has() {
    let rootfs = image(1, &said());
    let (_dir, plain) = bundle(rootfs.path(), json!({}));
    assert!(of_broker(&plain, || Ok(SIM)).unwrap().is_some());
    let error = of_broker(&plain, || bail!("no TEE")).unwrap_err();
    assert!(format!("{error:#}").ends_with("no TEE"));
    let (_dir, developing) = bundle(rootfs.path(), json!({PASSPHRASE_FILE: "/passphrase"}));
    assert!(of_broker(&developing, || bail!("not asked")).unwrap().is_none());
    let empty = tempfile::tempdir().unwrap();
    let (_dir, other) = bundle(empty.path(), json!({}));
    assert!(of_broker(&other, || bail!("not asked")).unwrap().is_none());
}
