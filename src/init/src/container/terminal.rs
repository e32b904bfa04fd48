//! A pseudo-terminal of the container's own devpts.
//!
//! ```text
//!   init: master ◄──► /dev/pts/N :workload's descriptors 0, 1, 2, its controlling terminal, and /dev/console
//! ```

use super::root::Root;
use crate::failure::{Context as _, Result};
use crate::mount::Detached;
use rustix::fs::{OFlags, Uid, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::os::fd::{AsFd, OwnedFd};

/// Both ends of a pseudo-terminal.
pub struct Terminal {
    /// For init.
    pub master: OwnedFd,
    /// For the workload.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Takes a new one from `/dev/pts` in the container, owned by `uid`, of so many rows and columns.
    pub fn open(root: &Root, uid: u32, size: Option<(u16, u16)>) -> Result<Self> {
        let path = "/dev/pts/ptmx";
        let master = root
            .open_at(path, OFlags::RDWR | OFlags::NOCTTY)
            .context(|| format!("open {path}"))?;
        unlockpt(&master).context(|| "unlock the terminal".into())?;
        let slave = open_slave(&master)?;
        // The group is what the mount option says, usually `tty`.
        fchown(&slave, Some(Uid::from_raw(uid)), None).context(|| "give the terminal to the user".into())?;
        if let Some((rows, columns)) = size {
            resize(&master, rows, columns).context(|| "set the terminal's size".into())?;
        }
        Ok(Self { master, slave })
    }

    /// Shows it as `/dev/console`.
    pub fn bind_console(&self, root: &Root) -> Result<()> {
        let console = root.file("/dev/console")?;
        Detached::copy_of(&self.slave, false)
            .and_then(|mount| mount.attach(&console))
            .map(drop)
            .context(|| "bind /dev/console".into())
    }
}

/// The workload's end, whatever path it has.
pub fn open_slave(master: impl AsFd) -> Result<OwnedFd> {
    ioctl_tiocgptpeer(
        master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context(|| "open the terminal".into())
}

/// Sets rows and columns; the workload gets SIGWINCH.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> rustix::io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size)
}
