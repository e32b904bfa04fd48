//! What the guest files hashed to the last time, so that not every start reads them to their ends.
//!
//! ```text
//!   <cache>/guest-files.json     device, inode, length, mtime, ctime ─► SHA-256; a shared or exclusive flock
//! ```
//!
//! SECURITY: nothing is good because it stands here. The hashes go into the launch, where stage0 compares them with what it loads, so a wrong
//! one is a guest that ends. `measure` and `seal`, which say what is good, read the files themselves.

use confidential::{Error, Expected, expect};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use workload::Hex;

const FILE: &str = "guest-files.json";
/// Files that are remembered: those of some installations, old and new.
const MOST: usize = 16;
/// Longest list, in bytes.
const MAX_LIST: u64 = 16 << 10;
/// A file that was changed less than this ago can change once more without a sign: clocks of file systems tick some hundred times a second.
const SETTLED: Duration = Duration::from_secs(2);

/// Which file, in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    file: Identity,
    sha256: Hex<32>,
}

/// The list, in the directory of the cache.
pub struct Hashes {
    path: PathBuf,
}

impl Hashes {
    /// The list in this directory, which need not be there.
    pub fn in_cache(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
        }
    }

    /// What stage0 is to expect of a file: remembered, or read now. `what` names it in errors.
    pub fn of(&self, what: &'static str, file: &File) -> Result<Expected, Error> {
        self.of_at(what, file, SystemTime::now())
    }

    fn of_at(&self, what: &'static str, file: &File, now: SystemTime) -> Result<Expected, Error> {
        let before = Identity::of(file);
        let remembered = before.and_then(|identity| Some((identity, self.find(&identity)?)));
        if let Some((identity, sha256)) = remembered {
            let len = identity.length;
            return Ok(Expected { sha256, len });
        }
        let expected = expect(what, file)?;
        // One that was changed while it was read has a hash that may be of neither state.
        if let Some(identity) =
            before.filter(|before| Identity::of(file) == Some(*before) && before.is_settled(now))
            && let Err(error) = self.remember(identity, expected.sha256)
        {
            tracing::debug!("{} can't be written: {error}", self.path.display());
        }
        Ok(expected)
    }

    fn find(&self, identity: &Identity) -> Option<[u8; 32]> {
        let file = self.open(OFlags::RDONLY).ok()?;
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        let known = read(&file);
        known
            .into_iter()
            .find(|known| known.file == *identity)
            .map(|known| known.sha256.0)
    }

    fn remember(&self, file: Identity, sha256: [u8; 32]) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            DirBuilder::new().recursive(true).create(directory)?;
        }
        let list = self.open(OFlags::RDWR | OFlags::CREATE)?;
        flock(&list, FlockOperation::NonBlockingLockExclusive)?;
        let mut known = read(&list);
        known.retain(|known| (known.file.device, known.file.inode) != (file.device, file.inode));
        known.push(Known {
            file,
            sha256: Hex(sha256),
        });
        let text = serde_json::to_vec(&known[known.len().saturating_sub(MOST)..])?;
        // Whoever is killed between these two leaves an empty list.
        list.set_len(0)?;
        rustix::io::pwrite(&list, &text, 0)?;
        Ok(())
    }

    fn open(&self, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR)?.into())
    }
}

impl Identity {
    fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether a change from now on would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1))
        else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        now.duration_since(changed).is_ok_and(|age| age >= SETTLED)
    }
}

/// A list that can't be read is an empty one.
fn read(file: &File) -> Vec<Known> {
    let mut bytes = Vec::new();
    match file.take(MAX_LIST).read_to_end(&mut bytes) {
        Ok(_) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};
    use std::fs;

    fn later() -> SystemTime {
        SystemTime::now() + SETTLED
    }

    fn digest(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    /// A list that says of this file that it is something else, to see who is asked.
    fn lie(list: &Path, file: &File, sha256: [u8; 32]) {
        let known = [Known {
            file: Identity::of(file).unwrap(),
            sha256: Hex(sha256),
        }];
        fs::write(list, serde_json::to_vec(&known).unwrap()).unwrap();
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let hashes = Hashes::in_cache(&dir.path().join("not/there/yet"));
        let path = dir.path().join("kernel");
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let expected = hashes.of_at("kernel", &file, later()).unwrap();
        assert_eq!((expected.sha256, expected.len), (digest(b"one"), 3));
        assert_eq!(hashes.find(&Identity::of(&file).unwrap()), Some(digest(b"one")));

        lie(&hashes.path, &file, [7; 32]);
        assert_eq!(hashes.of("kernel", &file).unwrap().sha256, [7; 32], "not read");
        // Same length, in place, and in place of it.
        fs::write(&path, "two").unwrap();
        assert_eq!(hashes.of("kernel", &file).unwrap().sha256, digest(b"two"));
        fs::write(dir.path().join("new"), "new").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(
            hashes.of_at("kernel", &file, later()).unwrap().sha256,
            digest(b"new")
        );
        assert_eq!(hashes.of("kernel", &file).unwrap().sha256, digest(b"new"));
    }

    #[test]
    fn what_may_change_without_a_sign_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let hashes = Hashes::in_cache(dir.path());
        fs::write(dir.path().join("kernel"), "one").unwrap();
        let file = File::open(dir.path().join("kernel")).unwrap();
        // Now, and by a clock that was set back.
        for now in [SystemTime::now(), SystemTime::UNIX_EPOCH] {
            hashes.of_at("kernel", &file, now).unwrap();
            assert_eq!(hashes.find(&Identity::of(&file).unwrap()), None);
        }
    }

    #[test]
    fn the_list_may_be_anything() {
        let dir = tempfile::tempdir().unwrap();
        let hashes = Hashes::in_cache(dir.path());
        fs::write(dir.path().join("kernel"), "one").unwrap();
        let file = File::open(dir.path().join("kernel")).unwrap();
        let right = || {
            assert_eq!(
                hashes.of_at("kernel", &file, later()).unwrap().sha256,
                digest(b"one")
            )
        };
        for text in ["", "[", "{}", "[{}]", "\0", r#"[{"file":1,"sha256":""}]"#] {
            fs::write(&hashes.path, text).unwrap();
            right();
            assert!(
                hashes.find(&Identity::of(&file).unwrap()).is_some(),
                "mended: {text}"
            );
        }
        // In use by another; no file; a link to somewhere else.
        let other = File::open(&hashes.path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        right();
        fs::remove_file(&hashes.path).unwrap();
        fs::create_dir(&hashes.path).unwrap();
        right();
        fs::remove_dir(&hashes.path).unwrap();
        fs::write(dir.path().join("victim"), "untouched").unwrap();
        std::os::unix::fs::symlink("victim", &hashes.path).unwrap();
        right();
        assert_eq!(fs::read(dir.path().join("victim")).unwrap(), b"untouched");
    }

    #[test]
    fn old_files_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let hashes = Hashes::in_cache(dir.path());
        let files: Vec<_> = (0..2 * MOST)
            .map(|number| {
                let path = dir.path().join(number.to_string());
                fs::write(&path, number.to_string()).unwrap();
                let file = File::open(&path).unwrap();
                hashes.of_at("kernel", &file, later()).unwrap();
                file
            })
            .collect();
        let known = |file| hashes.find(&Identity::of(file).unwrap()).is_some();
        assert_eq!(
            files.iter().map(known).collect::<Vec<_>>(),
            [[false; MOST], [true; MOST]].concat()
        );
        assert!(fs::metadata(&hashes.path).unwrap().len() < MAX_LIST);
    }
}
