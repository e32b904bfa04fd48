//! Images that `buildah mkcw` made: the disk lies in the root file system, encrypted already.
//!
//! ```text
//!   rootfs/disk.img        LUKS1, ext4, footer: attached as it is, read-only; the guest unlocks it (crate mkcw)
//!   rootfs/krun-sev.json   the workload configuration, the same as in the footer
//! ```
//!
//! Until there is a broker to release keys, the passphrase comes from a file that an annotation names, if `cwrun.toml` allows it. That is
//! for development: the host then knows the passphrase.

use crate::bundle::Bundle;
use crate::image_file;
use crate::settings::Development;
use anyhow::{Context, Result, bail, ensure};
use mkcw::Footer;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use workload::Passphrase;
use zeroize::Zeroizing;

/// Names the file with the passphrase, for development.
pub const PASSPHRASE_FILE: &str = "io.cwrun.development.passphrase-file";
/// Longest passphrase, in bytes.
const LONGEST: u64 = 8192;
/// The disk.
pub const DISK: &str = "disk.img";
/// What it is said to be.
pub const CONFIG: &str = "krun-sev.json";

/// The disk in `rootfs`, if it is the root file system of such an image.
pub fn find(rootfs: &Path) -> Result<Option<File>> {
    let open = |name: &str| match image_file::open(rootfs, name) {
        Ok(file) if image_file::is_regular(&file)? => Ok(Some(file)),
        Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno).with_context(|| rootfs.join(name).display().to_string()),
    };
    let (Some(disk), Some(_)) = (open(DISK)?, open(CONFIG)?) else {
        return Ok(None);
    };
    let what = || rootfs.join(DISK).display().to_string();
    let footer = Footer::read(&disk).with_context(what)?;
    ensure!(footer.is_some(), "{}: it has no footer of mkcw", what());
    Ok(Some(disk))
}

/// The passphrase in the file that the annotation names.
pub fn passphrase(bundle: &Bundle, allowed: &Development) -> Result<Passphrase> {
    let Some(path) = bundle.annotation(PASSPHRASE_FILE) else {
        bail!(
            "the image is encrypted and no key broker is configured: for development, annotation {PASSPHRASE_FILE} can name a \
             file with the passphrase"
        )
    };
    ensure!(
        allowed.passphrase_file,
        "config.json: annotation {PASSPHRASE_FILE}: not allowed by cwrun.toml, where development.passphrase_file is not set"
    );
    let context = || format!("config.json: annotation {PASSPHRASE_FILE}: {path}");
    // Of a fixed size, so that no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST as usize + 1));
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(context)?;
    File::from(file)
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    ensure!(
        (1..=LONGEST).contains(&(bytes.len() as u64)),
        "{}: it is not 1 to {LONGEST} bytes long",
        context()
    );
    Ok(Passphrase::from_bytes(std::mem::take(&mut bytes)))
}
