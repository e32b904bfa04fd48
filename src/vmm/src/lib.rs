//! The microVM of cwrun: a small virtual machine on KVM that boots one Linux guest.
//!
//! This crate knows nothing of containers. It takes open files, a closure for vsock connections and a few numbers;
//! it opens no path by itself, so that the process can have an empty root and no capabilities from the start.
#![warn(missing_docs)]

mod config;
mod exit;
pub mod probe;
mod vm;

pub use config::{Access, Config, Disk, Vsock};
pub use exit::Exit;
pub use vm::{Error, Running, Vm, MIN_MEMORY_MIB};
