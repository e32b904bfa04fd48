//! The metadata of a root file system: names, attributes, links, extended attributes. No file is opened for its data.
//!
//! ```text
//!   entries:  [ "." ".." "bin" "etc" … | "." ".." "passwd" … | … ]    one sorted run for each directory
//!                        │      │
//!   inodes:   [ root,   bin,   etc, … ]                              in the order of discovery
//! ```
//!
//! Two names of one file (hard links) are two entries with one inode. Names and link targets lie in one arena, and
//! equal sets of extended attributes are kept once, so that a million files fit in little more than 100 MiB.
//!
//! What belongs to the root file system: everything on the *mount* of its top directory. A directory on which
//! something else is mounted stays, with the attributes it shows, and is empty; a file on which another is mounted
//! likewise. An overlay mount is one mount, whatever device numbers its files report.

mod archive;
mod digest;
mod list;
mod markers;
mod open;
mod scan;
mod tar;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use archive::Archive;
pub use markers::{Markers, WHITEOUTS};
pub(crate) use open::Reader;

use crate::build::{self, Built, Options, Place};
use crate::{Error, Unlock, VolumeKey};

/// Index of the top directory's inode.
pub(crate) const ROOT: u32 = 0;

/// Longest value of an extended attribute that EROFS can store, in bytes.
const LONGEST_VALUE: usize = u16::MAX as usize;

/// A scanned root file system: see [`Tree::scan`].
pub struct Tree {
    /// As the caller named it; for messages.
    path: PathBuf,
    /// How marks of overlayfs were read.
    markers: Markers,
    /// What holds the data of its files.
    source: Source,
    pub(crate) inodes: Vec<Inode>,
    pub(crate) entries: Vec<Entry>,
    /// Distinct sets of extended attributes; the first is the empty one.
    pub(crate) xattrs: Vec<XattrSet>,
    names: Vec<u8>,
    /// Inodes on which something else is mounted.
    covered: Vec<u32>,
}

/// Where a tree was found.
enum Source {
    /// The top directory. Every later access starts here, so that renaming it does no harm.
    Directory(OwnedFd),
    /// Archives, the lowest layer first.
    Archives(Vec<Archive>),
}

/// A name in a directory, "." and ".." included.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    name: Span,
    pub(crate) inode: u32,
}

/// A run of bytes in the arena.
#[derive(Clone, Copy, Default)]
struct Span {
    start: usize,
    len: u16,
}

/// A file of any type.
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    /// `st_mode`: type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names of it in this tree; for a directory 2 and one for each subdirectory.
    pub(crate) nlink: u32,
    pub(crate) mtime: Time,
    origin: Origin,
    /// Index in [`Tree::xattrs`].
    pub(crate) xattrs: u32,
    /// The directory it was found in first.
    parent: u32,
    /// Its name there.
    name: Span,
}

/// What tells a file from others in its source, and finds its data again.
#[derive(Clone, Copy)]
enum Origin {
    /// A file of a directory.
    File {
        /// Which of the devices met in the scan; 0 is the first one.
        device: u32,
        /// Inode number.
        number: u64,
        ctime: Time,
    },
    /// A member of an archive.
    Member {
        /// Index of the archive.
        archive: u32,
        /// Where in it the data begins, in bytes.
        offset: u64,
    },
}

/// What depends on the type of a file.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Regular { size: u64 },
    Directory { first: usize, count: usize },
    Symlink { target: Target },
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where in the arena the target of a symbolic link lies.
#[derive(Clone, Copy)]
pub(crate) struct Target(Span);

/// A point in time as the kernel gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// Names with their values, sorted by name.
pub(crate) type XattrSet = Vec<(Vec<u8>, Vec<u8>)>;

impl Tree {
    /// Walks the directory `path`. Only metadata is read.
    ///
    /// Extended attributes in the namespaces `user`, `trusted` (if the caller may see them), `security` and the
    /// POSIX access control lists are kept. Others (`btrfs.*`, `system.nfs4_acl` …) are properties of the file system
    /// that the tree lies on, not of the tree, and are left out.
    ///
    /// # Errors
    /// [`Error::Source`] naming what can't be read, [`Error::Changed`], [`Error::XattrValue`], [`Error::TooMany`].
    pub fn scan(path: &Path) -> Result<Self, Error> {
        Self::scan_as(path, Markers::Plain)
    }

    /// Walks the directory `path`, which overlayfs has left marks in or will find some in.
    ///
    /// # Errors
    /// Those of [`Tree::scan`], and [`Error::Marker`] or [`Error::Whiteouts`] for what can't be given the meaning asked for.
    pub fn scan_as(path: &Path, markers: Markers) -> Result<Self, Error> {
        scan::scan(path, markers)
    }

    /// The tree that unpacking `layers` one over the other would make, the lowest first, without unpacking them. Their members' data is
    /// read from the archives when the tree is converted. Deletions are those of the OCI image specification (layer.md, "Whiteouts");
    /// what looks like a mark of overlayfs is read as `markers` says.
    ///
    /// # Errors
    /// [`Error::Archive`] naming layer, member and what is wrong with it; [`Error::XattrValue`], [`Error::Marker`], [`Error::TooMany`].
    pub fn from_archives(layers: Vec<Archive>, markers: Markers) -> Result<Self, Error> {
        archive::tree(layers, markers)
    }

    /// Converts the tree into `image`, an empty regular file open for reading and writing.
    ///
    /// # Errors
    /// Any [`Error`] of reading the tree or writing the image, which has no valid header then.
    pub fn build(&self, image: &File, unlock: &Unlock, options: &Options<'_>) -> Result<Built, Error> {
        build::build(self, image, unlock, options)
    }

    /// Converts the tree into an image without a LUKS2 header, whose place stays a hole: for an image that nobody but the guest it is
    /// made for will ever open. A header costs a key derivation and 256 KiB of random bytes. The label is that of the file system.
    ///
    /// # Errors
    /// Any [`Error`] of reading the tree or writing the image, which is of no use then.
    pub fn build_payload(
        &self,
        image: &File,
        key: &VolumeKey,
        options: &Options<'_>,
    ) -> Result<Built, Error> {
        build::payload(self, image, key, options, Place::Image)
    }

    /// Converts the tree into the payload alone and writes it into `file` from the byte `start` on, which may be in the midst of
    /// something else. The layout's `payload_offset` is 0.
    ///
    /// # Errors
    /// Any [`Error`] of reading the tree or writing the file.
    pub fn build_payload_at(
        &self,
        file: &File,
        start: u64,
        key: &VolumeKey,
        options: &Options<'_>,
    ) -> Result<Built, Error> {
        build::payload(self, file, key, options, Place::At(start))
    }

    /// The content of the regular file with this path below the top, or none if there is no such file. Symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::Long`] for a file of more than `most` bytes, and those of reading the tree.
    pub fn read_file(&self, path: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        let (Some(inode), Some(size)) = (self.find(path), self.find_file(path)) else {
            return Ok(None);
        };
        let Some(length) = usize::try_from(size).ok().filter(|length| *length <= most) else {
            return Err(Error::Long {
                path: self.path(inode),
                most,
            });
        };
        let mut bytes = vec![0; length]; // at most `most`
        Reader::new(self).read(inode, 0, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Length in bytes of the regular file with this path below the top, or none if there is no such file.
    #[must_use]
    pub fn find_file(&self, path: &str) -> Option<u64> {
        match self.at(self.find(path)?).kind {
            Kind::Regular { size } => Some(size),
            _ => None,
        }
    }

    /// The inode that a path leads to from the top, through directories alone.
    fn find(&self, path: &str) -> Option<u32> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(ROOT, |at, name| {
            let Kind::Directory { first, count } = self.at(at).kind else {
                return None;
            };
            let entries = self.entries.get(first..first + count)?;
            let entry = entries
                .iter()
                .find(|entry| self.name(**entry) == name.as_bytes())?;
            Some(entry.inode)
        })
    }

    /// Names the content of the tree without reading it: a SHA-256 over all metadata and, for regular files, the
    /// inode number and change time that stand for their data. Two scans with one identity yield one image, as long
    /// as nobody sets the clock back to hide a change of a file.
    ///
    /// Device numbers count only by which files share one: the kernel numbers an overlay anew with each mount.
    #[must_use]
    pub fn identity(&self) -> [u8; 32] {
        digest::identity(self)
    }

    /// A SHA-256 over all that the image holds but the data of regular files. A copy of the tree has the same.
    pub(crate) fn metadata_digest(&self) -> [u8; 32] {
        digest::metadata(self)
    }

    /// How many regular files the tree has (a file with several names counts once).
    #[must_use]
    pub fn files(&self) -> u64 {
        self.regular_sizes().count() as u64
    }

    /// Length in bytes of all regular files together.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.regular_sizes().sum()
    }

    /// Paths, below the root file system, on which something else is mounted; they are empty in the image.
    pub fn covered(&self) -> impl Iterator<Item = PathBuf> {
        self.covered.iter().map(|&inode| self.relative_path(inode))
    }

    fn regular_sizes(&self) -> impl Iterator<Item = u64> {
        self.inodes.iter().filter_map(|inode| match inode.kind {
            Kind::Regular { size } => Some(size),
            _ => None,
        })
    }

    /// The name of an entry.
    pub(crate) fn name(&self, entry: Entry) -> &[u8] {
        self.bytes(entry.name)
    }

    /// The target of a symbolic link.
    pub(crate) fn target(&self, target: Target) -> &[u8] {
        self.bytes(target.0)
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.names[span.start..span.start + usize::from(span.len)]
    }

    fn relative_path(&self, mut inode: u32) -> PathBuf {
        let mut names = Vec::new();
        while inode != ROOT {
            names.push(OsStr::from_bytes(self.bytes(self.at(inode).name)));
            inode = self.at(inode).parent;
        }
        names.iter().rev().collect()
    }

    /// The full path of a file, by its first name; for messages.
    pub(crate) fn path(&self, inode: u32) -> PathBuf {
        self.path.join(self.relative_path(inode))
    }

    /// How marks of overlayfs were read.
    pub(crate) fn markers(&self) -> Markers {
        self.markers
    }

    /// The path of the top directory as the caller named it.
    pub(crate) fn root_path(&self) -> &Path {
        &self.path
    }

    /// The inode with an index that came from this tree.
    pub(crate) fn at(&self, inode: u32) -> &Inode {
        &self.inodes[inode as usize]
    }

    /// A mark of overlayfs that can't have the meaning asked for.
    fn marker(&self, inode: u32, mark: &str) -> Error {
        Error::Marker {
            path: self.path(inode),
            mark: mark.to_owned(),
        }
    }

    /// A failed system call on a file of the tree.
    fn error(&self, action: &'static str, inode: u32, errno: rustix::io::Errno) -> Error {
        Error::Source {
            action,
            path: self.path(inode),
            source: errno.into(),
        }
    }
}

impl Target {
    /// Length in bytes.
    pub(crate) fn len(self) -> u64 {
        u64::from(self.0.len)
    }
}
