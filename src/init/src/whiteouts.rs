//! Devices 0:0 of an image, which overlayfs takes for whiteouts in every layer and so never shows.
//!
//! ```text
//!   top directory of the image: attribute trusted.overlay.cwrun.whiteouts = "a/b\0c\0"
//!     a/b  device 0:0 ── copied, with its attributes ──► /scratch/whiteouts/0 ─┐ bind mount
//!   /root/a/b  device 0:1, a placeholder in the writable layer ◄───────────────┘
//! ```
//!
//! The list is `disk`'s, which made the image. An image that is one layer of several has none: there they are whiteouts.

use crate::failure::{Context as _, Failure, Result};
use crate::mount::Detached;
use crate::world;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, getxattr, lgetxattr, llistxattr, lsetxattr, makedev, mknodat, openat2, statat,
    utimensat,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// See `disk::WHITEOUTS`.
const LIST: &str = "trusted.overlay.cwrun.whiteouts";
/// In front of an attribute that overlayfs shows without the second word.
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
const SHOWN: &[u8] = b"trusted.overlay.";
/// Longest value of an attribute, and longest list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST: usize = 65536;

/// Shows those of the lower directories, which are mounted at these paths, in the container's root. `readonly` if its root is to be.
pub fn show(lower: &[String], readonly: bool) -> Result<()> {
    let [layer] = lower else { return Ok(()) };
    let mut list = vec![0; LONGEST];
    let length = match getxattr(layer.as_str(), LIST, &mut list[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
        length => length.context(|| format!("read {LIST} of {layer}"))?,
    };
    let store = Path::new(world::SCRATCH).join("whiteouts");
    fs::create_dir(&store).context(|| format!("create {}", store.display()))?;
    let root = open_below(CWD, Path::new(world::ROOT), OFlags::DIRECTORY)
        .context(|| format!("open {}", world::ROOT))?;
    for (number, path) in paths(list.get(..length).unwrap_or_default()).enumerate() {
        let copy = store.join(number.to_string());
        show_one(&root, Path::new(layer), path, &copy, readonly)
            .map_err(|error| Failure::other(format!("device {}: {}", path.display(), error)))?;
    }
    Ok(())
}

/// The paths of a list. What comes behind the last NUL is none.
fn paths(list: &[u8]) -> impl Iterator<Item = &Path> {
    list.split_inclusive(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_suffix(b"\0"))
        .map(|path| Path::new(OsStr::from_bytes(path)))
}

fn show_one(root: &OwnedFd, layer: &Path, path: &Path, copy: &Path, readonly: bool) -> std::io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    copy_device(&below(layer, path)?, copy)?;
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    let directory = open_below(root, parent, OFlags::DIRECTORY)?;
    let before = statat(&directory, "", AtFlags::EMPTY_PATH)?;
    let placeholder = makedev(0, 1);
    mknodat(
        &directory,
        name,
        FileType::CharacterDevice,
        Mode::empty(),
        placeholder,
    )?;
    utimensat(&directory, ".", &times(&before), AtFlags::empty())?;
    let mount = Detached::copy_of(open_below(CWD, copy, OFlags::empty())?, false)?;
    // A read-only root is so for their attributes too.
    if readonly {
        mount.restrict(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    }
    mount
        .attach(open_below(&directory, Path::new(name), OFlags::empty())?)
        .map(drop)
}

/// The path of a file of the layer. The list is as good as the image, so this only keeps mistakes small.
fn below(layer: &Path, path: &Path) -> std::io::Result<PathBuf> {
    use std::path::Component;
    let inside = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if inside {
        Ok(layer.join(path))
    } else {
        Err(Errno::INVAL.into())
    }
}

/// A descriptor that only names what is at a path; symbolic links are not followed.
fn open_below(directory: impl std::os::fd::AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(
        directory.as_fd(),
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )
}

/// Makes `to` what `from` is: owner, mode, times, extended attributes.
fn copy_device(from: &Path, to: &Path) -> std::io::Result<()> {
    let meta = statat(CWD, from, AtFlags::SYMLINK_NOFOLLOW)?;
    if (FileType::from_raw_mode(meta.st_mode), meta.st_rdev) != (FileType::CharacterDevice, makedev(0, 0)) {
        return Err(Errno::INVAL.into());
    }
    let mode = Mode::from_raw_mode(meta.st_mode & 0o7777);
    mknodat(CWD, to, FileType::CharacterDevice, mode, meta.st_rdev)?;
    let (owner, group) = (Uid::from_raw(meta.st_uid), Gid::from_raw(meta.st_gid));
    chownat(CWD, to, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    // After the owner: changing that drops set-ID bits.
    chmodat(CWD, to, mode, AtFlags::empty())?;
    copy_xattrs(from, to)?;
    Ok(utimensat(CWD, to, &times(&meta), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_xattrs(from: &Path, to: &Path) -> std::io::Result<()> {
    let (mut names, mut value) = (vec![0; LONGEST], vec![0; LONGEST]);
    let length = llistxattr(from, &mut names[..])?;
    let names = names.get(..length).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = lgetxattr(from, name, &mut value[..])?;
        let value = value.get(..length).unwrap_or_default();
        // No overlay lies over the copy that would do it.
        let shown = name.strip_prefix(ESCAPED).map(|rest| [SHOWN, rest].concat());
        lsetxattr(to, shown.as_deref().unwrap_or(name), value, XattrFlags::empty())?;
    }
    Ok(())
}

fn times(meta: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: nanoseconds as _, // below 10^9
    };
    Timestamps {
        last_access: time(meta.st_atime, meta.st_atime_nsec),
        last_modification: time(meta.st_mtime, meta.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_where_the_conversion_writes_it() {
        assert_eq!(LIST.as_bytes(), disk::WHITEOUTS);
    }

    #[test]
    fn only_paths_with_an_end_count_and_only_those_below_the_layer() {
        let list: Vec<_> = paths(b"a\0b/c\0\xff\0cut").collect();
        let strange = Path::new(OsStr::from_bytes(b"\xff"));
        assert_eq!(list, [Path::new("a"), Path::new("b/c"), strange]);
        assert_eq!(paths(b"").count(), 0);
        assert_eq!(
            below(Path::new("/l/0"), Path::new("a/b")).unwrap(),
            Path::new("/l/0/a/b")
        );
        for bad in ["/etc/passwd", "../x", "a/../b", ".", "./a"] {
            assert!(below(Path::new("/l/0"), Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_copy_has_the_attributes_of_the_device() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path().join("x"), to.path().join("0"));
        let mode = Mode::from_raw_mode(0o640);
        mknodat(CWD, &from, FileType::CharacterDevice, mode, makedev(0, 0)).unwrap();
        chownat(
            CWD,
            &from,
            Some(Uid::from_raw(7)),
            Some(Gid::from_raw(8)),
            AtFlags::empty(),
        )
        .unwrap();
        let flags = XattrFlags::empty();
        lsetxattr(&from, "trusted.overlay.overlay.opaque", b"y", flags).unwrap();
        lsetxattr(&from, "trusted.own", b"1", flags).unwrap();
        let time = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 5,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &from, &both, AtFlags::empty()).unwrap();
        copy_device(&from, &to).unwrap();
        let (one, other) = (
            statat(CWD, &from, AtFlags::empty()).unwrap(),
            statat(CWD, &to, AtFlags::empty()).unwrap(),
        );
        assert_eq!(
            (
                one.st_mode,
                one.st_rdev,
                one.st_uid,
                one.st_gid,
                one.st_mtime,
                one.st_mtime_nsec
            ),
            (
                other.st_mode,
                other.st_rdev,
                other.st_uid,
                other.st_gid,
                other.st_mtime,
                other.st_mtime_nsec
            )
        );
        let mut value = [0; 8];
        assert_eq!(
            lgetxattr(&to, "trusted.overlay.opaque", &mut value[..]).unwrap(),
            1
        );
        assert_eq!(lgetxattr(&to, "trusted.own", &mut value[..]).unwrap(), 1);
        assert!(copy_device(&to.with_file_name("missing"), &from).is_err());
    }
}
