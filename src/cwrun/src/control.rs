//! The VMM's control socket: made by `create`, reached by later commands with their requests.

use crate::channel::Channel;
use crate::failure::GuestFailure;
use crate::state::Container;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use workload::protocol::{Outcome, Request};

/// A client's end of a conversation with the VMM.
pub type Client = Channel<Request, Outcome>;

/// Sends one request that has no other answer than "done", and waits for what became of it.
pub fn request(container: &Container, request: Request) -> Result<()> {
    done(container, &ask(container, request)?)
}

/// The same, but waits for so long at most. `false` if there was no answer until then; the request is there to be read all the same.
pub fn request_within(container: &Container, request: Request, time: Duration) -> Result<bool> {
    let mut channel = connect(container)?;
    channel.wait_at_most(time)?;
    channel.send(&request)?;
    match answer(container, &mut channel) {
        Ok(outcome) => done(container, &outcome).map(|()| true),
        Err(error) if error.downcast_ref() == Some(&Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether that is the answer to a request that has no other.
fn done(container: &Container, outcome: &Outcome) -> Result<()> {
    match outcome {
        Outcome::Done => Ok(()),
        other => bail!("container {:?} answers with {other:?}", container.record.id),
    }
}

/// Sends one request and waits for the answer.
pub fn ask(container: &Container, request: Request) -> Result<Outcome> {
    let mut channel = connect(container)?;
    channel.send(&request)?;
    answer(container, &mut channel)
}

/// Reaches the container's VMM.
pub fn connect(container: &Container) -> Result<Client> {
    let id = &container.record.id;
    let stream = through_directory(container, |path| UnixStream::connect(path))
        .with_context(|| format!("container {id:?} can't be reached"))?;
    Ok(Client::new(stream))
}

/// Waits for the answer to a request. Failures become errors.
pub fn answer(container: &Container, channel: &mut Client) -> Result<Outcome> {
    let id = &container.record.id;
    match channel.receive()? {
        Some(Outcome::Failed { kind, message }) => Err(GuestFailure { kind, message }.into()),
        Some(outcome) => Ok(outcome),
        None => bail!("container {id:?} ended before it answered"),
    }
}

/// Makes the socket on which the VMM will listen.
pub fn bind(container: &Container) -> Result<UnixListener> {
    through_directory(container, |path| UnixListener::bind(path))
        .with_context(|| format!("control socket {}", container.control_socket().display()))
}

/// Calls with a path to the socket that goes through the directory's descriptor, since a socket's path is limited to 107
/// bytes and `--root` is not.
fn through_directory<T>(container: &Container, call: impl FnOnce(&str) -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(container.dir(), flags, Mode::empty())?;
    call(&format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()))
}
