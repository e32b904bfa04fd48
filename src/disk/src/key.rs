//! The volume key of a disk, and what opens it.

use std::io;

use luks::KEY_LEN;
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use crate::Error;

/// The longest key file accepted, in bytes.
pub const MAX_KEY_FILE: usize = 8192;

/// The 512-bit key of an AES-256-XTS disk. Wiped from memory when dropped; never printed: it has no `Debug`.
#[derive(Clone)]
pub struct VolumeKey(Box<Zeroizing<[u8; KEY_LEN]>>);

impl VolumeKey {
    /// A key from elsewhere.
    ///
    /// # Errors
    /// [`Error::WeakKey`] where both halves are equal: then XTS loses its security (IEEE 1619, FIPS 140 IG C.I).
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let (data, tweak) = bytes.split_at(KEY_LEN / 2);
        if data == tweak {
            return Err(Error::WeakKey);
        }
        Ok(Self(Box::new(Zeroizing::new(*bytes))))
    }

    /// A new random key.
    ///
    /// # Errors
    /// [`Error::Random`] where the kernel gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        random(&mut *bytes)?;
        Self::from_bytes(&bytes)
    }

    /// The key itself, for the place that needs it: a cipher, or a file of mode 0600.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// The volume key of an image to be made, and what goes into its key slot.
pub enum Unlock {
    /// The volume key itself opens the key slot too.
    Key(VolumeKey),
    /// A passphrase opens the key slot; the volume key is random and unrelated to it.
    Passphrase {
        /// The volume key.
        key: VolumeKey,
        /// 1 to [`MAX_KEY_FILE`] bytes of any kind.
        passphrase: Zeroizing<Vec<u8>>,
    },
}

impl Unlock {
    /// A new random volume key, which opens its own key slot.
    ///
    /// # Errors
    /// [`Error::Random`] where the kernel gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self::Key(VolumeKey::generate()?))
    }

    /// The meaning of a key file. Exactly 64 bytes are the volume key, and open the key slot as well, so that both
    /// `cryptsetup open --key-file` and `--volume-key-file` take the file. Any other length is a passphrase.
    ///
    /// # Errors
    /// [`Error::KeyEmpty`], [`Error::KeyTooLong`] (beyond [`MAX_KEY_FILE`]), [`Error::WeakKey`], [`Error::Random`].
    pub fn from_key_file(content: &[u8]) -> Result<Self, Error> {
        if let Ok(bytes) = content.try_into() {
            return Ok(Self::Key(VolumeKey::from_bytes(bytes)?));
        }
        match content.len() {
            0 => Err(Error::KeyEmpty),
            1..=MAX_KEY_FILE => Ok(Self::Passphrase {
                key: VolumeKey::generate()?,
                passphrase: Zeroizing::new(content.to_vec()),
            }),
            _ => Err(Error::KeyTooLong),
        }
    }

    /// The key that the payload is encrypted with.
    #[must_use]
    pub fn volume_key(&self) -> &VolumeKey {
        match self {
            Self::Key(key) | Self::Passphrase { key, .. } => key,
        }
    }
}

/// Fills `buffer` with random bytes from the kernel.
pub(crate) fn random(mut buffer: &mut [u8]) -> Result<(), Error> {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(got) => buffer = &mut buffer[got..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::Random(io::Error::from(errno))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files() {
        let raw: Vec<u8> = (0..64).collect();
        assert!(matches!(Unlock::from_key_file(&raw), Ok(Unlock::Key(key)) if key.as_bytes()[..] == raw[..]));
        assert!(matches!(
            Unlock::from_key_file(&raw[..63]),
            Ok(Unlock::Passphrase { .. })
        ));
        assert!(matches!(Unlock::from_key_file(b""), Err(Error::KeyEmpty)));
        assert!(matches!(
            Unlock::from_key_file(&[1; 8193]),
            Err(Error::KeyTooLong)
        ));
        assert!(matches!(Unlock::from_key_file(&[7; 64]), Err(Error::WeakKey)));
    }

    #[test]
    fn generated_keys_differ() {
        let (a, b) = (VolumeKey::generate().unwrap(), VolumeKey::generate().unwrap());
        assert_ne!(a.as_bytes(), b.as_bytes());
    }
}
