//! The runtime with a state directory of its own, which sees to it that nothing is left behind.

use crate::bed::bed;
use crate::bundle::Bundle;
use crate::host::{self, Host};
use crate::process::{Run, eventually};
use rustix::process::{Pid, Signal, WaitOptions};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A test that counts what is on the host must be alone on it.
static ALONE: Mutex<()> = Mutex::new(());

/// `cwrun` with its own `--root`. When a test ends, the host must be as it was before: this is checked for every test.
pub struct Cwrun {
    dir: TempDir,
    cache: PathBuf,
    settings: Option<PathBuf>,
    before: Host,
    processes: Vec<(i32, String)>,
    _alone: MutexGuard<'static, ()>,
}

/// A container that `create` or `run --detach` made, with its output in files.
#[derive(Debug)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Its standard output.
    pub stdout: PathBuf,
    /// Its standard error, and that of the command that made it.
    pub stderr: PathBuf,
    /// The number of its VMM process.
    pub pid: i32,
}

impl Cwrun {
    /// With the cache that tests share.
    pub fn new() -> Self {
        Self::make(|_| bed().cache())
    }

    /// With an empty cache.
    pub fn with_own_cache() -> Self {
        Self::make(|dir| dir.join("cache"))
    }

    fn make(cache: impl FnOnce(&Path) -> PathBuf) -> Self {
        // A test that failed while it held the lock has cleaned up all the same.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = bed().scratch();
        let cache = cache(dir.path());
        fs::create_dir_all(&cache).expect("the bed is writable");
        fs::create_dir_all("/sys/fs/cgroup/e2e").expect("cgroup2 is mounted");
        fs::create_dir(dir.path().join("root")).expect("the bed is writable");
        let before = Host::look(&[&dir.path().join("root"), &cache]);
        Self {
            dir,
            cache,
            settings: None,
            before,
            processes: host::processes(),
            _alone: alone,
        }
    }

    /// On a machine with this `cwrun.toml`.
    pub fn with_settings(text: &str) -> Self {
        let mut cwrun = Self::new();
        let path = cwrun.path("cwrun.toml");
        fs::write(&path, text).expect("the bed is writable");
        cwrun.settings = Some(path);
        cwrun
    }

    /// `--root`
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// `CWRUN_CACHE_DIR`
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A path for a file of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `cwrun` with these arguments.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        let run = Run::new(bed().cwrun())
            .env("CWRUN_CACHE_DIR", &self.cache)
            .env("CWRUN_GUEST_DIR", bed().guest());
        let run = match &self.settings {
            Some(path) => run.env("CWRUN_CONFIG", path),
            None => run,
        };
        run.arg("--root").arg(self.root()).args(args)
    }

    /// Runs `cwrun` with these arguments and expects success. Its standard output.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        self.command(args).finish().ok().text()
    }

    /// Runs `cwrun` with these arguments and expects failure. Its message.
    #[track_caller]
    pub fn refused<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let finished = self.command(args).finish();
        assert_ne!(finished.code, 0, "success, but a refusal was expected");
        finished.stderr
    }

    /// `cwrun run`, not yet started.
    pub fn run(&self, id: &str, bundle: &Bundle) -> Run {
        self.command([
            "run".as_ref(),
            "--bundle".as_ref(),
            bundle.path().as_os_str(),
            id.as_ref(),
        ])
    }

    /// `cwrun create`. Standard input is empty.
    #[track_caller]
    pub fn create(&self, id: &str, bundle: &Bundle) -> Container {
        self.create_with(id, bundle, &[], Stdio::null())
    }

    /// `cwrun create` with more options and a standard input.
    #[track_caller]
    pub fn create_with(&self, id: &str, bundle: &Bundle, options: &[&str], stdin: Stdio) -> Container {
        let pid_file = self.path(&format!("{id}.pid"));
        let args = [
            "create".as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_os_str(),
            "--bundle".as_ref(),
            bundle.path().as_os_str(),
        ];
        let command = self.command(args).args(options).arg(id).command();
        let mut container = self.detached(id, command, stdin);
        let text = fs::read_to_string(&pid_file).expect("create writes the pid file");
        container.pid = text.parse().expect("a number is in the pid file");
        container
    }

    /// Runs a command whose container stays, with its output in files.
    #[track_caller]
    pub fn detached(&self, id: &str, mut command: Command, stdin: Stdio) -> Container {
        let [stdout, stderr] = ["out", "err"].map(|name| self.path(&format!("{id}.{name}")));
        let file = |path: &Path| File::create(path).expect("the bed is writable");
        command.stdin(stdin).stdout(file(&stdout)).stderr(file(&stderr));
        let what = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let status = crate::process::wait(&mut child, crate::process::DEADLINE, &what);
        assert!(
            status.success(),
            "{what}: {status}\n{}",
            fs::read_to_string(&stderr).unwrap_or_default()
        );
        Container {
            id: id.to_owned(),
            stdout,
            stderr,
            pid: 0,
        }
    }

    /// `cwrun state`, or `None` if there is no such container.
    pub fn state(&self, id: &str) -> Option<Value> {
        let finished = self.command(["state", id]).finish();
        (finished.code == 0).then(|| serde_json::from_slice(&finished.stdout).expect("state prints JSON"))
    }

    /// The container's `status`.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let state = self.state(id).expect("the container exists");
        state["status"].as_str().expect("state has a status").to_owned()
    }

    /// Waits until the container has stopped; its exit code, as conmon learns it.
    #[track_caller]
    pub fn wait(&self, container: &Container) -> i32 {
        wait_for_end(container.pid, Duration::from_secs(60))
    }

    /// Fails unless the host is as it was before the test, apart from the disks in the cache.
    #[track_caller]
    pub fn expect_clean(&self) {
        self.before
            .expect_again(&[&self.root(), &self.cache], "after the test");
    }

    /// Ends and removes everything, after a test that failed.
    fn clear(&self) {
        let ids: Vec<_> = fs::read_dir(self.root())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        for id in ids {
            let mut delete = self.command(["delete", "--force", &id]).command();
            if let Ok(mut child) = delete.stdin(Stdio::null()).stderr(Stdio::null()).spawn() {
                let end = Instant::now() + Duration::from_secs(10);
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for (pid, _) in host::processes()
            .into_iter()
            .filter(|process| !self.processes.contains(process))
        {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        host::reap();
        for dir in host::tree(Path::new("/sys/fs/cgroup/e2e")).into_iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Default for Cwrun {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cwrun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.clear();
        } else {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.expect_clean()));
            if let Err(panic) = result {
                self.clear();
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Container {
    /// What it has written to standard output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).expect("its output is a file")).into_owned()
    }

    /// What it has written to standard error so far.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).expect("its output is a file")).into_owned()
    }

    /// Waits until its standard output contains this.
    #[track_caller]
    pub fn expect_output(&self, text: &str) {
        let what = format!("container {}: {text:?} in its output", self.id);
        eventually(&what, 30, || self.output().contains(text).then_some(()));
    }
}

/// Waits for the end of a process that this one adopted; its exit code or 128 + signal.
#[track_caller]
pub fn wait_for_end(pid: i32, deadline: Duration) -> i32 {
    let end = Instant::now() + crate::process::patient(deadline);
    let process = Pid::from_raw(pid);
    loop {
        match rustix::process::waitpid(process, WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                return status
                    .exit_status()
                    .or(signal)
                    .expect("a process exits or is killed");
            }
            Ok(None) => {}
            Err(error) => panic!("process {pid} is not ours to wait for: {error}"),
        }
        assert!(
            Instant::now() < end,
            "process {pid} did not end within {} s",
            deadline.as_secs()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
