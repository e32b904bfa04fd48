//! What a scan asks the kernel, and asking ahead: threads list the directories that the walk comes to next, while it
//! still works on the one before. Order and content of the result are those of a walk that asks for itself.
//!
//! ```text
//!   walk:     request usr/bin, usr/lib, usr/sbin … │ answer(usr/bin) │ request … │ answer(usr/lib) │ …
//!   threads:  list, stat and read the attributes of usr/bin │ usr/lib │ …
//! ```
//!
//! Nothing here decides or reports: each answer of the kernel, good or bad, goes to the walk.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;

use super::open::open_below;

/// Names of a directory that are examined in one go; the rest wait, so that memory stays bounded.
pub(super) const AT_ONCE: usize = 2048;

/// Files whose answers may wait for the walk before no further directory is requested.
const WAITING_FILES: usize = 16 * AT_ONCE;

/// A request, by a number of its own.
pub(super) type Ticket = u64;

/// What is asked for.
pub(super) enum Request {
    /// The directory at this path below the top, in steps shorter than `PATH_MAX`.
    Directory(Vec<Vec<u8>>),
    /// More names of an open directory.
    Names(Arc<OwnedFd>, Vec<Vec<u8>>),
}

/// A failed call: what it was to do, and why it could not.
pub(super) type Failure = (&'static str, Errno);

/// Answer to a [`Request`].
pub(super) struct Listing {
    pub(super) found: Vec<Found>,
    /// Names that have not been examined yet.
    pub(super) rest: Vec<Vec<u8>>,
    /// The directory, if there is such a rest.
    pub(super) directory: Option<Arc<OwnedFd>>,
    /// The directory itself, after all of `found` had been examined.
    pub(super) after: Result<Statx, Errno>,
}

/// A name in a directory.
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    /// Nothing for "." and "..".
    pub(super) file: Option<Result<File, Failure>>,
}

/// What a file says of itself.
pub(super) struct File {
    pub(super) stat: Statx,
    /// Of a symbolic link.
    pub(super) target: Option<Vec<u8>>,
    pub(super) xattrs: Xattrs,
}

/// Names of extended attributes that belong to a tree, each with its value.
pub(super) type Xattrs = Result<Vec<(Vec<u8>, Result<Vec<u8>, Errno>)>, Errno>;

/// A thread's way to a file whose directory is open.
#[derive(Clone, Copy)]
enum Way {
    /// Through /proc: it works everywhere.
    Proc,
    /// From a working directory of the thread's own: half the work for the kernel.
    Cwd,
}

/// Answers a request in the calling thread.
pub(super) fn answer(root: BorrowedFd<'_>, request: Request) -> Result<Listing, Failure> {
    examine(root, request, Way::Proc)
}

/// The extended attributes of the directory open as `directory`.
pub(super) fn own_xattrs(directory: BorrowedFd<'_>) -> Xattrs {
    xattrs(&proc_path(directory, b"."))
}

fn examine(root: BorrowedFd<'_>, request: Request, way: Way) -> Result<Listing, Failure> {
    let (directory, mut names) = match request {
        Request::Names(directory, names) => (directory, names),
        Request::Directory(steps) => {
            let directory = open(root, &steps).map_err(|errno| ("open", errno))?;
            let names = list(&directory).map_err(|errno| ("list", errno))?;
            (Arc::new(directory), names)
        }
    };
    if let Way::Cwd = way {
        rustix::process::fchdir(&directory).map_err(|errno| ("list", errno))?;
    }
    let rest = names.split_off(names.len().min(AT_ONCE));
    let found = names
        .into_iter()
        .map(|name| Found {
            file: (name != b"." && name != b"..").then(|| file(directory.as_fd(), &name, way)),
            name,
        })
        .collect();
    let after = stat(directory.as_fd(), b"", AtFlags::EMPTY_PATH);
    Ok(Listing {
        found,
        directory: (!rest.is_empty()).then_some(directory),
        rest,
        after,
    })
}

fn open(root: BorrowedFd<'_>, steps: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
    let mut open: Option<OwnedFd> = None;
    for step in steps {
        let from = open.as_ref().map_or(root, |fd| fd.as_fd());
        open = Some(open_below(from, step, OFlags::DIRECTORY)?);
    }
    open.ok_or(Errno::NOENT)
}

fn file(directory: BorrowedFd<'_>, name: &[u8], way: Way) -> Result<File, Failure> {
    let stat = stat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| ("examine", errno))?;
    let target = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new());
            Some(target.map_err(|errno| ("read", errno))?.into_bytes())
        }
        _ => None,
    };
    let xattrs = match way {
        Way::Proc => xattrs(&proc_path(directory, name)),
        Way::Cwd => xattrs(name),
    };
    Ok(File { stat, target, xattrs })
}

/// The kernel has no call for extended attributes that is relative to a directory and does not follow links (before
/// 6.13), but one that takes a path.
fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn xattrs(path: &[u8]) -> Xattrs {
    let names = match grow(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let kept = names.split(|byte| *byte == 0).filter(|name| is_kept(name));
    Ok(kept
        .map(|name| {
            let value = grow(|buffer| rustix::fs::lgetxattr(path, name, buffer));
            (name.to_vec(), value)
        })
        .collect())
}

/// All names in a directory, "." and ".." included, sorted.
fn list(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(1 << 15);
    let mut raw = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    // Few file systems leave them out, but nothing promises them.
    for dots in [&b"."[..], b".."] {
        if !names.iter().any(|name| name == dots) {
            names.push(dots.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// `statx` without following a link or waiting for an automount. The id of the mount is there since Linux 5.8.
pub(super) fn stat(fd: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<Statx, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(fd, name, flags | AtFlags::NO_AUTOMOUNT, want)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(stat)
}

/// The namespaces that belong to the tree; see [`Tree::scan`](super::Tree::scan).
pub(super) fn is_kept(name: &[u8]) -> bool {
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

/// Requests under way. One thread, the walk, requests and takes; others serve.
#[derive(Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// A request has come, or the desk has been closed.
    requested: Condvar,
    /// An answer has come.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    requests: VecDeque<(Ticket, Request)>,
    answers: HashMap<Ticket, Result<Listing, Failure>>,
    /// Files in `answers`.
    files: usize,
    next: Ticket,
    /// The answer that the walk waits for: no other wakes it.
    awaited: Option<Ticket>,
    closed: bool,
}

impl Desk {
    /// Queues a request behind all others.
    pub(super) fn request(&self, request: Request) -> Ticket {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.requests.push_back((ticket, request));
        self.requested.notify_one();
        ticket
    }

    /// Whether there is room to ask for more than what is needed at once.
    pub(super) fn has_room(&self) -> bool {
        self.lock().files < WAITING_FILES
    }

    /// Waits for the answer.
    pub(super) fn take(&self, ticket: Ticket) -> Result<Listing, Failure> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.answers.remove(&ticket) {
                state.files -= files(&answer);
                state.awaited = None;
                return answer;
            }
            state.awaited = Some(ticket);
            state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a serving thread does, until the desk is closed.
    pub(super) fn serve(&self, root: BorrowedFd<'_>) {
        let way = own_cwd();
        let mut state = self.lock();
        while !state.closed {
            let Some((ticket, request)) = state.requests.pop_front() else {
                state = self.requested.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let answer = examine(root, request, way);
            state = self.lock();
            state.files += files(&answer);
            state.answers.insert(ticket, answer);
            if state.awaited == Some(ticket) {
                self.answered.notify_one();
            }
        }
    }

    /// Lets the serving threads end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.requested.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn files(answer: &Result<Listing, Failure>) -> usize {
    answer
        .as_ref()
        .map_or(0, |listing| listing.found.len() + listing.rest.len())
}

/// Gives the calling thread, which must be one of ours, a working directory of its own, if the kernel (or a seccomp
/// filter) lets it.
fn own_cwd() -> Way {
    // SAFETY: only FS is unshared, so the table of descriptors stays common to all threads, and with it every
    // descriptor that they own or borrow. Working directory, root and umask take no part in memory safety.
    match unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) } {
        Ok(()) => Way::Cwd,
        Err(_) => Way::Proc,
    }
}
