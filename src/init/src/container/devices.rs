//! The devices and links in `/dev` that every container has (OCI runtime-spec config-linux.md#default-devices).

use super::root::Root;
use crate::failure::{Context as _, Result};
use rustix::fs::{FileType, Mode, makedev, mknodat, symlinkat};
use rustix::io::Errno;

/// Character devices: name, major, minor. FUSE is not in the specification; engines pass it on request and a guest has
/// it to itself.
const NODES: [(&str, u32, u32); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes what is missing. The caller's umask is 0.
pub fn make(root: &Root) -> Result<()> {
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

fn unless_there(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
