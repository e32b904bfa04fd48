//! Failures that users see as an exit status of their own.

use workload::protocol::FailureKind;

/// A failure reported by the guest.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct GuestFailure {
    /// What kind.
    pub kind: FailureKind,
    /// One sentence.
    pub message: String,
}

/// The exit status for an error: that of the guest's failure if it is one, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    code_of(kind_of(error))
}

/// What kind of failure an error is: that of the guest's failure if it is one.
pub fn kind_of(error: &anyhow::Error) -> FailureKind {
    error
        .downcast_ref::<GuestFailure>()
        .map_or(FailureKind::Other, |failure| failure.kind)
}

/// The exit status for a kind of failure, as shells and engines count: 127 for a program that does not exist, 126 for one
/// that can't be executed, 1 for anything else.
pub fn code_of(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::NotFound => 127,
        FailureKind::NotExecutable => 126,
        FailureKind::NoProcess | FailureKind::Other => 1,
    }
}
