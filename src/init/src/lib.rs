//! PID 1 of the guest: takes a Workload from the host and makes a running container of it.
//!
//! | module | its job |
//! |---|---|
//! | `guest` | the whole story, in order |
//! | `world` | init's own mounts |
//! | `control` | the stream to the host |
//! | `evidence` | whether the Workload is the one that a confidential guest was launched for |
//! | `sealed` | a sealed Workload's keys and secrets, from the key broker |
//! | `dm`, `layers`, `scratch` | disks: encrypted, verified, mounted, written over |
//! | `mkcw_disk` | other people's disks |
//! | `whiteouts` | devices 0:0 of an image, which an overlay does not show |
//! | `ext4`, `trim` | the scratch disk's file system, and its free space |
//! | `mount` | mounting by descriptor |
//! | `container` | the child's side: namespaces, mounts, devices, user, program |
//! | `process`, `link`, `cgroup` | the parent's side: the child, what it reports, its group |
//! | `session`, `task`, `pump` | the event loop, processes, and the bytes that go through it |
//! | `sys` | system calls that rustix does not have |
//!
//! The host is not trusted: what it sends is parsed once, by the `workload` crate, and nothing it says makes init
//! panic. Every failure reaches it as one sentence; what can't reach it goes to the kernel log, and the guest resets.

mod cgroup;
mod container;
mod control;
mod dm;
mod evidence;
mod ext4;
mod failure;
pub mod guest;
pub mod kmsg;
mod layers;
mod link;
mod mkcw_disk;
mod mount;
mod network;
mod process;
mod pump;
mod scratch;
mod sealed;
mod session;
mod sys;
mod task;
mod trim;
mod whiteouts;
mod world;
