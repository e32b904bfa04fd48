//! The key file: 32 random bytes in hexadecimal, from which the keys of the store and of attestation tokens are derived.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::KeyInit as _;
use p256::ecdsa::SigningKey;
use sha2::{Digest as _, Sha256};
use workload::Hex;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} the key file {path}")]
    Io {
        /// "create", "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others can read it.
    #[error("the key file {0} can be read by others; its mode should be 0600")]
    Mode(PathBuf),
    /// Not what `init` writes.
    #[error("the key file {0} should hold 64 hexadecimal digits")]
    Contents(PathBuf),
}

/// The key behind the store. Wiped when dropped; has no `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StoreKey([u8; 32]);

impl StoreKey {
    /// A fresh one.
    pub fn generate() -> io::Result<Self> {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).map_err(io::Error::other)?;
        Ok(key)
    }

    /// Writes it to a new file with mode 0600.
    pub fn create(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io {
            action: "create",
            path: path.to_path_buf(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let text = Zeroizing::new(format!("{}\n", Hex(self.0)));
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io)
    }

    /// Reads it from a file that nobody else can read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.mode() & 0o077 != 0 {
            return Err(Error::Mode(path.to_path_buf()));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(128));
        file.take(100).read_to_end(&mut text).map_err(io)?;
        let quoted = Zeroizing::new([&b"\""[..], text.trim_ascii(), b"\""].concat());
        let Hex(key) = serde_json::from_slice(&quoted).map_err(|_| Error::Contents(path.to_path_buf()))?;
        Ok(Self(key))
    }

    /// The cipher that values of the store are sealed with.
    pub fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&(*self.derived(b"store", 0)).into())
    }

    /// The key that attestation tokens are signed with.
    pub fn signing_key(&self) -> SigningKey {
        for attempt in 0..=u8::MAX {
            if let Ok(key) = SigningKey::from_slice(&*self.derived(b"token", attempt)) {
                return key;
            }
        }
        // Each attempt fails with a probability of 2^-32: when the digest is no number below the order of the curve.
        unreachable!("256 digests in a row are out of range")
    }

    fn derived(&self, purpose: &[u8], attempt: u8) -> Zeroizing<[u8; 32]> {
        let mut hash = Sha256::new();
        hash.update(b"cwrun-broker 1 ");
        hash.update(purpose);
        hash.update([attempt]);
        hash.update(self.0);
        Zeroizing::new(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_file_is_private_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = StoreKey::generate().unwrap();
        key.create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(StoreKey::read(&path).unwrap().0, key.0);
        assert!(key.create(&path).is_err(), "an existing key is never overwritten");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(StoreKey::read(&path), Err(Error::Mode(_))));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for text in [
            "",
            "abc",
            "\"",
            &"0".repeat(65),
            &"g".repeat(64),
            &"0".repeat(5000),
        ] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(StoreKey::read(&path), Err(Error::Contents(_))), "{text}");
        }
    }

    #[test]
    fn each_purpose_has_a_key_of_its_own() {
        let key = StoreKey::generate().unwrap();
        assert_ne!(*key.derived(b"store", 0), *key.derived(b"token", 0));
    }
}
