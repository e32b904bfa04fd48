//! What a container could leave on the host, for a comparison before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::patient;

/// Everything found, each as a line that says what and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(BTreeSet<String>);

impl Host {
    /// What is there now. Of `files` every entry counts, except finished disks of a cache and the locks beside them, which
    /// are meant to stay.
    pub fn look(files: &[&Path]) -> Self {
        reap();
        let mut found = BTreeSet::new();
        found.extend(
            processes()
                .into_iter()
                .map(|(pid, name)| format!("process {pid} {name}")),
        );
        found.extend(mounts().map(|mount| format!("mount {mount}")));
        found.extend(cgroups().map(|path| format!("cgroup {}", path.display())));
        found.extend(names("/sys/class/net").map(|name| format!("network device {name}")));
        found.extend(block_devices().map(|name| format!("block device {name}")));
        for dir in files {
            found.extend(
                tree(dir)
                    .into_iter()
                    .filter(|path| !stays(path))
                    .map(|path| format!("file {}", path.display())),
            );
        }
        Self(found)
    }

    /// What is there now and was not before, and what was and is not.
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let new = self
            .0
            .difference(&before.0)
            .map(|line| format!("left behind: {line}"));
        // Of processes only those of the runtime count, and those end.
        let gone = before.0.difference(&self.0);
        let gone = gone
            .filter(|line| !line.starts_with("process "))
            .map(|line| format!("gone: {line}"));
        new.chain(gone).collect()
    }

    /// Fails the test unless everything becomes as it was here, since what has been told to end may take a moment.
    #[track_caller]
    pub fn expect_again(&self, files: &[&Path], when: &str) {
        let end = Instant::now() + patient(Duration::from_secs(10));
        loop {
            let left = Self::look(files).difference(self);
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "{when}: the host is not as it was before:\n{}",
                left.join("\n")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Processes that run the binary under test: number and name. Those that have ended don't count.
pub fn processes() -> Vec<(i32, String)> {
    let numbers = names("/proc").filter_map(|name| name.parse::<i32>().ok());
    let ours = numbers.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let name = stat.split_once('(')?.1.rsplit_once(')')?;
        let ended = name.1.trim_start().starts_with(['Z', 'X']);
        let runs_it = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("bin/cwrun"));
        (!ended && (runs_it || name.0.starts_with("cwrun"))).then(|| (pid, name.0.to_owned()))
    });
    ours.collect()
}

/// Takes note of the ends of processes that this one adopted. The tests' own children have been waited for already.
pub fn reap() {
    let flags = rustix::process::WaitOptions::NOHANG;
    while let Ok(Some(_)) = rustix::process::wait(flags) {}
}

/// All mounts but the one that podman makes of its storage and takes away again as it likes.
fn mounts() -> impl Iterator<Item = String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("proc(5) is mounted");
    let mounts: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .filter(|path| path != "/var/lib/containers/storage/overlay")
        .collect();
    mounts.into_iter()
}

/// All cgroups but the parent that `cwrun` makes for containers whose bundle names none.
fn cgroups() -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let shared = root.join("cwrun");
    tree(root)
        .into_iter()
        .filter(move |path| path.is_dir() && *path != shared)
}

/// Loop devices with a file behind them, and device-mapper devices.
fn block_devices() -> impl Iterator<Item = String> {
    let in_use = |name: &String| {
        name.starts_with("dm-")
            || Path::new("/sys/block")
                .join(name)
                .join("loop/backing_file")
                .exists()
    };
    names("/sys/block").filter(in_use)
}

fn stays(path: &Path) -> bool {
    let is = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        [.., "disks", entry] => is(entry.strip_suffix(".lock").unwrap_or(entry)),
        [.., "disks", entry, "image" | "key" | "record.json"] => is(entry),
        [.., "cache", "disks" | "scratch"] => true,
        _ => false,
    }
}

/// Everything below a directory, at any depth.
pub fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok);
        for entry in entries {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

pub(crate) fn names(dir: &str) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
