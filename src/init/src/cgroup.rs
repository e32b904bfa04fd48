//! The container's control group: one below the root of version 2, with every controller in it.
//!
//! It is what "all processes of the container" means, whatever they have done to their sessions and parents.

use crate::failure::{Context as _, Failure, Result};
use crate::sys;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use workload::Limits;

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

    /// The group at `path` below this one, which somebody in the container has made.
    pub fn below(&self, path: &str) -> Result<Self> {
        let mut below = self.0.clone();
        for component in Path::new(path).components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => below.push(name),
                _ => {
                    return Err(Failure::other(format!(
                        "cgroup {path:?} is not one below the container's"
                    )));
                }
            }
        }
        if below.join("cgroup.procs").exists() {
            Ok(Self(below))
        } else {
            Err(Failure::other(format!("the container has no cgroup {path:?}")))
        }
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

    /// Puts these limits in the place of those that the group has.
    pub fn limit(&self, limits: &Limits) -> Result<()> {
        for (name, limit) in [("pids.max", limits.tasks), ("memory.max", limits.memory)] {
            let file = self.0.join(name);
            let text = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
            match fs::write(&file, &text) {
                // A kernel without the controller limits nothing, which is what is asked for.
                Err(error) if error.kind() == io::ErrorKind::NotFound && limit.is_none() => {}
                written => written.context(|| format!("set {} to {text}", file.display()))?,
            }
        }
        Ok(())
    }

    /// How many processes and threads are in the group and in those below.
    pub fn tasks(&self) -> Result<u64> {
        let file = self.0.join("pids.current");
        let text = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        text.trim()
            .parse()
            .map_err(|_| Failure::other(format!("{}: {text:?} is no number", file.display())))
    }

    /// How many processes of the group and of those below have been ended so far because there was no memory for them.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = self.0.join("memory.events");
        let text = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .ok_or_else(|| Failure::other(format!("{}: says nothing of oom_kill", file.display())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_counts_are_files_of_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::make(dir.path(), "c").unwrap();
        // Nothing is limited, so nothing is missing.
        group.limit(&Limits::default()).unwrap();
        let file = |name: &str| dir.path().join("c").join(name);
        fs::write(
            file("memory.events"),
            "low 0\noom 4\noom_kill 3\noom_group_kill 0\n",
        )
        .unwrap();
        fs::write(file("pids.current"), "12\n").unwrap();
        assert_eq!((group.tasks().unwrap(), group.oom_kills().unwrap()), (12, 3));
        let limits = Limits {
            tasks: Some(7),
            memory: None,
        };
        group.limit(&limits).unwrap();
        assert_eq!(fs::read_to_string(file("pids.max")).unwrap(), "7");
        assert_eq!(fs::read_to_string(file("memory.max")).unwrap(), "max");
        fs::write(file("memory.events"), "").unwrap();
        assert!(group.oom_kills().unwrap_err().message.contains("oom_kill"));
    }
}
