//! What bundles and images say to the `krun` handler of crun, which cwrun stands in for: annotations `krun.*` of config.json, and
//! `/.krun_vm.json` in the root file system. An annotation comes before the same word in the file.
//!
//! ```text
//!   annotation          file                         here
//!   krun.cpus           cpus                         vCPUs
//!   krun.ram_mib        ram_mib                      guest memory
//!   krun.variant        flavor                       "sev" demands a TEE: SEV-SNP; others are refused
//!                       /krun-sev.json               refused without an encrypted disk beside it; its cpus and ram_mib
//!                                                    take the place of the defaults
//!                       kernel_path initrd_path
//!                       kernel_cmdline               refused: guests have cwrun's own kernel
//!   krun.use_passt      use_passt                    nothing to do: it asks for a network device in place of libkrun's sockets,
//!                                                    which guests have here anyway
//!   krun.gpu_flags …    gpu_flags …                  a warning: runs without
//! ```
//!
//! The file is the image's, so it is hostile: it is opened without following links, is of limited size, and its numbers are numbers.

use super::{Bundle, annotations};
use crate::{image_file, mkcw_disk};
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// The image's own file.
const FILE: &str = ".krun_vm.json";
/// What a message about the annotation begins with.
const VARIANT: &str = "config.json: annotation krun.variant";
/// Longest such file, in bytes.
const LONGEST: u64 = 64 << 10;

/// Words for what is done without, in annotations (behind `krun.`) and in the file.
const HARMLESS: [&str; 5] = [
    "gpu_flags",
    "nested_virt",
    "kernel_format",
    "virtiofs_tag",
    "virtiofs_shm_size",
];
/// Words in the file for another kernel than ours. An image that names one may rely on it.
const KERNEL: [&str; 3] = ["kernel_path", "initrd_path", "kernel_cmdline"];

/// A number, and who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How many.
    pub value: u64,
    /// What a message begins with.
    pub by: String,
}

/// What is asked for that has a meaning here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// vCPUs.
    pub cpus: Option<Asked>,
    /// Guest memory in MiB.
    pub ram_mib: Option<Asked>,
    /// What an image of mkcw says that it is usually run with.
    pub usual: Option<Usual>,
}

/// Sizes in an image of mkcw.
#[derive(Debug, PartialEq, Eq)]
pub struct Usual {
    /// vCPUs, 1 or more.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
}

/// Reads annotations and file. Refuses what would be unsafe to do without.
pub fn read(bundle: &Bundle) -> Result<Requests> {
    let file = VmFile::read(&bundle.rootfs)?;
    let variant = bundle.annotation(annotations::KRUN_VARIANT).unwrap_or_default();
    check_variant(VARIANT, variant)?;
    file.check()?;
    let usual = sev_image(&bundle.rootfs)?;
    warn_of_annotations(bundle);
    let number = |key: &str, word: &str| match annotated(bundle, key)? {
        Some(asked) => Ok(Some(asked)),
        None => file.number(word),
    };
    Ok(Requests {
        cpus: number(annotations::KRUN_CPUS, "cpus")?,
        ram_mib: number(annotations::KRUN_RAM_MIB, "ram_mib")?,
        usual,
    })
}

/// Who demands SEV, if anybody does: what a message begins with.
pub fn sev(bundle: &Bundle) -> Result<Option<String>> {
    let variant = bundle.annotation(annotations::KRUN_VARIANT).unwrap_or_default();
    match check_variant(VARIANT, variant)? {
        Some(by) => Ok(Some(by)),
        None => VmFile::read(&bundle.rootfs)?.sev(),
    }
}

fn annotated(bundle: &Bundle, key: &str) -> Result<Option<Asked>> {
    let Some(text) = bundle.annotation(key) else {
        return Ok(None);
    };
    let by = format!("config.json: annotation {key}");
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = text.parse().ok().filter(|_| digits);
    let value = value.with_context(|| format!("{by}: {text:?} is not a number"))?;
    Ok(Some(Asked { value, by }))
}

/// Who demands SEV, if this variant does. An empty one is what a template leaves of one that was not given.
fn check_variant(by: &str, variant: &str) -> Result<Option<String>> {
    match variant {
        "" => Ok(None),
        "sev" => Ok(Some(format!("{by}: {variant:?}"))),
        _ => bail!("{by}: {variant:?} is not available, expected \"sev\""),
    }
}

/// crun takes `/krun-sev.json` for the wish to run under SEV. With a disk beside it, it is an image of mkcw, which
/// [`crate::mkcw_disk`] finds and boots as what it is; without, nothing would be encrypted.
fn sev_image(rootfs: &Path) -> Result<Option<Usual>> {
    const NAME: &str = mkcw_disk::CONFIG;
    let Some(file) = image_file::open_regular(rootfs, NAME)? else {
        return Ok(None);
    };
    ensure!(
        image_file::open_regular(rootfs, mkcw_disk::DISK)?.is_some(),
        "/{NAME} in the image says that its root file system is an encrypted disk, and there is no {} beside it",
        mkcw_disk::DISK
    );
    let bytes = content(rootfs, NAME, file, mkcw::MAX_WORKLOAD)?;
    let said = mkcw::WorkloadConfig::parse(&bytes).with_context(|| format!("/{NAME} in the image"))?;
    Ok(Some(Usual {
        cpus: said.cpus,
        memory_mib: said.memory_mib.into(),
    }))
}

/// What a message about a file begins with.
fn place(rootfs: &Path, name: &str) -> String {
    format!("/{name} in the root file system {}", rootfs.display())
}

/// The content of a file that is there.
fn content(rootfs: &Path, name: &str, file: File, most: u64) -> Result<Vec<u8>> {
    let bytes = image_file::read_at_most(file, most).with_context(|| place(rootfs, name))?;
    bytes.with_context(|| format!("{}: it is larger than {} KiB", place(rootfs, name), most >> 10))
}

fn warn_of_annotations(bundle: &Bundle) {
    let words = bundle
        .spec
        .annotations()
        .iter()
        .flatten()
        .filter_map(|(key, value)| Some((key, key.strip_prefix("krun.")?, value)));
    for (key, word, value) in words {
        if !matches!(word, "cpus" | "ram_mib" | "variant" | "use_passt") && value != "0" {
            let what = if HARMLESS.contains(&word) {
                "not available"
            } else {
                "unknown"
            };
            tracing::warn!("config.json: annotation {key}: {what}, ignored");
        }
    }
}

/// `/.krun_vm.json`; empty if there is none.
struct VmFile(Map<String, Value>);

impl VmFile {
    fn read(rootfs: &Path) -> Result<Self> {
        let context = || place(rootfs, FILE);
        let file = match image_file::open(rootfs, FILE) {
            Err(Errno::NOENT) => return Ok(Self(Map::new())),
            Err(Errno::LOOP) => bail!("{}: it is a symbolic link", context()),
            opened => opened.with_context(context)?,
        };
        ensure!(
            image_file::is_regular(&file)?,
            "{}: it is not a regular file",
            context()
        );
        let bytes = content(rootfs, FILE, file, LONGEST)?;
        serde_json::from_slice(&bytes).map(Self).with_context(context)
    }

    /// Who demands SEV, if the file does.
    fn sev(&self) -> Result<Option<String>> {
        match self.0.get("flavor") {
            Some(Value::String(flavor)) => check_variant(&format!("/{FILE} in the image: flavor"), flavor),
            _ => Ok(None),
        }
    }

    fn check(&self) -> Result<()> {
        for (word, value) in &self.0 {
            let by = format!("/{FILE} in the image: {word}");
            match (word.as_str(), value) {
                ("cpus" | "ram_mib" | "use_passt", _) | (_, Value::Null) => {}
                ("flavor", Value::String(flavor)) => drop(check_variant(&by, flavor)?),
                ("flavor", _) => bail!("{by}: {value} is not a string"),
                (word, _) if KERNEL.contains(&word) => {
                    bail!("{by}: not supported: guests have cwrun's own kernel")
                }
                (word, value) if HARMLESS.contains(&word) => {
                    if value.as_u64() != Some(0) {
                        tracing::warn!("{by}: not available, ignored");
                    }
                }
                _ => tracing::warn!("{by}: unknown, ignored"),
            }
        }
        Ok(())
    }

    fn number(&self, word: &str) -> Result<Option<Asked>> {
        let Some(value) = self.0.get(word).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let by = format!("/{FILE} in the image: {word}");
        let number = value.as_u64();
        let value = number.with_context(|| format!("{by}: {value} is not a number of 0 or more"))?;
        Ok(Some(Asked { value, by }))
    }
}

#[cfg(test)]
#[path = "krun_test.rs"]
mod tests;
