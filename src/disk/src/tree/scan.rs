//! The walk. One directory at a time is listed in full, its entries are sorted and looked up, and its subdirectories
//! wait on a stack: depth costs no recursion and no descriptors.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::markers::{Attribute, Markers};
use super::open::Directories;
use super::{Entry, Inode, Kind, ROOT, Span, Target, Time, Tree, XattrSet};
use crate::Error;

/// Longest value of an extended attribute that EROFS can store.
const LONGEST_VALUE: usize = u16::MAX as usize;

/// See [`Tree::scan`].
pub(super) fn scan(path: &Path, markers: Markers) -> Result<Tree, Error> {
    let source = |action: &'static str| {
        move |errno: Errno| Error::Source {
            action,
            path: path.to_owned(),
            source: errno.into(),
        }
    };
    let root = rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(source("open"))?;
    let stat = stat(root.as_fd(), b"", AtFlags::EMPTY_PATH).map_err(source("examine"))?;
    let tree = Tree {
        path: path.to_owned(),
        markers,
        root,
        inodes: Vec::new(),
        entries: Vec::new(),
        xattrs: vec![XattrSet::new()],
        names: Vec::new(),
        covered: Vec::new(),
    };
    let mut scan = Scan {
        tree,
        mount: stat.stx_mnt_id,
        links: HashMap::new(),
        devices: HashMap::new(),
        sets: HashMap::new(),
        waiting: vec![ROOT],
        directories: Directories::default(),
    };
    scan.sets.insert(XattrSet::new(), 0);
    let kind = Kind::Directory { first: 0, count: 0 };
    scan.add(kind, &stat, ROOT, Span::default())?;
    let xattrs = scan.xattrs(
        &format!("/proc/self/fd/{}/.", scan.tree.root.as_raw_fd()).into_bytes(),
        ROOT,
    )?;
    scan.tree.inodes[ROOT as usize].xattrs = xattrs;
    while let Some(directory) = scan.waiting.pop() {
        scan.directory(directory)?;
    }
    Ok(scan.tree)
}

/// A walk under way.
struct Scan {
    tree: Tree,
    /// Id of the mount that the tree lies on.
    mount: u64,
    /// Files that may have more names, by device and inode number.
    links: HashMap<(u32, u64), u32>,
    /// Devices by their numbers, in the order of discovery.
    devices: HashMap<(u32, u32), u32>,
    /// Index of each set of extended attributes.
    sets: HashMap<XattrSet, u32>,
    /// Directories to be listed, the next one last.
    waiting: Vec<u32>,
    directories: Directories,
}

impl Scan {
    fn directory(&mut self, index: u32) -> Result<(), Error> {
        if self.tree.covered.contains(&index) {
            return self.fill(index, None, vec![b".".to_vec(), b"..".to_vec()]);
        }
        let fd = self.directories.open(&self.tree, index)?;
        let mut names = list(&fd).map_err(|errno| self.tree.error("list", index, errno))?;
        names.sort_unstable();
        self.fill(index, Some(&fd), names)?;
        self.unchanged(&fd, index)
    }

    /// Gives a directory its entries. `fd` is there unless the only names are "." and "..".
    fn fill(&mut self, index: u32, fd: Option<&OwnedFd>, names: Vec<Vec<u8>>) -> Result<(), Error> {
        let (first, found) = (self.tree.entries.len(), self.tree.inodes.len());
        // The two names that every directory has are sorted among the others ("-" comes before ".").
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            entries.push(match (name.as_slice(), fd) {
                (b"..", _) => Entry {
                    name: self.store(&name),
                    inode: self.tree.at(index).parent,
                },
                (name, Some(fd)) if name != b"." => self.entry(fd, index, name)?,
                _ => Entry {
                    name: self.store(&name),
                    inode: index,
                },
            });
        }
        self.tree.entries.extend(entries);
        let count = self.tree.entries.len() - first;
        self.tree.inodes[index as usize].kind = Kind::Directory { first, count };
        self.queue(found);
        Ok(())
    }

    /// Puts the directories among the inodes from `found` on in line, in their order.
    fn queue(&mut self, found: usize) {
        let new = self.tree.inodes.iter().enumerate().skip(found).rev();
        let directories = new.filter(|(_, inode)| matches!(inode.kind, Kind::Directory { .. }));
        // Indices fit: `add` checks.
        self.waiting.extend(directories.map(|(index, _)| index as u32));
    }

    /// A name in the directory `parent`, which is open as `fd`.
    fn entry(&mut self, fd: &OwnedFd, parent: u32, name: &[u8]) -> Result<Entry, Error> {
        let span = self.store(name);
        let error = |tree: &Tree, action, errno: Errno| {
            let path = tree.path(parent).join(OsStr::from_bytes(name));
            match errno {
                Errno::NOENT => Error::Changed { path },
                _ => Error::Source {
                    action,
                    path,
                    source: errno.into(),
                },
            }
        };
        let stat = stat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| error(&self.tree, "examine", errno))?;
        let covered = stat.stx_mnt_id != self.mount;
        let kind = self
            .kind(fd, name, &stat, covered)
            .map_err(|errno| error(&self.tree, "read", errno))?;
        if let Some(inode) = self.link(&kind, &stat, covered) {
            return Ok(Entry { name: span, inode });
        }
        let inode = self.add(kind, &stat, parent, span)?;
        let whiteout = matches!(kind, Kind::Character { major: 0, minor: 0 });
        if whiteout && !self.tree.markers.allows_whiteouts() {
            return Err(self.marker(inode, "device number 0:0"));
        }
        if covered {
            self.tree.covered.push(inode);
        } else if stat.stx_nlink > 1 && !matches!(kind, Kind::Directory { .. }) {
            self.links
                .insert((self.tree.at(inode).device, stat.stx_ino), inode);
        }
        let mut path = format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        let xattrs = self.xattrs(&path, inode)?;
        self.tree.inodes[inode as usize].xattrs = xattrs;
        Ok(Entry { name: span, inode })
    }

    /// If the file has been met under another name: that inode, with one more link.
    fn link(&mut self, kind: &Kind, stat: &Statx, covered: bool) -> Option<u32> {
        if covered || stat.stx_nlink < 2 || matches!(kind, Kind::Directory { .. }) {
            return None;
        }
        let device = *self.devices.get(&(stat.stx_dev_major, stat.stx_dev_minor))?;
        let inode = *self.links.get(&(device, stat.stx_ino))?;
        self.tree.inodes[inode as usize].nlink += 1;
        Some(inode)
    }

    fn kind(&mut self, fd: &OwnedFd, name: &[u8], stat: &Statx, covered: bool) -> Result<Kind, Errno> {
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => Kind::Regular {
                size: if covered { 0 } else { stat.stx_size },
            },
            FileType::Directory => Kind::Directory { first: 0, count: 0 },
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, name, Vec::new())?;
                Kind::Symlink {
                    target: Target(self.store(target.as_bytes())),
                }
            }
            FileType::CharacterDevice => Kind::Character { major, minor },
            FileType::BlockDevice => Kind::Block { major, minor },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return Err(Errno::INVAL),
        })
    }

    /// A new inode; directories also count in their parent's links.
    fn add(&mut self, kind: Kind, stat: &Statx, parent: u32, name: Span) -> Result<u32, Error> {
        let index = u32::try_from(self.tree.inodes.len()).map_err(|_| Error::TooMany {
            path: self.tree.root_path().to_owned(),
        })?;
        let devices = self.devices.len() as u32; // at most one for each inode
        let device = *self
            .devices
            .entry((stat.stx_dev_major, stat.stx_dev_minor))
            .or_insert(devices);
        let directory = matches!(kind, Kind::Directory { .. });
        self.tree.inodes.push(Inode {
            kind,
            mode: stat.stx_mode,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            nlink: if directory { 2 } else { 1 },
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            number: stat.stx_ino,
            device,
            xattrs: 0,
            parent,
            name,
        });
        if directory && index != ROOT {
            self.tree.inodes[parent as usize].nlink += 1;
        }
        Ok(index)
    }

    /// The extended attributes of the file at `path`, which goes through a descriptor of /proc: the kernel has no
    /// call for them that is relative to a directory and does not follow links (before 6.13).
    fn xattrs(&mut self, path: &[u8], inode: u32) -> Result<u32, Error> {
        let set = match self.read_xattrs(path, inode)? {
            set if set.is_empty() => return Ok(0),
            set => set,
        };
        let next = self.tree.xattrs.len() as u32; // at most one for each inode
        let index = *self.sets.entry(set.clone()).or_insert(next);
        if index == next {
            self.tree.xattrs.push(set);
        }
        Ok(index)
    }

    fn read_xattrs(&self, path: &[u8], inode: u32) -> Result<XattrSet, Error> {
        let error = |errno| self.tree.error("read the extended attributes of", inode, errno);
        let names = match grow(|buffer| rustix::fs::llistxattr(path, buffer)) {
            Err(Errno::OPNOTSUPP) => return Ok(XattrSet::new()),
            names => names.map_err(error)?,
        };
        let mut set = XattrSet::new();
        for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
            match grow(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
                Ok(value) if value.len() > LONGEST_VALUE => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    return Err(Error::XattrValue {
                        path: self.tree.path(inode),
                        name,
                        size: value.len(),
                    });
                }
                Ok(value) => match self.tree.markers.attribute(name, &value) {
                    Attribute::Named(name) => set.push((name, value)),
                    Attribute::Dropped => {}
                    Attribute::Refused => return Err(self.marker(inode, &String::from_utf8_lossy(name))),
                },
                Err(Errno::NODATA) => {
                    return Err(Error::Changed {
                        path: self.tree.path(inode),
                    });
                }
                Err(errno) => return Err(error(errno)),
            }
        }
        set.sort_unstable();
        Ok(set)
    }

    fn marker(&self, inode: u32, mark: &str) -> Error {
        Error::Marker {
            path: self.tree.path(inode),
            mark: mark.to_owned(),
        }
    }

    /// A directory that was written to while it was listed may lack names that were there all along.
    fn unchanged(&self, fd: &OwnedFd, index: u32) -> Result<(), Error> {
        let now = stat(fd.as_fd(), b"", AtFlags::EMPTY_PATH)
            .map_err(|errno| self.tree.error("examine", index, errno))?;
        let then = self.tree.at(index);
        if time(&now.stx_mtime) == then.mtime && time(&now.stx_ctime) == then.ctime {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.tree.path(index),
        })
    }

    /// Puts bytes into the arena. Names have at most 255 of them, targets of links less than `PATH_MAX`.
    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.tree.names.len();
        self.tree.names.extend_from_slice(bytes);
        Span {
            start,
            len: u16::try_from(bytes.len()).expect("the kernel gives no names beyond PATH_MAX"),
        }
    }
}

/// All names in a directory, "." and ".." included.
fn list(fd: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(1 << 16);
    rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0))?;
    let mut raw = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    // Few file systems leave them out, but nothing promises them.
    for dots in [&b"."[..], b".."] {
        if !names.iter().any(|name| name == dots) {
            names.push(dots.to_vec());
        }
    }
    Ok(names)
}

/// `statx` without following a link or waiting for an automount. The id of the mount is there since Linux 5.8.
fn stat(fd: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<Statx, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(fd, name, flags | AtFlags::NO_AUTOMOUNT, want)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(stat)
}

/// The namespaces that belong to the tree; see [`Tree::scan`].
fn is_kept(name: &[u8]) -> bool {
    let prefixed = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    prefixed || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

/// Calls `get` with larger and larger buffers until the answer fits.
fn grow(mut get: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // Both lists and values are limited to 64 KiB by the kernel.
    let mut small = [0; 512];
    match get(&mut small) {
        Ok(len) => return Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut large = vec![0; 1 << 16];
    let len = get(&mut large)?;
    large.truncate(len);
    Ok(large)
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time {
        seconds: stamp.tv_sec,
        nanoseconds: stamp.tv_nsec,
    }
}
