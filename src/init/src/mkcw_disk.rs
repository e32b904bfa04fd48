//! A disk that `buildah mkcw` made: unlocked with a passphrase, mounted read-only; what is written goes to the scratch disk.
//!
//! ```text
//!   /dev/vda ── LUKS1 header, strictly read ─► dm-crypt, read-only ─► ext4, read-only ─► /l/0
//!                └ the one that the Workload names                    └ /.krun_config.json: what runs
//! ```
//!
//! SECURITY: the header is the Workload's, so no other disk is opened, not even one with the same passphrase. But nothing authenticates the
//! file system. The kernel's ext4 reads what a host can garble; see `docs/mkcw.md`.

use crate::dm::{Access, Mapper, Target};
use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::{layers, world};
use mkcw::{Footer, Header, INNER_CONFIG, InnerConfig, MAX_INNER_CONFIG, ReadAt};
use std::fs::File;
use std::io::Read as _;
use workload::{Crypt, Hex, Passphrase, VolumeKey};

/// Unlocks and mounts the disk, whose header has this SHA-256; returns where, and what is to run in it.
pub fn activate(
    mapper: &Mapper,
    disk: &str,
    expected: &Hex<32>,
    passphrase: &Passphrase,
) -> Result<(String, InnerConfig)> {
    let file = File::open(disk).context(|| format!("open {disk}"))?;
    let end = match Footer::read(&file).map_err(told)? {
        Some(footer) => footer.offset,
        None => file.length().context(|| format!("length of {disk}"))?,
    };
    // Read once: what is hashed is what is used, whatever the host does to the disk meanwhile.
    let header = Header::read(&file, end)
        .and_then(|header| header.expect(&expected.0))
        .map_err(told)?;
    let opened = header.unlock(&file, passphrase.as_bytes()).map_err(told)?;
    let shape = Crypt {
        offset: opened.payload_offset,
        length: opened.payload_bytes,
        sector_size: mkcw::SECTOR as u32,
    };
    let key = VolumeKey::from_bytes(*opened.key.as_bytes());
    let device = mapper.activate("mkcw", &Target::crypt(disk, &key, &shape, &[]), Access::ReadOnly)?;
    let at = format!("{}/0", world::LAYERS);
    // The journal of a file system that can't be written can't be replayed either.
    layers::mount(NewFs::open("ext4")?.set("noload")?, &device, &at)?;
    let config = inner_config(&at)?;
    Ok((at, config))
}

fn inner_config(root: &str) -> Result<InnerConfig> {
    let path = format!("{root}/{INNER_CONFIG}");
    let what = || format!("/{INNER_CONFIG}");
    // A symbolic link there would lead anywhere.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).context(what)?;
    let mut json = Vec::new();
    File::from(file)
        .take(MAX_INNER_CONFIG as u64 + 1)
        .read_to_end(&mut json)
        .context(what)?;
    InnerConfig::parse(&json).map_err(told)
}

/// An error of the reader with its cause, as one sentence.
fn told(error: mkcw::Error) -> Failure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Failure::other(format!("{error}{}", cause.unwrap_or_default()))
}
