//! The JSON metadata (specification §3), reduced to what our images hold: one key slot, one segment, one digest, one
//! token. Reading refuses every other object, name and value: a header that says more was not made here.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::binary::{HEADER_LEN, JSON_LEN};
use crate::layout::PAYLOAD_OFFSET;
use crate::{HeaderError, Layout};

/// dm-crypt's name of the cipher, of payload and key slots.
pub(super) const CIPHER: &str = "aes-xts-plain64";

/// Offset in bytes of the key slot's material, behind both headers.
pub(super) const KEYSLOT_OFFSET: u64 = 2 * HEADER_LEN as u64;

/// 4000 stripes of 64 bytes, to a multiple of 4096.
const KEYSLOT_SIZE: u64 = 258_048;

/// Stripes of the anti-forensic splitter; LUKS allows no other number.
const STRIPES: u32 = luks::STRIPES as u32;

/// Bounds that a hostile header must not exceed: 1 GiB and a few seconds.
const MOST_MEMORY_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 64;
const MOST_LANES: u32 = 16;
const MOST_ROUNDS: u32 = 100_000_000;

/// The whole document.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    keyslots: BTreeMap<String, Keyslot>,
    tokens: BTreeMap<String, Token>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, Digest>,
    config: Config,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u32,
    af: Splitter,
    area: Area,
    kdf: Kdf,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Splitter {
    r#type: String,
    stripes: u32,
    hash: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: Decimal,
    size: Decimal,
    encryption: String,
    key_size: u32,
}

/// How the key of a key slot follows from a passphrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Kdf {
    /// PBKDF2 with HMAC.
    Pbkdf2 {
        /// Hash of the HMAC: sha256.
        hash: String,
        /// Rounds.
        iterations: u32,
        /// 32 bytes.
        salt: Base64,
    },
    /// Argon2id, version 1.3.
    Argon2id {
        /// Passes over the memory.
        time: u32,
        /// Memory in KiB.
        memory: u32,
        /// Lanes.
        cpus: u32,
        /// 32 bytes.
        salt: Base64,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    r#type: String,
    keyslots: Vec<String>,
    layout: Layout,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: Decimal,
    size: String,
    iv_tweak: Decimal,
    encryption: String,
    sector_size: u32,
}

/// A digest that tells whether a volume key is right.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Digest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    pub(super) iterations: u32,
    pub(super) salt: Base64,
    pub(super) digest: Base64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: Decimal,
    keyslots_size: Decimal,
}

/// A number beyond what JSON readers agree on: a string of decimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decimal(u64);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number
            .map(Self)
            .ok_or_else(|| D::Error::custom("a number in a string expected"))
    }
}

/// 32 bytes in base64: salts and digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base64(pub(super) [u8; 32]);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = BASE64
            .decode(String::deserialize(from)?)
            .map_err(D::Error::custom)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| D::Error::custom("32 bytes in base64 expected"))
    }
}

impl Digest {
    /// A digest of the volume key of segment 0.
    pub(super) fn new(iterations: u32, salt: [u8; 32], digest: [u8; 32]) -> Self {
        Self {
            r#type: "pbkdf2".to_owned(),
            keyslots: vec!["0".to_owned()],
            segments: vec!["0".to_owned()],
            hash: "sha256".to_owned(),
            iterations,
            salt: Base64(salt),
            digest: Base64(digest),
        }
    }
}

impl Metadata {
    /// The document for an image with this layout.
    pub(super) fn new(kdf: Kdf, digest: Digest, layout: &Layout) -> Self {
        let text = str::to_owned;
        let keyslot = Keyslot {
            r#type: text("luks2"),
            key_size: 64,
            af: Splitter {
                r#type: text("luks1"),
                stripes: STRIPES,
                hash: text("sha256"),
            },
            area: Area {
                r#type: text("raw"),
                offset: Decimal(KEYSLOT_OFFSET),
                size: Decimal(KEYSLOT_SIZE),
                encryption: text(CIPHER),
                key_size: 64,
            },
            kdf,
        };
        let segment = Segment {
            r#type: text("crypt"),
            offset: Decimal(layout.payload_offset),
            size: text("dynamic"), // to the end of the file
            iv_tweak: Decimal(0),
            encryption: text(CIPHER),
            sector_size: layout.sector_size,
        };
        let token = Token {
            r#type: text("cwrun"),
            keyslots: Vec::new(),
            layout: layout.clone(),
        };
        Self {
            keyslots: one(keyslot),
            tokens: one(token),
            segments: one(segment),
            digests: one(digest),
            config: Config {
                json_size: Decimal(JSON_LEN as u64),
                keyslots_size: Decimal(PAYLOAD_OFFSET - KEYSLOT_OFFSET),
            },
        }
    }

    /// The text that goes into the metadata area.
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys always make JSON")
    }

    /// Reads and checks a document. SECURITY: `json` may be anything; its length is bounded by the area.
    pub(super) fn from_json(header: &'static str, json: &[u8]) -> Result<Self, HeaderError> {
        let metadata: Self = serde_json::from_slice(json).map_err(|error| HeaderError::Json {
            header,
            reason: error.to_string(),
        })?;
        metadata.check()?;
        Ok(metadata)
    }

    /// Compares with the document that we would write, which leaves only what may differ: salts, digest, layout and
    /// the costs of key derivation, and those are bounded. A null cipher, an odd offset, a second segment that
    /// `cryptsetup` would prefer: all end here.
    fn check(&self) -> Result<(), HeaderError> {
        for (name, count) in [
            ("keyslots", self.keyslots.len()),
            ("tokens", self.tokens.len()),
            ("segments", self.segments.len()),
            ("digests", self.digests.len()),
        ] {
            expect(name, format!("a map of {count}"), "a map of 1".to_owned())?;
        }
        for (name, has) in [
            ("keyslots", self.keyslots.contains_key("0")),
            ("tokens", self.tokens.contains_key("0")),
            ("segments", self.segments.contains_key("0")),
            ("digests", self.digests.contains_key("0")),
        ] {
            expect(
                name,
                if has { "numbered 0" } else { "not numbered 0" }.to_owned(),
                "numbered 0".to_owned(),
            )?;
        }
        self.kdf().check()?;
        let digest = Digest {
            ..Digest::new(
                self.digest().iterations,
                self.digest().salt.0,
                self.digest().digest.0,
            )
        };
        bound("digests.0.iterations", digest.iterations, 1000, MOST_ROUNDS)?;
        let ours = Self::new(
            self.kdf().clone(),
            digest,
            &Layout {
                sector_size: 4096,
                ..self.layout().clone()
            },
        );
        same("keyslots.0", &self.keyslots["0"], &ours.keyslots["0"])?;
        same("tokens.0", &self.tokens["0"], &ours.tokens["0"])?;
        same("segments.0", &self.segments["0"], &ours.segments["0"])?;
        same("digests.0", &self.digests["0"], &ours.digests["0"])?;
        same("config", &self.config, &ours.config)?;
        expect(
            "segments.0.offset",
            self.layout().payload_offset.to_string(),
            PAYLOAD_OFFSET.to_string(),
        )
    }

    /// The one key slot's derivation. All documents that exist have exactly one object of each kind: see `check`.
    pub(super) fn kdf(&self) -> &Kdf {
        &self.keyslots["0"].kdf
    }

    /// The digest of the volume key.
    pub(super) fn digest(&self) -> &Digest {
        &self.digests["0"]
    }

    /// What the token says.
    pub(super) fn layout(&self) -> &Layout {
        &self.tokens["0"].layout
    }
}

impl Kdf {
    fn check(&self) -> Result<(), HeaderError> {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                expect("keyslots.0.kdf.hash", hash.clone(), "sha256".to_owned())?;
                bound("keyslots.0.kdf.iterations", *iterations, 1000, MOST_ROUNDS)
            }
            Self::Argon2id {
                time, memory, cpus, ..
            } => {
                bound("keyslots.0.kdf.time", *time, 1, MOST_PASSES)?;
                bound("keyslots.0.kdf.cpus", *cpus, 1, MOST_LANES)?;
                bound("keyslots.0.kdf.memory", *memory, 8 * cpus, MOST_MEMORY_KIB)
            }
        }
    }
}

/// A map with one object, numbered 0.
fn one<T>(object: T) -> BTreeMap<String, T> {
    BTreeMap::from([("0".to_owned(), object)])
}

fn same<T: PartialEq + Serialize>(field: &str, value: &T, expected: &T) -> Result<(), HeaderError> {
    if value == expected {
        return Ok(());
    }
    let json = |object| serde_json::to_string(object).expect("plain data always makes JSON");
    expect(field, json(value), json(expected))
}

fn bound(field: &str, value: u32, least: u32, most: u32) -> Result<(), HeaderError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    expect(field, value.to_string(), format!("{least} to {most}"))
}

fn expect(field: &str, value: String, expected: String) -> Result<(), HeaderError> {
    if value == expected {
        Ok(())
    } else {
        Err(HeaderError::Metadata {
            field: field.to_owned(),
            value,
            expected,
        })
    }
}
