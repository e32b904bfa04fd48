use super::*;
use rustix::fs::{FileType, Mode};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

/// A bundle with these annotations and whatever `make` puts into its root file system.
fn bundle(annotations: Value, make: impl FnOnce(&Path)) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    make(&rootfs);
    let config = json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": annotations});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(dir.path(), None).unwrap();
    (dir, bundle)
}

fn with_file(annotations: Value, content: &str) -> Result<Requests> {
    let (_dir, bundle) = bundle(annotations, |rootfs| {
        fs::write(rootfs.join(FILE), content).unwrap()
    });
    read(&bundle)
}

fn numbers(requests: Requests) -> (Option<u64>, Option<u64>) {
    (
        requests.cpus.map(|asked| asked.value),
        requests.ram_mib.map(|asked| asked.value),
    )
}

#[test]
fn sizes_come_from_the_file_unless_an_annotation_says_otherwise() {
    let file =
        r#"{"cpus": 3, "ram_mib": 700, "flavor": "", "gpu_flags": 0, "use_passt": 1, "new": {"a": [1]}}"#;
    assert_eq!(numbers(with_file(json!({}), file).unwrap()), (Some(3), Some(700)));
    let mixed = with_file(
        json!({"krun.cpus": "2", "krun.nested_virt": "1", "krun.new": ""}),
        file,
    )
    .unwrap();
    assert_eq!(numbers(mixed), (Some(2), Some(700)));
    let (_dir, none) = bundle(json!({}), |_| ());
    assert_eq!(read(&none).unwrap(), Requests::default());
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (annotations, file, expected) in [
        (
            json!({"krun.variant": "aws-nitro"}),
            "{}",
            "annotation krun.variant: \"aws-nitro\"",
        ),
        (
            json!({}),
            r#"{"flavor": "tdx"}"#,
            "/.krun_vm.json in the image: flavor: \"tdx\"",
        ),
        (json!({}), r#"{"flavor": 1}"#, "flavor: 1 is not a string"),
        (
            json!({}),
            r#"{"kernel_path": "/vmlinuz"}"#,
            "kernel_path: not supported",
        ),
        (json!({}), r#"{"cpus": "2"}"#, "cpus: \"2\" is not a number"),
        (json!({}), r#"{"cpus": 2.0}"#, "cpus: 2.0 is not a number"),
        (json!({}), r#"{"ram_mib": -1}"#, "ram_mib: -1 is not a number"),
        (
            json!({}),
            r#"{"ram_mib": 1e3}"#,
            "ram_mib: 1000.0 is not a number",
        ),
        (json!({"krun.cpus": ""}), "{}", "krun.cpus: \"\" is not a number"),
        (
            json!({"krun.ram_mib": "1 "}),
            "{}",
            "krun.ram_mib: \"1 \" is not a number",
        ),
        (json!({}), "[]", "/.krun_vm.json in the root file system"),
        (json!({}), "{", "/.krun_vm.json in the root file system"),
    ] {
        let error = format!("{:#}", with_file(annotations, file).expect_err(expected));
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn sev_is_demanded_by_annotation_or_image() {
    let sev = |annotations, file| {
        let (_dir, bundle) = bundle(annotations, |rootfs| fs::write(rootfs.join(FILE), file).unwrap());
        sev(&bundle).unwrap()
    };
    assert_eq!(sev(json!({}), r#"{"flavor": ""}"#), None);
    let annotated = sev(json!({"krun.variant": "sev"}), "{}");
    assert_eq!(
        annotated.as_deref(),
        Some("config.json: annotation krun.variant: \"sev\"")
    );
    // An annotation does not make an image that wants a TEE content with none.
    let image = sev(json!({"krun.variant": ""}), r#"{"flavor": "sev"}"#);
    assert_eq!(
        image.as_deref(),
        Some("/.krun_vm.json in the image: flavor: \"sev\"")
    );
}

#[test]
fn the_file_is_opened_safely() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(&outside, r#"{"cpus": 3}"#).unwrap();
    let refused = |make: &dyn Fn(&Path), expected: &str| {
        let (_dir, bundle) = bundle(json!({}), |rootfs| make(&rootfs.join(FILE)));
        let error = format!("{:#}", read(&bundle).expect_err(expected));
        assert!(error.contains(expected), "{expected}: {error}");
    };
    refused(
        &|path| symlink(outside.path(), path).unwrap(),
        "it is a symbolic link",
    );
    refused(&|path| symlink("nowhere", path).unwrap(), "it is a symbolic link");
    refused(&|path| fs::create_dir(path).unwrap(), "it is not a regular file");
    let fifo = |path: &Path| {
        let kind = FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    refused(&fifo, "it is not a regular file");
    let large = |path: &Path| fs::write(path, " ".repeat(64 << 10) + "{}").unwrap();
    refused(&large, "it is larger than 64 KiB");
    let deep = |path: &Path| fs::write(path, "[".repeat(60_000)).unwrap();
    refused(&deep, FILE);
}

#[test]
fn an_image_for_sev_without_its_disk_is_refused() {
    let make = |rootfs: &Path| fs::write(rootfs.join("krun-sev.json"), "{}").unwrap();
    let (_dir, bundle) = bundle(json!({}), make);
    let error = format!("{:#}", read(&bundle).unwrap_err());
    assert!(error.contains("/krun-sev.json"), "{error}");
}
