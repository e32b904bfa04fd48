//! The guest's network: what the engine has set up in the VMM's network namespace, handed on to the guest.
//!
//! ```text
//!   the engine's network ─ veth, macvlan, tap … ─┐ network namespace
//!                                               eth0 ◄── tc: all that arrives goes out of the other ──► tap ─ VMM ═ guest's eth0
//!                                               addresses, routes, MTU, hardware address ─ Environment ────────► init
//! ```
//!
//! The interface keeps its configuration, but nothing reaches the host's stack through it any more: the guest answers for its
//! addresses. So whatever the engine does around the interface (published ports, DNS, policies) works as for any container.
//! The tap ends with the VMM, and what then arrives is dropped until the container is deleted, which leaves the interface as it was.

pub mod passt;
mod tap;

use crate::bundle::host::{HostSpec, Kind};
use anyhow::{Context, Result, bail, ensure};
use netlink::{Event, Link, LinkChange, LinkWatch, Netlink, RouteOf};
use passt::Passt;
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::{fs, io, thread};
use vmm::Nic;
use workload::{Environment, Interface, Mac};

/// Names of taps begin with this.
const TAP_PREFIX: &str = "cwrun";

/// The guest's interfaces and the devices behind them.
#[derive(Debug, Default)]
pub struct Network {
    /// Devices for the VMM.
    pub nics: Vec<Nic>,
    /// What the guest is told of them.
    pub interfaces: Vec<Interface>,
    /// Over the namespace that the interfaces are from.
    pub watch: Option<LinkWatch>,
}

/// A network namespace, to be compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    device: u64,
    inode: u64,
}

impl Namespace {
    /// The one that this process is in.
    pub fn current() -> Result<Self> {
        let path = Path::new("/proc/self/ns/net");
        let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            device: metadata.st_dev(),
            inode: metadata.st_ino(),
        })
    }
}

/// Gives the guest its network: that of this process's namespace, which is the bundle's. The namespace that the runtime itself was
/// started in (`outside`) is the host's, whose interfaces are nobody's to redirect, and is reached through `passt`. `vhost`: the kernel
/// moves the packets where it can.
pub fn connect(
    host: &HostSpec,
    outside: Namespace,
    passt: Option<&Passt>,
    vhost: bool,
    environment: &mut Environment,
) -> Result<Network> {
    let own = host
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == Kind::Net);
    if own && Namespace::current()? != outside {
        return take_over(vhost);
    }
    let passt = passt.context("the container has come into the host's network on its way")?;
    let (nic, interface) = passt.start(environment)?;
    Ok(Network {
        nics: vec![nic],
        interfaces: vec![interface],
        watch: None,
    })
}

/// Takes over every interface of this process's network namespace.
fn take_over(vhost: bool) -> Result<Network> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let usable: Vec<_> = links.iter().filter(|link| link.up && !link.loopback).collect();
    if let Some(tap) = usable.iter().find(|link| link.name.starts_with(TAP_PREFIX)) {
        bail!(
            "the network namespace already belongs to another virtual machine (its interface is {}), and two can't share its addresses",
            tap.name
        );
    }
    ensure!(
        usable.len() <= Interface::MAX,
        "the network namespace has {} interfaces, more than the {} that a guest can have",
        usable.len(),
        Interface::MAX
    );
    if usable.is_empty() {
        return Ok(Network {
            watch: Some(LinkWatch::open()?),
            ..Network::default()
        });
    }
    let (routes, skipped) = netlink.routes()?;
    if skipped > 0 {
        tracing::warn!("{skipped} routes with several next hops are not handed on to the guest");
    }
    let (mut nics, mut interfaces) = (Vec::new(), Vec::new());
    for link in usable {
        let Some(mac) = link.mac else {
            tracing::warn!(
                "network interface {} is no Ethernet, so the guest does not get it",
                link.name
            );
            continue;
        };
        let context = || format!("network interface {}", link.name);
        interfaces.push((
            first_gateway(&routes, link),
            describe(&mut netlink, &routes, link, mac).with_context(context)?,
        ));
        nics.push(redirect(&mut netlink, link, mac, vhost).with_context(context)?);
    }
    // The guest adds routes interface by interface; of two default routes with one metric the first one counts, there as here.
    interfaces.sort_by_key(|(gateway, _)| *gateway);
    Ok(Network {
        nics,
        interfaces: interfaces.into_iter().map(|(_, interface)| interface).collect(),
        // The taps are there by now.
        watch: Some(LinkWatch::open()?),
    })
}

/// Undoes what [`connect`] has done in the network namespace at `path`, so that the engine's interfaces are as they were. To be called
/// when the VMM has ended, with which its taps have gone. A namespace that is gone or has another VMM by now is left alone.
pub fn release(path: &Path) -> Result<()> {
    let namespace = match fs::File::open(path) {
        Ok(namespace) => namespace,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    // Of a thread alone, which ends with it: this process stays where it is.
    let work = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        if links.iter().any(|link| link.name.starts_with(TAP_PREFIX)) {
            return Ok(());
        }
        for link in links.iter().filter(|link| link.mac.is_some() && !link.loopback) {
            netlink
                .end_redirect(link.index)
                .with_context(|| link.name.clone())?;
        }
        Ok(())
    };
    let result: Result<()> =
        thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| bail!("a panic"));
    result.with_context(|| format!("network namespace {}", path.display()))
}

/// What is to be said of changes that a running guest does not follow: its devices are those that it was booted with.
pub fn unfollowed(watch: &mut LinkWatch) -> Result<Vec<String>> {
    let ours = |name: &str| name.starts_with(TAP_PREFIX);
    let events = watch.events()?.into_iter();
    Ok(events
        .filter_map(|event| match event {
            Event::Appeared(name) if !ours(&name) => Some(format!(
                "network interface {name} has been added to the container's network, but a running guest does not get it: restart the \
                 container"
            )),
            Event::Vanished(name) if !ours(&name) => Some(format!(
                "network interface {name} has been removed from the container's network; the guest keeps one of that name, which leads \
                 nowhere"
            )),
            _ => None,
        })
        .collect())
}

/// Where the first route through a gateway on this link stands.
fn first_gateway(routes: &[RouteOf], link: &Link) -> usize {
    let found = |found: &RouteOf| found.link == link.index && found.route.via.is_some();
    routes.iter().position(found).unwrap_or(usize::MAX)
}

/// What the guest is to set up.
fn describe(netlink: &mut Netlink, routes: &[RouteOf], link: &Link, mac: Mac) -> Result<Interface> {
    let of_link = routes.iter().filter(|found| found.link == link.index);
    let interface = Interface {
        name: link.name.clone(),
        mac,
        mtu: link.mtu,
        addresses: netlink.addresses(link.index)?,
        routes: of_link.map(|found| found.route.clone()).collect(),
        neighbours: netlink.neighbours(link.index)?,
    };
    interface.check().map_err(anyhow::Error::msg)?;
    Ok(interface)
}

/// A tap whose other side is the interface.
fn redirect(netlink: &mut Netlink, link: &Link, mac: Mac, vhost: bool) -> Result<Nic> {
    let (tap, name) = tap::open(TAP_PREFIX)?;
    let index = netlink
        .links()?
        .into_iter()
        .find(|link| link.name == name)
        .with_context(|| format!("the tap {name} is gone"))?
        .index;
    let change = LinkChange {
        mtu: Some(link.mtu),
        up: Some(true),
        silent: true,
        ..LinkChange::default()
    };
    netlink.set_link(index, &change).context("setting up its tap")?;
    for (from, to) in [(link.index, index), (index, link.index)] {
        netlink
            .redirect(from, to)
            .context("redirecting its traffic, which needs the kernel's modules sch_ingress, cls_matchall and act_mirred")?;
    }
    Ok(Nic {
        link: vmm::Link::Tap(tap),
        vhost: vhost.then(tap::vhost).flatten(),
        mac: mac.0,
        // Checked by the interface's description.
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
    })
}
