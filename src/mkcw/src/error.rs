//! What can be wrong with a disk. Each message is one sentence.

use std::fmt::Display;
use std::io;

/// Why a disk was refused, or could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on the disk failed.
    #[error("cannot read the {part} of the disk")]
    Read {
        /// "footer", "LUKS1 header", "key slot".
        part: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The disk ends before a part of it does.
    #[error("the disk ends inside its {0}")]
    Short(&'static str),
    /// The disk does not begin as LUKS disks do.
    #[error("the disk does not start with the LUKS magic")]
    Magic,
    /// The footer can't be what it says.
    #[error("the footer of the disk is not valid")]
    Footer(#[source] WrongField),
    /// The header is not one that this crate accepts.
    #[error("the LUKS1 header of the disk is not valid")]
    Header(#[source] WrongField),
    /// The header is a good one, of another disk.
    #[error("the LUKS1 header is not that of the disk that should be here")]
    OtherHeader(#[source] WrongField),
    /// The workload configuration is not one that krun would understand.
    #[error("the workload configuration is not valid")]
    Workload(#[source] WrongField),
    /// The image's configuration inside the disk is of no use.
    #[error("/.krun_config.json is not valid")]
    Inner(#[source] WrongField),
    /// A JSON document that does not parse, or not into what was expected.
    #[error("{document} is not valid")]
    Json {
        /// "the workload configuration" or "/.krun_config.json".
        document: &'static str,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// No key slot opens with the passphrase.
    #[error("the passphrase opens no key slot of the disk")]
    WrongPassphrase,
    /// A volume key that XTS must not be used with.
    #[error("the two halves of the volume key are equal, which AES-XTS forbids")]
    WeakKey,
}

/// A field that holds what it must not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value} and should be {expected}")]
pub struct WrongField {
    /// Name of the field, as the specification or the document has it.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub expected: String,
}

impl WrongField {
    pub(crate) fn new(field: impl Display, value: impl Display, expected: impl Display) -> Self {
        Self {
            field: field.to_string(),
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }

    /// For a text that might hold anything, of any length.
    pub(crate) fn text(field: impl Display, value: &str, expected: impl Display) -> Self {
        let short: String = value.chars().take(80).collect();
        let more = if short.len() < value.len() { "…" } else { "" };
        Self::new(field, format_args!("{short:?}{more}"), expected)
    }
}
