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

/// The exit status for an error, as shells and engines count: 127 for a program that does not exist, 126 for one that can't
/// be executed, 1 for anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<GuestFailure>().map(|failure| failure.kind) {
        Some(FailureKind::NotFound) => 127,
        Some(FailureKind::NotExecutable) => 126,
        _ => 1,
    }
}
