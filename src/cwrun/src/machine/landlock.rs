//! Landlock (landlock(7)): a thread that opens files below some directories and nowhere else, whatever descriptors it finds.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The first version of it in which files can be renamed from one directory to another (Linux 5.19).
const VERSION: libc::c_long = 2;
/// `LANDLOCK_CREATE_RULESET_VERSION`: only says which version there is.
const ASK_VERSION: libc::c_uint = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: libc::c_int = 1;
/// Opening files to write and to read, opening directories, renaming and linking between directories (`LANDLOCK_ACCESS_FS_*`). What else
/// is done to names takes a directory that was opened below the one.
const ACCESS: u64 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 13);

/// All of the first version, Linux 5.13: executing, writing, reading, and making and removing names of every kind.
const ALL: u64 = (1 << 13) - 1;
/// Opening files to read, and directories.
const READ: u64 = (1 << 2) | (1 << 3);

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Restricts this thread, which has `no_new_privs`, to files below `directory`. Does nothing where the kernel can't.
pub fn restrict_to(directory: &str) -> Result<()> {
    if version() < VERSION {
        return Ok(());
    }
    let parent = open(directory).context("opening it")?;
    let rules = new_rules(ACCESS).context("making rules")?;
    allow(&rules, &parent, ACCESS).context("adding a rule")?;
    enforce(&rules).context("enforcing rules")
}

/// Restricts this thread, which has `no_new_privs`, to reading files below these directories, as far as they exist. Does nothing where the
/// kernel can't.
pub fn read_only_below(directories: &[&str]) -> Result<()> {
    if version() < 1 {
        return Ok(());
    }
    let rules = new_rules(ALL).context("making rules")?;
    for directory in directories {
        match open(directory) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            parent => {
                allow(&rules, &parent.context(directory.to_string())?, READ).context("adding a rule")?
            }
        }
    }
    enforce(&rules).context("enforcing rules")
}

fn open(directory: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())
}

/// Which version the kernel has; negative if none.
fn version() -> libc::c_long {
    // SAFETY: asked this way, the call takes no structure.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u64>(),
            0usize,
            ASK_VERSION,
        )
    }
}

/// Rules that forbid all of `access` where nothing allows it.
fn new_rules(access: u64) -> io::Result<OwnedFd> {
    // SAFETY: the structure's first version is this one number, which lives across the call; the result is a new descriptor that
    // nobody else owns.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const access,
            size_of::<u64>(),
            0,
        );
        check(fd)?;
        // A descriptor is an int.
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

fn allow(rules: &OwnedFd, parent: &OwnedFd, access: u64) -> io::Result<()> {
    let rule = PathBeneath {
        allowed_access: access,
        parent_fd: parent.as_raw_fd(),
    };
    // SAFETY: the structure is the one for this kind of rule and lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0,
        )
    })
}

fn enforce(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor and no flags.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_thread_that_may_read_below_a_directory_writes_nothing_and_reads_nothing_else() {
        if version() < 1 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["inside", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "").unwrap();
        }
        let root = dir.path().to_owned();
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
            read_only_below(&[&path("inside"), &path("missing")]).unwrap();
            assert!(File::open(path("inside/file")).is_ok());
            assert!(fs::read_dir(path("inside")).is_ok());
            assert!(File::open(path("outside/file")).is_err());
            assert!(File::options().append(true).open(path("inside/file")).is_err());
            assert!(fs::write(path("inside/new"), "").is_err());
            assert!(fs::remove_file(path("inside/file")).is_err());
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_opens_nothing_elsewhere_whatever_descriptors_it_has() {
        if version() < VERSION {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["inside/a", "inside/b", "outside"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("inside/a/file"), "").unwrap();
        fs::write(dir.path().join("outside/file"), "").unwrap();
        let outside = File::open(dir.path().join("outside/file")).unwrap();
        let inside = File::open(dir.path().join("inside/a/file")).unwrap();
        let root = dir.path().to_owned();
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict_to(root.join("inside").to_str().unwrap()).unwrap();
            let reopen = |file: &File| {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                File::options().write(true).open(path).map(drop)
            };
            assert!(reopen(&inside).is_ok());
            assert!(reopen(&outside).is_err());
            assert!(File::open(root.join("outside/file")).is_err());
            fs::rename(root.join("inside/a/file"), root.join("inside/b/file")).unwrap();
            fs::remove_file(root.join("inside/b/file")).unwrap();
            // One that has no name any more is still where it was.
            assert!(reopen(&inside).is_ok());
        });
        thread.join().unwrap();
    }
}
