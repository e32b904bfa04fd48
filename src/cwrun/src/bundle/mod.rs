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
pub mod devices;
pub mod guest;
pub mod host;
pub mod krun;
pub mod mounts;
mod required;
mod scheduling;
pub mod seccomp;
pub mod sizing;
pub mod update;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capability, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;
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
    let mut config: Value = serde_json::from_slice(bytes)?;
    if let Some(process) = config.get_mut("process") {
        leave_out_unknown_capabilities(process, "config.json: process.capabilities");
    }
    required::check(&config)?;
    let spec: Spec = typed(config)?;
    ensure!(
        is_version_1(spec.version()),
        "ociVersion: {:?} is not supported, expected 1.x.y",
        spec.version()
    );
    Ok(spec)
}

/// Parses a document of the specification, naming the field that is wrong.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    typed(serde_json::from_slice(bytes)?)
}

/// Parses the `process` of OCI by itself, as `exec --process` has it.
pub fn parse_process(bytes: &[u8]) -> Result<oci_spec::runtime::Process> {
    let mut process = serde_json::from_slice(bytes)?;
    leave_out_unknown_capabilities(&mut process, "capabilities");
    required::check_process(&process)?;
    typed(process)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => anyhow::Error::new(error.into_inner()),
            _ => anyhow::Error::new(error.into_inner()).context(path),
        }
    })
}

/// Names of capabilities that are newer than this program are logged and left out (config.md#linux-process). What is no list of
/// names stays, for the parser to refuse.
fn leave_out_unknown_capabilities(process: &mut Value, field: &str) {
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else {
        return;
    };
    for (set, names) in sets {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                tracing::warn!("{field}.{set}: {name} is unknown and left out");
            }
            known
        });
    }
}

/// Whether it is a version 1 in the form of SemVer 2.0.0, `1.MINOR.PATCH[-PRERELEASE][+BUILD]` (config.md#specification-version).
fn is_version_1(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let identifiers = |part: &str| {
        let sound = |identifier: &str| {
            !identifier.is_empty() && identifier.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        part.split('.').all(sound)
    };
    let (rest, build) = text
        .split_once('+')
        .map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, prerelease) = rest
        .split_once('-')
        .map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let core: Vec<_> = core.split('.').collect();
    matches!(core.as_slice(), ["1", minor, patch] if number(minor) && number(patch))
        && prerelease.is_none_or(identifiers)
        && build.is_none_or(identifiers)
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

#[cfg(test)]
#[path = "conformance_test.rs"]
mod conformance;

#[cfg(test)]
#[path = "mutation_test.rs"]
mod mutation;
