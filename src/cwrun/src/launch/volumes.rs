//! Directories of the host, put where a VMM with an empty root still has them.
//!
//! ```text
//!   /srv/data  ── open_tree ──► Tree (a mount that is nowhere) ── move_mount ──► /volumes/0/data
//!   /proc/self/fd ──────────────► the same ─────────────────────────────────────► /fd
//! ```
//!
//! So what a server of volumes can reach at most is decided by the mount namespace, whatever the server does: these directories, and its own
//! descriptors. Read-only is a property of the mount.

use crate::bundle::host::{HostSpec, Kind};
use crate::bundle::mounts::Source;
use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Where volumes are in the VMM's root, by their numbers.
pub const VOLUMES: &str = "/volumes";
/// Where the VMM finds its own descriptors.
pub const DESCRIPTORS: &str = "/fd";

/// A mount that is nowhere yet.
#[derive(Debug)]
pub struct Tree {
    mount: OwnedFd,
    name: String,
    readonly: bool,
}

/// Takes the sources before the user namespace changes, after which this process may be nobody to their paths. Where it may not make mounts
/// yet, it is that namespace that lets it, as the same user.
pub fn detach_early(host: &HostSpec, sources: &[Source]) -> Result<Option<Vec<Tree>>> {
    if sources.is_empty()
        || host
            .namespaces
            .iter()
            .all(|namespace| namespace.kind != Kind::User)
    {
        return Ok(None);
    }
    match detach(sources) {
        Ok(trees) => Ok(Some(trees)),
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the sources, as their paths are now.
pub fn detach(sources: &[Source]) -> Result<Vec<Tree>> {
    let tree = |source: &Source| {
        if !source.overlay.is_empty() {
            let mount = overlay(&source.overlay).context("config.json: mounts: making an overlay")?;
            return Ok(Tree {
                mount,
                name: source.name(),
                readonly: source.readonly,
            });
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if source.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let mount = open_tree(CWD, &source.path, flags)
            .with_context(|| format!("config.json: mounts: source: {}", source.path.display()))?;
        Ok(Tree {
            mount,
            name: source.name(),
            readonly: source.readonly,
        })
    };
    sources.iter().map(tree).collect()
}

/// An overlay that is mounted nowhere. It goes with its last user.
fn overlay(options: &[(String, Option<String>)]) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        }
        .with_context(|| format!("option {key}"))?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// This process's own descriptors, which a server of volumes needs.
pub fn descriptors(volumes: &[Tree]) -> Result<Option<OwnedFd>> {
    if volumes.is_empty() {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "/proc/self/fd", flags).context("/proc/self/fd")?;
    Ok(Some(tree))
}

/// Puts them into the root.
pub fn attach(volumes: Vec<Tree>, descriptors: Option<OwnedFd>) -> Result<()> {
    let Some(descriptors) = descriptors else {
        return Ok(());
    };
    let harmless = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    put(&descriptors, DESCRIPTORS)?;
    restrict(&descriptors, harmless | libc::MOUNT_ATTR_RDONLY).context(DESCRIPTORS)?;
    rustix::fs::mkdir(VOLUMES, Mode::from_raw_mode(0o555))?;
    for (number, volume) in volumes.into_iter().enumerate() {
        let place = place(number);
        rustix::fs::mkdir(&place, Mode::from_raw_mode(0o555)).with_context(|| place.clone())?;
        put(&volume.mount, &format!("{place}/{}", volume.name))?;
        let readonly = if volume.readonly {
            libc::MOUNT_ATTR_RDONLY
        } else {
            0
        };
        // No symbolic link is followed anyway; from Linux 5.14 on the kernel sees to it too.
        restrict(&volume.mount, harmless | readonly | libc::MOUNT_ATTR_NOSYMFOLLOW)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => restrict(&volume.mount, harmless | readonly),
                _ => Err(error),
            })
            .with_context(|| format!("restricting {place}"))?;
    }
    Ok(())
}

/// Where the volume of this number is, by its name: a directory that holds nothing else and can't be written to.
pub fn place(number: usize) -> String {
    format!("{VOLUMES}/{number}")
}

fn put(mount: &OwnedFd, place: &str) -> Result<()> {
    rustix::fs::mkdir(place, Mode::from_raw_mode(0o555)).with_context(|| place.to_owned())?;
    move_mount(
        mount.as_fd(),
        "",
        CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .with_context(|| format!("mount on {place}"))
}

/// Adds attributes to a mount and all below it, and cuts them off from what is mounted elsewhere.
fn restrict(mount: &OwnedFd, attributes: u64) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated literal and the structure lives across the call with its own size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
