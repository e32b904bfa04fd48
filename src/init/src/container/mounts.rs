//! What OCI puts over the root file system: mounts, injected files, masked and read-only paths (config.md#mounts,
//! config-linux.md#masked-paths).

use super::copyup;
use super::root::Root;
use crate::failure::{Context as _, Failure, Result};
use crate::mount::{Detached, NewFs};
use crate::sys;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, statat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use workload::{Filesystem, InjectedFile, Mount, MountFlag, Volume};

/// Bytes that injected files may grow by, all together, with what the file system needs for itself.
const FILES_ROOM: usize = 16 << 20;

/// Mounts the entries of `mounts`, and the volumes where they belong between them.
pub fn mount_all(root: &Root, entries: &[Mount], volumes: &[Volume]) -> Result<()> {
    let mut volumes = volumes.iter().peekable();
    for (before, entry) in (0u32..).zip(entries) {
        while let Some(volume) = volumes.next_if(|volume| volume.after <= before) {
            share(root, volume)?;
        }
        mount(root, entry)?;
    }
    volumes.try_for_each(|volume| share(root, volume))
}

fn mount(root: &Root, entry: &Mount) -> Result<()> {
    place(root, entry).map_err(|failure| Failure::other(format!("mount {}: {failure}", entry.destination)))
}

fn share(root: &Root, volume: &Volume) -> Result<()> {
    place_volume(root, volume)
        .map_err(|failure| Failure::other(format!("mount {}: {failure}", volume.destination)))
}

/// A volume never has devices: their numbers would be those of the guest, and what they stand for the host's to say.
fn place_volume(root: &Root, volume: &Volume) -> Result<()> {
    let target = target(root, &volume.destination)?;
    let attributes = attributes(&volume.flags) | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mut filesystem = NewFs::open("virtiofs")?.source(&volume.tag)?;
    for option in superblock_flags(&volume.flags) {
        filesystem = filesystem.set(option)?;
    }
    let device = filesystem
        .mount(attributes)?
        .attach(&target)
        .context(|| "attach".into())?;
    // Only of what is mounted somewhere a part can be mounted elsewhere.
    let part = part_of(&device, &volume.name).context(|| format!("look for {:?} in it", volume.name));
    let place = format!("/proc/self/fd/{}", device.as_raw_fd());
    unmount(place, UnmountFlags::DETACH).context(|| "detach".into())?;
    let mounted = part?.attach(&target).context(|| "attach".into())?;
    propagate(&mounted, &volume.propagation)
}

/// A mount of this directory in a file system.
fn part_of(filesystem: &OwnedFd, name: &str) -> io::Result<Detached> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(filesystem, name, flags, Mode::empty())?;
    Detached::copy_of(directory, false)
}

/// The directory that is to be mounted over.
fn target(root: &Root, destination: &str) -> Result<OwnedFd> {
    let target = root.directory(destination)?;
    let at_root = statat(&target, "", AtFlags::EMPTY_PATH)
        .and_then(|meta| {
            Ok((meta.st_dev, meta.st_ino)
                == statat(root, "", AtFlags::EMPTY_PATH).map(|r| (r.st_dev, r.st_ino))?)
        })
        .context(|| "look at the destination".into())?;
    if at_root {
        return Err(Failure::other("the root itself can't be mounted over"));
    }
    Ok(target)
}

fn place(root: &Root, entry: &Mount) -> Result<()> {
    let target = target(root, &entry.destination)?;
    if entry.options.iter().any(|option| option == "remount") {
        return remount(&target, entry);
    }
    let attributes = attributes(&entry.flags);
    let mut filesystem = NewFs::open(entry.filesystem.name())?.source(source(entry))?;
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
    let mounted = mounted.attach(&target).context(|| "attach".into())?;
    propagate(&mounted, &entry.options)
}

/// Changes what is mounted at `target` already: the flags become those of the entry, options are added (mount(8), `remount`).
fn remount(target: &OwnedFd, entry: &Mount) -> Result<()> {
    let mut options = superblock_options(entry).peekable();
    if options.peek().is_some() {
        options
            .try_fold(NewFs::mounted_at(target)?, NewFs::set)?
            .reconfigure()?;
    }
    // `MOUNT_ATTR__ATIME`, the field that NOATIME and STRICTATIME are values of.
    const CLOCK: MountAttrFlags = MountAttrFlags::from_bits_retain(0x70);
    const FLAGS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
        .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
        .union(MountAttrFlags::MOUNT_ATTR_NODEV)
        .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
    let clock = [
        MountFlag::Noatime,
        MountFlag::Nodiratime,
        MountFlag::Relatime,
        MountFlag::Strictatime,
    ];
    let cleared = if clock.iter().any(|flag| entry.flags.contains(flag)) {
        FLAGS | CLOCK | MountAttrFlags::MOUNT_ATTR_NODIRATIME
    } else {
        FLAGS
    };
    let change = libc::mount_attr {
        attr_set: attributes(&entry.flags).bits().into(),
        attr_clr: cleared.bits().into(),
        ..sys::NO_CHANGE
    };
    sys::change_mount(target, change, false).context(|| "remount".into())?;
    propagate(target, &entry.options)
}

/// How mounts made below this one reach its copies: the last such option counts. Without one a mount is private.
fn propagate(mount: &OwnedFd, options: &[String]) -> Result<()> {
    let Some((kind, recursive)) = options.iter().rev().find_map(|option| propagation(option)) else {
        return Ok(());
    };
    let change = libc::mount_attr {
        propagation: kind,
        ..sys::NO_CHANGE
    };
    sys::change_mount(mount, change, recursive).context(|| "set the propagation".into())
}

/// What an option says of propagation, and whether it is about mounts below as well.
fn propagation(option: &str) -> Option<(u64, bool)> {
    let kind = |name| match name {
        "private" => Some(libc::MS_PRIVATE),
        "slave" => Some(libc::MS_SLAVE),
        "shared" => Some(libc::MS_SHARED),
        "unbindable" => Some(libc::MS_UNBINDABLE),
        _ => None,
    };
    match kind(option) {
        Some(kind) => Some((kind, false)),
        None => Some((option.strip_prefix('r').and_then(kind)?, true)),
    }
}

/// Options for the file system itself: those that OCI runtimes interpret are taken out, the two flags that belong to
/// the superblock added.
fn superblock_options(entry: &Mount) -> impl Iterator<Item = &str> {
    entry
        .options
        .iter()
        .map(String::as_str)
        .filter(|option| !matches!(*option, "tmpcopyup" | "notmpcopyup" | "remount"))
        .filter(|option| propagation(option).is_none() && !option.starts_with(Mount::SOURCE))
        .chain(superblock_flags(&entry.flags))
}

fn superblock_flags(flags: &BTreeSet<MountFlag>) -> impl Iterator<Item = &str> {
    let option = |flag, name| flags.contains(&flag).then_some(name);
    [
        option(MountFlag::Sync, "sync"),
        option(MountFlag::Dirsync, "dirsync"),
    ]
    .into_iter()
    .flatten()
}

/// What `/proc/mounts` shows as the source.
fn source(entry: &Mount) -> &str {
    let mut said = entry.options.iter().rev();
    said.find_map(|option| option.strip_prefix(Mount::SOURCE))
        .unwrap_or(entry.filesystem.name())
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
    let length: usize = files.iter().map(|file| file.content.0.len()).sum();
    let tmpfs = NewFs::open("tmpfs")?
        .source("files")?
        .set(&format!("size={}", length + FILES_ROOM))?
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

fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>> {
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
            &[
                "size=64m",
                "tmpcopyup",
                "rshared",
                "private",
                "remount",
                "source=a=b",
                "mode=755",
            ],
            &[MountFlag::Sync, MountFlag::Ro],
        );
        let options: Vec<_> = superblock_options(&entry).collect();
        assert_eq!(options, ["size=64m", "mode=755", "sync"]);
        assert!(wants_copy(&entry));
        assert_eq!(source(&entry), "a=b");
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
