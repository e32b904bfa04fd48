//! What can go wrong. Each message is one sentence; foreign causes hang behind it as `source`.

use std::io;
use std::path::PathBuf;

/// An error of a conversion, of reading an image back, or of the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on something in the root file system failed.
    #[error("cannot {action} {path:?} in the root file system")]
    Source {
        /// What was tried: "open", "read".
        action: &'static str,
        /// Full path, as the caller named the root file system.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something was written, replaced or removed between the scan and the end of its reading.
    #[error("{path:?} changed while the root file system was being read")]
    Changed {
        /// Full path.
        path: PathBuf,
    },
    /// An extended attribute that EROFS has no room for.
    #[error(
        "extended attribute {name} of {path:?} is {size} bytes long, more than the 65535 that EROFS can store"
    )]
    XattrValue {
        /// Full path.
        path: PathBuf,
        /// Name of the attribute with its prefix.
        name: String,
        /// Length of the value in bytes.
        size: usize,
    },
    /// A mark of overlayfs that would mean something else in the guest.
    #[error("{path:?} carries {mark}, which overlayfs takes for a mark of its own")]
    Marker {
        /// Full path.
        path: PathBuf,
        /// Name of the attribute.
        mark: String,
    },
    /// Devices 0:0 whose paths are too long to be listed.
    #[error(
        "{path:?} is a device 0:0, and such have to be listed for the guest: paths of less than 4096 bytes, less than 65536 together"
    )]
    Whiteouts {
        /// Full path of the first that has no place in the list.
        path: PathBuf,
    },
    /// The extended attributes of one file together are too long for EROFS.
    #[error("extended attributes of {path:?} take {size} bytes, more than the 262148 that EROFS can store")]
    XattrTotal {
        /// Full path.
        path: PathBuf,
        /// Length in bytes, encoded.
        size: usize,
    },
    /// The file system would be longer than EROFS can address.
    #[error(
        "root file system {path:?} needs {blocks} blocks of 4 KiB, more than the 4294967295 that EROFS can address"
    )]
    TooLarge {
        /// The root file system.
        path: PathBuf,
        /// Blocks needed.
        blocks: u64,
    },
    /// A file that is asked for whole and is longer than it may be.
    #[error("{path:?} is longer than {most} bytes")]
    Long {
        /// Full path.
        path: PathBuf,
        /// How long it may be.
        most: usize,
    },
    /// More entries than the conversion can count.
    #[error("root file system {path:?} has more than 4294967295 entries")]
    TooMany {
        /// The root file system.
        path: PathBuf,
    },
    /// A member of an archive that no root file system can have, or an archive that is none.
    #[error("layer {layer}: {member:?} {problem}")]
    Archive {
        /// Which of the layers, the lowest being 1.
        layer: usize,
        /// Its path in the archive, as far as it is known.
        member: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An archive could not be read.
    #[error("cannot read layer {layer}")]
    ArchiveRead {
        /// Which of the layers, the lowest being 1.
        layer: usize,
        /// The cause.
        source: io::Error,
    },
    /// A system call on the image failed.
    #[error("cannot {action} the disk image")]
    Image {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A label that does not fit.
    #[error("label {label:?} is longer than 15 bytes or holds a NUL")]
    Label {
        /// The label asked for.
        label: String,
    },
    /// A volume key that XTS must not be used with.
    #[error("the two halves of the volume key are equal, which AES-XTS forbids")]
    WeakKey,
    /// An empty key file.
    #[error("the key file is empty")]
    KeyEmpty,
    /// A key file beyond [`MAX_KEY_FILE`](crate::MAX_KEY_FILE).
    #[error("the key file is longer than 8192 bytes")]
    KeyTooLong,
    /// The kernel gave no random bytes.
    #[error("cannot draw random bytes from the kernel")]
    Random(#[source] io::Error),
    /// A key derivation function refused its parameters.
    #[error("cannot derive a key from the passphrase: {reason}")]
    Derive {
        /// What the function said.
        reason: String,
    },
    /// The header of an image is not one that this crate writes.
    #[error("the disk image has no valid header")]
    Header(#[from] HeaderError),
    /// No key slot opens with the passphrase.
    #[error("the passphrase opens no key slot of the disk image")]
    WrongPassphrase,
    /// The key is not the one that the image was encrypted with.
    #[error("the volume key does not belong to the disk image")]
    WrongKey,
    /// A layout whose figures contradict each other.
    #[error("the disk layout is inconsistent: {reason}")]
    Layout {
        /// Which figure, and what it should be.
        reason: String,
    },
    /// The image is not as long as its layout says.
    #[error("the disk image is {actual} bytes long and should be {expected}")]
    Length {
        /// Length in bytes that follows from the layout.
        expected: u64,
        /// Length in bytes of the file.
        actual: u64,
    },
    /// The content of the image is not what its root hash promises.
    #[error("{part} block {block} of the disk image is damaged")]
    BadBlock {
        /// "data", "verity superblock", "hash tree".
        part: &'static str,
        /// Number of the block in units of 4096 bytes from the start of the payload.
        block: u64,
    },
    /// A system call in the cache directory failed.
    #[error("cannot {action} {path:?} in the disk cache")]
    Cache {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The cache directory can't be trusted with keys.
    #[error("disk cache {path:?} must be a directory of the current user with mode 0700")]
    CacheDirectory {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the file system of the image or of the cache is full, or the user's share of it.
    pub(crate) fn is_out_of_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let (Self::Image { source, .. } | Self::Cache { source, .. }) = self else {
            return false;
        };
        matches!(source.kind(), StorageFull | QuotaExceeded)
    }
}

/// Why a LUKS2 header was refused. The header is hostile input; see [`inspect`](crate::inspect).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file ends before the header does.
    #[error("the file ends inside the {0} header")]
    Short(&'static str),
    /// No LUKS magic where one belongs.
    #[error("the {0} header does not start with the LUKS2 magic")]
    Magic(&'static str),
    /// A fixed field with another value than LUKS2 and cwrun allow.
    #[error("{field} of the {header} header is {value} and should be {expected}")]
    Field {
        /// "primary" or "secondary".
        header: &'static str,
        /// Name of the field in the specification.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: String,
    },
    /// Damage.
    #[error("the checksum of the {0} header does not match its content")]
    Checksum(&'static str),
    /// The two copies contradict each other.
    #[error("{0} differs between the primary and the secondary header")]
    Copies(&'static str),
    /// The JSON area does not hold the JSON that cwrun writes.
    #[error("the metadata of the {header} header is not valid: {reason}")]
    Json {
        /// "primary" or "secondary".
        header: &'static str,
        /// Message of the parser, with line and column.
        reason: String,
    },
    /// A value in the metadata that cwrun does not accept.
    #[error("{field} in the metadata is {value} and should be {expected}")]
    Metadata {
        /// Path of the field, such as `segments.0.encryption`.
        field: String,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: String,
    },
}
