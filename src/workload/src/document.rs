//! The Workload: everything that decides what runs in the guest, in one canonical document.
//!
//! Its SHA-256 is the container's identity. Whoever knows the digest knows the disks (by verity root hash), the
//! process, the mounts and the policy. Nothing that only the engine can know before a run is in it: that is
//! [`crate::Environment`].
//!
//! Canonical form: JSON without white space, object members sorted bytewise, integers only. This is RFC 8785
//! restricted to documents without floating-point numbers and with ASCII member names.

use crate::{Blob, Capabilities, Hex, Sealed};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// SHA-256 of a Workload in canonical form.
pub type Digest = Hex<32>;

/// What runs in the guest. OCI fields keep their OCI meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Format of this document, [`Workload::VERSION`].
    pub version: u32,
    /// The root file system, on the guest's first disk.
    pub root: RootFs,
    /// Where changes to the root file system go.
    pub scratch: Scratch,
    /// `root.readonly`: the workload sees `/` read-only.
    pub readonly_root: bool,
    /// The container's first process.
    pub process: Process,
    /// `mounts`, in order, those that live inside the guest.
    pub mounts: Vec<Mount>,
    /// `linux.maskedPaths`.
    pub masked_paths: Vec<String>,
    /// `linux.readonlyPaths`.
    pub readonly_paths: Vec<String>,
    /// `linux.sysctl`.
    pub sysctl: BTreeMap<String, String>,
    /// `linux.timeOffsets`: how far the container's clocks are ahead of the guest's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub time_offsets: BTreeMap<Clock, TimeOffset>,
    /// `linux.devices`, beside those that every container has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// `hooks.startContainer`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_hooks: Vec<Hook>,
    /// `linux.rootfsPropagation`, of which a guest has these two: nothing comes from outside to one that is private or a slave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_propagation: Option<RootPropagation>,
    /// What the guest must be; a plain one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tee: Option<Tee>,
    /// Made and encrypted by its owner, for hosts that are not trusted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// What a confidential guest must be, and what it lets the host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tee {
    /// Of which kind.
    pub kind: TeeKind,
    /// The host may have more processes run in it.
    pub exec: bool,
}

/// Kinds of TEE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeeKind {
    /// AMD SEV-SNP.
    Snp,
    /// None at all: everything goes the way of a TEE, and nothing is protected.
    Sim,
}

/// Clocks that time namespaces have (time_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_BOOTTIME`.
    Boottime,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Monotonic => "monotonic",
            Self::Boottime => "boottime",
        })
    }
}

/// The distance between two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeOffset {
    /// Whole seconds.
    pub seconds: i64,
    /// And so much more.
    pub nanoseconds: u32,
}

/// How the root is seen from copies that the workload makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootPropagation {
    /// What is mounted in it shows in them.
    Shared,
    /// There can be none.
    Unbindable,
}

/// What the root file system consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum RootFs {
    /// Layers that lie on the disk end to end.
    Layers {
        /// The lowest first; at least one.
        layers: Vec<Layer>,
    },
    /// A disk that `buildah mkcw` made. Its own `/.krun_config.json` says what runs in it, in place of `args`, `env`, `cwd` and
    /// `user` of [`Process`]. The disk is encrypted, but nothing in this document vouches for the content of its file system.
    Mkcw {
        /// SHA-256 of the LUKS1 header, the first 592 bytes of the disk. It tells this disk's volume key from that of any other.
        header: Hex<32>,
    },
}

impl RootFs {
    /// Whether it is a disk that `buildah mkcw` made.
    pub fn is_mkcw(&self) -> bool {
        matches!(self, Self::Mkcw { .. })
    }
}

/// One part of a disk: EROFS under dm-verity under dm-crypt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The outer mapping, over the disk.
    pub crypt: Crypt,
    /// The inner mapping, over the decrypted payload.
    pub verity: Verity,
}

/// Parameters of a dm-crypt mapping. Cipher `aes-xts-plain64` with a 512-bit key, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crypt {
    /// First byte of the payload on the disk; a multiple of `sector_size`.
    pub offset: u64,
    /// Bytes of payload; a multiple of `sector_size`.
    pub length: u64,
    /// Encryption sector in bytes: 512 to 4096, a power of two.
    pub sector_size: u32,
}

/// Parameters of a dm-verity mapping, hash tree on the same device. Version 1, SHA-256, 4096-byte blocks, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// Data blocks of 4096 bytes, from the start of the payload.
    pub data_blocks: u64,
    /// Block number, in 4096-byte blocks from the start of the payload, of the tree's root block.
    pub hash_start_block: u64,
    /// Salt of every hash.
    pub salt: Hex<32>,
    /// Hash of the tree's root block: what the whole disk's content hangs on.
    pub root_hash: Hex<32>,
}

/// The writable layer. It dies with the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum Scratch {
    /// The guest's second disk, under keys that the guest draws and keeps.
    Disk {
        /// How much the workload may write, in bytes.
        bytes: u64,
    },
    /// Guest memory alone.
    Ram {
        /// How much the workload may write, in bytes.
        bytes: u64,
    },
}

/// OCI `process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Program and arguments; not empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Absolute working directory inside the container.
    pub cwd: String,
    /// Whom it runs as.
    pub user: User,
    /// A pseudo-terminal instead of three streams.
    pub terminal: bool,
    /// Capability sets; `None` leaves root's full sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `no_new_privs` (prctl(2)).
    pub no_new_privileges: bool,
    /// `linux.seccomp`: which system calls it may make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// `oom_score_adj` (proc(5)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// How it is scheduled; as init is if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// How its reads and writes are scheduled; as init's are if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// `linux.personality`: which system it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
}

/// OCI `process.scheduler`: arguments of sched_setattr(2), whose kernel checks them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// Which policy.
    pub policy: SchedulerPolicy,
    /// Nice value, of those policies that have one.
    pub nice: i32,
    /// Static priority, of those policies that have one.
    pub priority: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nanoseconds, for the deadline policy.
    pub runtime: u64,
    /// Nanoseconds, for the deadline policy.
    pub deadline: u64,
    /// Nanoseconds, for the deadline policy.
    pub period: u64,
}

/// Policies of sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulerPolicy {
    /// SCHED_OTHER
    Other,
    /// SCHED_FIFO
    Fifo,
    /// SCHED_RR
    RoundRobin,
    /// SCHED_BATCH
    Batch,
    /// SCHED_IDLE
    Idle,
    /// SCHED_DEADLINE
    Deadline,
}

/// OCI `process.ioPriority`, ioprio_set(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoPriority {
    /// Scheduling class.
    pub class: IoPriorityClass,
    /// 0, the highest, to 7.
    pub priority: u8,
}

/// Classes of ioprio_set(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPriorityClass {
    /// IOPRIO_CLASS_RT
    Realtime,
    /// IOPRIO_CLASS_BE
    BestEffort,
    /// IOPRIO_CLASS_IDLE
    Idle,
}

/// Execution domains, personality(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Personality {
    /// PER_LINUX
    Linux,
    /// PER_LINUX32: uname(2) says that the machine has 32 bits.
    Linux32,
}

/// A file to make that is no ordinary one, mknod(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path inside the container; resolved without leaving the root, its directory created if missing.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Permission bits, 0o7777 at most.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
}

/// What a [`Device`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A character device: of the guest's kernel, or of none.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device of no kernel: those of the guest's are its own.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device of the host: the guest's disk of this number among those that the host passes besides its own, with the serial number
    /// [`Device::serial`].
    Disk {
        /// From 0 on.
        number: u32,
    },
    /// A named pipe.
    Fifo,
}

impl Device {
    /// By what the guest finds the disk of this number among all that it has.
    pub fn serial(number: u32) -> String {
        format!("device{number}")
    }
}

/// A program that runs in the container before its first process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Absolute path inside the container.
    pub path: String,
    /// Its arguments, the first of which is its name for itself; just the path if empty.
    pub args: Vec<String>,
    /// `NAME=value`: all of its environment.
    pub env: Vec<String>,
    /// Seconds after which it is ended; absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// A filter of system calls, compiled from OCI `linux.seccomp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// Classic BPF: `struct sock_filter` of linux/filter.h, end to end, little-endian. What they mean is the kernel's to check.
    pub program: Blob,
    /// Flags of seccomp(2).
    pub flags: BTreeSet<SeccompFlag>,
}

impl Seccomp {
    /// Most instructions of a program (`BPF_MAXINSNS`).
    pub const MAX_INSTRUCTIONS: usize = 4096;

    /// Bytes of one instruction.
    pub const INSTRUCTION_BYTES: usize = 8;

    fn check(&self) -> Result<(), Error> {
        let bytes = self.program.0.len();
        let instructions = bytes / Self::INSTRUCTION_BYTES;
        if !bytes.is_multiple_of(Self::INSTRUCTION_BYTES)
            || !(1..=Self::MAX_INSTRUCTIONS).contains(&instructions)
        {
            return Err(Error::Field {
                field: "process.seccomp.program",
                problem: "is not 1 to 4096 instructions of 8 bytes",
            });
        }
        Ok(())
    }
}

/// Flags of seccomp(2) that matter to a process of one thread without a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompFlag {
    /// SECCOMP_FILTER_FLAG_LOG
    Log,
    /// SECCOMP_FILTER_FLAG_SPEC_ALLOW
    SpecAllow,
}

/// OCI `process.user`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User ID inside the container.
    pub uid: u32,
    /// Group ID inside the container.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask; 0o022 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}

/// One resource limit, getrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and the like.
    pub resource: String,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is infinity.
    pub hard: u64,
}

/// A file system mounted inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path inside the container; resolved without leaving the root, created if missing.
    pub destination: String,
    /// What is mounted.
    pub filesystem: Filesystem,
    /// Flags of mount(2).
    pub flags: BTreeSet<MountFlag>,
    /// File-system specific options, `size=64m` and the like.
    pub options: Vec<String>,
}

impl Mount {
    /// What an option begins with that says what `/proc/mounts` shows as the source. Without one it is the file system's name.
    pub const SOURCE: &str = "source=";
}

/// File systems that the guest makes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// proc(5)
    Proc,
    /// sysfs(5)
    Sysfs,
    /// tmpfs(5); OCI option `tmpcopyup` in `options` copies what the image has there.
    Tmpfs,
    /// A new instance of devpts.
    Devpts,
    /// mq_overview(7)
    Mqueue,
    /// cgroups(7), version 2 whatever the host has.
    Cgroup2,
}

impl Filesystem {
    /// The type's name for mount(2).
    pub fn name(self) -> &'static str {
        match self {
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::Tmpfs => "tmpfs",
            Self::Devpts => "devpts",
            Self::Mqueue => "mqueue",
            Self::Cgroup2 => "cgroup2",
        }
    }
}

/// Flags of mount(2) that can be set on a mount in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountFlag {
    /// MS_RDONLY
    Ro,
    /// MS_NOSUID
    Nosuid,
    /// MS_NODEV
    Nodev,
    /// MS_NOEXEC
    Noexec,
    /// MS_SYNCHRONOUS
    Sync,
    /// MS_DIRSYNC
    Dirsync,
    /// MS_NOATIME
    Noatime,
    /// MS_NODIRATIME
    Nodiratime,
    /// MS_RELATIME
    Relatime,
    /// MS_STRICTATIME
    Strictatime,
}

/// Why a document is not a Workload.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the Workload's shape.
    #[error("the workload document is not valid: {0}")]
    Shape(#[source] serde_json::Error),
    /// Made for another release.
    #[error("the workload document has version {0}, this release reads version {expected}", expected = Workload::VERSION)]
    Version(u32),
    /// The bytes are not the canonical form of what they say, so their hash would not identify it.
    #[error("the workload document is not in canonical form")]
    NotCanonical,
    /// A value that no honest host writes.
    #[error("the workload document's {field} {problem}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Workload {
    /// Version written and read by this release.
    pub const VERSION: u32 = 1;

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Through `Value`, whose maps are sorted. A Workload holds only strings, integers and booleans under
        // string keys, so neither step can fail.
        let value = serde_json::to_value(self).expect("a Workload has only string keys");
        serde_json::to_vec(&value).expect("a JSON value always serialises")
    }

    /// SHA-256 of the canonical bytes.
    pub fn digest(&self) -> Digest {
        Hex(Sha256::digest(self.to_bytes()).into())
    }

    /// Parses canonical bytes and checks every field that does not check itself.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let workload: Self = serde_json::from_slice(bytes).map_err(Error::Shape)?;
        if workload.version != Self::VERSION {
            return Err(Error::Version(workload.version));
        }
        if workload.to_bytes() != bytes {
            return Err(Error::NotCanonical);
        }
        workload.check()?;
        Ok(workload)
    }

    fn check(&self) -> Result<(), Error> {
        let field = |field, problem| Err(Error::Field { field, problem });
        if let RootFs::Layers { layers } = &self.root {
            if layers.is_empty() || layers.len() > Self::MAX_LAYERS {
                return field("root.layers", "must be between 1 and 128");
            }
            layers.iter().try_for_each(Layer::check)?;
        }
        if let Scratch::Disk { bytes } = self.scratch
            && !(Self::MIN_SCRATCH_BYTES..=Self::MAX_SCRATCH_BYTES).contains(&bytes)
        {
            return field("scratch", "must be between 4 MiB and 16 TiB");
        }
        let process = &self.process;
        if process.args.first().is_none_or(String::is_empty) {
            return field("process.args", "names no program");
        }
        if !process.cwd.starts_with('/') {
            return field("process.cwd", "is not an absolute path");
        }
        if let Some(seccomp) = &process.seccomp {
            seccomp.check()?;
        }
        if self
            .mounts
            .iter()
            .any(|mount| !mount.destination.starts_with('/'))
        {
            return field("mounts", "has a destination that is not an absolute path");
        }
        if self.devices.iter().any(|device| !device.path.starts_with('/')) {
            return field("devices", "has a path that is not absolute");
        }
        if self.devices.iter().any(|device| device.mode > 0o7777) {
            return field("devices", "has a mode with more than permission bits");
        }
        if self.start_hooks.iter().any(|hook| !hook.path.starts_with('/')) {
            return field("start_hooks", "has a path that is not absolute");
        }
        if self.root.is_mkcw() && !self.start_hooks.is_empty() {
            return field("start_hooks", "would run beside what the disk says is to run");
        }
        let hooks = self.start_hooks.iter();
        let hooks = hooks.flat_map(|hook| hook.args.iter().chain(&hook.env).chain([&hook.path]));
        let strings = process
            .args
            .iter()
            .chain(&process.env)
            .chain([&process.cwd])
            .chain(hooks);
        let paths = self
            .mounts
            .iter()
            .map(|m| &m.destination)
            .chain(&self.masked_paths)
            .chain(&self.readonly_paths)
            .chain(self.devices.iter().map(|device| &device.path));
        if strings.chain(paths).any(|text| text.contains('\0')) {
            return field("strings", "contain a NUL byte");
        }
        self.sealed.as_ref().map_or(Ok(()), |sealed| sealed.check(self))
    }

    /// Upper limit of `root.layers`: more than the 127 that Docker allows an image, and far below overlayfs's 500.
    pub const MAX_LAYERS: usize = 128;

    /// Lower limit of a scratch disk: a file system with something in it.
    pub const MIN_SCRATCH_BYTES: u64 = 4 << 20;

    /// Upper limit of a scratch disk: what ext4 addresses with 32 bits.
    pub const MAX_SCRATCH_BYTES: u64 = 1 << 44;
}

impl Layer {
    fn check(&self) -> Result<(), Error> {
        let field = |field, problem| Err(Error::Field { field, problem });
        let Crypt {
            offset,
            length,
            sector_size,
        } = self.crypt;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return field(
                "root.layers.crypt.sector_size",
                "is not a power of two from 512 to 4096",
            );
        }
        let aligned = |bytes: u64| bytes.is_multiple_of(u64::from(sector_size));
        if !aligned(offset) || !aligned(length) || length == 0 || offset.checked_add(length).is_none() {
            return field(
                "root.layers.crypt",
                "has an offset or length that is no multiple of the sector size",
            );
        }
        let blocks = length / 4096;
        let Verity {
            data_blocks,
            hash_start_block,
            ..
        } = self.verity;
        // One data block needs no tree: its hash is the root hash, and the tree's place is the end.
        let tree_fits = hash_start_block < blocks || (data_blocks == 1 && hash_start_block == blocks);
        if data_blocks == 0 || data_blocks > hash_start_block || !tree_fits {
            return field(
                "root.layers.verity",
                "has data or hash blocks outside the payload",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "document_test.rs"]
pub(crate) mod tests;
