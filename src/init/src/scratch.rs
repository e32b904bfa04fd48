//! The writable layer: a file system of this guest's own on a disk that nobody else can read or change unnoticed.
//!
//! ```text
//!   overlay ─ upper ─► ext4 ─► dm-crypt ───────────────► dm-integrity ─► /dev/vdb: sectors, then their tags
//!           └ lower    │       AEGIS-128 over sector      keeps nonce and tag
//!             layers   │       number and data, with a    of each sector
//!                      │       random nonce per write
//!                      └ made anew at each start (`ext4`): a few blocks
//! ```
//!
//! The key is drawn here and never leaves: the disk's content dies with the guest, and so does everything that a
//! journal would be for. A sector that the host has changed, or that was never written, is an I/O error. What the host
//! can do is put back an older version of a sector together with its tag.
//!
//! With [`Scratch::Ram`] the writable layer is a tmpfs instead.

use crate::dm::{AUTHENTICATED_KEY, Access, Mapper, Target};
use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::{ext4, layers, trim, world};
use rustix::fs::{CWD, Gid, Mode, Timespec, Timestamps, Uid, chmodat, chownat, stat, utimensat};
use rustix::mount::MountAttrFlags;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use workload::Scratch;
use zeroize::Zeroizing;

/// Makes the scratch space.
pub fn make(mapper: &Mapper, scratch: &Scratch) -> Result<()> {
    match scratch {
        Scratch::Ram { bytes } => on_memory(*bytes),
        Scratch::Disk { bytes } => on_disk(mapper, layers::SCRATCH_DISK, *bytes),
    }
}

/// Bytes of memory for each inode, ext4's density; tmpfs's own default counts all of memory.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Inodes that even a small scratch has.
const MIN_INODES: u64 = 1 << 16;

fn on_memory(bytes: u64) -> Result<()> {
    NewFs::open("tmpfs")?
        .source("scratch")?
        .set(&format!("size={bytes}"))?
        .set(&format!("nr_inodes={}", inodes(bytes)))?
        .set("mode=0700")?
        .mount(MountAttrFlags::empty())?
        .attach_at(world::SCRATCH)
        .map(drop)
}

/// Inodes for a scratch space of so many bytes.
fn inodes(bytes: u64) -> u64 {
    (bytes / BYTES_PER_INODE).max(MIN_INODES)
}

fn on_disk(mapper: &Mapper, disk: &str, bytes: u64) -> Result<()> {
    let bytes = bytes / ext4::BLOCK * ext4::BLOCK;
    let end = size_of_device(disk)? / ext4::BLOCK * ext4::BLOCK;
    if end <= bytes {
        return Err(Failure::other(format!(
            "scratch disk {disk} has {end} bytes, too few for {bytes} and their authentication tags"
        )));
    }
    let tags = mapper.activate(
        "scratch-tags",
        &Target::linear(disk, bytes..end),
        Access::ReadWrite,
    )?;
    let integrity = Target::integrity(disk, &tags, bytes);
    let tagged = mapper.activate("scratch-integrity", &integrity, Access::ReadWrite)?;
    let device = mapper.activate(
        "scratch",
        &Target::authenticated_crypt(&tagged, &*random_key()?, bytes),
        Access::ReadWrite,
    )?;
    // Kept open until it is mounted: the last one to close a disk would wait for all that was written. For reading, since
    // nobody may have a mounted disk open for writing.
    let what = || format!("make a file system on {device}");
    let _open = File::open(&device).context(what)?;
    let file = File::options().write(true).open(&device);
    file.and_then(|file| ext4::format(&file, bytes, &*random()?, &*random()?))
        .context(what)?;
    NewFs::open("ext4")?
        .source(&device)?
        // Inode tables that nobody has written yet are neither zeroed in the background nor read ahead.
        .set("noinit_itable")?
        .set("inode_readahead_blks=0")?
        .set("errors=remount-ro")?
        .mount(MountAttrFlags::empty())?
        .attach_at(world::SCRATCH)?;
    trim::watch(world::SCRATCH, &device, layers::SCRATCH_DISK)
}

fn size_of_device(path: &str) -> Result<u64> {
    File::open(path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .context(|| format!("scratch disk {path}"))
}

/// The key of the authenticated mapping.
fn random_key() -> Result<Zeroizing<[u8; AUTHENTICATED_KEY]>> {
    random().context(|| "draw a key".into())
}

fn random<const N: usize>() -> std::io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// Mounts the container's root: the layers (lowest first), with the scratch space on top.
pub fn overlay(layers: &[String]) -> Result<()> {
    let (upper, work) = (
        format!("{}/upper", world::SCRATCH),
        format!("{}/work", world::SCRATCH),
    );
    for directory in [&upper, &work] {
        fs::create_dir(directory).context(|| format!("create {directory}"))?;
    }
    if let Some(top) = layers.last() {
        copy_attributes(top, &upper)?;
    }
    // What programs expect of a file system: directories can be renamed (redirect_dir), hard links stay hard links when
    // one of them is written (index), inode numbers are stable (xino), and a changed mode never leaves data below.
    let mut overlay = NewFs::open("overlay")?.source("overlay")?;
    for layer in layers.iter().rev() {
        overlay = overlay.set(&format!("lowerdir+={layer}"))?;
    }
    overlay
        .set(&format!("upperdir={upper}"))?
        .set(&format!("workdir={work}"))?
        .set("redirect_dir=on")?
        .set("index=on")?
        .set("xino=auto")?
        .set("metacopy=off")?
        // Nothing of it outlives the guest, so a sync has nothing to wait for.
        .set("volatile")?
        .mount(MountAttrFlags::empty())?
        .attach_at(world::ROOT)?;
    Ok(())
}

/// The root directory's owner, mode and times come from the upper directory, so they must be those of the image.
fn copy_attributes(from: &str, to: &str) -> Result<()> {
    let copy = || -> rustix::io::Result<()> {
        let meta = stat(from)?;
        chownat(
            CWD,
            to,
            Some(Uid::from_raw(meta.st_uid)),
            Some(Gid::from_raw(meta.st_gid)),
            rustix::fs::AtFlags::empty(),
        )?;
        chmodat(
            CWD,
            to,
            Mode::from_raw_mode(meta.st_mode & 0o7777),
            rustix::fs::AtFlags::empty(),
        )?;
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(meta.st_atime, meta.st_atime_nsec as _),
            last_modification: time(meta.st_mtime, meta.st_mtime_nsec as _),
        };
        utimensat(CWD, to, &times, rustix::fs::AtFlags::empty())
    };
    copy().context(|| format!("give {to} the attributes of {from}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_follow_the_size_with_a_floor() {
        assert_eq!(inodes(64 << 20), 65536);
        assert_eq!(inodes(10 << 30), 655_360);
    }

    #[test]
    fn keys_differ() {
        assert_ne!(*random_key().unwrap(), *random_key().unwrap());
    }
}
