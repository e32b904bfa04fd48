//! Finished images by the identity of their source, safe under concurrent use and a kill at any moment.
//!
//! ```text
//!   <cache>/                    mode 0700
//!     <identity>/               complete, or not there: it arrives by one rename
//!       image                   ciphertext; its users hold a shared flock on it
//!       key                     64 bytes, mode 0600
//!       record.json             layout, what it was made from, and in which boot of the machine it was written
//!     <identity>.tmp/           being made or removed, by whoever holds the lock
//!     <identity>.lock           exclusive flock: one process at a time makes, opens or removes an entry
//! ```
//!
//! Every change happens under the lock of the entry, and the kernel drops locks of the dead: what is left behind in a
//! `.tmp` whose lock is free is garbage, and the next use of the cache removes it. Nothing is flushed to the disk
//! with `fsync`. Entries from an earlier boot, which a power failure may have torn, are verified in full when they
//! are used for the first time.
//!
//! A file system that is full counts like the limit: what nobody uses makes room, and the conversion is tried once more.

mod lock;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Error, LayerDir, Layout, Markers, Options, Tree, Unlock, VolumeKey, hex, verify};
use lock::Lock;

/// A directory of finished images.
pub struct Cache {
    path: PathBuf,
    limit: u64,
}

/// An image from the cache. It stays usable when the entry is evicted; while `image` or a duplicate of its descriptor
/// is open in any process, it is not.
pub struct Entry {
    /// The image, open for reading.
    pub image: File,
    /// Its volume key, random and of this entry alone.
    pub key: VolumeKey,
    /// What opens it.
    pub layout: Layout,
    /// Whether it was there already.
    pub cached: bool,
}

/// An entry, as [`Cache::list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// 64 hexadecimal digits.
    pub identity: String,
    /// The directory that it was made from.
    pub source: PathBuf,
    /// Disk space that it takes, in bytes.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Whether some process has it open.
    pub busy: bool,
}

/// What [`Cache::verify`] found out about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every block is what it was, and so is the source, or it is gone.
    Good,
    /// The image is not what its root hash promises, or files are missing. It has been removed.
    Damaged,
    /// The source was changed under its identity. The entry has been removed.
    Outdated,
}

/// The file `record.json`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The kernel's boot id when the entry was written or last verified.
    boot: String,
    /// The directory that the entry was made from.
    source: PathBuf,
    /// How it was read.
    markers: Markers,
    /// [`Tree::identity`] of what was read.
    #[serde(with = "hex")]
    content: [u8; 32],
    layout: Layout,
}

/// Names of the files of an entry.
const IMAGE: &str = "image";
const KEY: &str = "key";
const RECORD: &str = "record.json";

impl Cache {
    /// Opens the cache in the directory `path`, which is made (mode 0700) where it is missing; parents must exist.
    /// Images beyond `limit` bytes of disk space are evicted, the least recently used first.
    ///
    /// # Errors
    /// [`Error::Cache`], or [`Error::CacheDirectory`] where others than the current user have access.
    pub fn open(path: &Path, limit: u64) -> Result<Self, Error> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", path)(error));
            }
            _ => {}
        }
        let metadata = fs::symlink_metadata(path).map_err(failed("examine", path))?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
            return Err(Error::CacheDirectory {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            limit,
        })
    }

    /// The image of `tree`: from the cache, or converted now. Of several callers with the same tree, in any processes,
    /// one converts and the others wait for it. `options` count only where a conversion is needed.
    ///
    /// # Errors
    /// [`Error::Cache`], and any error of a conversion; then the cache is as before.
    pub fn get_or_build(&self, tree: &Tree, options: &Options<'_>) -> Result<Entry, Error> {
        self.get_or(&tree.identity(), |slot| slot.make(tree, options))
    }

    /// The image of a layer, likewise. The layer is read only where a conversion is needed.
    ///
    /// # Errors
    /// Those of [`get_or_build`](Self::get_or_build), and [`Error::Marker`] for a layer that can't be stacked in a guest.
    pub fn get_or_build_layer(&self, layer: &LayerDir, options: &Options<'_>) -> Result<Entry, Error> {
        self.get_or(&layer.identity(), |slot| slot.make(&layer.scan()?, options))
    }

    fn get_or(
        &self,
        identity: &[u8; 32],
        make: impl Fn(&Slot) -> Result<Entry, Error>,
    ) -> Result<Entry, Error> {
        let slot = self.slot(&hex::encode(identity));
        let lock = Lock::wait(&slot.lock)?;
        if let Some(entry) = slot.load()? {
            return Ok(entry);
        }
        let entry = self.with_room(|| make(&slot))?;
        drop(lock);
        // The new entry is in use: it stays. What this fails at, the next conversion tries again.
        if let Err(error) = self.tidy() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tidy up the disk cache"
            );
        }
        Ok(entry)
    }

    /// Does some work that takes room on the file system of the cache. Where there is none, every entry that nobody uses goes, and if
    /// that freed anything the work is done once more.
    ///
    /// # Errors
    /// Those of the work.
    pub fn with_room<T>(&self, work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let full = match work() {
            Err(error) if error.is_out_of_room() => error,
            result => return result,
        };
        match self.prune(0) {
            Ok(0) => Err(full),
            Ok(freed) => {
                tracing::warn!(freed, "the disk cache has given up what nobody uses: {full}");
                work()
            }
            Err(error) => {
                tracing::warn!("no room can be made in the disk cache: {error}");
                Err(full)
            }
        }
    }

    /// Removes what dead processes left behind, and entries beyond the limit. Conversions do so by themselves.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn tidy(&self) -> Result<(), Error> {
        self.prune(self.limit).map(drop)
    }

    /// Removes what dead processes left behind, then entries that nobody uses, the least recently used first, until at most
    /// `limit` bytes are left. Returns how many bytes became free.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn prune(&self, limit: u64) -> Result<u64, Error> {
        let mut entries = Vec::new();
        let mut freed = 0;
        for (item, name) in self.items()? {
            let slot = self.slot(&name);
            if item == name {
                entries.extend(slot.usage()?.map(|(used, bytes)| (used, bytes, slot)));
            } else if item.ends_with(".tmp") || item.ends_with(".lock") && !slot.entry.exists() {
                let bytes = fs::metadata(slot.temporary.join(IMAGE)).map_or(0, |image| image.blocks() * 512);
                if slot.remove_if_idle()? {
                    freed += bytes;
                }
            }
        }
        entries.sort_unstable_by_key(|(used, ..)| *used);
        let mut total = entries
            .iter()
            .fold(0u64, |total, (_, bytes, _)| total.saturating_add(*bytes));
        for (_, bytes, slot) in entries {
            if total <= limit {
                break;
            }
            if slot.remove_if_idle()? {
                total = total.saturating_sub(bytes);
                freed += bytes;
            }
        }
        Ok(freed)
    }

    /// All entries, the most recently used first.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut list = Vec::new();
        for (_, name) in self.items()?.into_iter().filter(|(item, name)| item == name) {
            let slot = self.slot(&name);
            // What is made or removed meanwhile is not there.
            let Some((used, bytes)) = slot.usage()? else {
                continue;
            };
            list.push(Listed {
                source: slot.record().map_or_else(PathBuf::new, |record| record.source),
                busy: slot.is_busy(),
                identity: name,
                bytes,
                used,
            });
        }
        list.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(list)
    }

    /// Reads every entry in full, and looks at every file that a layer was made from. Entries that are not good are removed.
    /// `report` hears of each.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn verify(&self, mut report: impl FnMut(&Listed, Verdict)) -> Result<(), Error> {
        for entry in self.list()? {
            let slot = self.slot(&entry.identity);
            let _lock = Lock::wait(&slot.lock)?;
            let verdict = match slot.check() {
                Ok(verdict) => verdict,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !slot.entry.exists() => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Verdict::Damaged,
                Err(error) => return Err(failed("verify", &slot.entry)(error)),
            };
            if verdict != Verdict::Good {
                slot.remove()?;
            }
            report(&entry, verdict);
        }
        self.tidy()
    }

    /// What lies in the cache directory, each with the name of the entry that it belongs to.
    fn items(&self) -> Result<Vec<(String, String)>, Error> {
        let mut items = Vec::new();
        for item in fs::read_dir(&self.path).map_err(failed("list", &self.path))? {
            let item = item.map_err(failed("list", &self.path))?.file_name();
            let Some(item) = item.to_str() else { continue };
            let name = item.split('.').next().unwrap_or_default();
            if hex::decode::<32>(name).is_some() {
                items.push((item.to_owned(), name.to_owned()));
            }
        }
        Ok(items)
    }

    fn slot(&self, name: &str) -> Slot {
        let path = |suffix: &str| self.path.join(format!("{name}{suffix}"));
        Slot {
            entry: path(""),
            temporary: path(".tmp"),
            lock: path(".lock"),
        }
    }
}

/// The places of one entry.
struct Slot {
    entry: PathBuf,
    temporary: PathBuf,
    lock: PathBuf,
}

impl Slot {
    /// The entry, if it is there and whole; a broken one is removed. The lock is held.
    fn load(&self) -> Result<Option<Entry>, Error> {
        let loaded = match self.read() {
            Ok(loaded) => loaded,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.entry.exists() => return Ok(None),
            // The entry is there, and a file of it is not.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open", &self.entry)(error)),
        };
        match loaded {
            Some(entry) => {
                // The time of last use; where it can't be set, the entry is evicted sooner.
                let _ = File::open(&self.entry).and_then(|dir| dir.set_modified(SystemTime::now()));
                Ok(Some(entry))
            }
            None => {
                tracing::warn!(entry = ?self.entry, "removing a damaged disk from the cache");
                self.remove()?;
                Ok(None)
            }
        }
    }

    /// Opens the files of the entry; `None` if they make no sense.
    fn read(&self) -> io::Result<Option<Entry>> {
        let Some((record, image, key)) = self.open()? else {
            return Ok(None);
        };
        let now = boot_id()?;
        if record.boot != now {
            if verify(&image, &key, &record.layout).is_err() {
                return Ok(None);
            }
            let noted = Record {
                boot: now.to_owned(),
                ..record.clone()
            };
            // Where it can't be noted, as on a full file system, the next use verifies the image again.
            if let Err(error) = self.write_record(&self.entry, &noted) {
                tracing::warn!(entry = ?self.entry, %error, "can't note that the disk is good");
            }
        }
        lock::flock(&image, FlockOperation::LockShared)?;
        Ok(Some(Entry {
            image,
            key,
            layout: record.layout,
            cached: true,
        }))
    }

    fn open(&self) -> io::Result<Option<(Record, File, VolumeKey)>> {
        let record = self.record();
        let key = Zeroizing::new(fs::read(self.entry.join(KEY))?);
        let image = File::open(self.entry.join(IMAGE))?;
        let (Some(record), Ok(key)) = (record, key.as_slice().try_into()) else {
            return Ok(None);
        };
        let Ok(key) = VolumeKey::from_bytes(key) else {
            return Ok(None);
        };
        if record.layout.check().is_err() || image.metadata()?.len() != record.layout.image_bytes() {
            return Ok(None);
        }
        Ok(Some((record, image, key)))
    }

    fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.entry.join(RECORD)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Whether the entry is still what it was, and its source too. The lock is held.
    fn check(&self) -> io::Result<Verdict> {
        let Some((record, image, key)) = self.open()? else {
            return Ok(Verdict::Damaged);
        };
        if verify(&image, &key, &record.layout).is_err() {
            return Ok(Verdict::Damaged);
        }
        let Markers::Layer { user } = record.markers else {
            return Ok(Verdict::Good);
        };
        // A source that is gone, or another layer by now, says nothing about this one.
        let Ok(Some(layer)) = LayerDir::examine(&record.source, user) else {
            return Ok(Verdict::Good);
        };
        let same_directory = self.entry.file_name() == Some(hex::encode(&layer.identity()).as_ref());
        Ok(match layer.scan() {
            Ok(tree) if same_directory && tree.identity() != record.content => Verdict::Outdated,
            _ => Verdict::Good,
        })
    }

    fn is_busy(&self) -> bool {
        let image = File::open(self.entry.join(IMAGE));
        image.is_ok_and(|image| lock::flock(&image, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Converts. The lock is held.
    fn make(&self, tree: &Tree, options: &Options<'_>) -> Result<Entry, Error> {
        remove_tree(&self.temporary)?;
        let entry = self.convert(tree, options);
        if entry.is_err() {
            // The first error counts; what can't be removed now is swept later.
            let _ = remove_tree(&self.temporary);
        }
        entry
    }

    fn convert(&self, tree: &Tree, options: &Options<'_>) -> Result<Entry, Error> {
        let directory = &self.temporary;
        DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(failed("create", directory))?;
        let path = directory.join(IMAGE);
        let writer = new_file(&path).map_err(failed("create", &path))?;
        let unlock = Unlock::generate()?;
        let built = tree
            .build(&writer, &unlock, options)
            .map_err(|error| match error {
                Error::Image { action, source } => failed(action, &path)(source),
                other => other,
            });
        let layout = built?.layout;
        writer
            .set_permissions(PermissionsExt::from_mode(0o400))
            .map_err(failed("protect", &path))?;
        drop(writer);
        let key = unlock.volume_key();
        let key_path = directory.join(KEY);
        new_file(&key_path)
            .and_then(|mut file| file.write_all(key.as_bytes()))
            .map_err(failed("write", &key_path))?;
        let boot = boot_id().map_err(failed("read the boot id for", directory))?;
        let record = Record {
            boot: boot.to_owned(),
            source: tree.root_path().to_owned(),
            markers: tree.markers(),
            content: tree.identity(),
            layout: layout.clone(),
        };
        self.write_record(directory, &record)
            .map_err(failed("write the record of", directory))?;
        let image = File::open(&path).map_err(failed("open", &path))?;
        lock::flock(&image, FlockOperation::LockShared).map_err(failed("lock", &path))?;
        fs::rename(directory, &self.entry).map_err(failed("rename", directory))?;
        Ok(Entry {
            image,
            key: key.clone(),
            layout,
            cached: false,
        })
    }

    /// Puts a record into place as a whole.
    fn write_record(&self, directory: &Path, record: &Record) -> io::Result<()> {
        let temporary = directory.join("record.tmp");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        new_file(&temporary)?.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&temporary, directory.join(RECORD))
    }

    /// When the entry was last used, and the disk space that it takes in bytes; `None` if it is gone.
    fn usage(&self) -> Result<Option<(SystemTime, u64)>, Error> {
        let examine = || {
            let used = fs::metadata(&self.entry)?.modified()?;
            Ok::<_, io::Error>((used, fs::metadata(self.entry.join(IMAGE))?.blocks() * 512))
        };
        match examine() {
            Ok(usage) => Ok(Some(usage)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("examine", &self.entry)(error)),
        }
    }

    /// Removes the entry and whatever else has its name, unless somebody works on it or uses it.
    fn remove_if_idle(&self) -> Result<bool, Error> {
        let Some(lock) = Lock::attempt(&self.lock)? else {
            return Ok(false);
        };
        if self.is_busy() {
            return Ok(false);
        }
        self.remove()?;
        lock.remove()?;
        Ok(true)
    }

    /// Removes the entry, out of sight first. The lock is held.
    fn remove(&self) -> Result<(), Error> {
        remove_tree(&self.temporary)?;
        match fs::rename(&self.entry, &self.temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &self.entry)(error)),
            Ok(()) => remove_tree(&self.temporary),
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Read once: a process does not outlive a boot.
fn boot_id() -> io::Result<&'static str> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(ID.get_or_init(|| id.trim().to_owned()))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Cache {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod tests;
