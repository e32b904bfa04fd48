//! Links, addresses, routes and traffic redirection of the network namespace that this thread is in, through rtnetlink(7).
//!
//! ```text
//!   cwrun ─ links, addresses, routes ──► what the engine has set up
//!         └ redirect ──────────────────► tap ◄─► the engine's interface
//!   init ── set_link, add_* ───────────► the same again, in the guest
//! ```
//!
//! A [`LinkWatch`] tells what becomes of links later. Else it is one request at a time, and each waits for the kernel's answer: neither user has anything else to do meanwhile.

mod watch;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use workload::{Mac, Neighbour, Prefix, Route};

pub use watch::{Event, LinkWatch};

/// `ETH_P_ALL` (linux/if_ether.h) in network byte order, where a filter's protocol stands (`tcm_info`).
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
/// Priority of the one filter that there is on an interface.
const FILTER_PRIORITY: u32 = 1;
/// By this number it is known for ours.
const FILTER: TcHandle = TcHandle {
    major: u16::from_be_bytes(*b"cw"),
    minor: u16::from_be_bytes(*b"ru"),
};
/// Where filters of what arrives hang.
const INGRESS: TcHandle = TcHandle {
    major: TcHandle::INGRESS.major,
    minor: 0,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket, or it broke.
    #[error("the kernel can't be asked about the network")]
    Socket(#[source] io::Error),
    /// The kernel refuses.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// An answer that this program does not understand.
    #[error("the kernel's answer about the network is not understood")]
    Decode(#[source] DecodeError),
}

impl Error {
    /// The kernel's error number, if it answered with one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Socket(error) | Error::Refused(error) => error.raw_os_error(),
            Error::Decode(_) => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::Socket(error) | Error::Refused(error) => error,
            Error::Decode(_) => io::Error::other(error),
        }
    }
}

type Result<T> = std::result::Result<T, Error>;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; nothing for interfaces of other kinds, like tunnels.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// It is the loopback interface.
    pub loopback: bool,
    /// It has been brought up.
    pub up: bool,
}

/// What is to change of a link; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange<'a> {
    /// A new name, which the kernel takes only while the link is down.
    pub name: Option<&'a str>,
    /// A new MTU.
    pub mtu: Option<u32>,
    /// `true` brings it up, `false` down.
    pub up: Option<bool>,
    /// The kernel does not give it an IPv6 address of its own accord, so it sends nothing by itself.
    pub silent: bool,
}

/// A route and the interface that it leads over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteOf {
    /// The interface's number.
    pub link: u32,
    /// The route.
    pub route: Route,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        socket.bind_auto().map_err(Error::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All interfaces, by their numbers.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut links: Vec<_> = self
            .ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link(&message)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The addresses of interface `link`, without those that every interface gives itself (IPv6 link-local ones).
    pub fn addresses(&mut self, link: u32) -> Result<Vec<Prefix>> {
        let answers = self.ask(
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) if message.header.index == link => address(&message),
                _ => None,
            })
            .collect())
    }

    /// Unicast routes of the main tables, in an order in which they can be added again: what is on a link comes first.
    /// Those that a link makes for itself (IPv6 link-local) are left out, and so are those that lead to several places at once,
    /// whose number is the second result.
    pub fn routes(&mut self) -> Result<(Vec<RouteOf>, usize)> {
        let (mut routes, mut skipped) = (Vec::new(), 0);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for answer in self.ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)? {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    match route(&message) {
                        Found::Route(route) => routes.push(route),
                        Found::Multipath => skipped += 1,
                        Found::Other => {}
                    }
                }
            }
        }
        routes.sort_by_key(|found| found.route.via.is_some());
        Ok((routes, skipped))
    }

    /// The neighbours of interface `link` whose hardware addresses were set by hand.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>> {
        let answers = self.ask(
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == link => {
                    neighbour(&message)
                }
                _ => None,
            })
            .collect())
    }

    /// Changes interface `link`.
    pub fn set_link(&mut self, link: u32, change: &LinkChange<'_>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            if up {
                message.header.flags = LinkFlags::Up;
            }
        }
        message
            .attributes
            .extend(change.name.map(|name| LinkAttribute::IfName(name.to_owned())));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        if change.silent {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            message
                .attributes
                .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        }
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives interface `link` an address. No route comes with it, and it is in use at once (IPv6 addresses are not first looked for
    /// on the link).
    pub fn add_address(&mut self, link: u32, prefix: Prefix) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = link;
        message.header.prefix_len = prefix.length;
        message.header.family = family(prefix.address);
        message.attributes = vec![
            AddressAttribute::Address(prefix.address),
            AddressAttribute::Local(prefix.address),
        ];
        let mut flags = AddressFlags::Noprefixroute;
        match prefix.address {
            IpAddr::V4(address) if prefix.length < 31 => {
                let host = u32::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
                let broadcast = u32::from(address) | host;
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(broadcast.into()));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => flags |= AddressFlags::Nodad,
        }
        message.attributes.push(AddressAttribute::Flags(flags));
        self.tell(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Adds a route over interface `link` to the main table.
    pub fn add_route(&mut self, link: u32, route: &Route) -> Result<()> {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(route.to.address);
        header.destination_prefix_length = route.to.length;
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = RouteProtocol::Boot;
        header.kind = RouteType::Unicast;
        header.scope = match (route.via, route.to.address) {
            (None, IpAddr::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if route.on_link {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if route.to.length > 0 {
            attributes.push(RouteAttribute::Destination(route.to.address.into()));
        }
        attributes.push(RouteAttribute::Oif(link));
        match route.via {
            // An IPv4 route through an IPv6 next hop (RFC 5549).
            Some(IpAddr::V6(via)) if route.to.address.is_ipv4() => {
                attributes.push(RouteAttribute::Via(RouteVia::Inet6(via)));
            }
            Some(via) => attributes.push(RouteAttribute::Gateway(via.into())),
            None => {}
        }
        attributes.extend(
            route
                .source
                .map(|source| RouteAttribute::PrefSource(source.into())),
        );
        attributes.extend(route.metric.map(RouteAttribute::Priority));
        attributes.extend(
            route
                .mtu
                .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
        );
        // Behind what is there: to one destination there may be several routes of one metric, and the first is taken.
        self.tell(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_APPEND,
        )
    }

    /// Adds a neighbour of interface `link` that needs no resolution.
    pub fn add_neighbour(&mut self, link: u32, neighbour: &Neighbour) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.address);
        message.header.ifindex = link;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(match neighbour.address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
        ];
        self.tell(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Sends whatever arrives at interface `from` out of interface `to`; this system's own stack sees none of it. Replaces what else
    /// was done with traffic that arrives there.
    pub fn redirect(&mut self, from: u32, to: u32) -> Result<()> {
        let index = index_of(from)?;
        // One that a VM before us has left, with a filter that leads nowhere any more.
        if_there(self.tell(RouteNetlinkMessage::DelQueueDiscipline(ingress(index)), 0))?;
        self.tell(
            RouteNetlinkMessage::NewQueueDiscipline(ingress(index)),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        let mut mirror = TcMirror::default();
        mirror.generic = TcActionGeneric::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = to;
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
        ];
        let mut filter = TcMessage::with_index(index);
        filter.header.parent = INGRESS;
        filter.header.handle = FILTER;
        filter.header.info = (FILTER_PRIORITY << 16) | ALL_PROTOCOLS;
        filter.attributes = vec![
            TcAttribute::Kind(TcFilterMatchAll::KIND.to_owned()),
            TcAttribute::Options(vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(vec![
                action,
            ]))]),
        ];
        self.tell(
            RouteNetlinkMessage::NewTrafficFilter(filter),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Undoes what [`redirect`](Self::redirect) has done to traffic that arrives at interface `from`. Whether it had.
    pub fn end_redirect(&mut self, from: u32) -> Result<bool> {
        let index = index_of(from)?;
        let mut request = TcMessage::with_index(index);
        request.header.parent = INGRESS;
        let filters = self.ask(RouteNetlinkMessage::GetTrafficFilter(request), NLM_F_DUMP);
        let ours = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => filter.header.handle == FILTER,
            _ => false,
        };
        if !if_there(filters)?.unwrap_or_default().iter().any(ours) {
            return Ok(false);
        }
        if_there(self.tell(RouteNetlinkMessage::DelQueueDiscipline(ingress(index)), 0))?;
        Ok(true)
    }

    /// A request that is answered with success or an error.
    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// A request and all of its answers.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(Error::Socket)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(Error::Socket)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(Error::Decode)?;
                // Messages are padded to four bytes; the length has been checked against the datagram's.
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(4)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(Error::Refused(error.to_io())),
                    NetlinkPayload::Overrun(_) => {
                        return Err(Error::Socket(io::Error::from_raw_os_error(libc::ENOBUFS)));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Nothing where the kernel says that there is nothing.
fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Refused(error))
            if [Some(libc::ENOENT), Some(libc::EINVAL), Some(libc::ENODEV)]
                .contains(&error.raw_os_error()) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn index_of(link: u32) -> Result<i32> {
    i32::try_from(link).map_err(|_| Error::Refused(io::ErrorKind::InvalidInput.into()))
}

/// The qdisc at which filters of what arrives hang.
fn ingress(index: i32) -> TcMessage {
    let mut qdisc = TcMessage::with_index(index);
    qdisc.header.parent = TcHandle::INGRESS;
    qdisc.header.handle = INGRESS;
    qdisc.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    qdisc
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    link
}

fn address(message: &AddressMessage) -> Option<Prefix> {
    if message.header.scope == AddressScope::Link && message.header.family == AddressFamily::Inet6 {
        return None;
    }
    // Not an address that is still looked for elsewhere, or was found there.
    if message.header.flags.intersects(AddressHeaderFlags::Dadfailed) {
        return None;
    }
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    // `Local` is this side's address; `Address` is the other's on point-to-point links, and the same elsewhere.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Prefix::new(local.or(other)?, message.header.prefix_len)
}

/// What a route message is to us.
enum Found {
    Route(RouteOf),
    Multipath,
    /// Not of the main table, not unicast, or one that interfaces make by themselves.
    Other,
}

fn route(message: &RouteMessage) -> Found {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return Found::Other,
    };
    let Some(to) = Prefix::new(unspecified, header.destination_prefix_length) else {
        return Found::Other;
    };
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || header.flags.contains(RouteFlags::Cloned)
    {
        return Found::Other;
    }
    let mut link = None;
    let mut route = Route {
        to,
        via: None,
        on_link: header.flags.contains(RouteFlags::Onlink),
        source: None,
        metric: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => match ip(to) {
                Some(address) => route.to.address = address,
                None => return Found::Other,
            },
            RouteAttribute::Gateway(via) => route.via = ip(via),
            RouteAttribute::Via(RouteVia::Inet(via)) => route.via = Some((*via).into()),
            RouteAttribute::Via(RouteVia::Inet6(via)) => route.via = Some((*via).into()),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::MultiPath(_) => return Found::Multipath,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if is_link_local(route.to.address) && header.protocol == RouteProtocol::Kernel {
        return Found::Other;
    }
    match link {
        Some(link) => Found::Route(RouteOf { link, route }),
        None => Found::Other,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if !matches!(message.header.state, NeighbourState::Permanent) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::from(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::from(*found))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour {
        address: address?,
        mac: mac?,
    })
}
