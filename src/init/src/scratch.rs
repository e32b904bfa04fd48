//! The writable layer: guest memory, spilled as ciphertext to a disk that means nothing without this guest.
//!
//! ```text
//!   overlay ─ upper ─► tmpfs ─ pages that memory has no room for ─► swap ─► dm-crypt ─► /dev/vdN
//!           └ lower ─► layers, top first                                    key: 64 random bytes, never stored
//! ```
//!
//! There is no file system on the scratch disk, hence nothing to make at each start but one page of swap header, and
//! nothing to flush: it dies with the guest, and so does the key.

use crate::dm::{Access, Mapper, Target};
use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::{layers, sys, world};
use rustix::fs::{CWD, Gid, Mode, Timespec, Timestamps, Uid, chmodat, chownat, stat, utimensat};
use rustix::mount::MountAttrFlags;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use workload::{Crypt, Scratch, VolumeKey};
use zeroize::Zeroizing;

/// Bytes in a page, the unit of swap.
const PAGE: u64 = 4096;
/// Bytes of scratch space for each inode, the density of ext4; tmpfs's own default counts memory, not space.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Inodes that even a small scratch has.
const MIN_INODES: u64 = 1 << 16;

const SWAP_FLAG_DISCARD: i32 = 0x1_0000;
const SWAP_FLAG_DISCARD_PAGES: i32 = 0x4_0000;

/// Makes the scratch space, and swap for it if there is a disk. `disk` is the disk's number.
pub fn make(mapper: &Mapper, scratch: &Scratch, disk: usize) -> Result<()> {
    let bytes = match scratch {
        Scratch::Ram { bytes } => *bytes,
        Scratch::Disk { bytes } => {
            swap_on(mapper, &layers::disk(disk)?)?;
            *bytes
        }
    };
    NewFs::open("tmpfs")?
        .source("scratch")?
        .set(&format!("size={bytes}"))?
        .set(&format!("nr_inodes={}", inodes(bytes)))?
        .set("mode=0700")?
        .mount(MountAttrFlags::empty())?
        .attach_at(world::SCRATCH)?;
    Ok(())
}

/// Inodes for a scratch space of so many bytes.
fn inodes(bytes: u64) -> u64 {
    (bytes / BYTES_PER_INODE).max(MIN_INODES)
}

/// Pages on their way to the scratch disk at a time. Each needs a second page for its ciphertext; the device mapper's
/// default of 2048 is more than a small guest has left when it begins to swap, and both sides then wait for each other.
const SWAP_IN_FLIGHT: &str = "64";

/// Swaps to `disk` under a key of this guest's own.
fn swap_on(mapper: &Mapper, disk: &str) -> Result<()> {
    let bytes = size_of_device(disk)? / PAGE * PAGE;
    let shape = Crypt {
        offset: 0,
        length: bytes,
        sector_size: PAGE as u32,
    };
    let target = Target::crypt(disk, &random_key()?, &shape, &["allow_discards"]);
    let device = mapper.activate("swap", &target, Access::ReadWrite)?;
    let page = swap_header(bytes / PAGE).ok_or_else(|| {
        Failure::other(format!(
            "scratch disk {disk} has {bytes} bytes, which makes no swap space"
        ))
    })?;
    File::options()
        .write(true)
        .open(&device)
        .and_then(|file| file.write_all_at(&page, 0).and_then(|()| file.sync_data()))
        .context(|| format!("write the swap header to {device}"))?;
    let limit = "/sys/module/dm_mod/parameters/swap_bios";
    fs::write(limit, SWAP_IN_FLIGHT).context(|| format!("set {limit}"))?;
    let path = CString::new(device.as_str()).map_err(|_| Failure::other("device name with a NUL byte"))?;
    sys::swap_on(&path, SWAP_FLAG_DISCARD | SWAP_FLAG_DISCARD_PAGES).context(|| format!("swap on {device}"))
}

fn size_of_device(path: &str) -> Result<u64> {
    File::open(path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .context(|| format!("scratch disk {path}"))
}

fn random_key() -> Result<VolumeKey> {
    let mut bytes = Zeroizing::new([0; VolumeKey::LEN]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "draw a key".into()),
        }
    }
    Ok(VolumeKey::from_bytes(*bytes))
}

/// The first page of a swap space of `pages` pages (`union swap_header`, linux/swap.h): version 1 at 1024, the last
/// page's number after it, the signature at the page's end.
fn swap_header(pages: u64) -> Option<Vec<u8>> {
    // The kernel wants ten pages at least (mkswap(8)) and counts them in 32 bits.
    let last = u32::try_from(pages).ok().filter(|pages| *pages >= 10)? - 1;
    let mut page = vec![0; PAGE as usize];
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    Some(page)
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
    let lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    // What programs expect of a file system: directories can be renamed (redirect_dir), hard links stay hard links when
    // one of them is written (index), inode numbers are stable (xino), and a changed mode never leaves data below.
    NewFs::open("overlay")?
        .source("overlay")?
        .set(&format!("lowerdir={}", lower.join(":")))?
        .set(&format!("upperdir={upper}"))?
        .set(&format!("workdir={work}"))?
        .set("redirect_dir=on")?
        .set("index=on")?
        .set("xino=auto")?
        .set("metacopy=off")?
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
    fn the_swap_header_is_what_mkswap_writes() {
        let page = swap_header(256).unwrap();
        assert_eq!(page.len(), 4096);
        assert_eq!(&page[1024..1036], &[1, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert!(page[..1024].iter().all(|byte| *byte == 0));
        assert!(swap_header(9).is_none());
        assert!(swap_header(1 << 33).is_none());
    }

    #[test]
    fn inodes_follow_the_size_with_a_floor() {
        assert_eq!(inodes(64 << 20), 65536);
        assert_eq!(inodes(10 << 30), 655_360);
    }

    #[test]
    fn keys_differ() {
        assert_ne!(random_key().unwrap().as_bytes(), random_key().unwrap().as_bytes());
    }
}
