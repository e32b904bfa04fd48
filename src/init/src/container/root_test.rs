use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn root() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::open(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

#[test]
fn missing_directories_and_files_are_made() {
    let (host, root) = root();
    root.directory("/a/b/../c").unwrap();
    root.file("//etc//resolv.conf").unwrap();
    assert!(host.path().join("a/b").is_dir());
    assert!(host.path().join("a/c").is_dir());
    assert!(host.path().join("etc/resolv.conf").is_file());
    // Once more: nothing to do.
    root.directory("/a/c").unwrap();
    root.directory("/").unwrap();
}

#[test]
fn links_stay_inside_even_when_they_lead_to_nothing() {
    let (host, root) = root();
    symlink("/run", host.path().join("var-run")).unwrap();
    symlink("../../../../outside", host.path().join("up")).unwrap();
    root.directory("/var-run/secrets").unwrap();
    root.file("/up/x").unwrap();
    assert!(host.path().join("run/secrets").is_dir());
    assert!(host.path().join("outside/x").is_file());
    assert!(!host.path().parent().unwrap().join("outside").exists());
}

#[test]
fn a_link_to_itself_and_a_file_in_the_way_are_errors() {
    let (host, root) = root();
    symlink("loop", host.path().join("loop")).unwrap();
    fs::write(host.path().join("file"), "").unwrap();
    assert!(root.directory("/loop/x").is_err());
    assert_eq!(
        root.directory("/file").unwrap_err().to_string(),
        "/file: Not a directory"
    );
    assert_eq!(
        root.directory("/file/x").unwrap_err().to_string(),
        "create /file/x: Not a directory"
    );
}
