//! The container's root directory, seen from outside: every path is resolved as if it were `/`, so that no symbolic link
//! of the image leads out of it (openat2(2), `RESOLVE_IN_ROOT`).

use crate::failure::{Context as _, Failure, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat, statat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Symbolic links followed for one path, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// An open root directory.
pub struct Root(OwnedFd);

/// What to create where a path leads to nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl Root {
    /// Opens the directory at `path` in the current mount namespace.
    pub fn open(path: &str) -> Result<Self> {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
        .context(|| format!("open {path}"))
    }

    /// What is at `path`, as a descriptor that only names it (`O_PATH`).
    pub fn resolve(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH)
    }

    /// Opens what is at `path`.
    pub fn open_at(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let relative = match path.trim_start_matches('/') {
            "" => ".",
            relative => relative,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The file at `path` as text; nothing where there is none. Bytes that are no UTF-8 become U+FFFD.
    pub fn read_text(&self, path: &str, longest: u64) -> Result<String> {
        let file = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Errno::NOENT) => return Ok(String::new()),
            file => file.context(|| format!("open {path}"))?,
        };
        let mut bytes = Vec::new();
        File::from(file)
            .take(longest)
            .read_to_end(&mut bytes)
            .context(|| format!("read {path}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The directory at `path`, made (0755) with its parents where missing.
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        let directory = self.ensure(path, Kind::Directory)?;
        match statat(&directory, "", AtFlags::EMPTY_PATH) {
            Ok(meta) if rustix::fs::FileType::from_raw_mode(meta.st_mode).is_dir() => Ok(directory),
            _ => Err(Failure::other(format!("{path}: Not a directory"))),
        }
    }

    /// The file at `path`, made (empty, 0644) with its parents where missing.
    pub fn file(&self, path: &str) -> Result<OwnedFd> {
        self.ensure(path, Kind::File)
    }

    fn ensure(&self, path: &str, kind: Kind) -> Result<OwnedFd> {
        self.create_missing(path, kind)
            .context(|| format!("create {path}"))
    }

    /// Walks down component by component, makes what is missing, and starts over with the target in place of a symbolic
    /// link that leads to something missing.
    fn create_missing(&self, path: &str, kind: Kind) -> rustix::io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let mut components = split(path);
        let mut links = 0;
        let mut index = 0;
        while index < components.len() {
            let done = join(&components[..=index]);
            if !matches!(self.resolve(&done), Err(Errno::NOENT)) {
                index += 1;
                continue;
            }
            let parent = self.resolve(&join(&components[..index]))?;
            let last = index + 1 == components.len();
            match make(
                parent.as_fd(),
                &components[index],
                if last { kind } else { Kind::Directory },
            ) {
                Ok(()) => index += 1,
                Err(Errno::EXIST) if links < MAX_LINKS => {
                    links += 1;
                    components = through_link(parent.as_fd(), &components, index)?;
                    index = 0;
                }
                Err(Errno::EXIST) => return Err(Errno::LOOP),
                Err(error) => return Err(error),
            }
        }
        self.resolve(&join(&components))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn make(parent: BorrowedFd<'_>, name: &str, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

/// `components` with the symbolic link at `index` replaced by where it points.
fn through_link(
    parent: BorrowedFd<'_>,
    components: &[String],
    index: usize,
) -> rustix::io::Result<Vec<String>> {
    let (before, rest) = components.split_at(index);
    let (name, after) = rest.split_first().ok_or(Errno::NOENT)?;
    let target = readlinkat(parent, name.as_str(), Vec::new())?;
    let target = target.to_str().map_err(|_| Errno::ILSEQ)?;
    let start = if target.starts_with('/') { &[][..] } else { before };
    Ok([start, &split(target), after].concat())
}

fn split(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(str::to_owned)
        .collect()
}

fn join(components: &[String]) -> String {
    format!("/{}", components.join("/"))
}

#[cfg(test)]
#[path = "root_test.rs"]
mod tests;
