use super::*;
use std::fs::File;
use std::process::Command;

fn formatted(bytes: u64) -> (tempfile::NamedTempFile, std::path::PathBuf) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    format(file.as_file(), bytes, &[0x5a; 16], &[0xa5; 16]).unwrap();
    let path = file.path().to_owned();
    (file, path)
}

/// e2fsck has nothing to say but that there is no `lost+found`, which nobody needs here.
fn check(bytes: u64) {
    let (_file, path) = formatted(bytes);
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(&path)
        .output()
        .expect("e2fsck runs");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("Pass ") && !line.starts_with("e2fsck "))
        .filter(|line| {
            !line.contains("lost+found not found") && !line.contains("WARNING: Filesystem still has errors")
        })
        .filter(|line| !line.contains(" files ("))
        .collect();
    assert!(complaints.is_empty(), "{bytes} bytes: {text}");
}

#[test]
fn e2fsck_finds_nothing_wrong() {
    const MIB: u64 = 1 << 20;
    // One group that is not full, exactly one, one with a remainder too small for a group, two, the default, more than one
    // block of descriptors.
    for mib in [4, 127, 128, 129, 131, 256, 4096, 20_000] {
        check(mib * MIB);
    }
    check(4096 * MIB + 12345);
}

#[test]
fn other_tools_see_the_features() {
    let (_file, path) = formatted(1 << 30);
    let output = Command::new("dumpe2fs")
        .arg("-h")
        .arg(&path)
        .output()
        .expect("dumpe2fs runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let features = text
        .lines()
        .find(|line| line.starts_with("Filesystem features:"))
        .expect("features");
    for name in [
        "extent",
        "uninit_bg",
        "sparse_super2",
        "dir_index",
        "filetype",
        "huge_file",
    ] {
        assert!(
            features.split_whitespace().any(|word| word == name),
            "{name}: {features}"
        );
    }
    assert!(!features.contains("has_journal"), "{features}");
}

#[test]
fn a_default_disk_takes_a_handful_of_blocks() {
    use std::os::unix::fs::MetadataExt;
    let (file, _) = formatted(4 << 30);
    let written = file.as_file().metadata().unwrap().blocks() * 512;
    assert!(written <= 64 << 10, "{written} bytes");
}

#[test]
fn sizes_that_make_no_file_system_are_refused() {
    let file: File = tempfile::tempfile().unwrap();
    for bytes in [0, 4096, 2 << 20, 1 << 45, u64::MAX] {
        let error = format(&file, bytes, &[0; 16], &[0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bytes}");
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn the_checksum_is_the_published_one() {
    // CRC-16/ARC of "123456789", initial value 0, in the catalogue of parametrised CRC algorithms.
    assert_eq!(crc16(0, b"123456789"), 0xbb3d);
}
