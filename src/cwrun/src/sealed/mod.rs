//! Sealed workloads: made by their owner with `cwrun seal`, run on hosts that are not trusted with them.
//!
//! ```text
//!   SOURCE ── seal ──► image of one layer      /.cwrun/disk.img        encrypted, as `disk build` makes it, without a header
//!                                              /.cwrun/workload.json   the Workload, in canonical form
//!                                              /.cwrun/broker.json     where the owner's broker is; a hint
//!             └──────► record, for the broker  key, launch digests, hash of the Workload, secrets, policy
//!
//!   bundle ── find ──► Workload ── rules ──► what of config.json the Workload does not allow to differ is an error
//! ```
//!
//! SECURITY: to this host the image is hostile: whatever lies there is read strictly and within bounds. To the owner this host is
//! hostile: what is refused here is refused in the guest as well ([`workload::sealed`]); here it gets a sentence that names the field.

pub mod record;
pub mod register;
pub mod rules;
pub mod source;
pub mod words;

use crate::image::Reference;
use crate::image_file;
use anyhow::{Context, Result, bail, ensure};
use disk::{Archive, Markers, Tree};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;
use workload::{RootFs, Sealed, Workload};

/// Directory of everything that is in a sealed image.
pub const DIRECTORY: &str = ".cwrun";
/// The Workload.
pub const WORKLOAD: &str = ".cwrun/workload.json";
/// The disk.
pub const DISK: &str = ".cwrun/disk.img";
/// Where the broker is.
pub const BROKER: &str = ".cwrun/broker.json";

/// Longest Workload that is read, in bytes. A system call filter has at most 44 KiB in base64; the rest is lists that people write.
pub const MAX_WORKLOAD: usize = 1 << 20;
/// Longest hint at a broker.
pub const MAX_BROKER: usize = 4096;

/// `/.cwrun/broker.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// `http://` or `https://`.
    pub url: String,
}

/// What a sealed image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What runs. Its `sealed` is there.
    pub workload: Workload,
    /// Where its owner's broker is. Not to be trusted, nor does it have to be.
    pub broker: Option<Broker>,
}

/// A sealed image as the root file system of a bundle.
#[derive(Debug)]
pub struct Image {
    /// What it says.
    pub contents: Contents,
    /// Where it says which broker it is.
    pub named_by: &'static str,
    /// The disk, open for reading.
    pub disk: File,
}

impl Broker {
    /// Parses the document.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let broker: Self = serde_json::from_slice(bytes)?;
        check_url(&broker.url)?;
        Ok(broker)
    }
}

/// Whether this can be the URL of a broker.
pub fn check_url(url: &str) -> Result<()> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let sound =
        |rest: &str| !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(|b| b.is_ascii_graphic());
    ensure!(
        url.len() <= 2048 && rest.is_some_and(sound),
        "{url:?} is not a URL that begins with https:// or http://"
    );
    Ok(())
}

impl Contents {
    /// From the documents of an image whose disk has this length in bytes.
    pub fn parse(workload: &[u8], broker: Option<&[u8]>, disk_bytes: u64) -> Result<Self> {
        let workload = Workload::from_bytes(workload).with_context(|| format!("/{WORKLOAD}"))?;
        ensure!(
            workload.sealed.is_some(),
            "/{WORKLOAD}: the workload is not a sealed one"
        );
        let broker = broker
            .map(Broker::parse)
            .transpose()
            .with_context(|| format!("/{BROKER}"))?;
        let contents = Self { workload, broker };
        let needed = contents.disk_bytes()?;
        ensure!(
            disk_bytes == needed,
            "/{DISK}: it has {disk_bytes} bytes, and the workload's disk {needed}"
        );
        Ok(contents)
    }

    /// Of an image as it is stored. A registry may have compressed its layer on the way: it is then unpacked into a file without a name in
    /// the directory `scratch`.
    pub fn of_stored(image: &Reference, scratch: &Path) -> Result<Self> {
        let layers = image.layers(scratch)?;
        Self::of_layers(layers).with_context(|| image.to_string())
    }

    fn of_layers(layers: Vec<Archive>) -> Result<Self> {
        let tree = Tree::from_archives(layers, Markers::Shown)?;
        let Some(document) = tree.read_file(WORKLOAD, MAX_WORKLOAD)? else {
            bail!("it is not sealed: there is no /{WORKLOAD}")
        };
        let broker = tree.read_file(BROKER, MAX_BROKER)?;
        let disk = tree
            .find_file(DISK)
            .with_context(|| format!("/{DISK}: missing"))?;
        Self::parse(&document, broker.as_deref(), disk)
    }

    /// What makes it a sealed one.
    pub fn sealed(&self) -> &Sealed {
        self.workload
            .sealed
            .as_ref()
            .expect("there, as parsing has checked")
    }

    /// Length of the disk that the Workload describes, in bytes.
    fn disk_bytes(&self) -> Result<u64> {
        let RootFs::Layers { layers } = &self.workload.root else {
            bail!("/{WORKLOAD}: the root file system is not made of layers")
        };
        // Neither overflows, nor is there none: the document has been checked.
        let end = layers
            .iter()
            .map(|layer| layer.crypt.offset.saturating_add(layer.crypt.length));
        Ok(end.max().unwrap_or(0))
    }
}

/// The sealed image whose root file system this is, if it is one's. One that is damaged is an error, never an ordinary image.
pub fn find(rootfs: &Path) -> Result<Option<Image>> {
    let what = |name: &str| rootfs.join(name).display().to_string();
    let open = |name: &str| -> Result<Option<File>> {
        let file = match image_file::open(rootfs, name) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| what(name)),
        };
        ensure!(
            image_file::is_regular(&file)?,
            "{}: not a regular file",
            what(name)
        );
        Ok(Some(file))
    };
    let Some(document) = open(WORKLOAD)? else {
        return Ok(None);
    };
    let disk = open(DISK)?.with_context(|| format!("{}: missing", what(DISK)))?;
    let document = bounded(document, MAX_WORKLOAD).with_context(|| what(WORKLOAD))?;
    let broker = open(BROKER)?
        .map(|file| bounded(file, MAX_BROKER).with_context(|| what(BROKER)))
        .transpose()?;
    let length = disk.metadata().with_context(|| what(DISK))?.len();
    let contents = Contents::parse(&document, broker.as_deref(), length)
        .with_context(|| format!("sealed image {}", rootfs.display()))?;
    Ok(Some(Image {
        contents,
        named_by: "the sealed image's broker.json",
        disk,
    }))
}

/// The content of a small file.
fn bounded(file: File, most: usize) -> Result<Vec<u8>> {
    let bytes = image_file::read_at_most(file, most as u64)?;
    bytes.with_context(|| format!("it is longer than {most} bytes"))
}

#[cfg(test)]
#[path = "sealed_test.rs"]
pub(crate) mod tests;
