//! How a VM ends.

use std::fmt;

/// Why the VM does not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest asked for a reset, which is how it ends in an orderly way (`reboot=k`: the keyboard controller's
    /// reset line), and also what its kernel does after a panic.
    Reset,
    /// The guest asked to be powered off.
    PowerOff,
    /// A triple fault: the guest could not handle an exception.
    TripleFault,
    /// The guest's firmware or kernel found that it can't go on safely.
    Terminated {
        /// What it found, as a sentence without its period; empty where the code has no meaning here.
        reason: String,
        /// The code that it gave.
        code: u64,
    },
    /// KVM could not go on running a vCPU.
    Fault {
        /// Index of the vCPU.
        vcpu: u8,
        /// What KVM said, as a phrase.
        reason: String,
    },
    /// [`Running::stop`](crate::Running::stop) was called.
    Stopped,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Reset => f.write_str("the guest reset itself"),
            Exit::PowerOff => f.write_str("the guest powered itself off"),
            Exit::TripleFault => f.write_str("the guest ended in a triple fault"),
            Exit::Terminated { reason, code } if reason.is_empty() => {
                write!(f, "the guest ended itself with the termination code {code:#x}")
            }
            Exit::Terminated { reason, .. } => write!(f, "the guest ended itself: {reason}"),
            Exit::Fault { vcpu, reason } => write!(f, "vCPU {vcpu} can't go on: {reason}"),
            Exit::Stopped => f.write_str("the VM was stopped"),
        }
    }
}
