//! Making and running the VM.
use crate::{Config, Exit};
use std::os::fd::BorrowedFd;

/// The least guest RAM with which a guest boots, in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Why a VM could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// memory too small.
    #[error("memory: {0} MiB is less than the {MIN_MEMORY_MIB} MiB that a guest needs to boot")]
    MemoryTooSmall(u64),
}

/// A machine with everything in place, whose processors do not run yet.
pub struct Vm {}

impl Vm {
    /// Makes the VM: memory, kernel, devices, vCPUs. No thread runs yet.
    pub fn new(_config: Config) -> Result<Vm, Error> {
        unimplemented!()
    }

    /// Starts the device and vCPU threads.
    pub fn start(self) -> Result<Running, Error> {
        unimplemented!()
    }
}

/// A VM whose threads run. Dropping it stops the VM.
pub struct Running {}

impl Running {
    /// Waits until the VM has ended and says why.
    pub fn wait(&self) -> Exit {
        unimplemented!()
    }

    /// Why the VM ended, or `None` while it runs.
    pub fn try_exit(&self) -> Option<Exit> {
        unimplemented!()
    }

    /// Becomes (and stays) readable when the VM has ended. Don't read from it.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }

    /// Stops all vCPUs from running guest code; returns when they do not run any more.
    pub fn pause(&self) {}

    /// Lets the vCPUs go on after [`pause`](Running::pause).
    pub fn resume(&self) {}

    /// Ends the VM; `wait` returns [`Exit::Stopped`] unless it had ended by itself before.
    pub fn stop(&self) {}

    /// The last 64 KiB that the guest wrote to its serial port: the kernel's log.
    pub fn console_tail(&self) -> String {
        String::new()
    }
}
