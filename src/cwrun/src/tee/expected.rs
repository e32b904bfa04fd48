//! What a launch of this machine's guest files is measured as, before there is one.
//!
//! ```text
//!   bzImage, initrd, stage0 ─► GuestFiles ─┬─ plan ─► tee::start     the VMM's launch
//!                                          └─ plan ─► expected       the digest that it comes to
//! ```

use crate::guest_files;
use anyhow::{Context, Result};
use confidential::BootFiles;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use tee::image::Image;
use tee::launch::LaunchDigest;
use tee::measure::Plan;
use tee::vmsa::{CpuModel, Variant};

/// The files that a confidential guest is launched from.
pub struct GuestFiles {
    /// Where they are.
    pub dir: PathBuf,
    /// What stage0 loads.
    pub boot: BootFiles,
    /// stage0.
    pub stage0: Image,
}

impl GuestFiles {
    /// Opens the installed ones, and reads them to their ends.
    pub fn open() -> Result<Self> {
        let dir = guest_files::find()?;
        let open = |name: &str| {
            let path = dir.join(name);
            File::open(&path).with_context(|| format!("guest file {}", path.display()))
        };
        let in_dir = || format!("guest files in {}", dir.display());
        let boot = BootFiles::new(open("bzImage")?, open("initrd")?).with_context(in_dir)?;
        let stage0 = confidential::read_image(&open("stage0")?).with_context(in_dir)?;
        Ok(Self { dir, boot, stage0 })
    }

    /// The launch of a guest, page by page.
    pub fn plan(&self, vcpus: u8, cpu: CpuModel, variant: Variant) -> Result<Plan> {
        Ok(self.boot.plan(&self.stage0, vcpus, cpu, variant)?)
    }
}

/// The launch digest for each of these numbers of vCPUs. cwrun launches on [`Variant::Linux6_11`].
pub fn expected(
    guest: &GuestFiles,
    vcpus: impl IntoIterator<Item = u8>,
    cpu: CpuModel,
    variant: Variant,
) -> Result<BTreeMap<u8, LaunchDigest>> {
    vcpus
        .into_iter()
        .map(|count| Ok((count, guest.plan(count, cpu, variant)?.digest())))
        .collect()
}
