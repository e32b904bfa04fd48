//! Images of containers as they are stored and moved around, read without unpacking them.
//!
//! ```text
//!   oci:DIR[:TAG]              image-layout.md     index.json ─► (index ─►) manifest ─► config, layers   blobs/sha256/…
//!   oci-archive:FILE[:TAG]     the same in a tar archive
//!   docker-archive:FILE[:TAG]  docker save         manifest.json ─► config, layers
//! ```
//!
//! Every blob is checked against the digest that names it, and every layer, without its compression, against the DiffID in the configuration.

mod blobs;
mod layer;
mod manifest;
pub mod write;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use disk::Archive;

use blobs::Blobs;

/// What precedes the path of each kind of image.
const KINDS: [(&str, Kind); 3] = [
    ("oci:", Kind::OciLayout),
    ("oci-archive:", Kind::OciArchive),
    ("docker-archive:", Kind::DockerArchive),
];

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OciLayout,
    OciArchive,
    DockerArchive,
}

/// The name of a stored image, as skopeo and podman write it (containers-transports(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    kind: Kind,
    path: PathBuf,
    tag: Option<String>,
}

/// An image.
pub struct Stored {
    /// The lowest first.
    pub layers: Vec<Archive>,
    /// Its configuration (config.md), as it is stored.
    pub configuration: Vec<u8>,
}

impl Reference {
    /// `None` for what does not begin with the name of a transport, which is the path of a directory.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, kind) = KINDS
            .iter()
            .find_map(|(prefix, kind)| Some((name.strip_prefix(prefix)?, *kind)))?;
        // What is behind a colon is no part of the path; behind a slash, no tag.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        Some(Self {
            kind,
            path: path.into(),
            tag: tag.filter(|tag| !tag.is_empty()),
        })
    }

    /// Of the directory or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the image's layers, the lowest first. Those that are compressed are unpacked into files without a name in the directory `scratch`.
    pub fn layers(&self, scratch: &Path) -> Result<Vec<Archive>> {
        Ok(self.read(scratch)?.layers)
    }

    /// Reads the image, as [`Reference::layers`] does, with its configuration.
    pub fn read(&self, scratch: &Path) -> Result<Stored> {
        self.read_all(scratch).with_context(|| self.to_string())
    }

    fn read_all(&self, scratch: &Path) -> Result<Stored> {
        ensure!(!self.path.as_os_str().is_empty(), "no path");
        let blobs = match self.kind {
            Kind::OciLayout => Blobs::of_directory(&self.path)?,
            Kind::OciArchive | Kind::DockerArchive => Blobs::of_archive(&self.path)?,
        };
        let image = match self.kind {
            Kind::OciLayout | Kind::OciArchive => manifest::of_layout(&blobs, self.tag.as_deref())?,
            Kind::DockerArchive => manifest::of_docker(&blobs, self.tag.as_deref())?,
        };
        let (layers, diff_ids) = (image.layers.len(), image.diff_ids.len());
        if layers != diff_ids {
            bail!("the manifest has {layers} layers and the configuration {diff_ids}");
        }
        let layers = image.layers.iter().zip(&image.diff_ids).enumerate();
        let layers = layers
            .map(|(number, (layer, diff_id))| {
                layer::open(&blobs, layer, diff_id, scratch).with_context(|| format!("layer {}", number + 1))
            })
            .collect::<Result<_>>()?;
        Ok(Stored {
            layers,
            configuration: image.configuration,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        write!(
            f,
            "{}{}",
            prefix.map_or("", |(prefix, _)| prefix),
            self.path.display()
        )?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
