//! Opening what a scan has found: relative to directories that are held open, in steps shorter than `PATH_MAX`, never
//! through a symbolic link and never into another mount, even if somebody rearranges the tree meanwhile.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Kind, ROOT, Tree};
use crate::Error;

/// Directories kept open for the next file beside the last.
const KEPT: usize = 16;

/// Longest relative path handed to the kernel in one call; `PATH_MAX` is 4096 with the final NUL.
const LONGEST: usize = 4095;

/// Opens directories of a tree and remembers the last few.
#[derive(Default)]
pub(super) struct Directories {
    kept: VecDeque<(u32, Rc<OwnedFd>)>,
}

impl Directories {
    /// The directory with the inode `index`, open for reading.
    pub(super) fn open(&mut self, tree: &Tree, index: u32) -> Result<Rc<OwnedFd>, Error> {
        let (mut names, mut at) = (Vec::new(), index);
        let mut base = loop {
            if let Some((_, kept)) = self.kept.iter().find(|(kept, _)| *kept == at) {
                break Some(Rc::clone(kept));
            }
            if at == ROOT {
                break None;
            }
            names.push(tree.bytes(tree.at(at).name));
            at = tree.at(at).parent;
        };
        if let (Some(open), true) = (&base, names.is_empty()) {
            return Ok(Rc::clone(open));
        }
        for step in steps(&names) {
            let from = base.as_ref().map_or(tree.root.as_fd(), |fd| fd.as_fd());
            let open = open_below(from, &step, OFlags::DIRECTORY);
            base = Some(Rc::new(open.map_err(|errno| tree.error("open", index, errno))?));
        }
        let open = base.ok_or_else(|| tree.error("open", index, Errno::NOENT))?;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((index, Rc::clone(&open)));
        Ok(open)
    }
}

/// The way from the top directory to the directory `index`, in steps shorter than `PATH_MAX`.
pub(super) fn steps_to(tree: &Tree, mut index: u32) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    while index != ROOT {
        names.push(tree.bytes(tree.at(index).name));
        index = tree.at(index).parent;
    }
    steps(&names)
}

/// Joins names (the deepest first) to paths of at most [`LONGEST`] bytes; "." where there are none.
fn steps(names: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut steps: Vec<Vec<u8>> = Vec::new();
    for name in names.iter().rev() {
        match steps.last_mut() {
            Some(step) if step.len() + 1 + name.len() <= LONGEST => {
                step.push(b'/');
                step.extend_from_slice(name);
            }
            _ => steps.push(name.to_vec()),
        }
    }
    if steps.is_empty() {
        steps.push(b".".to_vec());
    }
    steps
}

/// Opens `path` below `from`. NONBLOCK: what was a file in the scan may be a FIFO by now. NOATIME, where the kernel
/// grants it to us: reading a tree shall not write to it.
pub(super) fn open_below(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut flags =
        flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOATIME;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(from, path, flags, Mode::empty(), resolve) {
            // EAGAIN: the kernel could not exclude a race with a rename.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => flags -= OFlags::NOATIME,
            result => return result,
        }
    }
}

/// Reads data of regular files. One for each thread.
pub(crate) struct Reader<'t> {
    tree: &'t Tree,
    directories: Directories,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            directories: Directories::default(),
        }
    }

    /// Fills `buffer` with the data of a regular file from `offset` bytes on. The file must still be what it was in
    /// the scan once its data has been read.
    pub(crate) fn read(&mut self, index: u32, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let inode = self.tree.at(index);
        let directory = self.directories.open(self.tree, inode.parent)?;
        let name = self.tree.bytes(inode.name);
        let file = match open_below(directory.as_fd(), name, OFlags::empty()) {
            Ok(file) => file,
            // Gone, or a symbolic link or another mount now.
            Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Err(self.changed(index)),
            Err(errno) => return Err(self.tree.error("open", index, errno)),
        };
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err(self.changed(index)),
                Ok(got) => done += got,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    // What was a file may be something that can't be read like one by now.
                    self.unchanged(index, &file)?;
                    return Err(self.tree.error("read", index, errno));
                }
            }
        }
        self.unchanged(index, &file)
    }

    fn unchanged(&self, index: u32, file: &OwnedFd) -> Result<(), Error> {
        let inode = self.tree.at(index);
        let now = rustix::fs::fstat(file).map_err(|errno| self.tree.error("read", index, errno))?;
        let same = matches!(inode.kind, Kind::Regular { size } if i64::try_from(size) == Ok(now.st_size))
            && now.st_ino == inode.number
            && u32::from(inode.mode) == now.st_mode
            && (inode.mtime.seconds, u64::from(inode.mtime.nanoseconds)) == (now.st_mtime, now.st_mtime_nsec)
            && (inode.ctime.seconds, u64::from(inode.ctime.nanoseconds)) == (now.st_ctime, now.st_ctime_nsec);
        if same { Ok(()) } else { Err(self.changed(index)) }
    }

    fn changed(&self, index: u32) -> Error {
        Error::Changed {
            path: self.tree.path(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_between_names() {
        let name = [b'n'; 255];
        let steps = steps(&[&name[..]; 20]);
        // 15 names and the slashes between them are 3839 bytes; a 16th would make 4095 and still fits.
        assert_eq!(
            steps.iter().map(Vec::len).collect::<Vec<_>>(),
            [4095, 4 * 256 - 1]
        );
        assert_eq!(super::steps(&[b"c", b"b", b"a"]), [b"a/b/c".to_vec()]);
        assert_eq!(super::steps(&[]), [b".".to_vec()]);
    }
}
