//! The guest's kernels, initrd and firmware: where they are installed.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The directory with the guest files: `CWRUN_GUEST_DIR` if set, else beside the binary (a build or a prefix), else
/// `/usr/lib/cwrun`.
pub fn find() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CWRUN_GUEST_DIR") {
        return has_kernel(PathBuf::from(&dir)).with_context(|| {
            format!(
                "no guest kernel: {} does not exist (CWRUN_GUEST_DIR)",
                Path::new(&dir).join("vmlinux").display()
            )
        });
    }
    let exe = std::env::current_exe().context("path of this program")?;
    let beside = exe
        .parent()
        .into_iter()
        .flat_map(|dir| [dir.join("../guest"), dir.join("../lib/cwrun")]);
    let candidates: Vec<_> = beside.chain([PathBuf::from("/usr/lib/cwrun")]).collect();
    match candidates.iter().cloned().find_map(has_kernel) {
        Some(dir) => Ok(dir),
        None => {
            let searched: Vec<_> = candidates.iter().map(|dir| dir.display().to_string()).collect();
            bail!(
                "no guest kernel: no vmlinux in {}; run `make install`, or set CWRUN_GUEST_DIR",
                searched.join(", ")
            )
        }
    }
}

fn has_kernel(dir: PathBuf) -> Option<PathBuf> {
    dir.join("vmlinux").is_file().then_some(dir)
}
