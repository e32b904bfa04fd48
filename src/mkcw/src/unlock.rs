//! From a passphrase to the volume key (LUKS1 specification §3).
//!
//! ```text
//!   passphrase ─► PBKDF2, slot's salt ─► slot key ─┐
//!   key material ─► AES-256-XTS, sectors from 0 ───┴─► 4000 stripes ─► merged ─► volume key
//!   volume key ─► PBKDF2, digest's salt ─► first 20 bytes ═ mk-digest ?
//! ```

use std::hint::black_box;

use luks::{KEY_LEN, MATERIAL_LEN, Xts};
use pbkdf2::pbkdf2_hmac;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::header::{KeyDigest, Slot};
use crate::{Error, Header, ReadAt, SECTOR};

/// The 512-bit key of an AES-256-XTS disk. Wiped from memory when dropped; never printed: it has no `Debug`.
pub struct VolumeKey(Box<Zeroizing<[u8; KEY_LEN]>>);

impl VolumeKey {
    fn new(bytes: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let (data, tweak) = bytes.split_at(KEY_LEN / 2);
        if data == tweak {
            return Err(Error::WeakKey);
        }
        Ok(Self(Box::new(Zeroizing::new(*bytes))))
    }

    /// The key itself, for the table of a dm-crypt device.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// All that a dm-crypt mapping `aes-xts-plain64` needs. Its sectors have [`SECTOR`] bytes, and the first has vector 0.
pub struct Opened {
    /// The key.
    pub key: VolumeKey,
    /// Offset in bytes of the payload on the disk, a multiple of 4096.
    pub payload_offset: u64,
    /// Length in bytes of the payload, a multiple of 4096. The file system in it may be shorter.
    pub payload_bytes: u64,
}

impl Header {
    /// Opens the first key slot of `disk` that `passphrase` fits. Takes [`Header::iterations`] rounds of PBKDF2 at most,
    /// and 250 KiB of memory.
    ///
    /// # Errors
    /// [`Error::WrongPassphrase`], [`Error::WeakKey`], [`Error::Short`], [`Error::Read`].
    pub fn unlock<D: ReadAt + ?Sized>(&self, disk: &D, passphrase: &[u8]) -> Result<Opened, Error> {
        let mut material = Zeroizing::new(vec![0; MATERIAL_LEN]);
        for slot in &self.slots {
            disk.read_exact_at(&mut material, slot.offset)
                .map_err(|source| match source.kind() {
                    std::io::ErrorKind::UnexpectedEof => Error::Short("key slot"),
                    _ => Error::Read {
                        part: "key slot",
                        source,
                    },
                })?;
            let key = slot.open(passphrase, &mut material);
            if self.digest.fits(&key) {
                let payload = self.payload();
                return Ok(Opened {
                    key: VolumeKey::new(&key)?,
                    payload_offset: payload.start,
                    payload_bytes: payload.end - payload.start,
                });
            }
        }
        Err(Error::WrongPassphrase)
    }
}

impl Slot {
    /// What the key slot holds, if `passphrase` is right.
    fn open(&self, passphrase: &[u8], material: &mut [u8]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        pbkdf2_hmac::<Sha256>(passphrase, &self.salt, self.iterations, &mut *key);
        Xts::new(&key).decrypt(material, 0, SECTOR);
        luks::merge(material)
    }
}

impl KeyDigest {
    fn fits(&self, key: &[u8; KEY_LEN]) -> bool {
        let mut digest = Zeroizing::new([0; 20]);
        pbkdf2_hmac::<Sha256>(key, &self.salt, self.iterations, &mut *digest);
        equal(&digest, &self.digest)
    }
}

/// Whether two digests are equal, in a time that says nothing about where they differ.
fn equal(a: &[u8; 20], b: &[u8; 20]) -> bool {
    let differing = a.iter().zip(b).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_keys_are_refused() {
        assert!(matches!(VolumeKey::new(&[7; 64]), Err(Error::WeakKey)));
        assert!(VolumeKey::new(&std::array::from_fn(|i| i as u8)).is_ok());
    }

    #[test]
    fn digests() {
        let a = [3; 20];
        assert!(equal(&a, &a));
        for i in 0..20 {
            let mut b = a;
            b[i] ^= 0x80;
            assert!(!equal(&a, &b), "{i}");
        }
    }
}
