//! `tmpcopyup`: what the image has in a directory, copied into the file system that is about to hide it.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Directories deeper than this are not a tree that anybody made on purpose.
const MAX_DEPTH: usize = 256;

/// Copies the content of directory `from` into directory `to`: types, owners, modes, times, extended attributes. The
/// attributes of `to` itself stay what its mount options made them, as with crun.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    copy_content(from, to, 0)
}

fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    // A descriptor of its own: both may be O_PATH, or share a position with others.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(from, ".", flags, Mode::empty())?;
    let to = openat(to, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from.as_fd(), to.as_fd(), name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let meta = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let owner = (Some(Uid::from_raw(meta.st_uid)), Some(Gid::from_raw(meta.st_gid)));
    let private = Mode::from_raw_mode(0o600);
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let (below_from, below_to) = (
                openat(from, name, flags, Mode::empty())?,
                openat(to, name, flags, Mode::empty())?,
            );
            copy_content(below_from.as_fd(), below_to.as_fd(), depth + 1)?;
            return copy_attributes(&File::from(below_from), &File::from(below_to));
        }
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut source = File::from(openat(from, name, read, Mode::empty())?);
            let mut target = File::from(openat(to, name, write, private)?);
            io::copy(&mut source, &mut target)?;
            return copy_attributes(&source, &target);
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        kind => {
            mknodat(to, name, kind, private, meta.st_rdev)?;
            rustix::fs::chmodat(
                to,
                name,
                Mode::from_raw_mode(meta.st_mode & 0o7777),
                AtFlags::empty(),
            )?;
        }
    }
    chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(to, name, &times(&meta), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let meta = rustix::fs::fstat(from)?;
    fchown(
        to,
        Some(Uid::from_raw(meta.st_uid)),
        Some(Gid::from_raw(meta.st_gid)),
    )?;
    fchmod(to, Mode::from_raw_mode(meta.st_mode & 0o7777))?;
    copy_xattrs(from, to)?;
    futimens(to, &times(&meta))?;
    Ok(())
}

/// Copies what the target can hold: tmpfs knows neither all namespaces nor any size.
fn copy_xattrs(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    use rustix::io::Errno;
    // The kernel's own limits, XATTR_LIST_MAX and XATTR_SIZE_MAX.
    let (mut list, mut value) = (vec![0; 65536], vec![0; 65536]);
    let length = match flistxattr(from, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in list
        .get(..length)
        .unwrap_or_default()
        .split_inclusive(|byte| *byte == 0)
    {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let length = fgetxattr(from, name, &mut value[..])?;
        match fsetxattr(
            to,
            name,
            value.get(..length).unwrap_or_default(),
            XattrFlags::empty(),
        ) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn times(meta: &rustix::fs::Stat) -> Timestamps {
    let time = |tv_sec, nsec: u64| Timespec {
        tv_sec,
        tv_nsec: nsec as _,
    };
    Timestamps {
        last_access: time(meta.st_atime, meta.st_atime_nsec),
        last_modification: time(meta.st_mtime, meta.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn a_tree_arrives_with_its_attributes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/f"), "text").unwrap();
        fs::set_permissions(from.path().join("d/f"), Permissions::from_mode(0o4751)).unwrap();
        symlink("nowhere", from.path().join("l")).unwrap();
        fs::set_permissions(from.path().join("d"), Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(to.path(), Permissions::from_mode(0o750)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
        File::open(from.path().join("d"))
            .unwrap()
            .set_modified(time)
            .unwrap();

        copy(
            File::open(from.path()).unwrap().as_fd(),
            File::open(to.path()).unwrap().as_fd(),
        )
        .unwrap();

        assert_eq!(fs::read(to.path().join("d/f")).unwrap(), b"text");
        assert_eq!(
            fs::metadata(to.path().join("d/f")).unwrap().mode() & 0o7777,
            0o4751
        );
        assert_eq!(
            fs::read_link(to.path().join("l")).unwrap().to_str(),
            Some("nowhere")
        );
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&to.path().join("d")), 0o1777);
        assert_eq!(mode(to.path()), 0o750, "the mount's own mode stays");
        assert_eq!(
            fs::metadata(to.path().join("d")).unwrap().modified().unwrap(),
            time
        );
    }
}
