//! Terminals: a new pair for the engine, raw mode, window size.

use anyhow::{Context, Result, ensure};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;
use workload::protocol::Request;

/// Makes a terminal, sends its master to the engine's console socket and returns the slave, in raw mode: line editing and
/// echo are the guest terminal's.
pub fn open_for(console_socket: &Path) -> Result<OwnedFd> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("new terminal")?;
    rustix::pty::unlockpt(&master).context("new terminal")?;
    let name = rustix::pty::ptsname(&master, Vec::new()).context("new terminal")?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave =
        rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).context("new terminal")?;
    make_raw(&slave)?;
    send(console_socket, &master, name.as_bytes())
        .with_context(|| format!("--console-socket {}", console_socket.display()))?;
    Ok(slave)
}

/// Passes the master as runc and crun do: one descriptor beside the terminal's name.
fn send(console_socket: &Path, master: &OwnedFd, name: &[u8]) -> Result<()> {
    let socket = UnixStream::connect(console_socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    ensure!(
        control.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for a descriptor"
    );
    rustix::net::sendmsg(&socket, &[IoSlice::new(name)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Nothing that was typed ahead is lost. Returns what it was before.
fn make_raw(terminal: impl AsFd) -> Result<Termios> {
    let before = rustix::termios::tcgetattr(&terminal).context("terminal attributes")?;
    let mut raw = before.clone();
    raw.make_raw();
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw).context("terminal attributes")?;
    Ok(before)
}

/// Rows and columns of a terminal; `None` if it is none or does not know.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// What the guest is asked for when this process, which stands for one of the guest's, gets a signal: the signal, or the terminal's new
/// size. Nothing for children of our own.
pub fn request_for(signal: i32, terminal: Option<&OwnedFd>) -> Option<Request> {
    match (signal, terminal) {
        (libc::SIGCHLD, _) => None,
        (libc::SIGWINCH, Some(terminal)) => size(terminal.as_fd()).map(|(rows, columns)| Request::Resize {
            process: 0,
            rows,
            columns,
        }),
        _ => Some(Request::Signal {
            process: 0,
            signal,
            all: false,
        }),
    }
}

/// The caller's terminal in raw mode, put back when dropped.
pub struct RawMode(Termios);

impl RawMode {
    /// Puts standard input into raw mode.
    pub fn enter() -> Result<Self> {
        make_raw(rustix::stdio::stdin()).map(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // If the terminal is gone, nobody misses its settings.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
