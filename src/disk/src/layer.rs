//! A layer of an overlay, told from others without reading it.
//!
//! An engine unpacks a layer once, into a directory that it makes for it, and never changes it again: overlayfs itself
//! forbids that while the layer is mounted. So which directory it is says what is in it. The identity is taken from what
//! the directory's file system alone decides: its own id, the inode number, and when the inode came to be and was last
//! changed, in nanoseconds. A store that was wiped and filled anew, a directory restored from a backup or renamed into
//! the place of another have other times, whatever their paths say; so has one whose top directory had a name added,
//! removed or its mode or owner changed.
//!
//! What this does not notice is somebody who edits a file deep in an engine's store by hand. Finding that takes a look
//! at every file, which is what this identity is there to avoid at each start; [`Cache::verify`](crate::cache::Cache::verify)
//! does it on demand. A lie by the host is no matter here: it would lie about the whole of a layer just as well, and only a
//! guest that knows the root hash beforehand is safe from that.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use sha2::{Digest, Sha256};

use crate::tree::Markers;
use crate::{Error, FORMAT_VERSION, Tree};

/// A directory that is a layer of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDir {
    path: PathBuf,
    markers: Markers,
    identity: [u8; 32],
}

impl LayerDir {
    /// The layer at `path`, of an overlay whose marks are `user.overlay.*` if `user` is set, else `trusted.overlay.*`.
    ///
    /// `None` for what can't be told from others this way: where the file system keeps no time of birth, and where
    /// something is mounted on the directory (as ID-mapped layers are), which then shows another tree than its own.
    ///
    /// # Errors
    /// [`Error::Source`] where the directory can't be examined.
    pub fn examine(path: &Path, user: bool) -> Result<Option<Self>, Error> {
        let failed = |errno: rustix::io::Errno| Error::Source {
            action: "examine",
            path: path.to_owned(),
            source: errno.into(),
        };
        let want = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, want)
            .map_err(failed)?;
        let directory = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_dir();
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0
            && stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        if !directory || !known || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(None);
        }
        let file_system = rustix::fs::statvfs(path).map_err(failed)?.f_fsid;
        let markers = Markers::Layer { user };
        let mut digest = Sha256::new_with_prefix(b"cwrun layer identity v1\0");
        digest.update(FORMAT_VERSION.to_le_bytes());
        digest.update([u8::from(user)]);
        digest.update(file_system.to_le_bytes());
        digest.update(stat.stx_ino.to_le_bytes());
        for time in [stat.stx_btime, stat.stx_ctime, stat.stx_mtime] {
            digest.update(time.tv_sec.to_le_bytes());
            digest.update(time.tv_nsec.to_le_bytes());
        }
        Ok(Some(Self {
            path: path.to_owned(),
            markers,
            identity: digest.finalize().into(),
        }))
    }

    /// Reads the metadata of all that is in it.
    ///
    /// # Errors
    /// Those of [`Tree::scan_as`].
    pub fn scan(&self) -> Result<Tree, Error> {
        Tree::scan_as(&self.path, self.markers)
    }

    /// A SHA-256 that another directory, or another state of this one's top, does not have.
    #[must_use]
    pub fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn layer(path: &Path) -> LayerDir {
        LayerDir::examine(path, false)
            .unwrap()
            .expect("a file system with times of birth")
    }

    #[test]
    fn another_directory_is_another_layer() {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().join("diff");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "one").unwrap();
        let first = layer(&path);
        assert_eq!(first, layer(&path));
        assert_ne!(
            first.identity(),
            LayerDir::examine(&path, true).unwrap().unwrap().identity()
        );
        fs::write(path.join("other"), "").unwrap();
        let changed = layer(&path);
        assert_ne!(first.identity(), changed.identity(), "a name more at the top");
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "two").unwrap();
        let again = layer(&path);
        assert!(again.identity() != first.identity() && again.identity() != changed.identity());
    }

    #[test]
    fn files_and_mount_points_are_no_layers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(LayerDir::examine(file.path(), false).unwrap(), None);
        assert_eq!(LayerDir::examine(Path::new("/proc"), false).unwrap(), None);
        let missing = LayerDir::examine(Path::new("/does/not/exist"), false).unwrap_err();
        assert!(missing.to_string().contains("/does/not/exist"), "{missing}");
    }
}
