//! Linux capabilities by name (capabilities(7)), five sets of them as in OCI runtime-spec `process.capabilities`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeSet;

/// Names in the order of their numbers, `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// One capability: its bit number in the kernel's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

impl Capability {
    /// The capability of this name, `CAP_` included; `None` for a name the guest kernel does not have.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|number| Self(number as u8))
    }

    /// Every capability the guest kernel has.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..NAMES.len() as u8).map(Self)
    }

    /// The name, `CAP_` included.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// The bit number, 0 to 40.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name).ok_or_else(|| D::Error::custom(format!("unknown capability {name:?}")))
    }
}

/// The five sets of a process, OCI runtime-spec config.md#linux-process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Upper bound of what the process can ever gain.
    pub bounding: BTreeSet<Capability>,
    /// What permission checks look at.
    pub effective: BTreeSet<Capability>,
    /// What survives an `execve` of a file that inherits them.
    pub inheritable: BTreeSet<Capability>,
    /// What may be raised into the effective set.
    pub permitted: BTreeSet<Capability>,
    /// What survives an `execve` of an ordinary file.
    pub ambient: BTreeSet<Capability>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_kernel_header() {
        // Spot checks from linux/capability.h.
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("CAP_NET_RAW", 13),
            ("CAP_SYS_ADMIN", 21),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(Capability::by_name(name).unwrap().number(), number);
        }
        assert!(Capability::by_name("CAP_NONE").is_none());
        assert!(Capability::all().all(|c| Capability::by_name(c.name()) == Some(c)));
    }
}
