//! The devices that the workload lists (OCI runtime-spec config-linux.md#devices), and those in `/dev`, with links, that every container
//! has (#default-devices).

use super::root::Root;
use crate::failure::{Context as _, Failure, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use workload::{Device, DeviceKind};

/// Character devices: name, major, minor.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes those listed, and then what is missing. The caller's umask is 0.
pub fn make(root: &Root, listed: &[Device]) -> Result<()> {
    for device in listed {
        make_listed(root, device)
            .map_err(|failure| Failure::other(format!("linux.devices: {}: {failure}", device.path)))?;
    }
    let dev = root.directory("/dev")?;
    for (name, major, minor) in NODES {
        let made = mknodat(
            &dev,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        );
        unless_there(made).context(|| format!("create device /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        unless_there(symlinkat(target, &dev, name)).context(|| format!("create link /dev/{name}"))?;
    }
    Ok(())
}

/// Makes a device, or gives one that is there its mode and owner.
fn make_listed(root: &Root, device: &Device) -> Result<()> {
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("/", &device.path));
    if matches!(name, "" | "." | "..") {
        return Err(Failure::other("not the path of a file"));
    }
    let parent = root.directory(parent)?;
    let (kind, number) = match device.kind {
        DeviceKind::Character { major, minor } => (FileType::CharacterDevice, makedev(major, minor)),
        DeviceKind::Block { major, minor }
            if Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists() =>
        {
            return Err(Failure::other(format!(
                "{major}:{minor} is a disk of the guest's own"
            )));
        }
        DeviceKind::Block { major, minor } => (FileType::BlockDevice, makedev(major, minor)),
        DeviceKind::Disk { number } => (FileType::BlockDevice, disk(number)?),
        DeviceKind::Fifo => (FileType::Fifo, 0),
    };
    let mode = Mode::from_raw_mode(device.mode);
    unless_there(mknodat(&parent, name, kind, mode, number)).context(|| "create".into())?;
    let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it".into())?;
    if FileType::from_raw_mode(found.st_mode) != kind || found.st_rdev != number {
        return Err(Failure::other("something else is there already"));
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .context(|| "change its owner".into())?;
    // After the owner: changing that drops bits. It is no link, as was just seen, and nothing else runs here yet.
    chmodat(&parent, name, mode, AtFlags::empty()).context(|| "change its mode".into())
}

/// The device number of a disk that the host passes.
fn disk(number: u32) -> Result<u64> {
    let serial = Device::serial(number);
    let blocks = fs::read_dir("/sys/block").context(|| "list /sys/block".into())?;
    let is = |place: &PathBuf| {
        fs::read_to_string(place.join("serial")).is_ok_and(|text| text.trim_end() == serial)
    };
    let place = blocks.flatten().map(|entry| entry.path()).find(is);
    let place = place.ok_or_else(|| Failure::other("the host did not pass this disk"))?;
    let text = fs::read_to_string(place.join("dev")).context(|| format!("read {}/dev", place.display()))?;
    let parts = text.trim_end().split_once(':');
    let parts = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = parts.ok_or_else(|| Failure::other("its number can't be read"))?;
    Ok(makedev(major, minor))
}

fn unless_there(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    fn fifo(path: &str, mode: u32) -> Device {
        // This process's own, since a test need not be root.
        Device {
            path: path.into(),
            kind: DeviceKind::Fifo,
            mode,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    #[test]
    fn a_pipe_is_made_with_its_directory_and_one_that_is_there_gets_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        for mode in [0o620, 0o606] {
            make_listed(&root, &fifo("/new/dir/pipe", mode)).unwrap();
            let meta = fs::metadata(dir.path().join("new/dir/pipe")).unwrap();
            assert!(meta.file_type().is_fifo());
            // What this process's umask takes away at first is put right.
            assert_eq!(meta.permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn what_is_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().to_str().unwrap()).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        for path in ["/file", "/link"] {
            let failure = make_listed(&root, &fifo(path, 0o600)).unwrap_err();
            assert_eq!(failure.to_string(), "something else is there already", "{path}");
        }
        for path in ["/", "/dev/..", "/x/."] {
            assert!(make_listed(&root, &fifo(path, 0o600)).is_err(), "{path}");
        }
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "x");
    }
}
