//! The key slot: volume key ─► anti-forensic splitter ─► encryption under a key from the passphrase (specification
//! §2.2 and §4, LUKS1 specification §2.4 for the splitter).
//!
//! ```text
//!   passphrase ─► KDF ─► slot key ─┐
//!   volume key ─► 4000 stripes ────┴─► AES-256-XTS, 512-byte sectors ─► 256000 bytes
//! ```

use argon2::{Algorithm, Argon2, Params, Version};
use luks::{KEY_LEN, MATERIAL_LEN, Xts};
use pbkdf2::pbkdf2_hmac;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::metadata::{Base64, Digest, Kdf};
use crate::key::random;
use crate::{Error, Unlock, VolumeKey};

/// Sectors of the key slot's area.
const SECTOR: usize = 512;

/// Rounds of PBKDF2, the least that LUKS2 allows. They slow down guessing; a uniformly random key of 512 bits can't be
/// guessed, so for it (and for the digest of a volume key) more would cost time and bring nothing.
const ROUNDS: u32 = 1000;

/// Argon2id for passphrases that a person may have thought up: `cryptsetup`'s passes, and a part of its memory, so
/// that it takes about 100 ms and works in a container with a tight memory limit. RFC 9106 §4 asks for 64 MiB and 3
/// passes where memory is scarce.
const ARGON2_PASSES: u32 = 4;
const ARGON2_MEMORY_KIB: u32 = 64 << 10;
const ARGON2_LANES: u32 = 2;

type SlotKey = Zeroizing<[u8; KEY_LEN]>;

/// Makes a key slot: how to derive its key, and its material.
pub(super) fn seal(unlock: &Unlock) -> Result<(Kdf, Vec<u8>), Error> {
    let mut salt = [0; 32];
    random(&mut salt)?;
    let salt = Base64(salt);
    let (kdf, passphrase) = match unlock {
        Unlock::Key(key) => (
            Kdf::Pbkdf2 {
                hash: "sha256".to_owned(),
                iterations: ROUNDS,
                salt,
            },
            &key.as_bytes()[..],
        ),
        Unlock::Passphrase { passphrase, .. } => (
            Kdf::Argon2id {
                time: ARGON2_PASSES,
                memory: ARGON2_MEMORY_KIB,
                cpus: ARGON2_LANES,
                salt,
            },
            passphrase.as_slice(),
        ),
    };
    let slot_key = derive(&kdf, passphrase)?;
    let mut material = split(unlock.volume_key())?;
    Xts::new(&slot_key).encrypt(&mut material, 0, SECTOR);
    Ok((kdf, std::mem::take(&mut *material)))
}

/// Opens a key slot.
pub(super) fn open(
    kdf: &Kdf,
    digest: &Digest,
    passphrase: &[u8],
    material: Vec<u8>,
) -> Result<VolumeKey, Error> {
    let mut material = Zeroizing::new(material);
    Xts::new(&*derive(kdf, passphrase)?).decrypt(&mut material, 0, SECTOR);
    let key = luks::merge(&material);
    if *key_digest(&key, digest.iterations, &digest.salt.0) != digest.digest.0 {
        return Err(Error::WrongPassphrase);
    }
    VolumeKey::from_bytes(&key)
}

/// A new digest of a volume key.
pub(super) fn digest(key: &VolumeKey) -> Result<Digest, Error> {
    let mut salt = [0; 32];
    random(&mut salt)?;
    Ok(Digest::new(
        ROUNDS,
        salt,
        *key_digest(key.as_bytes(), ROUNDS, &salt),
    ))
}

fn key_digest(key: &[u8; KEY_LEN], iterations: u32, salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut digest = Zeroizing::new([0; 32]);
    pbkdf2_hmac::<Sha256>(key, salt, iterations, &mut *digest);
    digest
}

fn derive(kdf: &Kdf, passphrase: &[u8]) -> Result<SlotKey, Error> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    match kdf {
        Kdf::Pbkdf2 { iterations, salt, .. } => {
            pbkdf2_hmac::<Sha256>(passphrase, &salt.0, *iterations, &mut *key)
        }
        Kdf::Argon2id {
            time,
            memory,
            cpus,
            salt,
        } => {
            let failed = |error: argon2::Error| Error::Derive {
                reason: error.to_string(),
            };
            let params = Params::new(*memory, *time, *cpus, Some(KEY_LEN)).map_err(failed)?;
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon2
                .hash_password_into(passphrase, &salt.0, &mut *key)
                .map_err(failed)?;
        }
    }
    Ok(key)
}

/// The volume key over [`MATERIAL_LEN`] bytes.
fn split(key: &VolumeKey) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut material = Zeroizing::new(vec![0; MATERIAL_LEN]);
    random(&mut material)?;
    luks::split(key.as_bytes(), &mut material);
    Ok(material)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_and_merging() {
        let key = VolumeKey::generate().unwrap();
        let mut material = split(&key).unwrap();
        assert_eq!(*luks::merge(&material), *key.as_bytes());
        material[1000] ^= 1;
        assert_ne!(*luks::merge(&material), *key.as_bytes());
    }
}
