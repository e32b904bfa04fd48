//! Single files of an image that the host itself looks at. They are hostile: whatever lies there, opening it neither leaves the root file
//! system nor waits.

use anyhow::{Context as _, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _};
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

/// Opens the file `name`, if there is one and it is a regular file.
pub fn open_regular(rootfs: &Path, name: &str) -> Result<Option<File>> {
    match open(rootfs, name) {
        Ok(file) if is_regular(&file)? => Ok(Some(file)),
        Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno).with_context(|| rootfs.join(name).display().to_string()),
    }
}

/// The content of a file of at most `most` bytes; `None` if it is longer.
pub fn read_at_most(file: File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
