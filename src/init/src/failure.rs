//! How anything in here fails: a kind, which becomes an exit status on the host, and one sentence.

use std::io;
use workload::protocol::{FailureKind, Outcome};

/// A failure as it is reported to the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure, for the exit status.
    pub kind: FailureKind,
    /// One sentence for a person.
    pub message: String,
}

/// Result of a step.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// A failure that is nobody's exit status.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Other, message)
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed {
            kind: failure.kind,
            message: failure.message,
        }
    }
}

/// Says what was being done when a system call failed.
pub trait Context<T> {
    /// The failure reads `<what>: <reason>`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::other(format!("{}: {}", what(), reason(error))))
    }
}

/// The system's words for an error, without the number that Rust appends: engines match on the exact words.
pub fn reason(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_failure_reads_as_one_sentence_without_numbers() {
        let failed: std::result::Result<(), Errno> = Err(Errno::NOENT);
        let failure = failed.context(|| "open /dev/vda".into()).unwrap_err();
        assert_eq!(failure.to_string(), "open /dev/vda: No such file or directory");
        assert_eq!(failure.kind, FailureKind::Other);
    }
}
