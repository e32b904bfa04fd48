//! The Environment: what the engine decides per run and nobody can know beforehand.
//!
//! It is not part of the container's identity, so to the guest it is hostile input: it can name the machine, supply
//! small files and directories under fixed rules and describe the network, and it can't change what is executed.

use crate::{Blob, Changes, Interface, MountFlag};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

/// What the engine supplies per run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// The container's ID.
    pub id: String,
    /// Host name; at most 64 bytes (`__NEW_UTS_LEN`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name; at most 64 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Files that the engine bind-mounts into the container (resolv.conf, hosts, …), in order.
    pub files: Vec<InjectedFile>,
    /// Directories of the host, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Network interfaces besides the loopback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Rows and columns of the terminal at start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_size: Option<(u16, u16)>,
    /// Limits on the container's processes at start.
    #[serde(default)]
    pub limits: Limits,
    /// What hooks in the container find on their standard input: its state as OCI has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// What the engine wants a sealed Workload to do differently.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub changes: Changes,
}

/// Limits on all processes of the container together. The engine may change them while these run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How many processes and threads there may be; absent for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// How many bytes of memory they may use; absent for all that the guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// A file laid over the root file system, in a mount of its own, so that it works over a read-only root too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectedFile {
    /// Absolute path inside the container; resolved without leaving the root, created if missing.
    pub destination: String,
    /// Permission bits, 0o7777 at most.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
    /// Whether the workload may write to it (its changes stay in the guest).
    pub readonly: bool,
    /// What is in it.
    pub content: Blob,
}

/// A directory of the host, laid over the root file system while both sides use it (virtio-fs). Its content is the host's, so nothing in
/// it is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Names the device: 1 to 36 bytes.
    pub tag: String,
    /// What is to be mounted is below the device's root, by this name: the source's own, which is then what `mountinfo` shows as the mount's
    /// root, as it does where the host mounts it.
    pub name: String,
    /// Absolute path inside the container; resolved without leaving the root, created if missing.
    pub destination: String,
    /// How many of the Workload's mounts are made before it.
    pub after: u32,
    /// Flags of the mount.
    pub flags: BTreeSet<MountFlag>,
    /// How mounts made below it reach its copies: `shared` and the like, the last counts.
    pub propagation: Vec<String>,
}

impl Volume {
    /// Most volumes of a container: each takes a device.
    pub const MAX: usize = 15;

    /// The tag of the volume with this index.
    pub fn tag(index: usize) -> String {
        format!("volume{index}")
    }

    /// The last component of the source's path, or of a source without one, which is a whole file system.
    pub fn name(source: &Path) -> String {
        let name = source.file_name().and_then(OsStr::to_str);
        name.unwrap_or("root").to_owned()
    }

    fn check(&self) -> Result<(), &'static str> {
        if !(1..=255).contains(&self.name.len())
            || self.name.contains(['/', '\0'])
            || matches!(&*self.name, "." | "..")
        {
            return Err("a volume's name is not one of a directory");
        }
        if self.tag.is_empty() || self.tag.len() > 36 || self.tag.contains('\0') {
            return Err("a volume's tag is not 1 to 36 bytes");
        }
        if !self.destination.starts_with('/') || self.destination.contains('\0') {
            return Err("a volume's destination is not an absolute path");
        }
        Ok(())
    }
}

impl Environment {
    /// Limit on the sum of all injected files' sizes, in bytes.
    pub const MAX_FILE_BYTES: usize = 4 << 20;

    /// Checks what the types do not: called by the guest on what the host sent.
    pub fn check(&self) -> Result<(), &'static str> {
        let name_fits =
            |name: &Option<String>| name.as_ref().is_none_or(|n| n.len() <= 64 && !n.contains('\0'));
        if !name_fits(&self.hostname) || !name_fits(&self.domainname) {
            return Err("the environment's host or domain name is longer than 64 bytes");
        }
        if self.files.iter().map(|f| f.content.0.len()).sum::<usize>() > Self::MAX_FILE_BYTES {
            return Err("the environment's files are larger than 4 MiB together");
        }
        if self
            .files
            .iter()
            .any(|f| !f.destination.starts_with('/') || f.destination.contains('\0'))
        {
            return Err("an environment file's destination is not an absolute path");
        }
        if self.files.iter().any(|f| f.mode > 0o7777) {
            return Err("an environment file's mode has more than permission bits");
        }
        if self.interfaces.len() > Interface::MAX {
            return Err("the environment has more than 8 network interfaces");
        }
        self.interfaces.iter().try_for_each(Interface::check)?;
        if self.volumes.len() > Volume::MAX {
            return Err("there are more than 15 volumes");
        }
        self.volumes.iter().try_for_each(Volume::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_what_a_guest_can_mount() {
        let sound = Volume {
            tag: Volume::tag(0),
            name: Volume::name(Path::new("/srv/files")),
            destination: "/data".into(),
            after: 7,
            flags: BTreeSet::new(),
            propagation: vec![],
        };
        let check = |volumes| {
            let environment = Environment {
                volumes,
                ..Environment::default()
            };
            environment.check()
        };
        assert_eq!(check(vec![sound.clone(); Volume::MAX]), Ok(()));
        assert!(check(vec![sound.clone(); Volume::MAX + 1]).is_err());
        for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            let name = name.to_owned();
            assert!(
                check(vec![Volume {
                    name,
                    ..sound.clone()
                }])
                .is_err()
            );
        }
        assert_eq!(sound.name, "files");
        assert_eq!(Volume::name(Path::new("/")), "root");
        for tag in [String::new(), "x".repeat(37), "a\0b".into()] {
            let volume = Volume { tag, ..sound.clone() };
            assert!(check(vec![volume]).is_err());
        }
        for destination in ["data", "", "/da\0ta"] {
            let volume = Volume {
                destination: destination.into(),
                ..sound.clone()
            };
            assert!(check(vec![volume]).is_err());
        }
    }
}
