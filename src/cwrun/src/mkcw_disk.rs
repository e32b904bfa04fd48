//! Images that `buildah mkcw` made: the disk lies in the root file system, encrypted already.
//!
//! ```text
//!   rootfs/disk.img        LUKS1, ext4, footer: attached as it is, read-only; the guest unlocks it (crate mkcw)
//!   rootfs/krun-sev.json   the workload configuration, the same as in the footer, which krun's guests read
//!
//!   footer: workload_id ──────┐
//!   SHA-256 of the header ────┴─► Workload, sealed ─► HOST_DATA: who releases the passphrase knows what it is for
//!   footer: attestation_url ────► the broker, unless somebody here names another
//! ```
//!
//! Such an image is run as a sealed one, whose Workload is made here from what the image says and from nothing of the engine's. That makes
//! it the same on every host, and [`crate::sealed`] has the rules for what a host may change.
//!
//! For development, an annotation can name a file with the passphrase, if `cwrun.toml` allows it. The host then knows it, and the engine
//! decides what it always does.

use crate::bundle::Bundle;
use crate::image_file;
use crate::sealed::{Contents, Image, source};
use crate::settings::{Development, Vm};
use anyhow::{Context, Result, bail, ensure};
use mkcw::{Footer, Header, MAX_PASSPHRASE, WorkloadConfig};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use workload::sealed::is_id;
use workload::{Allow, Hex, Passphrase, RootFs, Scratch, Sealed, Tee, User, Workload};
use zeroize::Zeroizing;

/// Names the file with the passphrase, for development.
pub const PASSPHRASE_FILE: &str = "io.cwrun.development.passphrase-file";
/// The disk.
pub const DISK: &str = "disk.img";
/// What it is said to be.
pub const CONFIG: &str = "krun-sev.json";
/// The image's own program, which says that the image can't be run as it is.
const ENTRYPOINT: &str = "/entrypoint";

/// The disk of such an image.
#[derive(Debug)]
pub struct Disk {
    /// Open for reading.
    pub file: File,
    /// SHA-256 of its LUKS1 header.
    pub header: Hex<32>,
    /// What its footer says.
    pub said: WorkloadConfig,
}

/// The disk in `rootfs`, if it is the root file system of such an image.
pub fn find(rootfs: &Path) -> Result<Option<Disk>> {
    let open = |name| image_file::open_regular(rootfs, name);
    let (Some(disk), Some(_)) = (open(DISK)?, open(CONFIG)?) else {
        return Ok(None);
    };
    let what = || rootfs.join(DISK).display().to_string();
    let Some(footer) = Footer::read(&disk).with_context(what)? else {
        bail!("{}: it has no footer of mkcw", what())
    };
    let header = Header::read(&disk, footer.offset).with_context(what)?;
    Ok(Some(Disk {
        file: disk,
        header: Hex(header.sha256()),
        said: footer.workload,
    }))
}

/// The image of this bundle as a sealed one, if it is an image of mkcw whose passphrase is with a key broker. `choose` says which TEE it
/// gets.
pub fn of_broker(bundle: &Bundle, choose: impl FnOnce() -> Result<Tee>) -> Result<Option<Image>> {
    if bundle.annotation(PASSPHRASE_FILE).is_some() {
        return Ok(None);
    }
    find(&bundle.rootfs)?
        .map(|disk| disk.seal(choose()?))
        .transpose()
        .with_context(|| format!("root file system {}", bundle.rootfs.display()))
}

impl Disk {
    /// The image as a sealed one.
    pub fn seal(self, tee: Tee) -> Result<Image> {
        ensure!(
            is_id(&self.said.workload_id),
            "/{CONFIG}: workload_id: {:?} can't be asked of a key broker, which knows names of 1 to 64 of A-Z a-z 0-9 . _ - without a dot \
             in front",
            self.said.workload_id
        );
        let workload = Workload {
            root: RootFs::Mkcw { header: self.header },
            tee: Some(tee),
            sealed: Some(Sealed {
                id: self.said.workload_id,
                allow: [Allow::Terminal].into(),
                secrets: Vec::new(),
            }),
            ..engine_workload()
        };
        // What a guest would refuse is refused here, by the same reader.
        let workload = Workload::from_bytes(&workload.to_bytes())?;
        let url = self.said.attestation_url;
        Ok(Image {
            contents: Contents {
                workload,
                broker: (!url.is_empty()).then_some(crate::sealed::Broker { url }),
            },
            named_by: "attestation_url in the image's krun-sev.json",
            disk: self.file,
        })
    }
}

/// What would run if the disk did not say so itself, as podman has it. Nothing in it is of this host or of its settings.
fn engine_workload() -> Workload {
    let scratch = Scratch::Disk {
        bytes: Vm::default().default_scratch,
    };
    let args = vec![ENTRYPOINT.to_owned()];
    source::of_engine(args, Vec::new(), "/".to_owned(), User::default(), scratch)
}

/// The passphrase in the file that the annotation names.
pub fn passphrase(bundle: &Bundle, allowed: &Development) -> Result<Passphrase> {
    let Some(path) = bundle.annotation(PASSPHRASE_FILE) else {
        bail!(
            "the image is encrypted, and outside of a TEE only a file with its passphrase can open it: annotation {PASSPHRASE_FILE}, for \
             development"
        )
    };
    ensure!(
        allowed.passphrase_file,
        "config.json: annotation {PASSPHRASE_FILE}: not allowed by cwrun.toml, where development.passphrase_file is not set"
    );
    let context = || format!("config.json: annotation {PASSPHRASE_FILE}: {path}");
    // Of a fixed size, so that no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 1));
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(context)?;
    File::from(file)
        .take(MAX_PASSPHRASE as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    ensure!(
        (1..=MAX_PASSPHRASE).contains(&bytes.len()),
        "{}: it is not 1 to {MAX_PASSPHRASE} bytes long",
        context()
    );
    Ok(Passphrase::from_bytes(std::mem::take(&mut bytes)))
}

#[cfg(test)]
#[path = "mkcw_disk_test.rs"]
mod tests;
