//! The VMM process once it is confined: boots the guest, then serves it until the workload ends.
//!
//! ```text
//!                      ┌───────────── VMM process ──────────────┐
//!   create ◄──channel──┤ main thread: one poll loop             │
//!   start, kill ──────►│   control socket, signals, guest, exit │◄─ vsock CONTROL ─► init
//!   stdin ────────────►│ one pump thread per standard stream    │◄─ vsock stdio ───► workload
//!   stdout, stderr ◄───│ vCPU, block and vsock threads (vmm)    │
//!                      └────────────────────────────────────────┘
//! ```
//!
//! The process ends with the workload's exit status, which is how conmon and containerd's shim learn it.

pub mod landlock;
mod monitor;
pub mod sandbox;
pub mod stdio;
pub mod terminal;
pub mod volumes;

use crate::broker::{Line, Upstream};
use crate::bundle::mounts::Source;
use crate::launch::{self, VmmEnd};
use crate::network::passt::Passt;
use crate::state::StatusFile;
use crate::tee::Start;
use netlink::LinkWatch;
use std::fs::File;
use std::os::unix::net::UnixListener;
use stdio::Stdio;
use vmm::{Nic, Volume};
use workload::protocol::Keys;
use workload::{Environment, Workload};

/// Everything that a VM is made of, opened before the process is confined.
pub struct Machine {
    /// `/dev/kvm`.
    pub kvm: File,
    /// What the guest starts from.
    pub start: Start,
    /// Images of the root file system, which lie end to end on the guest's first disk.
    pub images: Vec<File>,
    /// What opens them.
    pub keys: Keys,
    /// The disk behind the writable layer, if it has one.
    pub scratch: Option<File>,
    /// Network devices, which `environment` describes to the guest.
    pub nics: Vec<Nic>,
    /// Whether the host's kernel may move the packets of those.
    pub vhost_net: bool,
    /// What leads into the host's network, if that is to be the guest's.
    pub passt: Option<Passt>,
    /// The key broker, if the Workload is sealed.
    pub broker: Option<Upstream>,
    /// What leads there, once the proxy runs.
    pub line: Option<Line>,
    /// Over the network namespace that the guest's interfaces are from.
    pub watch: Option<LinkWatch>,
    /// Directories of the host, which `environment` describes to the guest.
    pub volumes: Vec<Source>,
    /// Block devices of the host, and whether the guest may write to each.
    pub disks: Vec<(File, bool)>,
    /// What runs in the guest.
    pub workload: Workload,
    /// The engine's per-run values.
    pub environment: Environment,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Number of virtual processors.
    pub vcpus: u8,
    /// The container's standard streams.
    pub stdio: Stdio,
    /// Control socket, listening.
    pub control: UnixListener,
    /// Where the status is told.
    pub status: StatusFile,
    /// Kernel messages to stderr and in full.
    pub debug: bool,
}

/// Runs the VM to its end. `volumes` are served already. Returns the process's exit status.
pub fn run(machine: Machine, volumes: Vec<Volume>, mut channel: VmmEnd) -> u8 {
    match monitor::Monitor::boot(machine, volumes, &mut channel) {
        Ok(monitor) => monitor.serve(channel),
        Err(error) => launch::fail(&mut channel, &error),
    }
}
