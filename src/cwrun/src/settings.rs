//! `cwrun.toml`: what the administrator of a machine sets for all containers on it.
//!
//! ```text
//!   CWRUN_CONFIG                            if set, this file and no other
//!   $XDG_CONFIG_HOME/cwrun/cwrun.toml       for users (see `user`); ~/.config without XDG_CONFIG_HOME
//!   /etc/cwrun/cwrun.toml                   for everybody else
//! ```
//!
//! One file is read, the first that exists, and none is needed. `contrib/cwrun.toml` shows every key with its default. A key that
//! is unknown or has a wrong value is an error with file, line and key.

use crate::bundle::sizing::parse_size;
use crate::tee::Wish;
use crate::user;
use ::tee::launch::Policy;
use anyhow::{Context, Result, anyhow};
use serde::de::{Deserialize, Deserializer, Error as _};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use workload::Workload;

/// Names a file to read in place of the usual ones.
const VARIABLE: &str = "CWRUN_CONFIG";
const SYSTEM: &str = "/etc/cwrun/cwrun.toml";
/// Of the directory in which users keep configuration.
const OF_USER: &str = "cwrun/cwrun.toml";

/// Most vCPUs that a VM can have.
pub const MAX_VCPUS: u8 = 64;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Sizes of VMs.
    pub vm: Vm,
    /// Converted root file systems.
    pub cache: Cache,
    /// Confidential containers.
    pub tee: Tee,
    /// Key brokers of sealed containers.
    pub broker: Broker,
    /// What makes a machine convenient and less safe.
    pub development: Development,
    /// Where these settings are from; none if they are the defaults.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[vm]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vm {
    /// Guest memory when the bundle sets no limit, in bytes; a multiple of 1 MiB.
    #[serde(deserialize_with = "memory")]
    pub default_memory: u64,
    /// Most vCPUs that a VM gets from limits on processors; an annotation can ask for more.
    #[serde(deserialize_with = "vcpus")]
    pub max_vcpus: u8,
    /// Memory of the VMM beside the guest's own, in bytes, added to the cgroup's limit.
    #[serde(deserialize_with = "headroom")]
    pub vmm_headroom: u64,
    /// What the workload may write without asking, in bytes. The file is sparse.
    #[serde(deserialize_with = "scratch")]
    pub default_scratch: u64,
    /// Whether the host's kernel may move the packets of guests (vhost-net).
    pub vhost_net: bool,
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Its directory; none for the user's own.
    #[serde(deserialize_with = "directory")]
    pub directory: Option<PathBuf>,
    /// Size in bytes above which the least recently used disks are removed.
    #[serde(deserialize_with = "size")]
    pub limit: u64,
}

/// `[tee]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tee {
    /// Which TEE containers get that do not say.
    pub kind: Wish,
    /// The guest policy of all of them.
    pub policy: Policy,
    /// The owner's identity block, signed; none without.
    #[serde(deserialize_with = "directory")]
    pub id_block: Option<PathBuf>,
    /// Its authentication.
    #[serde(deserialize_with = "directory")]
    pub id_auth: Option<PathBuf>,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Broker {
    /// URL of the broker of containers that name none.
    pub url: Option<String>,
    /// PEM file with the certificates that brokers are verified by; none for the system's.
    #[serde(deserialize_with = "directory")]
    pub ca: Option<PathBuf>,
    /// URL of the HTTP proxy that brokers are reached through.
    pub proxy: Option<String>,
    /// Whether containers and images may name other brokers.
    pub others: bool,
    /// Seconds for one request and its answer.
    #[serde(deserialize_with = "patience")]
    pub timeout_seconds: u64,
}

/// `[development]`
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Development {
    /// Whether the annotation `io.cwrun.development.passphrase-file` may name a file of this host.
    pub passphrase_file: bool,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            default_memory: 1 << 30,
            max_vcpus: 4,
            vmm_headroom: 64 << 20,
            default_scratch: 4 << 30,
            vhost_net: true,
        }
    }
}

impl Default for Tee {
    fn default() -> Self {
        Self {
            kind: Wish::None,
            // SMT is on nearly everywhere, and kernels before Linux 6.15 take no policy that forbids it.
            policy: Policy::STRICT.with(Policy::SMT),
            id_block: None,
            id_auth: None,
        }
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            proxy: None,
            others: true,
            timeout_seconds: 20,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            directory: None,
            limit: 32 << 30,
        }
    }
}

impl Settings {
    /// The settings of this machine, for this user.
    pub fn load() -> Result<Self> {
        Self::find(
            user::is_system(),
            |name| std::env::var_os(name),
            Path::new(SYSTEM),
        )
    }

    fn find(system_wide: bool, variable: impl Fn(&str) -> Option<OsString>, system: &Path) -> Result<Self> {
        if let Some(path) = variable(VARIABLE) {
            let path = PathBuf::from(path);
            return Self::read(&path)?
                .with_context(|| format!("{VARIABLE}: {} does not exist", path.display()));
        }
        let user = match system_wide {
            true => None,
            false => user::directory_or("XDG_CONFIG_HOME", ".config", &variable),
        };
        let candidates = user
            .map(|dir| dir.join(OF_USER))
            .into_iter()
            .chain([system.to_owned()]);
        for path in candidates {
            if let Some(settings) = Self::read(&path)? {
                return Ok(settings);
            }
        }
        Ok(Self::default())
    }

    /// The settings in a file; `None` if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let mut settings = Self::parse(&text).with_context(|| path.display().to_string())?;
        settings.file = Some(path.to_owned());
        Ok(Some(settings))
    }

    /// Errors are `line 3: vm.max_vcpus: …`.
    fn parse(text: &str) -> Result<Self> {
        let told = |key: Option<String>, error: &toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
            let key = key.filter(|key| key != ".").map(|key| format!("{key}: "));
            let message = error.message().trim_end().replace('\n', ", ");
            anyhow!("{}{}{message}", line.unwrap_or_default(), key.unwrap_or_default())
        };
        let document = toml::Deserializer::parse(text).map_err(|error| told(None, &error))?;
        serde_path_to_error::deserialize(document)
            .map_err(|error| told(Some(error.path().to_string()), error.inner()))
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a size such as \"10GiB\"")))
}

fn between<'de, D: Deserializer<'de>>(
    deserializer: D,
    least: u64,
    most: u64,
    names: &str,
) -> Result<u64, D::Error> {
    let bytes = size(deserializer)?;
    match (least..=most).contains(&bytes) {
        true => Ok(bytes),
        false => Err(D::Error::custom(format!("is not between {names}"))),
    }
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let (least, most) = (vmm::MIN_MEMORY_MIB, vmm::MAX_MEMORY_MIB);
    let bytes = between(
        deserializer,
        least << 20,
        most << 20,
        &format!("{least} MiB and {most} MiB"),
    )?;
    match bytes.is_multiple_of(1 << 20) {
        true => Ok(bytes),
        false => Err(D::Error::custom("is not a multiple of 1 MiB")),
    }
}

fn vcpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let count = i64::deserialize(deserializer)?;
    match u8::try_from(count) {
        Ok(count @ 1..=MAX_VCPUS) => Ok(count),
        _ => Err(D::Error::custom(format!(
            "{count} is not between 1 and {MAX_VCPUS}"
        ))),
    }
}

/// A VMM with less than the lower limit is ended by the kernel as soon as its guest uses all of its memory.
fn headroom<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    between(deserializer, 16 << 20, 1 << 40, "16 MiB and 1 TiB")
}

fn scratch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let (least, most) = (Workload::MIN_SCRATCH_BYTES, Workload::MAX_SCRATCH_BYTES);
    between(deserializer, least, most, "4 MiB and 16 TiB")
}

/// Less than the guest's own patience, which is 30 seconds: it would not hear what went wrong.
fn patience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    match seconds {
        1..=25 => Ok(seconds),
        _ => Err(D::Error::custom(format!("{seconds} is not between 1 and 25"))),
    }
}

fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    match path.is_absolute() {
        true => Ok(Some(path)),
        false => Err(D::Error::custom(format!(
            "{:?} is not an absolute path",
            path.display().to_string()
        ))),
    }
}

#[cfg(test)]
#[path = "settings_test.rs"]
mod tests;
