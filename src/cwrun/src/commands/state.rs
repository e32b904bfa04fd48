//! `state`: what OCI runtime-spec runtime.md#state asks for.

use crate::cli::{Global, Id};
use crate::state::Root;
use anyhow::Result;

/// The command.
pub fn run(global: &Global, args: &Id) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let mut state = container.oci_state(container.status());
    // Beside what the specification asks for, as crun and runc print it.
    state["rootfs"] = container.record.rootfs.display().to_string().into();
    state["created"] = container.record.created.clone().into();
    state["owner"] = container.record.owner.to_string().into();
    if container.record.infra {
        // It has no VM.
        state["infra"] = true.into();
    }
    super::print_json(&state)
}
