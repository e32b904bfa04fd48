//! `pause` and `resume`: the container's processes stop where they are, in the guest, and go on.

use crate::cli::{Global, Id};
use crate::control;
use crate::state::{Root, Status};
use anyhow::{Result, ensure};
use workload::protocol::Request;

/// `pause`
pub fn pause(global: &Global, args: &Id) -> Result<()> {
    freeze(global, args, Status::Running, true)
}

/// `resume`
pub fn resume(global: &Global, args: &Id) -> Result<()> {
    freeze(global, args, Status::Paused, false)
}

fn freeze(global: &Global, args: &Id, expected: Status, frozen: bool) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let status = container.status();
    ensure!(
        status == expected,
        "container {:?} is {status}, it would have to be {expected}",
        args.id
    );
    control::request(&container, Request::Freeze { frozen })
}
