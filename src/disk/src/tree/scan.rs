//! The walk. One directory at a time is listed in full, its entries are sorted and looked up, and its subdirectories
//! wait on a stack: depth costs no recursion and no descriptors. In a tree of some size, threads ask the kernel about
//! the directories on top of the stack ahead of time.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxTimestamp};
use rustix::io::Errno;

use super::list::{self, Desk, Failure, File, Found, Listing, Request, Ticket, Xattrs, stat};
use super::markers::{Attribute, Markers, WHITEOUTS};
use super::open::steps_to;
use super::{Entry, Inode, Kind, LONGEST_VALUE, Origin, ROOT, Source, Span, Target, Time, Tree, XattrSet};
use crate::Error;

/// `PATH_MAX` of Linux, its final NUL included.
const PATH_MAX: usize = 4096;

/// Files from which on threads help with a scan: below, starting them costs more than they save.
const WORTH_THREADS: usize = 1000;

/// Most threads that help: more find than one walk can take in.
const MOST_THREADS: usize = 8;

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
    let top = root.try_clone().map_err(|error| Error::Source {
        action: "open",
        path: path.to_owned(),
        source: error,
    })?;
    let tree = Tree {
        path: path.to_owned(),
        markers,
        source: Source::Directory(root),
        inodes: Vec::new(),
        entries: Vec::new(),
        xattrs: vec![XattrSet::new()],
        names: Vec::new(),
        covered: Vec::new(),
    };
    let mut scan = Scan {
        tree,
        whiteouts: Vec::new(),
        mount: stat.stx_mnt_id,
        links: HashMap::new(),
        devices: HashMap::new(),
        sets: HashMap::new(),
        waiting: vec![ROOT],
    };
    scan.sets.insert(XattrSet::new(), 0);
    let kind = Kind::Directory { first: 0, count: 0 };
    scan.add(kind, &stat, ROOT, Span::default())?;
    let xattrs = list::own_xattrs(top.as_fd());
    scan.tree.inodes[ROOT as usize].xattrs = scan.xattrs(xattrs, ROOT)?;
    let desk = Desk::default();
    thread::scope(|scope| {
        let start = || {
            let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            for _ in 0..threads.min(MOST_THREADS) {
                scope.spawn(|| desk.serve(top.as_fd()));
            }
        };
        let result = scan.walk(&mut Ahead::new(top.as_fd(), &desk, &start));
        desk.close();
        result
    })?;
    scan.list_whiteouts();
    Ok(scan.tree)
}

/// A walk under way.
struct Scan {
    tree: Tree,
    /// Paths below the top of what the guest's overlay would take for whiteouts, each with a NUL behind it.
    whiteouts: Vec<u8>,
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
}

impl Scan {
    fn walk(&mut self, ahead: &mut Ahead<'_>) -> Result<(), Error> {
        while let Some(directory) = self.waiting.pop() {
            self.directory(directory, ahead)?;
        }
        Ok(())
    }

    /// Gives a directory its entries.
    fn directory(&mut self, index: u32, ahead: &mut Ahead<'_>) -> Result<(), Error> {
        if self.tree.covered.contains(&index) {
            let dots = [&b"."[..], b".."].map(|name| Found {
                name: name.to_vec(),
                file: None,
            });
            let entries = self.entries(index, dots.into())?;
            return self.fill(index, entries);
        }
        let new = self.tree.inodes.len();
        let error = |tree: &Tree, (action, errno): Failure| tree.error(action, index, errno);
        let Listing {
            found,
            rest,
            directory,
            mut after,
        } = ahead
            .listing(&self.tree, &self.waiting, index)
            .map_err(|failure| error(&self.tree, failure))?;
        let mut entries = self.entries(index, found)?;
        if let Some(directory) = directory {
            for listing in ahead.rest(&self.tree, directory, rest) {
                let listing = listing.map_err(|failure| error(&self.tree, failure))?;
                entries.extend(self.entries(index, listing.found)?);
                after = listing.after;
            }
        }
        self.fill(index, entries)?;
        self.queue(new);
        self.unchanged(after, index)
    }

    fn entries(&mut self, directory: u32, found: Vec<Found>) -> Result<Vec<Entry>, Error> {
        // The two names that every directory has are sorted among the others ("-" comes before ".").
        let entry = |found: Found| match found.file {
            Some(file) => self.entry(directory, &found.name, file),
            None => Ok(Entry {
                name: self.store(&found.name),
                inode: match found.name.as_slice() {
                    b".." => self.tree.at(directory).parent,
                    _ => directory,
                },
            }),
        };
        found.into_iter().map(entry).collect()
    }

    fn fill(&mut self, index: u32, entries: Vec<Entry>) -> Result<(), Error> {
        let first = self.tree.entries.len();
        let count = entries.len();
        self.tree.entries.extend(entries);
        self.tree.inodes[index as usize].kind = Kind::Directory { first, count };
        Ok(())
    }

    /// Puts the directories among the inodes from `found` on in line, in their order.
    fn queue(&mut self, found: usize) {
        let new = self.tree.inodes.iter().enumerate().skip(found).rev();
        let directories = new.filter(|(_, inode)| matches!(inode.kind, Kind::Directory { .. }));
        // Indices fit: `add` checks.
        self.waiting.extend(directories.map(|(index, _)| index as u32));
    }

    /// A name in the directory `parent`.
    fn entry(&mut self, parent: u32, name: &[u8], file: Result<File, Failure>) -> Result<Entry, Error> {
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
        let File { stat, target, xattrs } =
            file.map_err(|(action, errno)| error(&self.tree, action, errno))?;
        let covered = stat.stx_mnt_id != self.mount;
        let kind = self
            .kind(&stat, target.as_deref(), covered)
            .map_err(|errno| error(&self.tree, "read", errno))?;
        let whiteout = matches!(kind, Kind::Character { major: 0, minor: 0 });
        if whiteout && self.tree.markers.lists_whiteouts() {
            self.add_whiteout(parent, name)?;
        }
        if let Some(inode) = self.link(&kind, &stat, covered) {
            return Ok(Entry { name: span, inode });
        }
        let inode = self.add(kind, &stat, parent, span)?;
        if covered {
            self.tree.covered.push(inode);
        } else if stat.stx_nlink > 1 && !matches!(kind, Kind::Directory { .. }) {
            let device = self.device(&stat);
            self.links.insert((device, stat.stx_ino), inode);
        }
        let xattrs = self.xattrs(xattrs, inode)?;
        self.tree.inodes[inode as usize].xattrs = xattrs;
        Ok(Entry { name: span, inode })
    }

    /// A device 0:0 that is to be shown.
    fn add_whiteout(&mut self, parent: u32, name: &[u8]) -> Result<(), Error> {
        let path = self.tree.relative_path(parent).join(OsStr::from_bytes(name));
        let path = path.as_os_str().as_bytes();
        // The guest opens it as one path, and has the list in the value of one attribute.
        if path.len() >= PATH_MAX || self.whiteouts.len() + path.len() >= LONGEST_VALUE {
            return Err(Error::Whiteouts {
                path: self.tree.path(parent).join(OsStr::from_bytes(name)),
            });
        }
        self.whiteouts.extend_from_slice(path);
        self.whiteouts.push(0);
        Ok(())
    }

    /// Says in an attribute of the top directory where there are devices 0:0, which the guest could not find through an overlay.
    fn list_whiteouts(&mut self) {
        if self.whiteouts.is_empty() {
            return;
        }
        let root = self.tree.inodes[ROOT as usize].xattrs;
        let mut set = self.tree.xattrs[root as usize].clone();
        set.push((WHITEOUTS.to_vec(), std::mem::take(&mut self.whiteouts)));
        set.sort_unstable();
        self.tree.inodes[ROOT as usize].xattrs = self.store_xattrs(set);
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

    fn kind(&mut self, stat: &Statx, target: Option<&[u8]>, covered: bool) -> Result<Kind, Errno> {
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => Kind::Regular {
                size: if covered { 0 } else { stat.stx_size },
            },
            FileType::Directory => Kind::Directory { first: 0, count: 0 },
            FileType::Symlink => Kind::Symlink {
                target: Target(self.store(target.ok_or(Errno::INVAL)?)),
            },
            FileType::CharacterDevice => Kind::Character { major, minor },
            FileType::BlockDevice => Kind::Block { major, minor },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return Err(Errno::INVAL),
        })
    }

    /// Which of the devices met so far a file lies on.
    fn device(&mut self, stat: &Statx) -> u32 {
        let next = self.devices.len() as u32; // at most one for each inode
        let numbers = (stat.stx_dev_major, stat.stx_dev_minor);
        *self.devices.entry(numbers).or_insert(next)
    }

    /// A new inode; directories also count in their parent's links.
    fn add(&mut self, kind: Kind, stat: &Statx, parent: u32, name: Span) -> Result<u32, Error> {
        let index = u32::try_from(self.tree.inodes.len()).map_err(|_| Error::TooMany {
            path: self.tree.root_path().to_owned(),
        })?;
        let device = self.device(stat);
        let directory = matches!(kind, Kind::Directory { .. });
        self.tree.inodes.push(Inode {
            kind,
            mode: stat.stx_mode,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            nlink: if directory { 2 } else { 1 },
            mtime: time(&stat.stx_mtime),
            origin: Origin::File {
                device,
                number: stat.stx_ino,
                ctime: time(&stat.stx_ctime),
            },
            xattrs: 0,
            parent,
            name,
        });
        if directory && index != ROOT {
            self.tree.inodes[parent as usize].nlink += 1;
        }
        Ok(index)
    }

    /// The index of a set of extended attributes.
    fn xattrs(&mut self, xattrs: Xattrs, inode: u32) -> Result<u32, Error> {
        let set = match self.read_xattrs(xattrs, inode)? {
            set if set.is_empty() => return Ok(0),
            set => set,
        };
        Ok(self.store_xattrs(set))
    }

    fn store_xattrs(&mut self, set: XattrSet) -> u32 {
        let next = self.tree.xattrs.len() as u32; // at most one for each inode, and the first
        let index = *self.sets.entry(set.clone()).or_insert(next);
        if index == next {
            self.tree.xattrs.push(set);
        }
        index
    }

    fn read_xattrs(&self, xattrs: Xattrs, inode: u32) -> Result<XattrSet, Error> {
        let error = |errno| self.tree.error("read the extended attributes of", inode, errno);
        let mut set = XattrSet::new();
        for (name, value) in xattrs.map_err(error)? {
            let name = name.as_slice();
            match value {
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
                    Attribute::Refused => {
                        return Err(self.tree.marker(inode, &String::from_utf8_lossy(name)));
                    }
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

    /// A directory that was written to while it was listed may lack names that were there all along.
    fn unchanged(&self, after: Result<Statx, Errno>, index: u32) -> Result<(), Error> {
        let now = after.map_err(|errno| self.tree.error("examine", index, errno))?;
        let then = self.tree.at(index);
        if let Origin::File { ctime, .. } = then.origin
            && time(&now.stx_mtime) == then.mtime
            && time(&now.stx_ctime) == ctime
        {
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

/// What the walk asks for, and what it will ask for soon.
struct Ahead<'a> {
    root: BorrowedFd<'a>,
    desk: &'a Desk,
    /// Starts threads that serve at the desk.
    start: &'a dyn Fn(),
    started: bool,
    /// Directories asked for.
    requested: HashMap<u32, Ticket>,
}

impl<'a> Ahead<'a> {
    /// Directories on top of the stack that are asked for ahead of time.
    const DIRECTORIES: usize = 32;

    fn new(root: BorrowedFd<'a>, desk: &'a Desk, start: &'a dyn Fn()) -> Self {
        Self {
            root,
            desk,
            start,
            started: false,
            requested: HashMap::new(),
        }
    }

    /// Whether threads serve: they are started when the tree turns out to be worth it.
    fn is_served(&mut self, tree: &Tree) -> bool {
        if !self.started && tree.inodes.len() >= WORTH_THREADS {
            (self.start)();
            self.started = true;
        }
        self.started
    }

    /// Lists the directory `index`; `waiting` come after it, the next one last.
    fn listing(&mut self, tree: &Tree, waiting: &[u32], index: u32) -> Result<Listing, Failure> {
        if !self.is_served(tree) {
            return list::answer(self.root, Request::Directory(steps_to(tree, index)));
        }
        let own = self.requested.remove(&index);
        let own = own.unwrap_or_else(|| self.desk.request(Request::Directory(steps_to(tree, index))));
        for &next in waiting.iter().rev().take(Self::DIRECTORIES) {
            if self.requested.contains_key(&next) || tree.covered.contains(&next) {
                continue;
            }
            if !self.desk.has_room() {
                break;
            }
            let ticket = self.desk.request(Request::Directory(steps_to(tree, next)));
            self.requested.insert(next, ticket);
        }
        self.desk.take(own)
    }

    /// Examines the rest of a long directory, a few pieces ahead of the walk.
    fn rest(
        &mut self,
        tree: &Tree,
        directory: Arc<OwnedFd>,
        names: Vec<Vec<u8>>,
    ) -> impl Iterator<Item = Result<Listing, Failure>> + use<'a> {
        let served = self.is_served(tree);
        let (root, desk) = (self.root, self.desk);
        let mut names = names.into_iter();
        let mut requests = std::iter::from_fn(move || {
            let piece: Vec<_> = names.by_ref().take(list::AT_ONCE).collect();
            (!piece.is_empty()).then(|| Request::Names(Arc::clone(&directory), piece))
        });
        let mut tickets = VecDeque::new();
        std::iter::from_fn(move || {
            if !served {
                return requests.next().map(|request| list::answer(root, request));
            }
            while tickets.len() < 2 * MOST_THREADS
                && let Some(request) = requests.next()
            {
                tickets.push_back(desk.request(request));
            }
            tickets.pop_front().map(|ticket| desk.take(ticket))
        })
    }
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time {
        seconds: stamp.tv_sec,
        nanoseconds: stamp.tv_nsec,
    }
}
