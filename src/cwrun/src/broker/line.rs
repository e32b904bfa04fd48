//! Between the VMM and its proxy: a socket over which the VMM sends the other ends of streams that the guest opens.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

/// The VMM's end. The proxy ends when nobody holds it any more.
#[derive(Debug)]
pub struct Line(OwnedFd);

/// The proxy's end.
#[derive(Debug)]
pub struct ProxyEnd(OwnedFd);

impl Line {
    /// Both ends.
    pub fn pair() -> Result<(Self, ProxyEnd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).context("socket pair")?;
        Ok((Self(ours), ProxyEnd(theirs)))
    }

    /// The guest's end of a new stream to the broker. `None` if the proxy is gone or has more than enough to do. Does not block.
    pub fn connect(&self) -> Option<UnixStream> {
        let (guest, proxy) = UnixStream::pair().ok()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [proxy.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.0, &[IoSlice::new(b"c")], &mut ancillary, flags).ok()?;
        Some(guest)
    }
}

impl ProxyEnd {
    /// Takes over a descriptor that somebody passed on.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The descriptor, to pass it on.
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// The next stream of the guest's; `None` when the VMM is gone.
    pub fn accept(&self) -> Result<Option<UnixStream>> {
        loop {
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let slices = &mut [IoSliceMut::new(&mut byte)];
            let received = match recvmsg(&self.0, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => continue,
                received => received.context("listening to the VMM")?,
            };
            if received.bytes == 0 {
                return Ok(None);
            }
            let stream = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            if let Some(stream) = stream {
                return Ok(Some(stream.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn streams_come_out_at_the_other_end_until_the_line_is_gone() {
        let (line, end) = Line::pair().unwrap();
        for text in [b"one", b"two"] {
            let mut guest = line.connect().unwrap();
            let mut proxy = end.accept().unwrap().unwrap();
            guest.write_all(text).unwrap();
            let mut read = [0; 3];
            proxy.read_exact(&mut read).unwrap();
            assert_eq!(&read, text);
        }
        drop(line);
        assert!(end.accept().unwrap().is_none());
    }

    #[test]
    fn a_guest_that_opens_streams_nobody_takes_is_refused_and_not_waited_for() {
        let (line, end) = Line::pair().unwrap();
        let mut opened = Vec::new();
        while let Some(stream) = line.connect() {
            opened.push(stream);
            assert!(opened.len() < 10_000);
        }
        drop(end);
        assert!(line.connect().is_none());
    }
}
