//! The LUKS2 header: with it `cryptsetup luksDump` and `cryptsetup open` work on our images. The guest never reads it.
//!
//! ```text
//!   0         16 KiB      32 KiB             284 KiB                     1 MiB
//!   ┌─────────┬───────────┬──────────────────┬───────────────────────────┬─────────
//!   │ primary │ secondary │ key slot 0:      │ room for more key slots   │ payload
//!   │ header  │ header    │ 252 KiB          │ (a hole in the file)      │
//!   └─────────┴───────────┴──────────────────┴───────────────────────────┴─────────
//!   header:     binary part, 4 KiB │ JSON metadata, 12 KiB
//! ```
//!
//! Implements "LUKS2 On-Disk Format Specification" version 1.1.x. A token of type `cwrun` carries the [`Layout`], so
//! that [`inspect`] can show it without the key. It is as untrusted as the rest of the header.

mod binary;
mod keyslot;
mod metadata;

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use crate::{Error, HeaderError, Layout, Unlock, VolumeKey};
use binary::{Binary, Copy, HEADER_LEN};
use metadata::{Kdf, Metadata};

/// Writes both headers and the key slot.
pub(crate) fn write(image: &File, unlock: &Unlock, layout: &Layout, label: &str) -> Result<(), Error> {
    let failed = |source| Error::Image {
        action: "write the header of",
        source,
    };
    let (kdf, material) = keyslot::seal(unlock)?;
    let digest = keyslot::digest(unlock.volume_key())?;
    let json = Metadata::new(kdf, digest, layout).to_json();
    image
        .write_all_at(&material, metadata::KEYSLOT_OFFSET)
        .map_err(failed)?;
    let binary = Binary::new(label)?;
    for copy in [Copy::Primary, Copy::Secondary] {
        image
            .write_all_at(&binary.encode(copy, &json)?, copy.offset())
            .map_err(failed)?;
    }
    Ok(())
}

/// What the header of an image says. Nothing of it can be trusted: whoever stores the image can have written it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// UUID of the LUKS2 header.
    pub uuid: String,
    /// Label of the LUKS2 header; may be empty.
    pub label: String,
    /// Key slots in use.
    pub keyslots: Vec<Keyslot>,
    /// Cipher of the payload in dm-crypt's notation: always `aes-xts-plain64`.
    pub cipher: String,
    /// Length of the volume key in bits: always 512.
    pub key_bits: u32,
    /// The layout, with verity parameters and root hash.
    pub layout: Layout,
    /// Length in bytes of the image file.
    pub image_bytes: u64,
}

/// A key slot in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Keyslot {
    /// Number of the slot.
    pub number: u32,
    /// How the passphrase is turned into a key: `pbkdf2` or `argon2id`.
    pub kdf: String,
    /// Rounds of PBKDF2, or passes of Argon2.
    pub iterations: u32,
    /// Memory that it takes, in KiB; 0 for PBKDF2.
    pub memory_kib: u32,
}

/// Reads the header of an image strictly: both copies must be whole and equal, and say what images of this crate say.
///
/// # Errors
/// [`Error::Header`] naming the first field that is wrong, [`Error::Length`] where the file does not end with the
/// payload, [`Error::Layout`] where the token contradicts itself, [`Error::Image`].
pub fn inspect(image: &File) -> Result<Inspection, Error> {
    let (binary, metadata) = read(image)?;
    let layout = metadata.layout().clone();
    layout.check()?;
    let image_bytes = image
        .metadata()
        .map_err(|source| Error::Image {
            action: "examine",
            source,
        })?
        .len();
    if image_bytes != layout.image_bytes() {
        return Err(Error::Length {
            expected: layout.image_bytes(),
            actual: image_bytes,
        });
    }
    let (kdf, iterations, memory_kib) = match metadata.kdf() {
        Kdf::Pbkdf2 { iterations, .. } => ("pbkdf2", *iterations, 0),
        Kdf::Argon2id { time, memory, .. } => ("argon2id", *time, *memory),
    };
    Ok(Inspection {
        uuid: binary.uuid,
        label: binary.label,
        keyslots: vec![Keyslot {
            number: 0,
            kdf: kdf.to_owned(),
            iterations,
            memory_kib,
        }],
        cipher: metadata::CIPHER.to_owned(),
        key_bits: 512,
        layout,
        image_bytes,
    })
}

/// Opens the key slot of an image with a passphrase, such as the content of a key file.
///
/// # Errors
/// [`Error::Header`] as [`inspect`], [`Error::WrongPassphrase`], [`Error::Derive`], [`Error::Image`].
pub fn unlock(image: &File, passphrase: &[u8]) -> Result<VolumeKey, Error> {
    let (_, metadata) = read(image)?;
    let mut material = vec![0; luks::MATERIAL_LEN];
    read_exact(image, &mut material, metadata::KEYSLOT_OFFSET, "key slot")?;
    keyslot::open(metadata.kdf(), metadata.digest(), passphrase, material)
}

/// Both copies of the header, which must say the same.
fn read(image: &File) -> Result<(Binary, Metadata), Error> {
    let mut bytes = vec![0; HEADER_LEN];
    let mut copy = |copy: Copy| {
        read_exact(image, &mut bytes, copy.offset(), copy.name())?;
        let (binary, json) = Binary::decode(copy, &bytes)?;
        Ok::<_, Error>((binary, Metadata::from_json(copy.name(), json)?))
    };
    let (primary, secondary) = (copy(Copy::Primary)?, copy(Copy::Secondary)?);
    if primary.0 != secondary.0 {
        return Err(HeaderError::Copies("the binary part").into());
    }
    if primary.1 != secondary.1 {
        return Err(HeaderError::Copies("the metadata").into());
    }
    Ok(primary)
}

fn read_exact(image: &File, buffer: &mut [u8], offset: u64, part: &'static str) -> Result<(), Error> {
    image
        .read_exact_at(buffer, offset)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => HeaderError::Short(part).into(),
            _ => Error::Image {
                action: "read the header of",
                source,
            },
        })
}

#[cfg(test)]
#[path = "luks2_test.rs"]
mod tests;
