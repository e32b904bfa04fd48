//! The binary part of a header: one of 4 KiB before each copy of the JSON metadata (specification §2.1).
//!
//! All numbers are big endian. The checksum covers the binary part, with zeros in place of the checksum, and the
//! metadata area.

use sha2::{Digest, Sha256};

use crate::key::random;
use crate::{Error, HeaderError, hex};

/// Length of a header with its metadata area, the smallest that LUKS2 allows.
pub(super) const HEADER_LEN: usize = 16 << 10;

/// Length of the binary part.
const BINARY_LEN: usize = 4096;

/// Length of the metadata area; the JSON ends with a zero.
pub(super) const JSON_LEN: usize = HEADER_LEN - BINARY_LEN;

const VERSION: u16 = 2;
const CHECKSUM_ALGORITHM: &str = "sha256";
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

/// Which of the two.
#[derive(Clone, std::marker::Copy)]
pub(super) enum Copy {
    Primary,
    Secondary,
}

impl Copy {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    pub(super) const fn offset(self) -> u64 {
        match self {
            Self::Primary => 0,
            Self::Secondary => HEADER_LEN as u64,
        }
    }

    const fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => b"LUKS\xba\xbe",
            Self::Secondary => b"SKUL\xba\xbe",
        }
    }
}

/// What both copies have in common.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) label: String,
    pub(super) uuid: String,
    sequence: u64,
}

impl Binary {
    /// A header with a new random UUID. `label` has at most 15 bytes.
    pub(super) fn new(label: &str) -> Result<Self, Error> {
        let mut uuid = [0; 16];
        random(&mut uuid)?;
        uuid[6] = 0x40 | uuid[6] & 0x0f;
        uuid[8] = 0x80 | uuid[8] & 0x3f;
        let text = hex::encode(&uuid);
        let uuid = [
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..],
        ]
        .join("-");
        Ok(Self {
            label: label.to_owned(),
            uuid,
            sequence: 1,
        })
    }

    /// One copy with its metadata, which must leave room for a zero behind it.
    pub(super) fn encode(&self, copy: Copy, json: &[u8]) -> Result<Vec<u8>, Error> {
        assert!(
            json.len() < JSON_LEN,
            "metadata with one key slot takes less than 2 KiB"
        );
        let mut bytes = vec![0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, copy.magic());
        put(6, &VERSION.to_be_bytes());
        put(8, &(HEADER_LEN as u64).to_be_bytes());
        put(16, &self.sequence.to_be_bytes());
        put(24, self.label.as_bytes());
        put(72, CHECKSUM_ALGORITHM.as_bytes());
        let mut salt = [0; 64];
        random(&mut salt)?; // makes the checksum of each copy its own
        put(104, &salt);
        put(168, self.uuid.as_bytes());
        put(256, &copy.offset().to_be_bytes());
        put(BINARY_LEN, json);
        let checksum = Sha256::digest(&bytes);
        bytes[CHECKSUM_AT..][..checksum.len()].copy_from_slice(&checksum);
        Ok(bytes)
    }

    /// Takes one copy apart; returns the JSON too. SECURITY: `bytes` may be anything.
    pub(super) fn decode(copy: Copy, bytes: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let header = copy.name();
        let Some((binary, metadata)) = bytes.split_first_chunk::<BINARY_LEN>() else {
            return Err(HeaderError::Short(header));
        };
        if !binary.starts_with(copy.magic()) {
            return Err(HeaderError::Magic(header));
        }
        let field = Fields { header, binary };
        field.expect("version", u64::from(VERSION), &binary[6..8])?;
        field.expect("hdr_size", HEADER_LEN as u64, &binary[8..16])?;
        field.expect("hdr_offset", copy.offset(), &binary[256..264])?;
        let algorithm = field.text("checksum_alg", &binary[72..104])?;
        if algorithm != CHECKSUM_ALGORITHM {
            return Err(field.wrong("checksum_alg", algorithm, CHECKSUM_ALGORITHM.to_owned()));
        }
        let mut blank = *binary;
        blank[CHECKSUM_AT..CHECKSUM_AT + CHECKSUM_LEN].fill(0);
        let checksum = Sha256::new_with_prefix(blank).chain_update(metadata).finalize();
        let (stored, rest) = binary[CHECKSUM_AT..CHECKSUM_AT + CHECKSUM_LEN].split_at(checksum.len());
        if stored != checksum.as_slice() || rest.iter().any(|byte| *byte != 0) {
            return Err(HeaderError::Checksum(header));
        }
        let end = metadata.iter().position(|byte| *byte == 0).ok_or_else(|| {
            field.wrong(
                "JSON area",
                "without a zero at its end".to_owned(),
                "text that ends with a zero".to_owned(),
            )
        })?;
        let label = field.text("label", &binary[24..72])?;
        let uuid = field.text("uuid", &binary[168..208])?;
        Ok((
            Self {
                label,
                uuid,
                sequence: number(&binary[16..24]),
            },
            &metadata[..end],
        ))
    }
}

/// For messages about the fields of one header.
struct Fields<'a> {
    header: &'static str,
    binary: &'a [u8; BINARY_LEN],
}

impl Fields<'_> {
    fn expect(&self, field: &'static str, expected: u64, bytes: &[u8]) -> Result<(), HeaderError> {
        match number(bytes) {
            value if value == expected => Ok(()),
            value => Err(self.wrong(field, value.to_string(), expected.to_string())),
        }
    }

    /// Printable ASCII up to the first zero.
    fn text(&self, field: &'static str, bytes: &[u8]) -> Result<String, HeaderError> {
        debug_assert!(bytes.len() < self.binary.len());
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(text) if text.len() < bytes.len() && !text.chars().any(char::is_control) => {
                Ok(text.to_owned())
            }
            _ => Err(self.wrong(
                field,
                format!("{:?}", text.escape_ascii().to_string()),
                "printable text".to_owned(),
            )),
        }
    }

    fn wrong(&self, field: &'static str, value: String, expected: String) -> HeaderError {
        HeaderError::Field {
            header: self.header,
            field,
            value,
            expected,
        }
    }
}

/// A big-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
