//! What the VMM process gives up before it runs a guest, since we assume that the guest takes it over.

use super::volumes::{self, Tree};
use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{BorrowedFd, RawFd};

/// Closes descriptors that came from whoever started us: nothing of the engine's stays open in a VMM.
pub fn close(inherited: &[RawFd]) {
    for fd in inherited {
        // SAFETY: these numbers were open when `main` began, before this program opened anything, so no Rust
        // object owns them. One that the engine marked close-on-exec is closed just the same.
        unsafe { libc::close(*fd) };
    }
}

/// A session of its own, so that no terminal of the caller's reaches it. With a terminal, that becomes its own, and the caller's
/// streams are let go: containerd's shim waits until nobody holds them.
pub fn session(terminal: Option<BorrowedFd<'_>>) -> Result<()> {
    rustix::process::setsid().context("new session")?;
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(terminal).context("controlling terminal")?;
        release_streams().context("/dev/null")?;
    }
    Ok(())
}

fn release_streams() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Where the empty root is mounted before it becomes the root. The root of a user namespace may be a user who can't reach the state
/// directory; this one everybody can.
const MOUNT_POINT: &str = "/proc";

/// An empty root, no capabilities, no new privileges. `own_pids`: the process is the first of a PID namespace. `volumes` are all that is
/// in the root; `privileged` is done when nothing else can be reached any more and before the capabilities go.
pub fn process<T>(
    oom_score_adj: Option<i32>,
    own_pids: bool,
    volumes: Vec<Tree>,
    privileged: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if let Some(score) = oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .with_context(|| format!("config.json: process.oomScoreAdj: {score}"))?;
    }
    empty_root(own_pids, volumes).context("empty root")?;
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    let result = privileged()?;
    keep_capabilities(CapabilitySet::empty()).context("dropping capabilities")?;
    Ok(result)
}

/// In it there is only a `/proc` of the VMM's own PID namespace, and of that only the processes: engines that look for a container's
/// processes there (`podman top`) find the VMM instead of nothing. The VMM itself may open no file, apart from
/// the threads that serve volumes.
fn empty_root(own_pids: bool, volumes: Vec<Tree>) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let descriptors = volumes::descriptors(&volumes)?;
    // The root itself, `/proc`, what volumes need: two directories each, and two for all.
    let inodes = 3 + if volumes.is_empty() {
        0
    } else {
        2 * volumes.len() + 2
    };
    let options = CString::new(format!("size=4k,nr_inodes={inodes},mode=0555"))?;
    rustix::mount::mount("none", MOUNT_POINT, "tmpfs", flags, options.as_c_str())?;
    rustix::process::chdir(MOUNT_POINT)?;
    // The old root comes to lie on top of the new one, and is taken off from there (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    if own_pids {
        rustix::fs::mkdir("/proc", rustix::fs::Mode::from_raw_mode(0o555))?;
        // Before Linux 5.8, or in a user namespace that may not have one, there is none.
        let _ = rustix::mount::mount(
            "none",
            "/proc",
            "proc",
            flags | MountFlags::RDONLY,
            Some(c"subset=pid"),
        );
    }
    volumes::attach(volumes, descriptors)?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Drops all capabilities of this thread but these, as far as it has them.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<()> {
    for bit in 0..64 {
        // Fails at the first capability that the kernel does not have; without CAP_SETPCAP (possible in a joined user
        // namespace) at the first of all, and then no_new_privs is what keeps the bounding set from mattering.
        if rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit))
            .is_err()
        {
            break;
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let kept = kept & rustix::thread::capabilities(None)?.permitted;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
