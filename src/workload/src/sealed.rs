//! Sealed Workloads: made by their owner, away from the host that runs them, and opened by a key that only an attested guest gets.
//!
//! ```text
//!   Workload.sealed    id, allow, secrets            the owner's: part of the identity
//!   Environment        files, volumes, changes       the engine's: hostile
//!            └──────────── admit ───────────┘        what `allow` does not name is an error, here as in the guest
//! ```
//!
//! SECURITY: whoever runs a sealed Workload would like it to do something else. Nothing of an [`Environment`] reaches the processes of a
//! sealed Workload but what is written here: names of the machine, its network, the few files that every engine supplies, and what the
//! owner allowed by name.

use crate::Hex;
use crate::document::{DeviceKind, Error, Process, Workload};
use crate::environment::Environment;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Files that engines lay over every container's root. Their content is the host's word about names and networks, as is the network itself.
pub const CUSTOMARY_FILES: [&str; 5] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/run/.containerenv",
    "/dev/termination-log",
];
/// Most bits of the mode of a file that a host supplies: nothing to execute.
pub const FILE_MODE: u32 = 0o666;
/// Most secrets of a Workload.
pub const MAX_SECRETS: usize = 64;
/// Most rules of a Workload.
pub const MAX_RULES: usize = 256;

/// What makes a Workload a sealed one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Its registration with the broker: 1 to 64 of `A-Z a-z 0-9 . _ -`, no dot in front. What opens the disk is its resource `key/disk`:
    /// of layers, 64 bytes for each, in their order; of a disk of mkcw, its passphrase.
    pub id: String,
    /// What the engine may change.
    pub allow: BTreeSet<Allow>,
    /// What the guest asks the broker for besides.
    pub secrets: Vec<Secret>,
}

/// One resource `secret/NAME` of the registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name there, formed as an id is.
    pub name: String,
    /// Where the workload finds it.
    pub place: SecretPlace,
    /// What tells the owner's value from any other ([`Secret::mac_of`]). Without one the value may change, and may be the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Hex<32>>,
}

impl Secret {
    /// HMAC-SHA-256 under the resource `key/disk`, of `cwrun secret 1`, the name and the value, with a zero byte between them.
    ///
    /// SECURITY: values are encrypted to the guest, which anybody can do. The key is bound to the Workload's root hash, so that the host has none
    /// which opens the disk; who has it can tell others from the owner's. Whoever reads the Workload learns nothing of the value from this.
    pub fn mac_of(disk_key: &[u8], name: &str, value: &[u8]) -> Hex<32> {
        Hex(code(disk_key, name, value).finalize().into_bytes().into())
    }

    /// Whether this may be its value.
    pub fn admits(&self, disk_key: &[u8], value: &[u8]) -> bool {
        let code = code(disk_key, &self.name, value);
        self.mac.is_none_or(|mac| code.verify_slice(&mac.0).is_ok())
    }
}

fn code(disk_key: &[u8], name: &str, value: &[u8]) -> Hmac<Sha256> {
    let mut code = Hmac::<Sha256>::new_from_slice(disk_key).expect("HMAC takes keys of any length");
    for part in [b"cwrun secret 1", name.as_bytes()] {
        code.update(part);
        code.update(&[0]);
    }
    code.update(value);
    code
}

/// Where a secret goes. It never goes to a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum SecretPlace {
    /// A file of its own mount, in memory.
    File {
        /// Absolute path inside the container, without `.`, `..` and empty names.
        path: String,
        /// Permission bits, 0o777 at most.
        mode: u32,
        /// Owner inside the container.
        uid: u32,
        /// Group inside the container.
        gid: u32,
    },
    /// A variable of the first process.
    Variable {
        /// Its name.
        name: String,
    },
}

/// A rule: one thing that the engine may decide, written as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Allow {
    /// `args`: program and arguments.
    Args,
    /// `cwd`: the working directory.
    Cwd,
    /// `env:NAME`: a variable of this name, or with `env:PREFIX*`, every variable whose name begins so.
    Env(String),
    /// `file:/path`: the content of a file. It can't be executed.
    File(String),
    /// `terminal`: a pseudo-terminal instead of three streams.
    Terminal,
}

/// What a text that is no rule should have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no rule: expected args, cwd, terminal, env:NAME, env:PREFIX* or file:/PATH (absolute, without . and ..)"
)]
pub struct NoRule(pub String);

/// What the engine wants to be different from the Workload. Nothing in it, unless the Workload is sealed and allows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `NAME=value`: variables to set, whether they are there or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Whether there is a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<bool>,
}

impl Changes {
    /// Nothing is to be different.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why an [`Environment`] is not one for the Workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The Workload is not sealed, so there is nothing to change: the engine writes it.
    #[error("the environment changes a workload that is not sealed")]
    NotSealed,
    /// A rule would be needed.
    #[error("the sealed workload does not allow the host to change {what}: there is no rule {rule:?} in it")]
    NotAllowed {
        /// What the host wants to change.
        what: String,
        /// The rule that would allow it.
        rule: String,
    },
    /// No rule could allow it.
    #[error("the environment of a sealed workload {0}")]
    Never(String),
}

impl Allow {
    /// Whether it is about a variable of this name.
    fn is_variable(&self, name: &str) -> bool {
        let Self::Env(pattern) = self else { return false };
        match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Args => f.write_str("args"),
            Self::Cwd => f.write_str("cwd"),
            Self::Terminal => f.write_str("terminal"),
            Self::Env(pattern) => write!(f, "env:{pattern}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

impl FromStr for Allow {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        let no_rule = || NoRule(text.to_owned());
        match text.split_once(':') {
            None if text == "args" => Ok(Self::Args),
            None if text == "cwd" => Ok(Self::Cwd),
            None if text == "terminal" => Ok(Self::Terminal),
            Some(("env", pattern)) => {
                let name = pattern.strip_suffix('*').unwrap_or(pattern);
                let fits = pattern == "*" || is_variable_name(name);
                fits.then(|| Self::Env(pattern.to_owned())).ok_or_else(no_rule)
            }
            Some(("file", path)) if is_plain_path(path) => Ok(Self::File(path.to_owned())),
            _ => Err(no_rule()),
        }
    }
}

impl TryFrom<String> for Allow {
    type Error = NoRule;

    fn try_from(text: String) -> Result<Self, NoRule> {
        text.parse()
    }
}

impl From<Allow> for String {
    fn from(rule: Allow) -> Self {
        rule.to_string()
    }
}

impl Sealed {
    /// Whether a variable of this name may be set by the engine. One that is a secret's place never is.
    pub fn allows_variable(&self, name: &str) -> bool {
        !self.is_secret(name) && self.allow.iter().any(|rule| rule.is_variable(name))
    }

    /// Whether a file with this path may come from the engine.
    pub fn allows_file(&self, path: &str) -> bool {
        CUSTOMARY_FILES.contains(&path) || self.allow.contains(&Allow::File(path.to_owned()))
    }

    fn is_secret(&self, variable: &str) -> bool {
        let place =
            |secret: &Secret| matches!(&secret.place, SecretPlace::Variable { name } if name == variable);
        self.secrets.iter().any(place)
    }

    fn require(&self, rule: Allow, what: &str) -> Result<(), NotAdmitted> {
        match self.allow.contains(&rule) {
            true => Ok(()),
            false => Err(NotAdmitted::NotAllowed {
                what: what.to_owned(),
                rule: rule.to_string(),
            }),
        }
    }

    /// What of a Workload does not go together with being sealed.
    pub(crate) fn check(&self, workload: &Workload) -> Result<(), Error> {
        let field = |field, problem| Err(Error::Field { field, problem });
        if !is_id(&self.id) {
            return field(
                "sealed.id",
                "is not 1 to 64 of A-Z a-z 0-9 . _ - without a dot in front",
            );
        }
        if workload.tee.is_none() {
            return field("tee", "is missing, and only a TEE can open a sealed workload");
        }
        let of_process = |rule: &Allow| matches!(rule, Allow::Args | Allow::Cwd | Allow::Env(_));
        if workload.root.is_mkcw() && self.allow.iter().any(of_process) {
            return field("sealed.allow", "has rules for what a disk of mkcw says itself");
        }
        let of_host = |device: &crate::Device| matches!(device.kind, DeviceKind::Disk { .. });
        if workload.devices.iter().any(of_host) {
            return field("devices", "has a disk of the host");
        }
        if self.allow.len() > MAX_RULES {
            return field("sealed.allow", "has more than 256 rules");
        }
        self.check_secrets(&workload.process)
    }

    fn check_secrets(&self, process: &Process) -> Result<(), Error> {
        let field = |problem| {
            Err(Error::Field {
                field: "sealed.secrets",
                problem,
            })
        };
        if self.secrets.len() > MAX_SECRETS {
            return field("are more than 64");
        }
        let mut places = BTreeSet::new();
        for secret in &self.secrets {
            if !is_id(&secret.name) {
                return field("have a name that is not 1 to 64 of A-Z a-z 0-9 . _ - without a dot in front");
            }
            let place = match &secret.place {
                SecretPlace::File { path, mode, .. } => {
                    if !is_plain_path(path) || *mode > 0o777 {
                        return field(
                            "have a file that is no plain absolute path, or more than permission bits",
                        );
                    }
                    // SECURITY: the host's file would lie over the secret.
                    if self.allows_file(path) {
                        return field("have a file that the host may supply");
                    }
                    path
                }
                SecretPlace::Variable { name } => {
                    let set = |variable: &String| name_of(variable) == name;
                    if !is_variable_name(name) || process.env.iter().any(set) {
                        return field("have a variable that is none, or is set by the process as well");
                    }
                    name
                }
            };
            if !places.insert(place) {
                return field("have one place for two");
            }
        }
        Ok(())
    }
}

impl Workload {
    /// Lets in what a host sends with the Workload, as far as the Workload allows: afterwards its process is what runs. Called by the guest
    /// on a checked environment before it uses anything of it, and by an honest host before it asks the guest.
    pub fn admit(&mut self, environment: &Environment) -> Result<(), NotAdmitted> {
        let Some(sealed) = &self.sealed else {
            return match environment.changes.is_empty() {
                true => Ok(()),
                false => Err(NotAdmitted::NotSealed),
            };
        };
        if let Some(volume) = environment.volumes.first() {
            return Err(NotAdmitted::Never(format!(
                "shares the directory {:?} with the host",
                volume.destination
            )));
        }
        for file in &environment.files {
            let path = &file.destination;
            if !sealed.allows_file(path) {
                let rule = Allow::File(path.clone());
                sealed.require(rule, &format!("the file {path:?}"))?;
            }
            // SECURITY: a file of the host's that runs as root would be a program of the host's.
            if file.mode & !FILE_MODE != 0 {
                return Err(NotAdmitted::Never(format!("has an executable file {path:?}")));
            }
        }
        sealed.change(&environment.changes, &mut self.process)
    }
}

impl Sealed {
    fn change(&self, changes: &Changes, process: &mut Process) -> Result<(), NotAdmitted> {
        let never = |text: &str| Err(NotAdmitted::Never(text.to_owned()));
        let Changes {
            args,
            cwd,
            env,
            terminal,
        } = changes;
        let strings = args.iter().flatten().chain(cwd).chain(env);
        if strings.into_iter().any(|text| text.contains('\0')) {
            return never("has a NUL byte in a string");
        }
        if let Some(args) = args {
            self.require(Allow::Args, "program and arguments")?;
            if args.first().is_none_or(String::is_empty) {
                return never("names no program");
            }
            process.args.clone_from(args);
        }
        if let Some(cwd) = cwd {
            self.require(Allow::Cwd, "the working directory")?;
            if !cwd.starts_with('/') {
                return never("has a working directory that is not absolute");
            }
            process.cwd.clone_from(cwd);
        }
        if let Some(terminal) = terminal {
            self.require(Allow::Terminal, "whether there is a terminal")?;
            process.terminal = *terminal;
            // As engines have it, whose own word does not get here.
            if *terminal && !process.env.iter().any(|variable| name_of(variable) == "TERM") {
                process.env.push("TERM=xterm".to_owned());
            }
        }
        for variable in env {
            let name = name_of(variable);
            if !variable.contains('=') || name.is_empty() {
                return never("has a variable without a name or a value");
            }
            if self.is_secret(name) {
                return Err(NotAdmitted::Never(format!(
                    "sets the variable {name}, which is a secret's"
                )));
            }
            if !self.allows_variable(name) {
                self.require(Allow::Env(name.to_owned()), &format!("the variable {name}"))?;
            }
            set(&mut process.env, variable);
        }
        Ok(())
    }
}

/// Sets a variable where it is, or behind the others.
fn set(env: &mut Vec<String>, variable: &str) {
    let name = name_of(variable);
    match env.iter_mut().find(|other| name_of(other) == name) {
        Some(other) => *other = variable.to_owned(),
        None => env.push(variable.to_owned()),
    }
}

/// The name in `NAME=value`.
pub fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// Whether a text can name a registration or a secret.
pub fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(fits)
}

/// Whether a text is a name that shells can say (POSIX, Base Definitions 8.1).
pub fn is_variable_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(fits)
        && text
            .as_bytes()
            .first()
            .is_some_and(|first| !first.is_ascii_digit())
}

/// Whether a text is an absolute path of a file that is written in one way only.
pub fn is_plain_path(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else {
        return false;
    };
    text.len() < 4096 && !text.contains('\0') && rest.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

#[cfg(test)]
#[path = "sealed_test.rs"]
mod tests;
