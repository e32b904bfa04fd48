//! An OCI bundle, read once and split in two.
//!
//! ```text
//!   config.json ─► Bundle ─┬─► HostSpec                  host.rs   confines the VMM
//!                          ├─► Workload, Environment     guest.rs  what the guest enforces
//!                          └─► Sizing                    sizing.rs how large the VM is
//!   resources of `update` ─► Plan                        update.rs new limits for a VM that runs
//!   rootfs/.krun_vm.json, annotations ───► Requests        krun.rs   what is asked of crun's krun handler
//! ```
//!
//! A field that none of them can honour is an error that names it.

pub mod annotations;
mod devices;
pub mod guest;
pub mod host;
mod krun;
pub mod mounts;
mod scheduling;
pub mod seccomp;
pub mod sizing;
pub mod update;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

/// A bundle directory with its configuration (OCI runtime-spec bundle.md).
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path of the bundle directory.
    pub dir: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// The configuration as written.
    pub spec: Spec,
}

impl Bundle {
    /// Reads the bundle in `dir`, with `config` in place of its `config.json` if given.
    pub fn load(dir: &Path, config: Option<&Path>) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("bundle {}", dir.display()))?;
        let path = config.map_or_else(|| dir.join("config.json"), Path::to_owned);
        let bytes = fs::read(&path).with_context(|| format!("configuration {}", path.display()))?;
        let spec = parse(&bytes).with_context(|| format!("configuration {}", path.display()))?;
        let rootfs = rootfs(&dir, &spec)?;
        let bundle = Self { dir, rootfs, spec };
        annotations::check(&bundle)?;
        Ok(bundle)
    }

    /// The value of an annotation, if the bundle has it.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }
}

/// Parses `config.json`, naming the field that is wrong.
pub fn parse(bytes: &[u8]) -> Result<Spec> {
    let spec: Spec = parse_json(bytes)?;
    ensure!(
        spec.version().starts_with("1."),
        "ociVersion: {:?} is not supported, expected 1.x",
        spec.version()
    );
    Ok(spec)
}

/// Parses a document of the specification, naming the field that is wrong.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let document = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => anyhow::Error::new(error.into_inner()),
            _ => anyhow::Error::new(error.into_inner()).context(path),
        }
    })?;
    deserializer.end()?;
    Ok(document)
}

fn rootfs(dir: &Path, spec: &Spec) -> Result<PathBuf> {
    let Some(root) = spec.root() else {
        bail!("config.json: root: missing, expected an object with a path")
    };
    let path = dir.join(root.path());
    let path = path
        .canonicalize()
        .with_context(|| format!("config.json: root.path: {}", path.display()))?;
    ensure!(
        path.is_dir(),
        "config.json: root.path: {} is not a directory",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
#[path = "bundle_test.rs"]
mod tests;
