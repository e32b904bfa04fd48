//! Lock files that may be removed: whoever gets a lock makes sure that its file still has its name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::failed;
use crate::Error;

/// An exclusive lock, held until it is dropped or the process ends.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock.
    pub(super) fn wait(path: &Path) -> Result<Self, Error> {
        loop {
            if let Some(lock) =
                Self::take(path, FlockOperation::LockExclusive).map_err(failed("lock", path))?
            {
                return Ok(lock);
            }
        }
    }

    /// The lock, if nobody holds it.
    pub(super) fn attempt(path: &Path) -> Result<Option<Self>, Error> {
        match Self::take(path, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map_err(failed("lock", path)),
        }
    }

    /// `None` if the file was removed or replaced by the time it was locked.
    fn take(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        flock(&file, operation)?;
        let held = file.metadata()?;
        let named = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            named => named?,
        };
        let same = (held.dev(), held.ino()) == (named.dev(), named.ino());
        Ok(same.then(|| Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// Removes the file of the lock and lets go of it.
    pub(super) fn remove(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(failed("remove", &self.path))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child process that was forked meanwhile.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// `flock`, again after a signal.
pub(super) fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
