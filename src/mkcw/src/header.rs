//! The LUKS1 header (LUKS1 on-disk format specification 1.2.3, §2.1 and §2.2), read as one that `buildah mkcw` could
//! have written.
//!
//! ```text
//!   offset  length                              offset  length
//!   0       6    magic                          112     20   mk-digest
//!   6       2    version: 1                     132     32   mk-digest-salt
//!   8       32   cipher-name: aes               164     4    mk-digest-iter
//!   40      32   cipher-mode: xts-plain64       168     40   uuid
//!   72      32   hash-spec: sha256              208     48   key slot 0: active 4, iterations 4, salt 32,
//!   104     4    payload-offset, sectors                     key-material-offset 4 (sectors), stripes 4
//!   108     4    key-bytes: 64                  …            … up to key slot 7, which ends at 592
//! ```
//!
//! All numbers are big endian; offsets count sectors of 512 bytes; texts are padded with zeros.
//!
//! SECURITY: a host that could choose the cipher would choose `cipher_null`, and have a guest write its secrets to a disk
//! in the clear, or run a file system of the host's making. Hence one cipher, one mode, one hash, one key size.

use std::ops::Range;

use luks::MATERIAL_LEN;
use sha2::{Digest as _, Sha256};

use crate::{BLOCK, Error, ReadAt, SECTOR, WrongField};

/// The fewest rounds of PBKDF2 accepted: what RFC 2898 asks for, and `cryptsetup` insists on.
pub const MIN_ITERATIONS: u32 = 1000;

/// The most rounds of PBKDF2 accepted, in all key slots and the digest together. `buildah mkcw` makes the key slot so that
/// its machine would take about a second: one to five million.
pub const MAX_ITERATIONS: u32 = 10_000_000;

pub(crate) const HEADER_LEN: usize = 592;
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SLOTS: usize = 8;
const ACTIVE: u32 = 0x00ac_71f3;
const UNUSED: u32 = 0x0000_dead;

/// A valid header, and where the payload lies. Nothing of it is known to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    sha256: [u8; 32],
    uuid: String,
    payload: Range<u64>,
    pub(crate) digest: KeyDigest,
    pub(crate) slots: Vec<Slot>,
}

/// What tells the right volume key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyDigest {
    pub(crate) digest: [u8; 20],
    pub(crate) salt: [u8; 32],
    pub(crate) iterations: u32,
}

/// A key slot in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    number: usize,
    pub(crate) iterations: u32,
    pub(crate) salt: [u8; 32],
    /// Offset in bytes of the key material.
    pub(crate) offset: u64,
}

impl Header {
    /// Reads the header of `disk`, whose payload ends at `end`: where its [`Footer`](crate::Footer) starts, or its length
    /// in bytes without one.
    ///
    /// # Errors
    /// [`Error::Header`] naming the first field that is wrong, [`Error::Magic`], [`Error::Short`], [`Error::Read`].
    pub fn read<D: ReadAt + ?Sized>(disk: &D, end: u64) -> Result<Self, Error> {
        let mut bytes = [0; HEADER_LEN];
        disk.read_exact_at(&mut bytes, 0)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::Short("LUKS1 header"),
                _ => Error::Read {
                    part: "LUKS1 header",
                    source,
                },
            })?;
        Self::parse(&bytes, end)
    }

    fn parse(bytes: &[u8; HEADER_LEN], end: u64) -> Result<Self, Error> {
        let mut fields = Fields(bytes);
        if fields.take::<6>() != *MAGIC {
            return Err(Error::Magic);
        }
        Self::fields(fields, end, Sha256::digest(bytes).into()).map_err(Error::Header)
    }

    fn fields(mut fields: Fields<'_>, end: u64, sha256: [u8; 32]) -> Result<Self, WrongField> {
        exactly("version", u16::from_be_bytes(fields.take()).into(), 1)?;
        fields.text::<32>("cipher-name", "aes")?;
        fields.text::<32>("cipher-mode", "xts-plain64")?;
        fields.text::<32>("hash-spec", "sha256")?;
        let payload = payload(fields.sectors(), end)?;
        exactly("key-bytes", fields.number(), luks::KEY_LEN as u32)?;
        let digest = KeyDigest {
            digest: fields.take(),
            salt: fields.take(),
            iterations: iterations("mk-digest-iter", fields.number())?,
        };
        let uuid = uuid(&fields.take::<40>())?;
        let mut slots = Vec::with_capacity(SLOTS);
        for number in 0..SLOTS {
            slots.extend(Slot::parse(number, &mut fields, payload.start)?);
        }
        let header = Self {
            sha256,
            uuid,
            payload,
            digest,
            slots,
        };
        header.check()?;
        Ok(header)
    }

    /// What concerns the key slots together.
    fn check(&self) -> Result<(), WrongField> {
        if self.slots.is_empty() {
            return Err(WrongField::new("number of key slots in use", 0, "1 to 8"));
        }
        if self.iterations() > u64::from(MAX_ITERATIONS) {
            return Err(WrongField::new(
                "sum of all iterations",
                self.iterations(),
                format_args!("{MAX_ITERATIONS} or less"),
            ));
        }
        for (i, slot) in self.slots.iter().enumerate() {
            let other = self.slots[..i]
                .iter()
                .find(|other| other.offset.abs_diff(slot.offset) < MATERIAL_LEN as u64);
            if let Some(other) = other {
                return Err(WrongField::new(
                    slot.field("key-material-offset"),
                    slot.offset / SECTOR as u64,
                    format_args!("clear of the material of key slot {}", other.number),
                ));
            }
        }
        Ok(())
    }

    /// SHA-256 of its bytes, as they were read. Two disks have different ones, since volume keys and salts are random.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The header, if it is the one with this SHA-256.
    ///
    /// SECURITY: a passphrase can open more than one disk, and who has seen an old one would give a guest that.
    ///
    /// # Errors
    /// [`Error::OtherHeader`].
    pub fn expect(self, sha256: &[u8; 32]) -> Result<Self, Error> {
        if self.sha256 != *sha256 {
            return Err(Error::OtherHeader(WrongField::new(
                "SHA-256",
                hex(&self.sha256),
                hex(sha256),
            )));
        }
        Ok(self)
    }

    /// UUID in its usual form.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Where the payload lies on the disk, in bytes. Start and length are multiples of [`BLOCK`], and it is not empty.
    #[must_use]
    pub fn payload(&self) -> Range<u64> {
        self.payload.clone()
    }

    /// Rounds of PBKDF2 that the worst case of [`unlock`](Self::unlock) takes; at most [`MAX_ITERATIONS`].
    #[must_use]
    pub fn iterations(&self) -> u64 {
        let slots = self.slots.iter().map(|slot| u64::from(slot.iterations));
        // The digest is computed once for each key slot that is tried.
        slots.map(|own| own + u64::from(self.digest.iterations)).sum()
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Slot {
    /// A key slot, or `None` for one that is marked as not in use.
    fn parse(number: usize, fields: &mut Fields<'_>, payload: u64) -> Result<Option<Self>, WrongField> {
        let active = fields.number();
        let rounds = fields.number();
        let slot = Self {
            number,
            iterations: rounds,
            salt: fields.take(),
            offset: fields.sectors(),
        };
        let stripes = fields.number();
        match active {
            // Nothing else of it is ever looked at; `buildah mkcw` leaves random salts there.
            UNUSED => return Ok(None),
            ACTIVE => {}
            _ => {
                return Err(WrongField::new(
                    slot.field("active"),
                    format_args!("{active:#010x}"),
                    format_args!("{ACTIVE:#010x} or {UNUSED:#010x}"),
                ));
            }
        }
        iterations(&slot.field("iterations"), rounds)?;
        exactly(&slot.field("stripes"), stripes, luks::STRIPES as u32)?;
        // Both come from 32 bits, in sectors: no overflow.
        if slot.offset < HEADER_LEN as u64 || slot.offset + MATERIAL_LEN as u64 > payload {
            return Err(WrongField::new(
                slot.field("key-material-offset"),
                slot.offset / SECTOR as u64,
                format_args!(
                    "2 to {}, between header and payload",
                    payload.saturating_sub(MATERIAL_LEN as u64) / SECTOR as u64
                ),
            ));
        }
        Ok(Some(slot))
    }

    fn field(&self, name: &str) -> String {
        format!("{name} of key slot {}", self.number)
    }
}

fn payload(start: u64, end: u64) -> Result<Range<u64>, WrongField> {
    let sector = SECTOR as u64;
    if !start.is_multiple_of(BLOCK) || start == 0 {
        return Err(WrongField::new(
            "payload-offset",
            start / sector,
            "a multiple of 8",
        ));
    }
    match end.checked_sub(start) {
        Some(length) if length >= BLOCK => Ok(start..start + length / BLOCK * BLOCK),
        _ => Err(WrongField::new(
            "payload-offset",
            start / sector,
            format_args!(
                "{} or less, in a disk of {end} bytes",
                end.saturating_sub(BLOCK) / sector
            ),
        )),
    }
}

fn exactly(field: &str, value: u32, expected: u32) -> Result<(), WrongField> {
    if value == expected {
        return Ok(());
    }
    Err(WrongField::new(field, value, expected))
}

fn iterations(field: &str, value: u32) -> Result<u32, WrongField> {
    if (MIN_ITERATIONS..=MAX_ITERATIONS).contains(&value) {
        return Ok(value);
    }
    Err(WrongField::new(
        field,
        value,
        format_args!("{MIN_ITERATIONS} to {MAX_ITERATIONS}"),
    ))
}

fn uuid(bytes: &[u8; 40]) -> Result<String, WrongField> {
    let (uuid, rest) = bytes.split_at(36);
    let right = |(i, byte): (usize, &u8)| match i {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    match std::str::from_utf8(uuid) {
        Ok(text) if uuid.iter().enumerate().all(right) && rest == [0; 4] => Ok(text.to_owned()),
        _ => Err(WrongField::text(
            "uuid",
            &String::from_utf8_lossy(bytes),
            "a UUID in hexadecimal",
        )),
    }
}

/// The fields of a header that are yet to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("all fields together are as long as the header");
        self.0 = rest;
        *field
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    /// A number of sectors, in bytes.
    fn sectors(&mut self) -> u64 {
        u64::from(self.number()) * SECTOR as u64
    }

    /// A text that must be `expected`, and zeros up to its end.
    fn text<const N: usize>(&mut self, field: &str, expected: &str) -> Result<(), WrongField> {
        let bytes = self.take::<N>();
        match bytes.strip_prefix(expected.as_bytes()) {
            Some(rest) if rest.iter().all(|byte| *byte == 0) => Ok(()),
            _ => {
                let text = String::from_utf8_lossy(&bytes);
                Err(WrongField::text(field, text.trim_end_matches('\0'), expected))
            }
        }
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
pub(crate) mod tests;
