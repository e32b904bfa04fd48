//! The broker's store: a journal of registrations, encrypted, that survives a crash at any moment.
//!
//! ```text
//!   0        magic, version, id of the file (16 random bytes), proof that the key fits; SHA-256
//!   4096     commit slot 0: counter, length of the file up to which everything is acknowledged; SHA-256
//!   8192     commit slot 1: the other of the two, written alternately
//!   12288    entries: length, sequence number, check │ kind, name │ nonce, AES-256-GCM of the value
//! ```
//!
//! A change is appended, synced, then committed in the slot that holds the older state, synced, and only then acknowledged. So what lies
//! before the committed length must be without fault, and any fault there is damage, which is reported; what lies behind it was
//! never acknowledged, and is kept if it is whole and dropped if it is not. Each value is bound to the file, its place in the sequence
//! and its name: entries can't be exchanged, reordered or left out. (That somebody puts back a whole older file can't be seen from the file.)
//!
//! Why a journal of our own: the values fit in memory (sealed; each is opened only when it is released), so no index on disk is
//! needed, and a damaged file must end in a sentence. One writer at a time, by a lock beside the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::key_file::StoreKey;

const MAGIC: &[u8; 12] = b"CWBROKER\0\0\0\x01";
const SLOTS: [u64; 2] = [4096, 8192];
const DATA: u64 = 12288;
/// Length, sequence number, check.
const ENTRY_HEADER: usize = 4 + 8 + 8;
const NONCE: usize = 12;
const TAG: usize = 16;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 1 << 20;
const MAX_BODY: usize = 2 + u8::MAX as usize + NONCE + MAX_VALUE + TAG;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another broker has it open.
    #[error("another broker holds the store {0}; several brokers can't share one store")]
    Locked(PathBuf),
    /// Not a file that `init` made.
    #[error("{0} is not a store of cwrun-broker of this version")]
    Foreign(PathBuf),
    /// The key file is another store's.
    #[error("the key file does not belong to the store {0}")]
    WrongKey(PathBuf),
    /// Something that was acknowledged can't be read any more.
    #[error("the store {path} is damaged at byte {offset}: {what}; restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The value or its name is too long.
    #[error("a registration may have at most {MAX_VALUE} bytes")]
    TooLong,
    /// A write failed in a way that leaves open what is on disk.
    #[error(
        "the store {0} failed at an earlier write and takes no more changes until the broker is started again"
    )]
    Failed(PathBuf),
}

/// The open store.
pub struct Store {
    path: PathBuf,
    state: Mutex<State>,
    _lock: File,
}

struct State {
    file: File,
    cipher: Aes256Gcm,
    id: [u8; 16],
    /// Next sequence number.
    sequence: u64,
    /// Length of the file up to which everything is acknowledged.
    committed: u64,
    /// Number of commits; its lowest bit is the slot of the last one.
    counter: u64,
    /// Bytes of entries that still count.
    live: u64,
    values: BTreeMap<String, Sealed>,
    failed: bool,
}

/// A value as it lies on disk.
struct Sealed {
    sequence: u64,
    nonce: [u8; NONCE],
    ciphertext: Vec<u8>,
}

/// Where a scan of entries ended, and what it found.
struct Scan {
    end: u64,
    sequence: u64,
    fault: Option<&'static str>,
    values: BTreeMap<String, Sealed>,
}

impl Store {
    /// Makes an empty store. The file must not exist.
    pub fn create(path: &Path, key: &StoreKey) -> Result<(), Error> {
        let io = |action| {
            move |source| Error::Io {
                action,
                path: path.to_path_buf(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io("create"))?;
        write_empty(&file, key).map_err(io("write"))?;
        sync_directory(path).map_err(io("sync the directory of"))
    }

    /// Opens a store and reads all of it.
    pub fn open(path: &Path, key: &StoreKey) -> Result<Self, Error> {
        let lock = lock(path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::Io {
                action: "open",
                path: path.to_path_buf(),
                source,
            })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| Error::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        })?;
        let cipher = key.cipher();
        let (state, dropped) = read_state(path, file, cipher, &bytes)?;
        if dropped > 0 {
            tracing::warn!(
                bytes = dropped,
                "dropped a change that was never acknowledged from the end of the store"
            );
        }
        let store = Self {
            path: path.to_path_buf(),
            state: Mutex::new(state),
            _lock: lock,
        };
        store.compact_if_worth_it(&mut store.state())?;
        Ok(store)
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let state = self.state();
        let Some(sealed) = state.values.get(name) else {
            return Ok(None);
        };
        open_value(&state.cipher, &state.id, PUT, name, sealed)
            .map(Some)
            .ok_or_else(|| self.damaged(0, "a value in memory does not open"))
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.state().values.keys().cloned().collect()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.state().values.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets a value; says whether the name is new. On return it is on disk.
    pub fn put(&self, name: &str, value: &[u8]) -> Result<bool, Error> {
        let mut state = self.state();
        let sealed = self.append(&mut state, PUT, name, value)?;
        state.live += entry_len(name, sealed.ciphertext.len());
        let old = state.values.insert(name.to_owned(), sealed);
        if let Some(old) = &old {
            state.live -= entry_len(name, old.ciphertext.len());
        }
        self.compact_if_worth_it(&mut state)?;
        Ok(old.is_none())
    }

    /// Sets a value unless the name has one; says whether it did.
    pub fn put_new(&self, name: &str, value: &[u8]) -> Result<bool, Error> {
        let mut state = self.state();
        if state.values.contains_key(name) {
            return Ok(false);
        }
        let sealed = self.append(&mut state, PUT, name, value)?;
        state.live += entry_len(name, sealed.ciphertext.len());
        state.values.insert(name.to_owned(), sealed);
        Ok(true)
    }

    /// Forgets a value; says whether there was one.
    pub fn delete(&self, name: &str) -> Result<bool, Error> {
        let mut state = self.state();
        if !state.values.contains_key(name) {
            return Ok(false);
        }
        self.append(&mut state, DELETE, name, b"")?;
        if let Some(old) = state.values.remove(name) {
            state.live -= entry_len(name, old.ciphertext.len());
        }
        // What was deleted should not lie in the file for ever.
        self.compact(&mut state)?;
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state changes only after everything that can fail, so it is sound even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, offset: u64, what: &'static str) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            offset,
            what,
        }
    }

    /// Appends an entry, and commits it.
    fn append(&self, state: &mut State, kind: u8, name: &str, value: &[u8]) -> Result<Sealed, Error> {
        if state.failed {
            return Err(Error::Failed(self.path.clone()));
        }
        if value.len() > MAX_VALUE || name.len() > usize::from(u8::MAX) {
            return Err(Error::TooLong);
        }
        let (entry, sealed) = seal_entry(&state.cipher, &state.id, state.sequence, kind, name, value)
            .map_err(|source| self.io("encrypt for", source))?;
        let end = state.committed + entry.len() as u64;
        let counter = state.counter + 1;
        let written = state
            .file
            .write_all_at(&entry, state.committed)
            .and_then(|()| state.file.sync_data());
        if let Err(source) = written {
            // Nothing is committed. A failed sync leaves open what the disk has: only a new start can tell.
            state.failed = state
                .file
                .set_len(state.committed)
                .and_then(|()| state.file.sync_data())
                .is_err();
            return Err(self.io("write", source));
        }
        if let Err(source) = write_slot(&state.file, counter, end) {
            state.failed = true;
            return Err(self.io("write", source));
        }
        state.counter = counter;
        state.committed = end;
        state.sequence += 1;
        Ok(sealed)
    }

    fn io(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io {
            action,
            path: self.path.clone(),
            source,
        }
    }

    fn compact_if_worth_it(&self, state: &mut State) -> Result<(), Error> {
        let used = state.committed - DATA;
        if used > (1 << 20) && used / 2 > state.live {
            self.compact(state)?;
        }
        Ok(())
    }

    /// Writes what counts into a new file, which then takes the old one's place.
    fn compact(&self, state: &mut State) -> Result<(), Error> {
        let path = self.path.with_extension("new");
        let new = compacted(&path, state).map_err(|source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        std::fs::rename(&path, &self.path).map_err(|source| self.io("replace", source))?;
        *state = new;
        sync_directory(&self.path).map_err(|source| self.io("sync the directory of", source))
    }
}

/// Takes the lock beside the store.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let io = |action| {
        let path = PathBuf::from(&name);
        move |source| Error::Io { action, path, source }
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(path.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(io("lock")(source)),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Writes header and slots of a store without entries; returns its id.
fn write_header(file: &File, cipher: &Aes256Gcm) -> io::Result<[u8; 16]> {
    let id: [u8; 16] = random()?;
    let nonce: [u8; NONCE] = random()?;
    let proof = cipher
        .encrypt(&Nonce::from(nonce), Payload { msg: b"", aad: &id })
        .map_err(|_| io::Error::other("AES-GCM failed"))?;
    let mut header = [&MAGIC[..], &id, &nonce, &proof].concat();
    header.extend_from_slice(&Sha256::digest(&header));
    file.write_all_at(&header, 0)?;
    Ok(id)
}

fn write_empty(file: &File, key: &StoreKey) -> io::Result<()> {
    write_header(file, &key.cipher())?;
    file.set_len(DATA)?;
    write_slot(file, 0, DATA)?;
    file.sync_all()
}

fn slot_bytes(counter: u64, committed: u64) -> Vec<u8> {
    let mut slot = [counter.to_le_bytes(), committed.to_le_bytes()].concat();
    slot.extend_from_slice(&Sha256::digest(&slot));
    slot
}

fn write_slot(file: &File, counter: u64, committed: u64) -> io::Result<()> {
    file.write_all_at(&slot_bytes(counter, committed), SLOTS[(counter & 1) as usize])?;
    file.sync_data()
}

/// What the commit slots say.
struct Slots {
    counter: u64,
    committed: u64,
    /// The other slot is not whole: it was being written when the power went, or is damaged.
    torn: bool,
}

fn read_slots(bytes: &[u8]) -> Option<Slots> {
    let slots = SLOTS.map(|offset| {
        let slot = bytes.get(offset as usize..)?;
        let counter = u64::from_le_bytes(*slot.first_chunk()?);
        let committed = u64::from_le_bytes(*slot.get(8..)?.first_chunk()?);
        slot.starts_with(&slot_bytes(counter, committed))
            .then_some((counter, committed))
    });
    let (counter, committed) = slots.into_iter().flatten().max()?;
    Some(Slots {
        counter,
        committed,
        // The second slot of a new file was never written.
        torn: counter > 0 && slots.contains(&None),
    })
}

/// Number of bytes that an entry takes on disk.
fn entry_len(name: &str, ciphertext: usize) -> u64 {
    (ENTRY_HEADER + 2 + name.len() + NONCE + ciphertext) as u64
}

fn entry_check(id: &[u8; 16], length: u32, sequence: u64) -> [u8; 8] {
    let digest = Sha256::digest([&id[..], &length.to_le_bytes(), &sequence.to_le_bytes()].concat());
    std::array::from_fn(|i| digest[i])
}

fn additional_data(id: &[u8; 16], sequence: u64, kind: u8, name: &str) -> Vec<u8> {
    [&id[..], &sequence.to_le_bytes(), &[kind], name.as_bytes()].concat()
}

fn seal_entry(
    cipher: &Aes256Gcm,
    id: &[u8; 16],
    sequence: u64,
    kind: u8,
    name: &str,
    value: &[u8],
) -> io::Result<(Vec<u8>, Sealed)> {
    let nonce: [u8; NONCE] = random()?;
    let aad = additional_data(id, sequence, kind, name);
    let ciphertext = cipher
        .encrypt(
            &Nonce::from(nonce),
            Payload {
                msg: value,
                aad: &aad,
            },
        )
        .map_err(|_| io::Error::other("AES-GCM failed"))?;
    let length = (2 + name.len() + NONCE + ciphertext.len()) as u32;
    let entry = [
        &length.to_le_bytes()[..],
        &sequence.to_le_bytes(),
        &entry_check(id, length, sequence),
        &[kind, name.len() as u8],
        name.as_bytes(),
        &nonce,
        &ciphertext,
    ]
    .concat();
    Ok((
        entry,
        Sealed {
            sequence,
            nonce,
            ciphertext,
        },
    ))
}

fn open_value(
    cipher: &Aes256Gcm,
    id: &[u8; 16],
    kind: u8,
    name: &str,
    sealed: &Sealed,
) -> Option<Zeroizing<Vec<u8>>> {
    let aad = additional_data(id, sealed.sequence, kind, name);
    let payload = Payload {
        msg: &sealed.ciphertext,
        aad: &aad,
    };
    cipher
        .decrypt(&Nonce::from(sealed.nonce), payload)
        .ok()
        .map(Zeroizing::new)
}

/// Takes a file's contents apart. Also says how many bytes behind the committed ones were dropped.
fn read_state(path: &Path, file: File, cipher: Aes256Gcm, bytes: &[u8]) -> Result<(State, u64), Error> {
    let damaged = |offset, what| Error::Damaged {
        path: path.to_path_buf(),
        offset,
        what,
    };
    let id = read_header(path, &cipher, bytes)?;
    let slots = read_slots(bytes).ok_or_else(|| damaged(SLOTS[0], "neither commit slot is whole"))?;
    let committed = slots.committed;
    if committed < DATA || committed > bytes.len() as u64 {
        return Err(damaged(
            bytes.len() as u64,
            "the file is shorter than what was acknowledged",
        ));
    }
    let scan = scan(&cipher, &id, bytes);
    if scan.end < committed {
        return Err(damaged(
            scan.end,
            scan.fault
                .unwrap_or("an entry reaches over the end of what was acknowledged"),
        ));
    }
    let dropped = bytes.len() as u64 - scan.end;
    // A slot is only written once its entry is on disk, so there is no half an entry beside half a slot.
    if slots.torn && dropped > 0 {
        return Err(damaged(
            scan.end,
            "both a commit slot and the entry that it was for are not whole",
        ));
    }
    let live = scan
        .values
        .iter()
        .map(|(name, sealed)| entry_len(name, sealed.ciphertext.len()))
        .sum();
    let mut state = State {
        file,
        cipher,
        id,
        sequence: scan.sequence,
        committed: scan.end,
        counter: slots.counter,
        live,
        values: scan.values,
        failed: false,
    };
    if dropped > 0 || state.committed != committed {
        commit_scan(&mut state).map_err(|source| Error::Io {
            action: "write",
            path: path.to_path_buf(),
            source,
        })?;
    }
    Ok((state, dropped))
}

/// Makes what a scan found the committed state.
fn commit_scan(state: &mut State) -> io::Result<()> {
    state.file.set_len(state.committed)?;
    state.file.sync_all()?;
    state.counter += 1;
    write_slot(&state.file, state.counter, state.committed)
}

fn read_header(path: &Path, cipher: &Aes256Gcm, bytes: &[u8]) -> Result<[u8; 16], Error> {
    const LEN: usize = MAGIC.len() + 16 + NONCE + TAG;
    let damaged = |what| Error::Damaged {
        path: path.to_path_buf(),
        offset: 0,
        what,
    };
    if !bytes.starts_with(MAGIC) {
        return Err(Error::Foreign(path.to_path_buf()));
    }
    let (Some(header), Some(digest)) = (bytes.get(..LEN), bytes.get(LEN..LEN + 32)) else {
        return Err(damaged("the header is cut off"));
    };
    if digest != &Sha256::digest(header)[..] {
        return Err(damaged("the header does not have its checksum"));
    }
    let rest = &header[MAGIC.len()..];
    let Some((id, rest)) = rest.split_first_chunk::<16>() else {
        return Err(damaged("the header is cut off"));
    };
    let Some((nonce, proof)) = rest.split_first_chunk::<NONCE>() else {
        return Err(damaged("the header is cut off"));
    };
    let payload = Payload { msg: proof, aad: id };
    match cipher.decrypt(&Nonce::from(*nonce), payload) {
        Ok(_) => Ok(*id),
        Err(_) => Err(Error::WrongKey(path.to_path_buf())),
    }
}

/// Reads entries until one is not whole.
fn scan(cipher: &Aes256Gcm, id: &[u8; 16], bytes: &[u8]) -> Scan {
    let mut scan = Scan {
        end: DATA,
        sequence: 1,
        fault: None,
        values: BTreeMap::new(),
    };
    while (scan.end as usize) < bytes.len() {
        match read_entry(cipher, id, scan.sequence, &bytes[scan.end as usize..]) {
            Ok((kind, name, sealed)) => {
                scan.end += entry_len(&name, sealed.ciphertext.len());
                scan.sequence += 1;
                match kind {
                    PUT => drop(scan.values.insert(name, sealed)),
                    _ => drop(scan.values.remove(&name)),
                }
            }
            Err(fault) => {
                scan.fault = Some(fault);
                break;
            }
        }
    }
    scan
}

/// The entry at the beginning of `bytes`.
fn read_entry(
    cipher: &Aes256Gcm,
    id: &[u8; 16],
    sequence: u64,
    bytes: &[u8],
) -> Result<(u8, String, Sealed), &'static str> {
    const CUT: &str = "an entry is cut off";
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(CUT)?;
    let (found, rest) = rest.split_first_chunk::<8>().ok_or(CUT)?;
    let (check, rest) = rest.split_first_chunk::<8>().ok_or(CUT)?;
    let length = u32::from_le_bytes(*length);
    if u64::from_le_bytes(*found) != sequence
        || *check != entry_check(id, length, sequence)
        || length as usize > MAX_BODY
    {
        return Err("the head of an entry is not valid");
    }
    let body = rest.get(..length as usize).ok_or(CUT)?;
    let ([kind, name_len], body) = body.split_first_chunk::<2>().ok_or(CUT)?;
    let (name, body) = body.split_at_checked(usize::from(*name_len)).ok_or(CUT)?;
    let (nonce, ciphertext) = body.split_first_chunk::<NONCE>().ok_or(CUT)?;
    let name = String::from_utf8(name.to_vec()).map_err(|_| "the name of an entry is not valid")?;
    let sealed = Sealed {
        sequence,
        nonce: *nonce,
        ciphertext: ciphertext.to_vec(),
    };
    if !matches!(*kind, PUT | DELETE) || open_value(cipher, id, *kind, &name, &sealed).is_none() {
        return Err("an entry does not open with the key");
    }
    Ok((*kind, name, sealed))
}

/// Writes the values of `old` into a new file at `path`.
fn compacted(path: &Path, old: &State) -> io::Result<State> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let id = write_header(&file, &old.cipher)?;
    let mut new = State {
        file,
        cipher: old.cipher.clone(),
        id,
        sequence: 1,
        committed: DATA,
        counter: 0,
        live: 0,
        values: BTreeMap::new(),
        failed: false,
    };
    for (name, sealed) in &old.values {
        let value = open_value(&old.cipher, &old.id, PUT, name, sealed)
            .ok_or_else(|| io::Error::other("a value in memory does not open"))?;
        let (entry, sealed) = seal_entry(&new.cipher, &new.id, new.sequence, PUT, name, &value)?;
        new.file.write_all_at(&entry, new.committed)?;
        new.committed += entry.len() as u64;
        new.sequence += 1;
        new.values.insert(name.clone(), sealed);
    }
    new.live = new.committed - DATA;
    new.file.set_len(new.committed)?;
    write_slot(&new.file, 0, new.committed)?;
    new.file.sync_all()?;
    Ok(new)
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
