//! The surroundings that `init` makes for itself before anything else.
//!
//! ```text
//!   rootfs (from the initrd: /init, /dev/console)
//!     └─ tmpfs over it, so that a container's pivot_root has a mount to come from
//!          /dev  /proc  /sys  /sys/fs/cgroup     for init
//!          /l/0 /l/1 …                           layers (EROFS), lowest first
//!          /scratch                              upper and work directories, devices 0:0 (`whiteouts`)
//!          /files                                injected files (tmpfs)
//!          /root                                 the container's root (overlay)
//! ```

use crate::failure::{Context as _, Result};
use crate::mount::NewFs;
use rustix::mount::MountAttrFlags;
use std::fs;

/// Where cgroup version 2 is mounted.
pub const CGROUP: &str = "/sys/fs/cgroup";
/// Below it, layer `i` at `<LAYERS>/<i>`. Short, since the names of all layers go into one mount option of at most 255
/// bytes.
pub const LAYERS: &str = "/l";
/// Where the scratch file system is mounted.
pub const SCRATCH: &str = "/scratch";
/// Where the container's root is put together.
pub const ROOT: &str = "/root";
/// Where injected files are kept.
pub const FILES: &str = "/files";

/// Makes all of it. Only as PID 1 of a fresh guest.
pub fn make() -> Result<()> {
    let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = NewFs::open("tmpfs")?
        .source("init")?
        .set("mode=0755")?
        .mount(hardened | MountAttrFlags::MOUNT_ATTR_NODEV)?
        .attach_at("/")?;
    rustix::process::fchdir(&root).context(|| "enter the new root".into())?;
    rustix::process::chroot(".").context(|| "enter the new root".into())?;
    for directory in ["/dev", "/proc", "/sys", LAYERS, SCRATCH, ROOT, FILES] {
        fs::create_dir(directory).context(|| format!("create {directory}"))?;
    }
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", CGROUP),
    ] {
        let mut filesystem = NewFs::open(kind)?.source(kind)?;
        if kind == "cgroup2" {
            // The container's group is the root of its cgroup namespace. Its limits are not its own to lift.
            filesystem = filesystem.set("nsdelegate")?;
        }
        filesystem.mount(hardened)?.attach_at(at)?;
    }
    hurry(true);
    // What hosts have that engines' defaults were chosen on: room for their RLIMIT_NOFILE and for many processes.
    // A kernel that has less still runs most workloads.
    let _ = fs::write("/proc/sys/fs/nr_open", "1073741816");
    let _ = fs::write("/proc/sys/kernel/pid_max", "4194304");
    // Whatever the workload uses up, it is not init that makes room.
    fs::write("/proc/self/oom_score_adj", "-1000").context(|| "/proc/self/oom_score_adj".into())
}

/// While the container is made, nobody shares the processors: grace periods of RCU, which mapping devices and making
/// namespaces wait for, are then better short than considerate.
pub fn hurry(on: bool) {
    // A kernel without the file is slower and no less right.
    let _ = fs::write("/sys/kernel/rcu_expedited", if on { "1" } else { "0" });
}
