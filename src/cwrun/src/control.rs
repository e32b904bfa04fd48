//! Requests to a running VMM, through its control socket.

use crate::channel::Channel;
use crate::failure::GuestFailure;
use crate::state::Container;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use workload::protocol::{Outcome, Request};

/// Sends one request and waits for what became of it.
pub fn request(container: &Container, request: Request) -> Result<()> {
    let id = &container.record.id;
    let stream = connect(container).with_context(|| format!("container {id:?} can't be reached"))?;
    let mut channel = Channel::<Request, Outcome>::new(stream);
    channel.send(&request)?;
    match channel.receive()? {
        Some(Outcome::Done) => Ok(()),
        Some(Outcome::Failed { kind, message }) => Err(GuestFailure { kind, message }.into()),
        Some(other) => bail!("container {id:?} answers with {other:?}"),
        None => bail!("container {id:?} ended before it answered"),
    }
}

/// Connects through the directory's descriptor, since a socket's path is limited to 107 bytes.
fn connect(container: &Container) -> Result<UnixStream> {
    let dir = rustix::fs::open(
        container.dir(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(UnixStream::connect(format!(
        "/proc/self/fd/{}/control.sock",
        dir.as_raw_fd()
    ))?)
}
