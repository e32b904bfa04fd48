//! Mounting by descriptor: a file system is made detached, changed if need be, then attached.
//!
//! ```text
//!   NewFs::open("tmpfs") ─ set("size=64m") ─ mount(flags) ──► Detached ─ attach(target) ──► in the tree
//!   Detached::copy_of(fd) (a bind mount) ────────────────────►
//! ```
//!
//! No path is resolved twice, so nothing can be swapped in between, and the kernel's own words for a bad option
//! (`fsopen` keeps a log) end up in the message.

use crate::failure::{Failure, Result, reason};
use crate::sys;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount,
    open_tree,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file system being configured.
pub struct NewFs {
    context: OwnedFd,
    name: &'static str,
}

impl NewFs {
    /// Begins a file system of this type.
    pub fn open(name: &'static str) -> Result<Self> {
        let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| Failure::other(format!("file system {name}: {}", reason(error))))?;
        Ok(Self { context, name })
    }

    /// Begins to configure once more the file system that is mounted at `target`.
    pub fn mounted_at(target: impl AsFd) -> Result<Self> {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = fspick(target.as_fd(), "", flags)
            .map_err(|error| Failure::other(format!("remount: {}", reason(error))))?;
        Ok(Self {
            context,
            name: "remount",
        })
    }

    /// Applies the options to a file system that is mounted.
    pub fn reconfigure(self) -> Result<()> {
        let changed = fsconfig_reconfigure(self.context.as_fd());
        self.checked(changed, "reconfigure").map(drop)
    }

    /// Sets what `/proc/mounts` shows as the source, which is a device for some types.
    pub fn source(self, source: &str) -> Result<Self> {
        let set = fsconfig_set_string(self.context.as_fd(), "source", source);
        self.checked(set, source)
    }

    /// Sets one option, `key=value` or `key`.
    pub fn set(self, option: &str) -> Result<Self> {
        let set = match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(self.context.as_fd(), key, value),
            None => fsconfig_set_flag(self.context.as_fd(), option),
        };
        self.checked(set, option)
    }

    /// Makes the file system and a detached mount of it.
    pub fn mount(self, attributes: MountAttrFlags) -> Result<Detached> {
        let created = fsconfig_create(self.context.as_fd());
        let this = self.checked(created, "create")?;
        fsmount(this.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map(Detached)
            .map_err(|error| this.failure(error, "mount"))
    }

    fn checked(self, result: rustix::io::Result<()>, step: &str) -> Result<Self> {
        match result {
            Ok(()) => Ok(self),
            Err(error) => Err(self.failure(error, step)),
        }
    }

    fn failure(&self, error: Errno, step: &str) -> Failure {
        let log = self.log().map(|log| format!(" ({log})")).unwrap_or_default();
        Failure::other(format!("{} {step}: {}{log}", self.name, reason(error)))
    }

    /// The kernel's last word on this file system: `e tmpfs: Bad value for 'size'`, without the level in front.
    fn log(&self) -> Option<String> {
        let mut last = None;
        let mut line = [0; 256];
        while let Ok(length) = rustix::io::read(&self.context, &mut line) {
            let text = String::from_utf8_lossy(line.get(..length)?);
            last = Some(text.trim_end().get(2..).unwrap_or_default().to_owned());
        }
        last
    }
}

/// A mount that is not in any tree. Dropped, it is unmounted.
pub struct Detached(OwnedFd);

impl Detached {
    /// A bind mount of the file or directory, with everything mounted below it if `recursive`.
    pub fn copy_of(what: impl AsFd, recursive: bool) -> io::Result<Self> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(Self(open_tree(what.as_fd(), "", flags)?))
    }

    /// Adds mount attributes.
    pub fn restrict(&self, attributes: MountAttrFlags) -> io::Result<()> {
        sys::set_mount_attributes(&self.0, attributes.bits().into(), false)
    }

    /// Puts the mount on top of `target`.
    pub fn attach(self, target: impl AsFd) -> io::Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", target.as_fd(), "", flags)?;
        Ok(self.0)
    }

    /// Puts the mount on top of the file or directory at `path`.
    pub fn attach_at(self, path: &str) -> Result<OwnedFd> {
        move_mount(
            self.0.as_fd(),
            "",
            CWD,
            path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|error| Failure::other(format!("mount on {path}: {}", reason(error))))?;
        Ok(self.0)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
