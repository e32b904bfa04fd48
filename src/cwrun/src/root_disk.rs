//! The container's disks: the converted root file system from the cache, and the scratch file.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use workload::{Crypt, Hex, Layer, Scratch, Verity, VolumeKey};

/// Size of the cache, in bytes, above which the least recently used disks are removed.
const CACHE_LIMIT: u64 = 32 << 30;

/// A converted root file system.
pub struct RootDisk {
    /// The encrypted image.
    pub image: File,
    /// Its volume key.
    pub key: VolumeKey,
    /// What the guest needs to know of it.
    pub layer: Layer,
}

/// The disk for this root file system: from the cache, or converted now.
pub fn obtain(rootfs: &Path) -> Result<RootDisk> {
    let context = || format!("root file system {}", rootfs.display());
    let cache = open_cache()?;
    let tree = disk::Tree::scan(rootfs).with_context(context)?;
    let entry = cache
        .get_or_build(&tree, &disk::Options::default())
        .with_context(context)?;
    tracing::debug!(
        cached = entry.cached,
        "root disk of {} bytes",
        entry.layout.payload_bytes
    );
    let key = VolumeKey::from_bytes(*entry.key.as_bytes());
    Ok(RootDisk {
        layer: layer(&entry.layout),
        image: entry.image,
        key,
    })
}

/// Removes what a conversion left that was killed.
pub fn tidy() -> Result<()> {
    Ok(open_cache()?.tidy()?)
}

fn open_cache() -> Result<disk::cache::Cache> {
    let dir = cache_dir()?;
    DirBuilder::new()
        .recursive(true)
        .create(&dir)
        .with_context(|| format!("cache directory {}", dir.display()))?;
    Ok(disk::cache::Cache::open(&dir.join("disks"), CACHE_LIMIT)?)
}

fn layer(layout: &disk::Layout) -> Layer {
    Layer {
        crypt: Crypt {
            offset: layout.payload_offset,
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

/// A sparse file for the writable layer. It has no name, so it goes when the VMM does, however that ends.
pub fn scratch(scratch: &Scratch) -> Result<Option<File>> {
    let Scratch::Disk { bytes } = scratch else {
        return Ok(None);
    };
    let dir = cache_dir()?.join("scratch");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| dir.display().to_string())?;
    let context = || format!("scratch file in {}", dir.display());
    let file: File = rustix::fs::open(
        &dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
    .with_context(context)?
    .into();
    file.set_len(*bytes).with_context(context)?;
    Ok(Some(file))
}

/// `CWRUN_CACHE_DIR`, or the default for this user.
fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CWRUN_CACHE_DIR") {
        return Ok(PathBuf::from(dir));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/cwrun"));
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    base.map(|base| base.join("cwrun"))
        .context("neither XDG_CACHE_HOME nor HOME is set: set CWRUN_CACHE_DIR")
}
