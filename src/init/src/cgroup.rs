//! The container's control group: one below the root of version 2, with every controller in it.
//!
//! It is what "all processes of the container" means, whatever they have done to their sessions and parents.

use crate::failure::{Context as _, Result};
use crate::sys;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The container's group.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes the group `name` below `root` and offers it the controllers that the kernel has.
    pub fn make(root: &Path, name: &str) -> Result<Self> {
        let available = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        for controller in available.split_ascii_whitespace() {
            // One by one: a controller that can't be delegated does not take the others along.
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let path = root.join(name);
        fs::create_dir(&path).context(|| format!("create cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// Moves the calling process into the group.
    pub fn enter(&self) -> Result<()> {
        let file = self.0.join("cgroup.procs");
        fs::write(&file, "0").context(|| format!("enter cgroup {}", self.0.display()))
    }

    /// Stops every process in the group where it is, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Numbers of the processes in the group and in those that it made below, as init knows them.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        members(&self.0)
    }

    /// Sends a signal to every process in the group and in those that it made below. `NotFound` if there is none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let members = members(&self.0)?;
        if members.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if signal == libc::SIGKILL {
            // The kernel does it without a race against forks.
            return fs::write(self.0.join("cgroup.kill"), "1");
        }
        for pid in members {
            // One that has ended meanwhile needs no signal.
            let _ = sys::kill(pid, signal);
        }
        Ok(())
    }
}

/// Process numbers in this group and those below.
fn members(group: &Path) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> = fs::read_to_string(group.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A group removed meanwhile has no members.
            found.extend(members(&entry.path()).unwrap_or_default());
        }
    }
    Ok(found)
}
