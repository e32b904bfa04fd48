//! An OCI bundle: a configuration that works, which each test changes where it wants.

use crate::bed::bed;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A bundle directory in the bed, removed when dropped.
#[derive(Debug)]
pub struct Bundle {
    dir: TempDir,
    /// What `config.json` will be, or was when it was last written.
    pub config: Value,
}

impl Bundle {
    /// On the busybox root file system, running this program.
    pub fn busybox<A: AsRef<str>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::on(&bed().busybox(), args)
    }

    /// On the busybox root file system, running this shell script.
    pub fn script(script: &str) -> Self {
        Self::busybox(["sh", "-c", script])
    }

    /// On the busybox root file system, doing nothing until it gets SIGTERM.
    pub fn idle() -> Self {
        Self::script("trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
    }

    /// On any root file system.
    pub fn on<A: AsRef<str>>(rootfs: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let bundle = Self {
            dir: bed().scratch(),
            config: configuration(rootfs, &args),
        };
        bundle.write();
        bundle
    }

    /// Another bundle with the same configuration.
    pub fn copy(&self) -> Self {
        let bundle = Self {
            dir: bed().scratch(),
            config: self.config.clone(),
        };
        bundle.write();
        bundle
    }

    /// Changes the configuration.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self.write();
        self
    }

    /// Adds an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(|config| config["annotations"][key] = value.into())
    }

    /// The bundle directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the bundle directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self) {
        fs::write(self.join("config.json"), self.config.to_string()).expect("the bundle is writable");
    }
}

/// What podman writes for an ordinary container, without its network.
fn configuration(rootfs: &Path, args: &[String]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1_048_576, "hard": 1_048_576}]
        },
        "root": {"path": rootfs, "readonly": false},
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["rprivate", "nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"]
        }
    })
}
