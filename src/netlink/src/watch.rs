//! What becomes of a network namespace's interfaces while somebody watches.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::{Error, Link, Netlink, Result, link};

/// Changes of interfaces (`RTMGRP_LINK`, linux/rtnetlink.h).
const LINK_GROUP: u32 = libc::RTMGRP_LINK as u32;

/// A watch over the Ethernet interfaces of the network namespace in which it was opened. It is readable when something has happened.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
    /// Names of those that are up, by number.
    up: BTreeMap<u32, String>,
}

/// What has happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is one more that is up, of this name.
    Appeared(String),
    /// The one of this name is gone.
    Vanished(String),
}

impl LinkWatch {
    /// Opens one. What is there at this moment is no event.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        socket
            .bind(&SocketAddr::new(0, LINK_GROUP))
            .map_err(Error::Socket)?;
        socket.set_non_blocking(true).map_err(Error::Socket)?;
        let counts = |link: &Link| link.up && link.mac.is_some() && !link.loopback;
        let links = Netlink::open()?.links()?.into_iter().filter(counts);
        let up = links.map(|link| (link.index, link.name)).collect();
        Ok(Self { socket, up })
    }

    /// What has happened since the last call. More than the kernel had room to tell is lost.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(Error::Socket(error)),
            };
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram).map_err(Error::Decode)?;
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                events.extend(self.note(&message));
            }
        }
    }

    fn note(&mut self, message: &RouteNetlinkMessage) -> Option<Event> {
        // A port that comes to a bridge or leaves it is told under the bridge's family, and stays an interface.
        let all = |message: &LinkMessage| message.header.interface_family == AddressFamily::Unspec;
        match message {
            RouteNetlinkMessage::NewLink(message) if all(message) => {
                let link = link(message);
                let is_new = link.up
                    && link.mac.is_some()
                    && !link.loopback
                    && self.up.insert(link.index, link.name.clone()).is_none();
                is_new.then_some(Event::Appeared(link.name))
            }
            RouteNetlinkMessage::DelLink(message) if all(message) => {
                let index = message.header.index;
                self.up.remove(&index).map(Event::Vanished)
            }
            _ => None,
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open for as long as `self`, from which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};

    fn message(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        message
    }

    #[test]
    fn an_interface_appears_once_it_is_up_and_vanishes_once() {
        let mut watch = LinkWatch::open().unwrap();
        let new = |index, name: &str, flags| RouteNetlinkMessage::NewLink(message(index, name, flags));
        let gone = |index| RouteNetlinkMessage::DelLink(message(index, "", LinkFlags::empty()));
        let number = 1_000_000;
        assert_eq!(watch.note(&new(number, "new", LinkFlags::empty())), None);
        assert_eq!(
            watch.note(&new(number, "eth1", LinkFlags::Up)),
            Some(Event::Appeared("eth1".into()))
        );
        assert_eq!(watch.note(&new(number, "eth1", LinkFlags::Up)), None);
        assert_eq!(watch.note(&gone(number)), Some(Event::Vanished("eth1".into())));
        assert_eq!(watch.note(&gone(number)), None);
        assert_eq!(
            watch.note(&new(number, "lo", LinkFlags::Up | LinkFlags::Loopback)),
            None
        );
    }
}
