//! Writing an image of one layer, as an OCI image layout or in an archive (image-layout.md, manifest.md, config.md).
//!
//! ```text
//!   Draft   a file without a name: the layer, an archive of tar, is written into it in its place
//!             layout    0 ── layer ──
//!             archive   0 ── blobs/, blobs/sha256/, header ── layer ── configuration, manifest, index.json, oci-layout ──
//!   publish   the layer's digest, then the documents, then the names
//! ```
//!
//! Nothing has a name before all of it is there: whatever ends the program, there is the image, or what was there before.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use workload::Hex;

use super::manifest::REF_NAME;
use super::{Kind, Reference};
use crate::output::{Output, directory_of, give_name, suffixed, unnamed};

/// Unit of an archive of tar, in bytes.
pub const TAR_BLOCK: u64 = 512;
/// Zeros at the end of an archive.
pub const TAR_END: u64 = 2 * TAR_BLOCK;
/// Headers in front of the layer in an archive: two directories, and that of the layer.
const HEADERS: u64 = 3;
/// Longest index that another image is added to.
const MOST_INDEX: u64 = 4 << 20;
/// A piece that is hashed at once.
const PIECE: usize = 1 << 20;

const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image being made.
pub struct Draft {
    target: Reference,
    place: Place,
    /// Where in the file the layer begins, in bytes.
    pub layer_start: u64,
}

enum Place {
    Layout(File),
    Archive(Output),
}

/// A document or layer by what names it.
struct Blob {
    digest: [u8; 32],
    size: u64,
}

impl Draft {
    /// Looks whether `target` can be written, and begins.
    pub fn begin(target: Reference) -> Result<Self> {
        let place = Self::open(&target).with_context(|| target.to_string())?;
        let layer_start = match place {
            Place::Layout(_) => 0,
            Place::Archive(_) => HEADERS * TAR_BLOCK,
        };
        Ok(Self {
            target,
            place,
            layer_start,
        })
    }

    fn open(target: &Reference) -> Result<Place> {
        let path = &target.path;
        ensure!(path.file_name().is_some(), "not the name of a file or directory");
        match target.kind {
            Kind::DockerArchive => bail!("images are written as oci: or oci-archive: only"),
            Kind::OciArchive => Output::create_public(path).map(Place::Archive),
            Kind::OciLayout => {
                let directory = match usable(path)? {
                    true => path,
                    false => directory_of(path),
                };
                let file = unnamed(directory, Mode::from_raw_mode(0o666));
                file.with_context(|| directory.display().to_string())
                    .map(Place::Layout)
            }
        }
    }

    /// The file that the layer is written into, from [`Draft::layer_start`] on.
    pub fn file(&self) -> &File {
        match &self.place {
            Place::Layout(file) => file,
            Place::Archive(output) => &output.file,
        }
    }

    /// Finishes the image: `layer` bytes are its only layer; `configuration` lacks nothing but the digest of that. Returns the manifest's digest.
    /// `progress` is called with the bytes hashed so far.
    pub fn publish(self, layer: u64, configuration: Value, progress: &dyn Fn(u64)) -> Result<Hex<32>> {
        let name = self.target.to_string();
        self.finish(layer, configuration, progress).context(name)
    }

    fn finish(self, layer: u64, mut configuration: Value, progress: &dyn Fn(u64)) -> Result<Hex<32>> {
        let digest = digest(self.file(), self.layer_start, layer, progress).context("reading it back")?;
        let layer = Blob { digest, size: layer };
        configuration["rootfs"] = json!({"type": "layers", "diff_ids": [layer.name()]});
        let configuration = configuration.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": Blob::of(&configuration).descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = Blob::of(&manifest).descriptor(MANIFEST_TYPE);
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        if let Some(tag) = &self.target.tag {
            entry["annotations"] = json!({ REF_NAME: tag });
        }
        let digest = Hex(Blob::of(&manifest).digest);
        let documents = [configuration, manifest];
        match self.place {
            Place::Archive(output) => finish_archive(output, &layer, &documents, entry)?,
            Place::Layout(file) => {
                let new = Layout {
                    layer: (&file, &layer),
                    documents: &documents,
                    entry,
                    tag: self.target.tag.as_deref(),
                };
                new.publish(&self.target.path)?;
            }
        }
        Ok(digest)
    }
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Sha256::digest(bytes).into(),
            size: bytes.len() as u64,
        }
    }

    fn hex(&self) -> String {
        Hex(self.digest).to_string()
    }

    fn name(&self) -> String {
        format!("sha256:{}", self.hex())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.name(), "size": self.size})
    }
}

/// The header of an archive's member, in the format of GNU tar: everybody may read it, it belongs to root and is as old as can be.
pub fn header(name: &str, size: u64, directory: bool) -> Result<[u8; 512]> {
    let mut header = tar::Header::new_gnu();
    header
        .set_path(name)
        .with_context(|| format!("{name} in an archive"))?;
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_mode(if directory { 0o755 } else { 0o644 });
    header.set_entry_type(match directory {
        true => tar::EntryType::Directory,
        false => tar::EntryType::Regular,
    });
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Writes a small member at `at`; returns where the next one begins.
pub fn write_member(file: &File, at: u64, name: &str, bytes: &[u8]) -> Result<u64> {
    file.write_all_at(&header(name, bytes.len() as u64, false)?, at)?;
    file.write_all_at(bytes, at + TAR_BLOCK)?;
    // What follows up to a whole block is a hole, or overwritten by nobody: zeros.
    Ok(at + TAR_BLOCK + (bytes.len() as u64).next_multiple_of(TAR_BLOCK))
}

fn digest(file: &File, start: u64, length: u64, progress: &dyn Fn(u64)) -> std::io::Result<[u8; 32]> {
    let (mut digest, mut piece, mut done) = (Sha256::new(), vec![0; PIECE], 0);
    while done < length {
        let rest = usize::try_from(length - done).map_or(PIECE, |rest| rest.min(PIECE));
        file.read_exact_at(&mut piece[..rest], start + done)?;
        digest.update(&piece[..rest]);
        done += rest as u64;
        progress(done);
    }
    Ok(digest.finalize().into())
}

fn index(manifests: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
}

fn finish_archive(output: Output, layer: &Blob, documents: &[Vec<u8>], entry: Value) -> Result<()> {
    let file = &output.file;
    let in_blobs = |hex: &str| format!("blobs/sha256/{hex}");
    file.write_all_at(&header("blobs/", 0, true)?, 0)?;
    file.write_all_at(&header("blobs/sha256/", 0, true)?, TAR_BLOCK)?;
    file.write_all_at(
        &header(&in_blobs(&layer.hex()), layer.size, false)?,
        (HEADERS - 1) * TAR_BLOCK,
    )?;
    let mut at = HEADERS * TAR_BLOCK + layer.size.next_multiple_of(TAR_BLOCK);
    for document in documents {
        at = write_member(file, at, &in_blobs(&Blob::of(document).hex()), document)?;
    }
    at = write_member(file, at, "index.json", index(vec![entry]).to_string().as_bytes())?;
    at = write_member(file, at, "oci-layout", LAYOUT.as_bytes())?;
    file.set_len(at + TAR_END)?;
    output.publish()
}

/// An image on its way into a layout.
struct Layout<'a> {
    layer: (&'a File, &'a Blob),
    documents: &'a [Vec<u8>],
    entry: Value,
    tag: Option<&'a str>,
}

impl Layout<'_> {
    /// Into the layout that there is, or a new one that appears as a whole.
    fn publish(self, path: &Path) -> Result<()> {
        if usable(path)? {
            let directory = File::open(path)?;
            // Somebody else may add an image at the same time.
            rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
            return self.put_into(path);
        }
        let aside = suffixed(path, ".cwrun-new");
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| aside.display().to_string());
            }
            _ => {}
        }
        fs::create_dir(&aside)?;
        let moved = self.put_into(&aside).and_then(|()| Ok(fs::rename(&aside, path)?));
        moved.inspect_err(|_| drop(fs::remove_dir_all(&aside)))
    }

    /// The index comes last: only what it names is an image.
    fn put_into(self, path: &Path) -> Result<()> {
        let blobs = path.join("blobs/sha256");
        DirBuilder::new().recursive(true).create(&blobs)?;
        let manifests = others(path, self.tag)?;
        let mut new = Added::default();
        new.link(self.layer.0, blobs.join(self.layer.1.hex()))?;
        for document in self.documents {
            let file = unnamed(&blobs, Mode::from_raw_mode(0o666))?;
            file.write_all_at(document, 0)?;
            new.link(&file, blobs.join(Blob::of(document).hex()))?;
        }
        put(&path.join("oci-layout"), LAYOUT)?;
        let index = index(manifests.into_iter().chain([self.entry]).collect());
        put(&path.join("index.json"), &index.to_string())?;
        new.keep();
        Ok(())
    }
}

/// Blobs that have got their names; they lose them again unless they are kept.
#[derive(Default)]
struct Added(Vec<PathBuf>);

impl Added {
    fn link(&mut self, file: &File, path: PathBuf) -> Result<()> {
        match give_name(file, &path) {
            // The name is the digest, so the content is there. That of a layout that somebody damaged does not become better or worse.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            result => result.with_context(|| path.display().to_string())?,
        }
        self.0.push(path);
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        for path in &self.0 {
            // One that stays is found by nobody.
            let _ = fs::remove_file(path);
        }
    }
}

/// Replaces a small file as a whole.
fn put(path: &Path, text: &str) -> Result<()> {
    let output = Output::create_public(path)?;
    output.file.write_all_at(text.as_bytes(), 0)?;
    output.publish()
}

/// Whether `path` is a directory that images can be added to: a layout, or an empty one. Other directories are refused.
fn usable(path: &Path) -> Result<bool> {
    let mut names = match fs::read_dir(path) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let empty = names.next().is_none();
    ensure!(
        empty || path.join("oci-layout").is_file(),
        "the directory is neither empty nor an image layout"
    );
    Ok(true)
}

/// What the index of a layout has besides the image with this tag.
fn others(path: &Path, tag: Option<&str>) -> Result<Vec<Value>> {
    let file = match File::open(path.join("index.json")) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("index.json"),
    };
    let mut bytes = Vec::new();
    file.take(MOST_INDEX + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= MOST_INDEX,
        "index.json is longer than 4 MiB"
    );
    let mut index: Value = serde_json::from_slice(&bytes).context("index.json is not what it should be")?;
    let Some(Value::Array(mut manifests)) = index.get_mut("manifests").map(Value::take) else {
        bail!("index.json has no manifests")
    };
    manifests.retain(|manifest| {
        let name = manifest.get("annotations").and_then(|all| all.get(REF_NAME));
        name.and_then(Value::as_str) != tag
    });
    Ok(manifests)
}

#[cfg(test)]
#[path = "write_test.rs"]
mod tests;
