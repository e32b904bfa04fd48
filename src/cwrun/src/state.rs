//! The state directory: what is known of each container between two commands.
//!
//! ```text
//!   <root>/<id>/                mode 0700; its existence reserves the ID
//!     ├── config.json           the bundle's, as it was at `create`, with limits as `update` has set them
//!     ├── record.json           who, where, which processes; replaced as a whole
//!     ├── status                one word, written by the VMM alone through a descriptor it keeps
//!     └── control.sock          the VMM's control socket
//! ```
//!
//! The record is written before anything that would need cleaning up exists, so that `delete --force` can clean up after
//! a crash at any moment. Whether a process still lives is asked of the kernel, never of a file.

use crate::bundle::{self, host::Hooks, sizing::Sizing};
use crate::{cgroup, user};
use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the runtime specification that `state` reports.
pub const OCI_VERSION: &str = "1.2.0";

/// Where a container is in its life, OCI runtime-spec runtime.md#state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// Booted; the workload has not been started.
    Created,
    /// The workload has been started.
    Running,
    /// Running, but for the moment stopped by `pause`.
    Paused,
    /// The VMM is gone.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number in the runtime's PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot, proc(5) `stat` field 22.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, start_time) = stat(pid).with_context(|| format!("process {pid}"))?;
        Ok(Self { pid, start_time })
    }

    /// This process.
    pub fn own() -> Result<Self> {
        Self::of(rustix::process::getpid().as_raw_pid())
    }

    /// Whether it still runs. A zombie does not, unless other threads of it are still on their way out.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_ok_and(|(runs, start_time)| runs && start_time == self.start_time)
    }
}

/// Whether a process runs, and its start time, from `/proc/<pid>/stat`.
fn stat(pid: i32) -> Result<(bool, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name is in parentheses and may itself contain spaces and parentheses.
    let (_, fields) = text.rsplit_once(')').context("/proc stat has no command name")?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields
        .next()
        .and_then(|field| field.chars().next())
        .context("/proc stat has no state")?;
    let threads: u32 = fields
        .nth(16)
        .context("/proc stat has no number of threads")?
        .parse()?;
    let start_time = fields.nth(1).context("/proc stat has no start time")?.parse()?;
    let runs = match state {
        'Z' => threads > 1,
        'X' => false,
        _ => true,
    };
    Ok((runs, start_time))
}

/// What is known of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The container's ID.
    pub id: String,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// Absolute path of its root file system.
    pub rootfs: PathBuf,
    /// The bundle's annotations.
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339 time of creation.
    pub created: String,
    /// Effective user ID of who created it.
    pub owner: u32,
    /// The `create` or `run` that made it.
    pub creator: ProcessId,
    /// The VMM, once it exists.
    pub vmm: Option<ProcessId>,
    /// The cgroup, if one is used.
    pub cgroup: Option<cgroup::Location>,
    /// The network namespace whose interfaces become the guest's, if it is one that others made.
    #[serde(default)]
    pub network: Option<PathBuf>,
    /// Hooks for later commands.
    pub hooks: Hooks,
    /// How large the VM is. Not in records of containers that an earlier release made.
    #[serde(default)]
    pub sizing: Option<Sizing>,
    /// Directory of the disk cache that it uses. Not in records of an earlier release.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Whether it is the infra container of a pod, without a VM.
    #[serde(default)]
    pub infra: bool,
}

/// The directory of all containers, `--root`.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

/// One container's directory.
#[derive(Debug)]
pub struct Container {
    dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

impl Root {
    /// `--root`, or the default for this user.
    pub fn new(path: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = path {
            return Ok(Self(
                std::path::absolute(&path).with_context(|| format!("--root {}", path.display()))?,
            ));
        }
        if user::is_system() {
            return Ok(Self(PathBuf::from("/run/cwrun")));
        }
        let dir = user::directory("XDG_RUNTIME_DIR", |name| std::env::var_os(name));
        let dir = dir.context("XDG_RUNTIME_DIR is not set to an absolute path: set it or pass --root")?;
        Ok(Self(dir.join("cwrun")))
    }

    /// Reserves `record.id` and writes its first record. Fails if the ID is in use.
    pub fn reserve(&self, record: Record) -> Result<Container> {
        check_id(&record.id)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("state directory {}", self.0.display()))?;
        let dir = self.0.join(&record.id);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => anyhow::anyhow!("container {:?} already exists", record.id),
                _ => anyhow::Error::new(error).context(format!("state directory {}", dir.display())),
            })?;
        let container = Container { dir, record };
        container.save().inspect_err(|_| drop(container.remove()))?;
        Ok(container)
    }

    /// The container with this ID. `None` if there is none.
    pub fn find(&self, id: &str) -> Result<Option<Container>> {
        check_id(id)?;
        let dir = self.0.join(id);
        let path = dir.join("record.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let record = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        Ok(Some(Container { dir, record }))
    }

    /// The container with this ID, or an error that says that it does not exist.
    pub fn get(&self, id: &str) -> Result<Container> {
        self.find(id)?
            .with_context(|| format!("container {id:?} does not exist"))
    }

    /// All containers, by ID.
    pub fn list(&self) -> Result<Vec<Container>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("state directory {}", self.0.display())),
        };
        let mut ids: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        ids.sort();
        Ok(ids
            .iter()
            .filter(|id| check_id(id).is_ok())
            .filter_map(|id| self.find(id).ok().flatten())
            .collect())
    }

    /// Removes the directory of a container without a record, which is what a `create` leaves that was killed between
    /// reserving the ID and writing it, or with one that can't be read.
    pub fn remove_unrecorded(&self, id: &str) -> Result<()> {
        check_id(id)?;
        remove_dir(&self.0.join(id))
    }
}

impl Container {
    /// Writes the record as a whole.
    pub fn save(&self) -> Result<()> {
        self.replace("record.json", &self.record)
    }

    /// Puts a document in the place of the file of this name, if there is one, as a whole.
    fn replace(&self, name: &str, document: &impl Serialize) -> Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let bytes = serde_json::to_vec(document).with_context(|| name.to_owned())?;
        let write = || -> std::io::Result<()> {
            File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?
                .write_all(&bytes)?;
            fs::rename(&new, &path)
        };
        write().with_context(|| path.display().to_string())
    }

    /// The container's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the configuration for later commands.
    pub fn save_config(&self, spec: &Spec) -> Result<()> {
        self.replace("config.json", spec)
    }

    /// The configuration as it was at `create`, with the limits that `update` has set since.
    pub fn config(&self) -> Result<Spec> {
        let path = self.dir.join("config.json");
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        bundle::parse(&bytes).with_context(|| path.display().to_string())
    }

    /// Path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The file through which the VMM tells its status.
    pub fn status_file(&self) -> Result<StatusFile> {
        let path = self.dir.join("status");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        file.map(StatusFile).with_context(|| path.display().to_string())
    }

    /// Where it is in its life, now.
    pub fn status(&self) -> Status {
        let Some(vmm) = self.record.vmm else {
            return if self.record.creator.is_alive() {
                Status::Creating
            } else {
                Status::Stopped
            };
        };
        let word = fs::read_to_string(self.dir.join("status")).unwrap_or_default();
        // Looked at after the file, so that a VMM that ends in between is seen as stopped.
        match (vmm.is_alive(), word.trim()) {
            (false, _) => Status::Stopped,
            (true, "running") => Status::Running,
            (true, "paused") => Status::Paused,
            (true, "created") => Status::Created,
            (true, _) if self.record.creator.is_alive() => Status::Creating,
            (true, _) => Status::Stopped,
        }
    }

    /// Whether it is there to be asked.
    pub fn lives(&self) -> bool {
        matches!(self.status(), Status::Created | Status::Running | Status::Paused)
    }

    /// Whether it still lives after some time.
    pub fn outlives(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while self.lives() {
            if Instant::now() >= deadline {
                return true;
            }
            std::thread::sleep(time / 100);
        }
        false
    }

    /// Takes the container for a change of what is kept of it, and above all for removal, against other removers and re-creators. `None` if it has gone meanwhile.
    pub fn lock(&self) -> Result<Option<File>> {
        let open = |path: &Path| {
            rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let dir: File = match open(&self.dir) {
            Ok(fd) => fd.into(),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.dir.display().to_string()),
        };
        rustix::fs::flock(&dir, FlockOperation::LockExclusive)
            .with_context(|| self.dir.display().to_string())?;
        let same = fs::metadata(&self.dir).is_ok_and(|now| {
            dir.metadata()
                .is_ok_and(|held| (now.dev(), now.ino()) == (held.dev(), held.ino()))
        });
        Ok(same.then_some(dir))
    }

    /// Removes the directory: the ID is free.
    pub fn remove(&self) -> Result<()> {
        remove_dir(&self.dir)
    }

    /// OCI state, runtime.md#state, as hooks and `state` get it.
    pub fn oci_state(&self, status: Status) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": OCI_VERSION,
            "id": self.record.id,
            "status": status,
            "bundle": self.record.bundle,
            "annotations": self.record.annotations,
        });
        if let (Some(vmm), true) = (self.record.vmm, status != Status::Stopped) {
            state["pid"] = vmm.pid.into();
        }
        state
    }
}

/// The `status` file, held open by the VMM.
#[derive(Debug)]
pub struct StatusFile(File);

impl StatusFile {
    /// Replaces the word in it.
    pub fn set(&self, status: Status) {
        // Padded to one length, so that a single write replaces it whole. The file lives on a tmpfs and was opened
        // for this; if the write fails, the container shows as being created, which is what is known then.
        let _ = self.0.write_all_at(format!("{status:<10}\n").as_bytes(), 0);
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// An ID becomes a file name, so it may hold only what is safe in one.
fn check_id(id: &str) -> Result<()> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    ensure!(!id.is_empty(), "container id: empty");
    ensure!(
        id.len() <= 255,
        "container id: {} bytes long, at most 255 are possible",
        id.len()
    );
    ensure!(
        id.chars().all(safe) && !id.starts_with('.'),
        "container id {id:?}: only letters, digits and _ + - . are possible, and no . in front"
    );
    Ok(())
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
