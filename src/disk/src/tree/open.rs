//! Reading what a scan has found. Files of a directory are opened relative to directories that are held open, in steps shorter than `PATH_MAX`, never
//! through a symbolic link and never into another mount, even if somebody rearranges the tree meanwhile.
//! Members of archives lie in open files.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Archive, Kind, Origin, ROOT, Source, Time, Tree};
use crate::Error;

/// Directories kept open for the next file beside the last.
const KEPT: usize = 16;

/// Longest relative path handed to the kernel in one call; `PATH_MAX` is 4096 with the final NUL.
const LONGEST: usize = 4095;

/// Opens directories of a tree and remembers the last few.
struct Directories<'t> {
    top: BorrowedFd<'t>,
    kept: VecDeque<(u32, Rc<OwnedFd>)>,
}

impl<'t> Directories<'t> {
    fn new(top: BorrowedFd<'t>) -> Self {
        Self {
            top,
            kept: VecDeque::new(),
        }
    }

    /// The directory with the inode `index`, open for reading.
    fn open(&mut self, tree: &Tree, index: u32) -> Result<Rc<OwnedFd>, Error> {
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
            let from = base.as_ref().map_or(self.top, |fd| fd.as_fd());
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
    place: Place<'t>,
}

/// Where the data is.
enum Place<'t> {
    Directory(Directories<'t>),
    Archives(&'t [Archive]),
}

impl<'t> Reader<'t> {
    pub(crate) fn new(tree: &'t Tree) -> Self {
        let place = match &tree.source {
            Source::Directory(top) => Place::Directory(Directories::new(top.as_fd())),
            Source::Archives(archives) => Place::Archives(archives),
        };
        Self { tree, place }
    }

    /// Fills `buffer` with the data of a regular file from `offset` bytes on. The file must still be what it was in
    /// the scan once its data has been read.
    pub(crate) fn read(&mut self, index: u32, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let (tree, inode) = (self.tree, self.tree.at(index));
        match (&mut self.place, inode.origin) {
            (
                Place::Archives(archives),
                Origin::Member {
                    archive,
                    offset: start,
                },
            ) => fill(
                tree,
                index,
                &archives[archive as usize].file,
                start + offset,
                buffer,
            ),
            (Place::Directory(directories), Origin::File { number, ctime, .. }) => {
                let directory = directories.open(tree, inode.parent)?;
                let file = match open_below(directory.as_fd(), tree.bytes(inode.name), OFlags::empty()) {
                    Ok(file) => file,
                    // Gone, or a symbolic link or another mount now.
                    Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO) => {
                        return Err(changed(tree, index));
                    }
                    Err(errno) => return Err(tree.error("open", index, errno)),
                };
                let filled = fill(tree, index, &file, offset, buffer);
                // What was a file may be something that can't be read like one by now.
                unchanged(tree, index, &file, number, ctime)?;
                filled
            }
            _ => unreachable!("a tree is made of one source"),
        }
    }
}

/// Fills `buffer` with what `file` has from `offset` bytes on; it is known to have that much, unless it was changed.
fn fill(tree: &Tree, index: u32, file: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(changed(tree, index)),
            Ok(got) => done += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(tree.error("read", index, errno)),
        }
    }
    Ok(())
}

fn unchanged(tree: &Tree, index: u32, file: &OwnedFd, number: u64, ctime: Time) -> Result<(), Error> {
    let inode = tree.at(index);
    let now = rustix::fs::fstat(file).map_err(|errno| tree.error("read", index, errno))?;
    let same = matches!(inode.kind, Kind::Regular { size } if i64::try_from(size) == Ok(now.st_size))
        && now.st_ino == number
        && u32::from(inode.mode) == now.st_mode
        && (inode.mtime.seconds, u64::from(inode.mtime.nanoseconds)) == (now.st_mtime, now.st_mtime_nsec)
        && (ctime.seconds, u64::from(ctime.nanoseconds)) == (now.st_ctime, now.st_ctime_nsec);
    if same { Ok(()) } else { Err(changed(tree, index)) }
}

fn changed(tree: &Tree, index: u32) -> Error {
    Error::Changed {
        path: tree.path(index),
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
