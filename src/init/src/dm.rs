//! Device mapper: encrypted and verified views of a disk (`linux/dm-ioctl.h`, Documentation/admin-guide/device-mapper).
//!
//! ```text
//!   request:  struct dm_ioctl (312 bytes) │ struct dm_target_spec (40 bytes) │ parameters, NUL, padding
//!
//!   /dev/vda ── crypt ──► /dev/dm-0 ── verity ──► /dev/dm-1 ── EROFS
//! ```
//!
//! A table with a key in it is wiped here when dropped, and the kernel is told to wipe its copy
//! (`DM_SECURE_DATA_FLAG`).

use crate::failure::{Context as _, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use workload::{Crypt, Verity, VolumeKey};
use zeroize::Zeroizing;

/// Bytes kept for each authenticated sector: AEGIS-128's nonce and its tag, 16 each.
const TAG: u64 = 32;

/// Bytes in a key of [`Target::authenticated_crypt`].
pub const AUTHENTICATED_KEY: usize = 16;

/// Bytes in a sector, the unit of every table.
pub const SECTOR: u64 = 512;

const HEADER: usize = 312;
const TARGET_SPEC: usize = 40;
const NAME_OFFSET: usize = 48;
const DEV_OFFSET: usize = 40;

const READONLY: u32 = 1 << 0;
const SECURE_DATA: u32 = 1 << 15;

/// Commands, as numbers of the ioctl family 0xfd.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Resume = 6,
    Load = 9,
}

/// May the mapping be written?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No; the device below is opened read-only too.
    ReadOnly,
    /// Yes.
    ReadWrite,
}

/// One line of a table, from sector 0.
pub struct Target {
    kind: &'static str,
    sectors: u64,
    parameters: Zeroizing<String>,
}

impl Target {
    /// `aes-xts-plain64` over `source`. Initialisation vectors count 512-byte sectors, as in LUKS2.
    pub fn crypt(source: &str, key: &VolumeKey, shape: &Crypt, options: &[&str]) -> Self {
        let sector_size = match shape.sector_size {
            512 => None,
            size => Some(format!("sector_size:{size}")),
        };
        let options: Vec<&str> = sector_size
            .iter()
            .map(String::as_str)
            .chain(options.iter().copied())
            .collect();
        let key = key.to_hex();
        // Full capacity at once: growing would leave copies of the key behind.
        let mut parameters = Zeroizing::new(String::with_capacity(512 + key.len() + source.len()));
        parameters.push_str("aes-xts-plain64 ");
        parameters.push_str(&key);
        // Writing to a string can't fail.
        let _ = write!(parameters, " 0 {source} {}", shape.offset / SECTOR);
        if !options.is_empty() {
            let _ = write!(parameters, " {} {}", options.len(), options.join(" "));
        }
        Self {
            kind: "crypt",
            sectors: shape.length / SECTOR,
            parameters,
        }
    }

    /// A part of `source`.
    pub fn linear(source: &str, bytes: Range<u64>) -> Self {
        Self {
            kind: "linear",
            sectors: (bytes.end - bytes.start) / SECTOR,
            parameters: Zeroizing::new(format!("{source} {}", bytes.start / SECTOR)),
        }
    }

    /// Room for the tags of [`authenticated_crypt`](Self::authenticated_crypt) on `tags`, for the first `bytes` bytes of `source`,
    /// which stay where they are. No journal (mode `D`): after a crash there is nobody left to read the disk.
    pub fn integrity(source: &str, tags: &str, bytes: u64) -> Self {
        Self {
            kind: "integrity",
            sectors: bytes / SECTOR,
            parameters: Zeroizing::new(format!(
                "{source} 0 {TAG} D 4 meta_device:{tags} block_size:4096 journal_sectors:64 fix_padding"
            )),
        }
    }

    /// AEGIS-128 over sector number and data, with a new random nonce for each write, over the `bytes` bytes of a device with
    /// [`integrity`](Self::integrity). Sectors of 4096 bytes. docs/disk.md says why.
    pub fn authenticated_crypt(source: &str, key: &[u8; AUTHENTICATED_KEY], bytes: u64) -> Self {
        let mut parameters = Zeroizing::new(String::with_capacity(512 + 2 * key.len() + source.len()));
        parameters.push_str("capi:aegis128-random ");
        for byte in key {
            // Writing to a string can't fail.
            let _ = write!(parameters, "{byte:02x}");
        }
        let _ = write!(
            parameters,
            " 0 {source} 0 2 integrity:{TAG}:aead sector_size:4096"
        );
        Self {
            kind: "crypt",
            sectors: bytes / SECTOR,
            parameters,
        }
    }

    /// Version 1, SHA-256, blocks of 4096 bytes, hash tree on the same device. A block that does not match is an I/O
    /// error.
    pub fn verity(source: &str, shape: &Verity) -> Self {
        let Verity {
            data_blocks,
            hash_start_block,
            root_hash,
            salt,
        } = shape;
        Self {
            kind: "verity",
            sectors: data_blocks.saturating_mul(4096 / SECTOR),
            parameters: Zeroizing::new(format!(
                "1 {source} {source} 4096 4096 {data_blocks} {hash_start_block} sha256 {root_hash} {salt}"
            )),
        }
    }

    /// `struct dm_target_spec`, then the parameters.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let length = (TARGET_SPEC + self.parameters.len() + 1).next_multiple_of(8);
        let mut bytes = Zeroizing::new(vec![0; length]);
        bytes[8..16].copy_from_slice(&self.sectors.to_ne_bytes());
        bytes[20..24].copy_from_slice(&(length as u32).to_ne_bytes());
        bytes[24..24 + self.kind.len()].copy_from_slice(self.kind.as_bytes());
        bytes[TARGET_SPEC..TARGET_SPEC + self.parameters.len()].copy_from_slice(self.parameters.as_bytes());
        bytes
    }
}

/// The device mapper's control device.
pub struct Mapper(File);

impl Mapper {
    /// Opens `/dev/mapper/control`.
    pub fn open() -> Result<Self> {
        let path = "/dev/mapper/control";
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .map(Self)
            .context(|| format!("open {path}"))
    }

    /// Makes the device `name` with this table; returns its path, `/dev/dm-N`.
    pub fn activate(&self, name: &str, target: &Target, access: Access) -> Result<String> {
        let readonly = if access == Access::ReadOnly { READONLY } else { 0 };
        let what = || format!("device mapper: {} device {name}", target.kind);
        let device = self.call(Command::Create, name, 0, None).context(what)?;
        let activated = self
            .call(Command::Load, name, readonly | SECURE_DATA, Some(target))
            .and_then(|_| self.call(Command::Resume, name, readonly, None));
        if activated.is_err() {
            // Best effort: what counts is the first error.
            let _ = self.remove(name);
        }
        activated.context(what)?;
        Ok(format!("/dev/dm-{}", minor(device)))
    }

    /// Takes the device away.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Command::Remove, name, 0, None).map(drop)
    }

    /// One ioctl; returns the device number.
    fn call(&self, command: Command, name: &str, flags: u32, target: Option<&Target>) -> io::Result<u64> {
        let mut request = encode(name, flags, target);
        // _IOWR(0xfd, command, struct dm_ioctl)
        let number = 3 << 30 | (HEADER as libc::c_ulong) << 16 | 0xfd << 8 | command as libc::c_ulong;
        // SAFETY: the buffer starts with a dm_ioctl whose data_size is the buffer's length, beyond which the kernel
        // neither reads nor writes; u8 has no invalid values.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number, request.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut device = [0; 8];
        device.copy_from_slice(&request[DEV_OFFSET..DEV_OFFSET + 8]);
        Ok(u64::from_ne_bytes(device))
    }
}

/// A whole request. `name` is ours and short.
fn encode(name: &str, flags: u32, target: Option<&Target>) -> Zeroizing<Vec<u8>> {
    let payload = target.map(Target::encode).unwrap_or_default();
    let mut request = Zeroizing::new(vec![0; HEADER + payload.len()]);
    let words = [
        4,
        0,
        0,
        request.len() as u32,
        HEADER as u32,
        u32::from(target.is_some()),
        0,
        flags,
    ];
    for (to, word) in request.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    request[NAME_OFFSET..NAME_OFFSET + name.len()].copy_from_slice(name.as_bytes());
    request[HEADER..].copy_from_slice(&payload);
    request
}

/// Minor number out of the kernel's `huge_encode_dev`.
fn minor(device: u64) -> u64 {
    device & 0xff | device >> 12 & 0xf_ff00
}

#[cfg(test)]
#[path = "dm_test.rs"]
mod tests;
