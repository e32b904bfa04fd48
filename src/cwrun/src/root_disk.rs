//! The container's disks: the converted root file system, and the scratch file.
//!
//! ```text
//!   disk of mkcw, sealed disk ───────────► as it is
//!   overlay mount ──┬─ lower directories ─► cache, one image for each, shared by all containers that have it
//!                   └─ upper directory ───► an image of this container's own, with no name
//!   anything else ──────────────────────► cache, one image, found again by a look at every file
//! ```

use crate::bundle::Bundle;
use crate::mkcw_disk;
use crate::overlay::Overlay;
use crate::sealed;
use crate::settings::{self, Settings};
use crate::user;
use anyhow::{Context, Result};
use disk::cache::{Cache, Entry};
use disk::{LayerDir, Markers, Options, Tree};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use workload::protocol::Keys;
use workload::{Crypt, Hex, Layer, RootFs, Scratch, Verity, VolumeKey, Workload};

/// Room behind the writable layer's data for what keeps it from being changed: 32 bytes of nonce and tag for each 4096, and a superblock.
/// Generous, as the file is sparse.
const TAGS_PER: u64 = 64;
const TAGS_FIXED: u64 = 32 << 20;

/// A root file system, encrypted.
pub struct RootDisk {
    /// Images, the lowest layer first. End to end they are the guest's first disk.
    pub images: Vec<File>,
    /// What opens them.
    pub keys: Keys,
    /// What the guest needs to know of them.
    pub root: RootFs,
}

/// Converted layers.
#[derive(Default)]
struct Stack {
    images: Vec<File>,
    keys: Vec<VolumeKey>,
    layers: Vec<Layer>,
}

impl From<sealed::Image> for RootDisk {
    fn from(image: sealed::Image) -> Self {
        Self {
            images: vec![image.disk],
            keys: Keys::Broker,
            root: image.contents.workload.root,
        }
    }
}

impl From<Stack> for RootDisk {
    fn from(stack: Stack) -> Self {
        Self {
            images: stack.images,
            keys: Keys::Layers { keys: stack.keys },
            root: RootFs::Layers { layers: stack.layers },
        }
    }
}

impl Stack {
    fn push(&mut self, image: File, key: &disk::VolumeKey, layout: &disk::Layout) {
        let end = self
            .layers
            .last()
            .map_or(0, |layer| layer.crypt.offset + layer.crypt.length);
        self.images.push(image);
        self.keys.push(VolumeKey::from_bytes(*key.as_bytes()));
        self.layers.push(layer(layout, end));
    }

    fn push_entry(&mut self, entry: Entry) {
        self.push(entry.image, &entry.key, &entry.layout);
    }
}

/// What a guest needs to know of an image that begins at this byte of its disk.
pub fn layer(layout: &disk::Layout, start: u64) -> Layer {
    Layer {
        crypt: Crypt {
            offset: start + layout.payload_offset,
            length: layout.payload_bytes,
            sector_size: layout.sector_size,
        },
        verity: Verity {
            data_blocks: layout.data_blocks,
            hash_start_block: layout.hash_tree_offset / 4096,
            salt: Hex(layout.salt),
            root_hash: Hex(layout.root_hash),
        },
    }
}

/// The disk for the root file system of this bundle: its own, from the cache, or converted now.
pub fn obtain(bundle: &Bundle, settings: &Settings) -> Result<RootDisk> {
    let (rootfs, cache) = (&bundle.rootfs, &settings.cache);
    let disk = || {
        if let Some(disk) = mkcw_disk::find(rootfs)? {
            let passphrase = mkcw_disk::passphrase(bundle, &settings.development)?;
            return Ok(RootDisk {
                images: vec![disk.file],
                keys: Keys::Passphrase { passphrase },
                root: RootFs::Mkcw { header: disk.header },
            });
        }
        let stacked = match Overlay::mounted_on(rootfs)? {
            Some(overlay) => stack(&overlay, cache)?,
            None => None,
        };
        stacked
            .map_or_else(|| whole(rootfs, cache), Ok)
            .map(RootDisk::from)
    };
    disk().with_context(|| format!("root file system {}", rootfs.display()))
}

/// The root file system as it shows.
fn whole(rootfs: &Path, cache: &settings::Cache) -> Result<Stack> {
    let tree = Tree::scan_as(rootfs, Markers::Shown)?;
    let entry = writable_cache(cache)?.get_or_build(&tree, &Options::default())?;
    tracing::debug!(
        cached = entry.cached,
        "root disk of {} bytes",
        entry.layout.payload_bytes
    );
    let mut disk = Stack::default();
    disk.push_entry(entry);
    Ok(disk)
}

/// The layers of an overlay, unless a guest could not stack them as the host does.
fn stack(overlay: &Overlay, cache: &settings::Cache) -> Result<Option<Stack>> {
    let mut layers = Vec::with_capacity(overlay.layers.len());
    for path in &overlay.layers {
        match LayerDir::examine(path, overlay.user)? {
            Some(layer) => layers.push(layer),
            None => return Ok(None),
        }
    }
    if layers.len() + usize::from(overlay.upper.is_some()) > Workload::MAX_LAYERS {
        return Ok(None);
    }
    match stack_layers(overlay, &layers, cache) {
        Ok(disk) => Ok(Some(disk)),
        Err(error) if matches!(error.downcast_ref(), Some(disk::Error::Marker { .. })) => {
            tracing::debug!("the root file system is converted as a whole: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn stack_layers(overlay: &Overlay, layers: &[LayerDir], place: &settings::Cache) -> Result<Stack> {
    let (cache, options) = (writable_cache(place)?, Options::default());
    let mut disk = Stack::default();
    for layer in layers {
        let entry = cache.get_or_build_layer(layer, &options)?;
        tracing::debug!(
            cached = entry.cached,
            "layer {} of {} bytes",
            layer.path().display(),
            entry.layout.payload_bytes
        );
        disk.push_entry(entry);
    }
    if let Some(upper) = &overlay.upper {
        // Even without a file in it: the attributes of `/` are those of this directory.
        let tree = Tree::scan_as(upper, Markers::Layer { user: overlay.user })?;
        let (image, key) = (unnamed_file(place)?, disk::VolumeKey::generate()?);
        let built = cache.with_room(|| tree.build_payload(&image, &key, &options));
        let layout = built.map_err(|error| of_unnamed(error, place))?.layout;
        disk.push(image, &key, &layout);
    }
    Ok(disk)
}

/// Removes what a conversion left that was killed.
pub fn tidy(cache: &settings::Cache) -> Result<()> {
    Ok(open_cache(cache)?.tidy()?)
}

/// The disk cache.
pub fn open_cache(cache: &settings::Cache) -> Result<Cache> {
    let dir = cache_dir(cache)?;
    DirBuilder::new()
        .recursive(true)
        .create(&dir)
        .with_context(|| format!("cache directory {}", dir.display()))?;
    Ok(Cache::open(&dir.join("disks"), cache.limit)?)
}

/// The disk cache for a container, which needs room in its directory even where every layer is there already: for its upper
/// directory and its writable layer.
fn writable_cache(cache: &settings::Cache) -> Result<Cache> {
    let dir = cache_dir(cache)?;
    let prepare = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).create(&dir)?;
        let needed = Access::WRITE_OK | Access::EXEC_OK;
        Ok(rustix::fs::accessat(CWD, &dir, needed, AtFlags::EACCESS)?)
    };
    prepare().with_context(|| {
        format!(
            "cache directory {} must be writable, or CWRUN_CACHE_DIR or cache.directory in cwrun.toml name another",
            dir.display()
        )
    })?;
    open_cache(cache)
}

/// A sparse file for the writable layer.
pub fn scratch(scratch: &Scratch, cache: &settings::Cache) -> Result<Option<File>> {
    let Scratch::Disk { bytes } = scratch else {
        return Ok(None);
    };
    let file = unnamed_file(cache)?;
    file.set_len(bytes + bytes / TAGS_PER + TAGS_FIXED)
        .context("scratch file")?;
    Ok(Some(file))
}

/// A file of one container. It has no name, so it goes when the VMM does, however that ends.
fn unnamed_file(cache: &settings::Cache) -> Result<File> {
    let dir = scratch_dir(cache)?;
    let open = || -> std::io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR)?.into())
    };
    open().with_context(|| format!("scratch file in {}", dir.display()))
}

/// The directory of files without names, made if it is missing.
pub fn scratch_dir(cache: &settings::Cache) -> Result<PathBuf> {
    let dir = cache_dir(cache)?.join("scratch");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("scratch file in {}", dir.display()))?;
    Ok(dir)
}

/// An error of a conversion into an unnamed file, which says where that file is.
fn of_unnamed(error: disk::Error, cache: &settings::Cache) -> anyhow::Error {
    match (&error, cache_dir(cache)) {
        (disk::Error::Image { .. }, Ok(dir)) => {
            anyhow::Error::new(error).context(format!("unnamed file in {}", dir.join("scratch").display()))
        }
        _ => error.into(),
    }
}

/// `CWRUN_CACHE_DIR`, else what the settings say, else the default for this user.
pub fn cache_dir(cache: &settings::Cache) -> Result<PathBuf> {
    let given = std::env::var_os("CWRUN_CACHE_DIR").map(PathBuf::from);
    if let Some(dir) = given.or_else(|| cache.directory.clone()) {
        return Ok(dir);
    }
    if user::is_system() {
        return Ok(PathBuf::from("/var/cache/cwrun"));
    }
    let base = user::directory_or("XDG_CACHE_HOME", ".cache", |name| std::env::var_os(name));
    base.map(|base| base.join("cwrun")).context(
        "neither XDG_CACHE_HOME nor HOME is set: set CWRUN_CACHE_DIR, or cache.directory in cwrun.toml",
    )
}
