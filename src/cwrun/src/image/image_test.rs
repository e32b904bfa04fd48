//! Images in each way of storing them, good ones and bad ones.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;

fn hex(bytes: &[u8]) -> String {
    workload::Hex(Sha256::digest(bytes).into()).to_string()
}

/// A tar archive with one file.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An OCI image layout in the making.
struct Layout {
    directory: TempDir,
    manifests: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(
            directory.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        Self {
            directory,
            manifests: Vec::new(),
        }
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = hex(bytes);
        fs::write(self.directory.path().join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({"mediaType": "x", "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    /// Adds an image with these layers: as they are stored, and without compression.
    fn image(&mut self, layers: &[(Vec<u8>, Vec<u8>)], tag: &str, architecture: &str) {
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|(_, plain)| format!("sha256:{}", hex(plain)))
            .collect();
        let config = json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let layers: Vec<_> = layers.iter().map(|(stored, _)| self.blob(stored)).collect();
        let config = self.blob(config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut descriptor = self.blob(manifest.to_string().as_bytes());
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        self.manifests.push(descriptor);
        self.write_index(json!({"schemaVersion": 2, "manifests": self.manifests}));
    }

    fn write_index(&self, index: Value) {
        fs::write(self.directory.path().join("index.json"), index.to_string()).unwrap();
    }

    fn name(&self, tag: &str) -> String {
        format!("oci:{}{tag}", self.directory.path().display())
    }
}

fn three_layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let [a, b, c] = ["a", "b", "c"].map(|name| tar_of(name, name.as_bytes()));
    vec![(a.clone(), a), (gzip(&b), b), (zstd(&c), c)]
}

fn read(name: &str) -> Result<Vec<Vec<u8>>> {
    let scratch = tempfile::tempdir().unwrap();
    let layers = Reference::parse(name)
        .expect("a reference")
        .layers(scratch.path())?;
    assert_eq!(
        fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "nothing with a name"
    );
    let content = |layer: Archive| {
        let mut file = layer.file;
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).unwrap();
        assert_eq!(layer.digest, <[u8; 32]>::from(Sha256::digest(&bytes)));
        bytes
    };
    Ok(layers.into_iter().map(content).collect())
}

fn plain(layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    layers.iter().map(|(_, plain)| plain.clone()).collect()
}

/// An archive with everything in a directory.
fn pack(directory: &Path) -> PathBuf {
    let path = directory.with_extension("tar");
    let mut builder = tar::Builder::new(File::create(&path).unwrap());
    builder.append_dir_all(".", directory).unwrap();
    builder.finish().unwrap();
    path
}

fn sentence(result: Result<Vec<Vec<u8>>>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn only_names_of_transports_are_images() {
    for path in ["rootfs", "/rootfs", "./oci:x", "docker://x", "oci", ""] {
        assert_eq!(Reference::parse(path), None, "{path}");
    }
    let parsed = Reference::parse("docker-archive:/a/b.tar:example/x:1").unwrap();
    assert_eq!(parsed.path, Path::new("/a/b.tar"));
    assert_eq!(parsed.tag.as_deref(), Some("example/x:1"));
    assert_eq!(parsed.to_string(), "docker-archive:/a/b.tar:example/x:1");
}

#[test]
fn layers_of_a_layout_come_without_their_compression() {
    let (mut layout, layers) = (Layout::new(), three_layers());
    layout.image(&layers, "one", "amd64");
    assert_eq!(read(&layout.name("")).unwrap(), plain(&layers));
    let archive = pack(layout.directory.path());
    let name = format!("oci-archive:{}", archive.display());
    assert_eq!(read(&name).unwrap(), plain(&layers));
    fs::remove_file(archive).unwrap();
}

#[test]
fn a_tag_or_the_platform_says_which_image_it_is() {
    let (mut layout, layers) = (Layout::new(), three_layers());
    layout.image(&layers[..1], "one", "amd64");
    layout.image(&layers[1..], "example.org/x:two", "amd64");
    layout.image(&layers, "three", "arm64");
    assert_eq!(read(&layout.name(":one")).unwrap(), plain(&layers[..1]));
    assert_eq!(read(&layout.name(":two")).unwrap(), plain(&layers[1..]));
    assert!(sentence(read(&layout.name(""))).contains("a tag has to say which"));
    assert!(sentence(read(&layout.name(":three"))).contains("no image for linux/amd64"));
    assert!(sentence(read(&layout.name(":wo"))).contains(r#"no image with the tag "wo""#));

    let index = layout.blob(json!({"manifests": layout.manifests[1..]}).to_string().as_bytes());
    layout.write_index(json!({"manifests": [index]}));
    assert_eq!(
        read(&layout.name("")).unwrap(),
        plain(&layers[1..]),
        "through an index within the index"
    );
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let (mut layout, layers) = (Layout::new(), three_layers());
    layout.image(&layers, "one", "amd64");
    let blobs = layout.directory.path().join("blobs/sha256");
    let files: Vec<_> = fs::read_dir(blobs)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), 5);
    for file in files {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        // Behind the end of the compressed data too.
        bad.push(b' ');
        fs::write(&file, &bad).unwrap();
        let said = sentence(read(&layout.name("")));
        assert!(said.contains("digest") || said.contains("unpacked"), "{said}");
        fs::remove_file(&file).unwrap();
        let said = sentence(read(&layout.name("")));
        assert!(said.contains("has no blobs/sha256/"), "{said}");
        fs::write(&file, good).unwrap();
    }
    assert!(read(&layout.name("")).is_ok());
}

#[test]
fn links_that_lead_out_of_a_layout_are_not_followed() {
    let (mut layout, layers) = (Layout::new(), three_layers());
    layout.image(&layers, "one", "amd64");
    let (index, outside) = (
        layout.directory.path().join("index.json"),
        tempfile::tempdir().unwrap(),
    );
    let moved = outside.path().join("index.json");
    fs::rename(&index, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &index).unwrap();
    assert!(sentence(read(&layout.name(""))).contains("index.json"));
}

#[test]
fn what_docker_saves_is_read_through_its_links() {
    let layers = three_layers();
    let plain_layers = plain(&layers);
    let diff_ids: Vec<_> = plain_layers
        .iter()
        .map(|layer| format!("sha256:{}", hex(layer)))
        .collect();
    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let manifest = json!([{"Config": "c.json", "RepoTags": ["example/x:latest"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut builder = tar::Builder::new(file.as_file());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    add("1/layer.tar", &plain_layers[0]);
    add("blob", &plain_layers[1]);
    add("3/layer.tar", &plain_layers[2]);
    add("c.json", config.to_string().as_bytes());
    add("manifest.json", manifest.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "2/layer.tar", "../blob")
        .unwrap();
    builder.finish().unwrap();
    drop(builder);
    for tag in ["", ":latest", ":example/x:latest"] {
        let name = format!("docker-archive:{}{tag}", file.path().display());
        assert_eq!(read(&name).unwrap(), plain_layers);
    }
    let name = format!("docker-archive:{}:other", file.path().display());
    assert!(sentence(read(&name)).contains("no image with that tag"));
}

#[test]
fn what_is_no_image_is_refused_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x".repeat(2000)).unwrap();
    for (name, said) in [
        (format!("oci:{}", directory.path().display()), "has no oci-layout"),
        (format!("oci:{}", file.display()), "not a directory"),
        (format!("oci-archive:{}", file.display()), "no tar archive"),
        (
            format!("docker-archive:{}", directory.path().display()),
            "not a file",
        ),
        ("oci:/does/not/exist".to_owned(), "No such file"),
        ("oci:".to_owned(), "no path"),
    ] {
        let sentence = sentence(read(&name));
        assert!(
            sentence.starts_with(&name) && sentence.contains(said),
            "{sentence}"
        );
    }
}
