//! From the name of an image to its layers: the documents on the way.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::blobs::{Blobs, Sha256Digest};

/// The platform that this runtime runs (image-index.md, "platform").
const PLATFORM: (&str, &str) = ("linux", "amd64");

/// Annotation of a manifest with its tag (annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Indexes within indexes, at most.
const MOST_INDEXES: usize = 4;

/// What an image consists of.
pub struct Image {
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// Of each layer the digest of its archive without compression.
    pub diff_ids: Vec<Sha256Digest>,
    /// The document that they are from.
    pub configuration: Vec<u8>,
}

/// A layer as it is stored.
pub struct Layer {
    /// Its file.
    pub name: PathBuf,
    /// The digest of that, where one is said.
    pub digest: Option<Sha256Digest>,
}

#[derive(Deserialize)]
struct LayoutMark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// An index or a manifest: which one is told by what it has.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// config.md
#[derive(Deserialize)]
struct Configuration {
    os: String,
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An entry of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

/// The image with this tag in an OCI image layout; without a tag, the only one.
pub fn of_layout(blobs: &Blobs, tag: Option<&str>) -> Result<Image> {
    let mark: LayoutMark = parse("oci-layout", &blobs.document(Path::new("oci-layout"))?)?;
    ensure!(
        mark.version.starts_with("1."),
        "image layout version {:?} is not supported",
        mark.version
    );
    let index: Document = parse("index.json", &blobs.document(Path::new("index.json"))?)?;
    let mut manifests = index.manifests.context("index.json has no manifests")?;
    if let Some(tag) = tag {
        manifests.retain(|manifest| {
            manifest
                .annotations
                .get(REF_NAME)
                .is_some_and(|name| is_tagged(name, tag))
        });
        ensure!(!manifests.is_empty(), "there is no image with the tag {tag:?}");
    }
    let mut digest = choose(&manifests)?;
    for _ in 0..MOST_INDEXES {
        let name = digest.path().display().to_string();
        let document: Document = parse(&name, &blobs.digested(&digest)?)?;
        if let Some(manifests) = document.manifests {
            digest = choose(&manifests)?;
            continue;
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            bail!("{name} is neither a manifest nor an index");
        };
        let configuration = blobs.digested(&Sha256Digest::parse(&config.digest)?)?;
        let layer = |layer: &Descriptor| {
            let digest = Sha256Digest::parse(&layer.digest)?;
            Ok(Layer {
                name: digest.path(),
                digest: Some(digest),
            })
        };
        return Ok(Image {
            layers: layers.iter().map(layer).collect::<Result<_>>()?,
            diff_ids: diff_ids(&configuration)?,
            configuration,
        });
    }
    bail!("an index lies in more than {MOST_INDEXES} others")
}

/// The image with this tag in an archive of `docker save`; without a tag, the only one.
pub fn of_docker(blobs: &Blobs, tag: Option<&str>) -> Result<Image> {
    let mut saved: Vec<Saved> = parse("manifest.json", &blobs.document(Path::new("manifest.json"))?)?;
    if let Some(tag) = tag {
        let named = |saved: &Saved| saved.repo_tags.iter().flatten().any(|name| is_tagged(name, tag));
        saved.retain(named);
    }
    ensure!(!saved.is_empty(), "there is no image with that tag");
    ensure!(
        saved.len() == 1,
        "there are {} images: a tag has to say which",
        saved.len()
    );
    let image = saved.remove(0);
    let configuration = blobs.document(&image.config)?;
    let layer = |name| Layer { name, digest: None };
    Ok(Image {
        layers: image.layers.into_iter().map(layer).collect(),
        diff_ids: diff_ids(&configuration)?,
        configuration,
    })
}

/// Whether an image named `name` (`TAG`, or `REGISTRY/REPOSITORY:TAG`) is the one that somebody calls `tag`.
fn is_tagged(name: &str, tag: &str) -> bool {
    name == tag
        || name
            .strip_suffix(tag)
            .is_some_and(|rest| rest.ends_with(':') || rest.ends_with('/'))
}

/// The manifest for our platform, or the only one.
fn choose(manifests: &[Descriptor]) -> Result<Sha256Digest> {
    let ours = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_none_or(|platform| (platform.os.as_str(), platform.architecture.as_str()) == PLATFORM)
    };
    let mut fitting = manifests.iter().filter(ours);
    let first = fitting.next().context("there is no image for linux/amd64")?;
    ensure!(
        fitting.next().is_none(),
        "there are several images for linux/amd64: a tag has to say which"
    );
    Sha256Digest::parse(&first.digest)
}

fn diff_ids(configuration: &[u8]) -> Result<Vec<Sha256Digest>> {
    let configuration: Configuration = parse("the image's configuration", configuration)?;
    let platform = (configuration.os.as_str(), configuration.architecture.as_str());
    ensure!(
        platform == PLATFORM,
        "the image is for {}/{} and not for linux/amd64",
        platform.0,
        platform.1
    );
    configuration
        .rootfs
        .diff_ids
        .iter()
        .map(|text| Sha256Digest::parse(text))
        .collect()
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).with_context(|| format!("{name} is not what it should be"))
}
