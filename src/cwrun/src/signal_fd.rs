//! Signals as events of a poll loop.

use anyhow::{Context, Result, ensure};
use rustix::fd::{FromRawFd, OwnedFd};

/// Those that others may send to a container's process and that are forwarded into the guest. Faults of our own and what
/// the VMM uses between its threads stay as they are.
const FORWARDED: [i32; 18] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGIO,
    libc::SIGPWR,
];

/// Blocks these signals, and SIGCHLD, for this thread and those it makes, and returns a descriptor that tells of them.
pub fn block() -> Result<OwnedFd> {
    let set = mask()?;
    // SAFETY: the call gets a pointer to an initialised set alone, and its result is a new descriptor that nobody else owns.
    unsafe {
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC) {
            -1 => Err(std::io::Error::last_os_error()).context("signalfd"),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Blocks these signals, and SIGCHLD, for this thread and those it makes.
pub fn mask() -> Result<libc::sigset_t> {
    // SAFETY: `set` is initialised by sigemptyset before it is used, and all calls get pointers to it alone.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in FORWARDED.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(&mut set, signal);
        }
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        ensure!(result == 0, "the signal mask can't be set");
        Ok(set)
    }
}

/// Has the kernel forget children of this process as they end, so that nobody need wait for them.
pub fn ignore_children() {
    // SAFETY: no handler is installed, and SIGCHLD may be ignored; the call can't fail for it.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Waits for a signal and returns its number.
pub fn next(signals: &OwnedFd) -> Result<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(signals, &mut info)).context("signals")?;
    ensure!(count == info.len(), "signals: short read");
    // `ssi_signo` is the first member (signalfd(2)).
    Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}
