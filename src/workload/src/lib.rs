//! What the host and the guest of one container say to each other, and nothing that acts on it.
//!
//! ```text
//!   config.json ──split──► HostSpec      stays on the host, confines the VMM
//!                   ├────► Workload      what runs; canonical JSON, its SHA-256 is the container's identity
//!                   └────► Environment   what the engine decides per run; hostile input to the guest
//!
//!   cwrun ◄──── control protocol: length-prefixed JSON over one vsock stream ────► init
//! ```
//!
//! This crate does no I/O: documents become bytes and bytes become documents, here and only here, so that both
//! sides agree on every limit and every check.

pub mod account;
pub mod bytes;
pub mod capability;
pub mod document;
pub mod environment;
pub mod network;
pub mod nonce;
pub mod protocol;
pub mod sealed;

pub use bytes::{Blob, Hex, Passphrase, VolumeKey};
pub use capability::{Capabilities, Capability};
pub use document::{
    Clock, Crypt, Device, DeviceKind, Digest, Filesystem, Hook, IoPriority, IoPriorityClass, Layer, Mount,
    MountFlag, Personality, Process, Rlimit, RootFs, RootPropagation, Scheduler, SchedulerPolicy, Scratch,
    Seccomp, SeccompFlag, Tee, TeeKind, TimeOffset, User, Verity, Workload,
};
pub use environment::{Environment, InjectedFile, Limits, Volume};
pub use network::{Interface, Mac, Neighbour, Prefix, Route};
pub use nonce::{Nonce, NotANonce};
pub use sealed::{Allow, Changes, Sealed, Secret, SecretPlace};
