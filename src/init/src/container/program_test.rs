use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

fn bin() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, mode) in [("tool", 0o755), ("plain", 0o644)] {
        let path = directory.path().join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(directory.path().join("directory")).unwrap();
    directory
}

#[test]
fn a_program_is_found_along_the_path() {
    let bin = bin();
    let bin = bin.path().to_str().unwrap();
    let search = format!("/nonexistent:{bin}/plain:{bin}/");
    assert_eq!(locate("tool", &search).unwrap(), format!("{bin}/tool"));
    assert_eq!(locate(&format!("{bin}/tool"), "").unwrap(), format!("{bin}/tool"));
}

#[test]
fn failures_are_in_the_words_that_engines_look_for() {
    let bin = bin();
    let bin = bin.path().to_str().unwrap();
    let fails = |name: &str| {
        let failure = locate(name, bin).unwrap_err();
        (failure.kind, failure.message)
    };
    let missing = |name: &str| {
        let message = format!("executable file `{name}` not found in $PATH: No such file or directory");
        (FailureKind::NotFound, message)
    };
    let refused = |name: &str| {
        let message = format!("open executable `{bin}/{name}`: Permission denied");
        (FailureKind::NotExecutable, message)
    };
    assert_eq!(fails("foo"), missing("foo"));
    assert_eq!(fails("/no/such"), missing("/no/such"));
    assert_eq!(fails("plain"), refused("plain"));
    assert_eq!(fails("directory"), refused("directory"));
    assert_eq!(fails(&format!("{bin}/directory")), refused("directory"));
    let (kind, message) = fails(&format!("{bin}/tool/x"));
    assert_eq!(
        (kind, message.ends_with("Not a directory")),
        (FailureKind::NotFound, true)
    );
}

#[test]
fn the_last_variable_wins_and_home_comes_from_passwd() {
    let passwd = "root:x:0:0:root:/root:/bin/sh\n# broken\nme:x:1000:1000::/home/me:\nx:x:7:7:::\n";
    let env: Vec<String> = ["A=1", "B=2", "A=3", "nonsense"].map(String::from).into();
    assert_eq!(environment(&env, 1000, passwd), ["B=2", "A=3", "HOME=/home/me"]);
    assert_eq!(environment(&["HOME=/x".to_owned()], 0, passwd), ["HOME=/x"]);
    assert_eq!(environment(&[], 0, passwd), ["HOME=/root"]);
    for unknown in [5, 7] {
        assert_eq!(environment(&[], unknown, passwd), ["HOME=/"]);
    }
}
