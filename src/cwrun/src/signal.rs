//! Signals by name or number, and sending one to a process that is still the one we mean.

use crate::state::ProcessId;
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

const NAMES: [(&str, i32); 35] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    ("RTMIN", 34),
];

/// Largest signal number, `_NSIG`.
const MAX: i32 = 64;

/// Parses `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3`, `SIGRTMAX-1`.
pub fn parse(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) if upper == name => Some(number),
        _ => by_name(name),
    };
    match number {
        Some(number) if (1..=MAX).contains(&number) => Ok(number),
        _ => bail!("unknown signal {text:?}"),
    }
}

fn by_name(name: &str) -> Option<i32> {
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse::<u8>().ok().map(|offset| 34 + i32::from(offset));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('-')?.parse::<u8>().ok()?
        };
        return (offset <= 30).then(|| MAX - i32::from(offset));
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// Sends SIGKILL or another named signal to a process, unless its number belongs to another by now.
pub fn send(process: ProcessId, signal: i32) -> Result<()> {
    let pid = Pid::from_raw(process.pid).context("process number 0")?;
    let fd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("process {pid:?}"))?;
    // Checked after the descriptor pins the process.
    if !process.is_alive() {
        bail!("process {} has ended", process.pid);
    }
    let signal = Signal::from_named_raw(signal).with_context(|| format!("signal {signal}"))?;
    rustix::process::pidfd_send_signal(&fd, signal).with_context(|| format!("process {}", process.pid))
}

/// Kills a process and waits until it is gone. It need not be a child.
pub fn kill_and_wait(process: ProcessId) -> Result<()> {
    if !process.is_alive() {
        return Ok(());
    }
    let pid = Pid::from_raw(process.pid).context("process number 0")?;
    let fd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        fd => fd.with_context(|| format!("process {pid:?}"))?,
    };
    if !process.is_alive() {
        return Ok(());
    }
    rustix::process::pidfd_send_signal(&fd, Signal::KILL)
        .with_context(|| format!("process {}", process.pid))?;
    // Readable once it has ended (pidfd_open(2)). That takes the kernel as long as the guest had memory.
    let timeout = rustix::event::Timespec {
        tv_sec: 120,
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(0) => bail!("process {} does not end although it was killed", process.pid),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("15", 15),
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("64", 64),
            ("RTMIN+1", 35),
            ("SIGRTMAX", 64),
            ("RTMAX-2", 62),
            ("SIGRTMIN", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in [
            "", "0", "65", "-9", "SIG", "SIG9", "NOPE", "RTMIN+99", "RTMAX+1", "RTMAX-99", "9x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
