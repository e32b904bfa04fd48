//! The microVM of cwrun: a small virtual machine on KVM that boots one Linux guest.
//!
//! ```text
//!                  ┌─ Vm ─────────────────────────────────────────────┐
//!   files, closure │ memory   boot → vcpu (threads)                   │  Exit
//!   ──────────────►│             exits │    ▲ irqfd                   ├──────►
//!                  │                   ▼    │                         │
//!                  │                  bus ─► serial, virtio (threads) │
//!                  └──────────────────────────────────────────────────┘
//! ```
//!
//! This crate knows nothing of containers. It takes open files, a closure for vsock connections and a few numbers; it
//! opens no path by itself, so that the process can have an empty root and no capabilities from the start.
//!
//! The guest is hostile to it. Guest memory is never a Rust reference (`memory`); what a guest writes to registers,
//! rings, descriptors and packets is copied once, checked, and used from the copy; it can make its own devices stop, and nothing
//! else (`virtio`).
//!
//! # System calls after `start`
//!
//! For the owner's seccomp filter; taken from the code and checked with strace. The threads named `vcpuN`, `blockN`, `netN` and `vsock`
//! make these, besides those of the `connect` closure. Those of volumes are the caller's: they make `read`, `write`, `preadv`,
//! `pwritev2`, and what a `volume::Server` makes. A thread may make its first ones after `start` has returned.
//!
//! | call | thread | for |
//! |---|---|---|
//! | `ioctl` (`KVM_RUN`, `KVM_KVMCLOCK_CTRL`) | vcpu | running the guest; the clock after a pause |
//! | `ioctl` (`KVM_SET_MEMORY_ATTRIBUTES`), `fallocate`, `madvise` | vcpu | page states of SNP guests |
//! | `poll`, `write` | vcpu | the console sink; eventfds that wake devices |
//! | `tgkill`, `getpid`, `rt_sigreturn` | vcpu, owner | kicks out of `KVM_RUN` |
//! | `read` | block | waiting for a notification |
//! | `preadv`, `pwritev`, `pwrite64`, `fdatasync`, `fallocate` | block | requests |
//! | `readv`, `writev`, `ioctl` (`TUNSETOFFLOAD`) | net | packets of a tap; what the guest can take of them |
//! | `recvfrom`, `sendto`, `close` | net | frames of a stream |
//! | `write` | block, net, vsock | interrupts to the guest |
//! | `epoll_wait`, `epoll_ctl` | net, vsock | waiting |
//! | `recvmsg`, `sendmsg`, `sendto`, `shutdown`, `close` | vsock | streams |
//! | `futex` | all | locks, channels, joins |
//! | `mmap`, `munmap`, `mremap`, `madvise`, `mprotect`, `brk` | all | the allocator, stacks |
//! | `rseq`, `set_robust_list`, `prctl` (`PR_SET_NAME`), `sched_getaffinity`, `sigaltstack`, `rt_sigprocmask`, `gettid` | all | a thread's beginning |
//! | `close`, `sigaltstack`, `munmap`, `madvise`, `rt_sigprocmask`, `exit` | all | a thread's end |
//! | `fcntl` (`F_GETFD`) | all | `close` in debug builds |

mod boot;
mod bus;
mod config;
mod exit;
mod firmware;
mod layout;
mod memory;
mod phase;
pub mod probe;
mod serial;
pub mod snp;
mod sys;
mod vcpu;
mod virtio;
mod vm;

pub use boot::BASE_CMDLINE;
pub use config::{Access, Boot, Config, Connect, Disk, Link, Nic, Thread, Volume, Vsock, Work};
pub use exit::Exit;
pub use firmware::{Firmware, Source, Staged, kvm_facts};
pub use memory::{MAX_MEMORY_MIB, MIN_MEMORY_MIB};
pub use vm::{Error, Running, Vm, confidential_cmdline};
