//! Single files of an image that the host itself looks at. They are hostile: whatever lies there, opening it neither leaves the root file
//! system nor waits.

use anyhow::Result;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Opens the file `name` in the top directory of `rootfs` for reading. A symbolic link is ELOOP; a FIFO does not wait for its writer.
pub fn open(rootfs: &Path, name: &str) -> rustix::io::Result<File> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve).map(File::from)
}

/// Whether it is a regular file.
pub fn is_regular(file: &impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_file())
}
