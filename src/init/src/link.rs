//! What init and the process that becomes the workload tell each other, over a socket pair that `execve` closes.
//!
//! ```text
//!   init                          workload to be
//!    │ ◄── Ready (+ terminal) │ Failed ── │
//!    │ ── go ──────────────────────────► │
//!    │ ◄── end of stream │ Failed ─────── │  execve worked │ did not
//! ```

use crate::failure::{Context as _, Failure, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use workload::protocol::FailureKind;

/// Longest message in bytes; a longer sentence is cut.
const MAX: usize = 8192;

const READY: u8 = b'R';
const GO: u8 = b'G';

/// Failures travel as one byte for their kind, then the sentence.
const KINDS: [(u8, FailureKind); 4] = [
    (b'n', FailureKind::NotFound),
    (b'x', FailureKind::NotExecutable),
    (b'p', FailureKind::NoProcess),
    (b'o', FailureKind::Other),
];

/// One end.
pub struct Link(OwnedFd);

/// What the process reported.
pub enum Report {
    /// It waits for the start; the terminal's master if it has a terminal.
    Ready(Option<OwnedFd>),
    /// It can't go on.
    Failed(Failure),
    /// Its end is closed: it runs the program, or is gone.
    Closed,
}

impl Link {
    /// Both ends, closed by `execve`.
    pub fn pair() -> Result<(Self, Self)> {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map(|(ours, theirs)| (Self(ours), Self(theirs)))
        .context(|| "make a socket pair".into())
    }

    /// Process: everything is prepared.
    pub fn ready(&self, terminal: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = terminal.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&[READY])],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
        .context(|| "report to init".into())
    }

    /// Process: it failed. If init does not listen any more, nobody needs to know.
    pub fn failed(&self, failure: &Failure) {
        let kind = KINDS
            .iter()
            .find(|(_, kind)| *kind == failure.kind)
            .map_or(b'o', |(byte, _)| *byte);
        let mut message = vec![kind];
        message.extend(failure.message.bytes().take(MAX - 1));
        let _ = send(&self.0, &message, SendFlags::NOSIGNAL);
    }

    /// Process: waits for the start; `false` if init does not want it any more.
    pub fn wait_for_go(&self) -> Result<bool> {
        let mut byte = [0];
        loop {
            match rustix::net::recv(&self.0, &mut byte, RecvFlags::empty()) {
                Ok((received, _)) => return Ok(received == 1 && byte[0] == GO),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "wait for the start".into()),
            }
        }
    }

    /// Init: start it.
    pub fn go(&self) -> Result<()> {
        send(&self.0, &[GO], SendFlags::NOSIGNAL)
            .map(drop)
            .context(|| "start the process".into())
    }

    /// Init: the next report. Blocks until there is one.
    pub fn report(&self) -> Result<Report> {
        let mut message = [0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let slices = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.0, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received.context(|| "listen to the process".into())?,
            }
        };
        let terminal = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Failure::other("the process sent an overlong report"));
        }
        Ok(
            match message.get(..received.bytes).and_then(<[u8]>::split_first) {
                None => Report::Closed,
                Some((&READY, _)) => Report::Ready(terminal),
                Some((byte, text)) => Report::Failed(Failure::new(
                    KINDS
                        .iter()
                        .find(|(known, _)| known == byte)
                        .map_or(FailureKind::Other, |(_, kind)| *kind),
                    String::from_utf8_lossy(text),
                )),
            },
        )
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_in_order_with_kind_and_terminal() {
        let (init, process) = Link::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        process.ready(Some(file.as_fd())).unwrap();
        process.ready(None).unwrap();
        let failure = Failure::new(FailureKind::NotFound, "no `x`");
        process.failed(&failure);
        process.failed(&Failure::other("y".repeat(MAX * 2)));
        assert!(matches!(init.report().unwrap(), Report::Ready(Some(_))));
        assert!(matches!(init.report().unwrap(), Report::Ready(None)));
        assert!(matches!(init.report().unwrap(), Report::Failed(f) if f == failure));
        assert!(matches!(init.report().unwrap(), Report::Failed(f) if f.message.len() == MAX - 1));
        init.go().unwrap();
        assert!(process.wait_for_go().unwrap());
        drop(process);
        assert!(matches!(init.report().unwrap(), Report::Closed));
    }

    #[test]
    fn init_gone_is_no_start() {
        let (init, process) = Link::pair().unwrap();
        drop(init);
        assert!(!process.wait_for_go().unwrap());
    }
}
