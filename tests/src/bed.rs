//! What the tests run, copied to memory once for all tests of a machine's uptime.
//!
//! ```text
//!   /tmp/cwrun-e2e/             a tmpfs in the testbed
//!     ├── bin/cwrun             CWRUN_BINARY, else target/release/cwrun
//!     ├── guest/…             CWRUN_GUEST_DIR, else target/guest; cwrun finds it beside its own directory
//!     ├── busybox/              root file system
//!     ├── debian/               root file system, unpacked when first asked for
//!     └── cache/                disks shared by tests that don't bring their own
//! ```

use crate::rounds;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Paths of what the tests run.
#[derive(Debug)]
pub struct Bed {
    top: PathBuf,
    dir: PathBuf,
}

/// The bed, prepared when first asked for.
pub fn bed() -> &'static Bed {
    static BED: OnceLock<Bed> = OnceLock::new();
    BED.get_or_init(|| {
        assert!(
            std::env::var_os("CWRUN_TESTBED").is_some(),
            "these tests change the machine: run them in the testbed"
        );
        adopt_orphans();
        let top = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the package lies in the workspace")
            .to_owned();
        let bed = Bed {
            top,
            dir: PathBuf::from("/tmp/cwrun-e2e"),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(bed.dir.join("bin"))
            .expect("the bed's directory can be made");
        bed.copy_programs();
        bed.once("busybox", |bed| {
            copy(&bed.top.join("target/rootfs/busybox/."), &bed.dir.join("busybox"))
        });
        bed
    })
}

/// A VMM outlives the `cwrun create` that made it. Like conmon, this process becomes its parent then, so that its exit
/// status can be seen.
fn adopt_orphans() {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).expect("any process may adopt orphans");
}

impl Bed {
    /// The binary under test.
    pub fn cwrun(&self) -> PathBuf {
        self.dir.join("bin/cwrun")
    }

    /// The key broker, as the workspace's tests have it.
    pub fn broker(&self) -> PathBuf {
        self.top.join("target/debug/cwrun-broker")
    }

    /// Directory with the guest's kernels, its initrd and stage0.
    pub fn guest(&self) -> PathBuf {
        self.dir.join("guest")
    }

    /// Disks shared by tests that don't bring a cache of their own.
    pub fn cache(&self) -> PathBuf {
        let path = self.dir.join("cache");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .expect("the shared cache can be made");
        path
    }

    /// A root file system of busybox and nothing else.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("busybox")
    }

    /// A root file system made by debootstrap.
    pub fn debian(&self) -> PathBuf {
        self.once("debian", |bed| {
            let root = bed.dir.join("debian");
            fs::create_dir_all(&root).expect("a directory in the bed");
            let archive = bed.top.join("target/rootfs/debian.tar");
            sh(Command::new("tar")
                .arg("--numeric-owner")
                .arg("--xattrs")
                .arg("-C")
                .arg(root)
                .arg("-xpf")
                .arg(archive));
        });
        self.dir.join("debian")
    }

    /// A root file system with nginx and curl, as the host has it; in a soak a whole Debian, with PostgreSQL and Redis too.
    pub fn services(&self) -> PathBuf {
        let name = ["web", "services"][rounds(0, 1)];
        let path = self.top.join("target/rootfs").join(name);
        path.canonicalize().expect("tests/testbed/rootfs has made it")
    }

    /// Where tests make their own directories: in memory, not too deep, and not hidden from other users.
    pub fn scratch(&self) -> tempfile::TempDir {
        let dir = tempfile::Builder::new()
            .prefix("t")
            .tempdir_in(&self.dir)
            .expect("a directory in the bed");
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("it is ours");
        dir
    }

    fn copy_programs(&self) {
        let from = |name: &str, default: &str| {
            std::env::var_os(name).map_or_else(|| self.top.join(default), PathBuf::from)
        };
        let (binary, guest) = (
            from("CWRUN_BINARY", "target/release/cwrun"),
            from("CWRUN_GUEST_DIR", "target/guest"),
        );
        self.once("programs", |bed| {
            copy(&binary, &bed.cwrun());
            fs::create_dir_all(bed.guest()).expect("a directory in the bed");
            for name in ["vmlinux", "initrd", "bzImage", "stage0", "stage0-plain"] {
                copy(&guest.join(name), &bed.guest().join(name));
            }
        });
    }

    /// Does something unless a process before did it to the end.
    fn once(&self, name: &str, work: impl FnOnce(&Self)) {
        let done = self.dir.join(format!(".{name}"));
        if !done.exists() {
            work(self);
            File::create(done).expect("the bed is writable");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    sh(Command::new("cp").arg("-a").arg("-H").arg(from).arg(to));
}

fn sh(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
