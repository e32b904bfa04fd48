//! `/dev/kvm`.

use anyhow::{Result, anyhow};
use std::fs::File;
use std::io::ErrorKind;

const PATH: &str = "/dev/kvm";

/// Opens it, or says what to do.
pub fn open() -> Result<File> {
    File::options().read(true).write(true).open(PATH).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("{PATH} does not exist: load the kvm_amd or kvm_intel module and enable virtualization in the firmware"),
        ErrorKind::PermissionDenied => anyhow!("no permission on {PATH}: add the user to the group that owns it (usually kvm)"),
        _ => anyhow!("{PATH} can't be opened: {error}"),
    })
}
