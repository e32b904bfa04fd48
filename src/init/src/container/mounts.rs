//! What OCI puts over the root file system: mounts, injected files, masked and read-only paths (config.md#mounts,
//! config-linux.md#masked-paths).

use super::copyup;
use super::root::Root;
use crate::failure::{Context as _, Failure, Result};
use crate::mount::{Detached, NewFs};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, statat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use workload::{Filesystem, InjectedFile, Mount, MountFlag};

/// Mounts one entry of `mounts`.
pub fn mount(root: &Root, entry: &Mount) -> Result<()> {
    place(root, entry).map_err(|failure| Failure::other(format!("mount {}: {failure}", entry.destination)))
}

fn place(root: &Root, entry: &Mount) -> Result<()> {
    let target = root.directory(&entry.destination)?;
    let at_root = statat(&target, "", AtFlags::EMPTY_PATH)
        .and_then(|meta| {
            Ok((meta.st_dev, meta.st_ino)
                == statat(root, "", AtFlags::EMPTY_PATH).map(|r| (r.st_dev, r.st_ino))?)
        })
        .context(|| "look at the destination".into())?;
    if at_root {
        return Err(Failure::other("the root itself can't be mounted over"));
    }
    let attributes = attributes(&entry.flags);
    let mut filesystem = NewFs::open(entry.filesystem.name())?.source(entry.filesystem.name())?;
    for option in superblock_options(entry) {
        filesystem = filesystem.set(option)?;
    }
    // Read-only last, after what has to be written to it.
    let mounted = filesystem.mount(attributes - MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    if wants_copy(entry) {
        copyup::copy(target.as_fd(), mounted.as_fd()).context(|| "copy the image's content".into())?;
    }
    if attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
        mounted
            .restrict(MountAttrFlags::MOUNT_ATTR_RDONLY)
            .context(|| "make it read-only".into())?;
    }
    mounted.attach(&target).map(drop).context(|| "attach".into())
}

/// Options for the file system itself: those that OCI runtimes interpret are taken out, the two flags that belong to
/// the superblock added.
fn superblock_options(entry: &Mount) -> impl Iterator<Item = &str> {
    let flag = |flag, name| entry.flags.contains(&flag).then_some(name);
    entry
        .options
        .iter()
        .map(String::as_str)
        .filter(|option| !matches!(*option, "tmpcopyup" | "notmpcopyup"))
        .chain(flag(MountFlag::Sync, "sync"))
        .chain(flag(MountFlag::Dirsync, "dirsync"))
}

/// Runtimes differ in which of two contradicting options wins; here it is the last, as in mount(8).
fn wants_copy(entry: &Mount) -> bool {
    entry.filesystem == Filesystem::Tmpfs
        && entry
            .options
            .iter()
            .rev()
            .find(|option| option.ends_with("tmpcopyup"))
            .is_some_and(|o| o == "tmpcopyup")
}

/// Flags of mount(2) as attributes of one mount.
fn attributes(flags: &BTreeSet<MountFlag>) -> MountAttrFlags {
    flags
        .iter()
        .map(|flag| match flag {
            MountFlag::Ro => MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountFlag::Nosuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
            MountFlag::Nodev => MountAttrFlags::MOUNT_ATTR_NODEV,
            MountFlag::Noexec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            MountFlag::Nodiratime => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            MountFlag::Strictatime => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            // Both in one field with the one above: mount(2) lets the stricter clock lose, and so does this.
            MountFlag::Noatime if !flags.contains(&MountFlag::Strictatime) => {
                MountAttrFlags::MOUNT_ATTR_NOATIME
            }
            // The default.
            MountFlag::Relatime | MountFlag::Noatime => MountAttrFlags::empty(),
            // Of the superblock.
            MountFlag::Sync | MountFlag::Dirsync => MountAttrFlags::empty(),
        })
        .collect()
}

/// Puts the engine's files in place. They live on one small tmpfs, mounted at `store`, whatever they lie over; each is
/// a mount of its own.
pub fn inject(root: &Root, store: &str, files: &[InjectedFile]) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    // Room for what they are and for what a workload may write to them.
    let tmpfs = NewFs::open("tmpfs")?
        .source("files")?
        .set("size=16m")?
        .set("mode=0755")?
        .mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?
        .attach_at(store)?;
    files.iter().enumerate().try_for_each(|(index, file)| {
        let written =
            write(&tmpfs, &index.to_string(), file).context(|| format!("write {}", file.destination))?;
        let target = root.file(&file.destination)?;
        let bound = Detached::copy_of(&written, false).context(|| format!("bind {}", file.destination))?;
        if file.readonly {
            bound
                .restrict(MountAttrFlags::MOUNT_ATTR_RDONLY)
                .context(|| format!("make {} read-only", file.destination))?;
        }
        bound
            .attach(&target)
            .map(drop)
            .context(|| format!("mount {}", file.destination))
    })
}

fn write(store: impl std::os::fd::AsFd, name: &str, file: &InjectedFile) -> std::io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut written = File::from(openat(store, name, flags, Mode::from_raw_mode(0o600))?);
    written.write_all(&file.content.0)?;
    fchown(
        &written,
        Some(Uid::from_raw(file.uid)),
        Some(Gid::from_raw(file.gid)),
    )?;
    // After the owner: changing that drops set-ID bits.
    fchmod(&written, Mode::from_raw_mode(file.mode))?;
    Ok(written)
}

/// Hides a path: a file behind `/dev/null`, a directory behind an empty read-only file system. A missing path is
/// hidden enough.
pub fn mask(root: &Root, path: &str) -> Result<()> {
    let Some(target) = existing(root, path)? else {
        return Ok(());
    };
    let meta = statat(&target, "", AtFlags::EMPTY_PATH).context(|| format!("mask {path}"))?;
    let cover = if rustix::fs::FileType::from_raw_mode(meta.st_mode).is_dir() {
        NewFs::open("tmpfs")?
            .set("size=4k")?
            .set("nr_inodes=1")?
            .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)?
    } else {
        File::open("/dev/null")
            .and_then(|null| Detached::copy_of(null, false))
            .context(|| format!("mask {path}"))?
    };
    cover.attach(&target).map(drop).context(|| format!("mask {path}"))
}

/// Makes a path read-only, with what is mounted below it still there.
pub fn make_readonly(root: &Root, path: &str) -> Result<()> {
    let Some(target) = existing(root, path)? else {
        return Ok(());
    };
    let cover = || {
        let cover = Detached::copy_of(&target, true)?;
        cover.restrict(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        cover.attach(&target).map(drop)
    };
    cover().context(|| format!("make {path} read-only"))
}

fn existing(root: &Root, path: &str) -> Result<Option<std::os::fd::OwnedFd>> {
    match root.resolve(path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).context(|| format!("open {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(options: &[&str], flags: &[MountFlag]) -> Mount {
        Mount {
            destination: "/x".into(),
            filesystem: Filesystem::Tmpfs,
            flags: flags.iter().copied().collect(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        }
    }

    #[test]
    fn runtime_options_do_not_reach_the_file_system() {
        let entry = entry(
            &["size=64m", "tmpcopyup", "mode=755"],
            &[MountFlag::Sync, MountFlag::Ro],
        );
        let options: Vec<_> = superblock_options(&entry).collect();
        assert_eq!(options, ["size=64m", "mode=755", "sync"]);
        assert!(wants_copy(&entry));
    }

    #[test]
    fn the_last_of_contradicting_options_wins() {
        assert!(!wants_copy(&entry(&["tmpcopyup", "notmpcopyup"], &[])));
        assert!(wants_copy(&entry(&["notmpcopyup", "tmpcopyup"], &[])));
        assert!(!wants_copy(&entry(&[], &[])));
        let both = entry(&[], &[MountFlag::Noatime, MountFlag::Strictatime]);
        assert_eq!(attributes(&both.flags), MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        let all = entry(
            &[],
            &[
                MountFlag::Ro,
                MountFlag::Nosuid,
                MountFlag::Noexec,
                MountFlag::Noatime,
            ],
        );
        assert_eq!(attributes(&all.flags).bits(), 0x1 | 0x2 | 0x8 | 0x10);
    }
}
