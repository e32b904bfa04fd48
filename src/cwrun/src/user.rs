//! For whom this process acts: for the system, or for one user with directories of their own.
//!
//! An engine that a user runs without root makes a user namespace, and calls the runtime as root of that: the effective user ID alone
//! does not tell. As in runc, root of a user namespace acts for a user if the engine names that user's `XDG_RUNTIME_DIR`, unless
//! `USER` says that it is root all the same (a whole system in a namespace of its own).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What `/proc/self/uid_map` says in the namespace in which the system was started: every ID is itself.
const INITIAL_MAP: [&str; 3] = ["0", "0", "4294967295"];

/// Whether this process acts for the system.
pub fn is_system() -> bool {
    let root = rustix::process::geteuid().is_root();
    let map = || fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    root && decide(&map(), |name| std::env::var_os(name))
}

/// For root, from the map of its user namespace. A kernel that does not show any has no other namespace.
fn decide(map: &str, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let initial = map.trim().is_empty() || map.split_ascii_whitespace().eq(INITIAL_MAP);
    let named = |name| variable(name).filter(|value| !value.is_empty());
    initial || named("XDG_RUNTIME_DIR").is_none() || named("USER").is_some_and(|user| user == "root")
}

/// The user's directory of this name (`XDG_RUNTIME_DIR` and the like), if one is set. The specification takes a path that is not absolute
/// for none (XDG Base Directory Specification, Environment variables).
pub fn directory(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = PathBuf::from(variable(name)?);
    path.is_absolute().then_some(path)
}

/// The user's directory of this name, else the usual one in their home.
pub fn directory_or(
    name: &str,
    usual: impl AsRef<Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    directory(name, &variable).or_else(|| directory("HOME", &variable).map(|home| home.join(usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(map: &str, variables: &[(&str, &str)]) -> bool {
        decide(map, |name| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.into())
        })
    }

    const ROOTLESS: &str = "         0       1000          1\n         1     100000      65536\n";

    #[test]
    fn root_is_the_system_in_the_first_namespace_whatever_the_environment_says() {
        for map in ["         0          0 4294967295\n", ""] {
            assert!(system(map, &[]));
            assert!(system(
                map,
                &[("XDG_RUNTIME_DIR", "/run/user/1000"), ("USER", "ann")]
            ));
        }
    }

    #[test]
    fn root_of_a_rootless_engine_is_its_user() {
        // What podman calls its runtime with.
        assert!(!system(ROOTLESS, &[("XDG_RUNTIME_DIR", "/run/user/1000")]));
        assert!(!system(
            ROOTLESS,
            &[("XDG_RUNTIME_DIR", "/run/user/1000"), ("USER", "ann")]
        ));
    }

    #[test]
    fn root_of_a_system_in_a_namespace_is_the_system() {
        assert!(system(ROOTLESS, &[]));
        assert!(system(ROOTLESS, &[("XDG_RUNTIME_DIR", "")]));
        assert!(system(
            ROOTLESS,
            &[("XDG_RUNTIME_DIR", "/run/user/0"), ("USER", "root")]
        ));
    }

    #[test]
    fn directories_are_named_or_in_the_home() {
        let given = |variables: &'static [(&str, &str)]| {
            directory_or("XDG_CACHE_HOME", ".cache", |name| {
                let found = variables.iter().find(|(known, _)| *known == name)?;
                Some(found.1.into())
            })
        };
        let both = given(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/home/ann")]);
        assert_eq!(both.as_deref(), Some(Path::new("/c")));
        for unset in [
            given(&[("HOME", "/home/ann")]),
            given(&[("XDG_CACHE_HOME", ""), ("HOME", "/home/ann")]),
            given(&[("XDG_CACHE_HOME", "c"), ("HOME", "/home/ann")]),
        ] {
            assert_eq!(unset.as_deref(), Some(Path::new("/home/ann/.cache")));
        }
        assert_eq!(given(&[]), None);
    }
}
