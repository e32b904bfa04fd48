//! The guest's network: the loopback, and the interfaces that the engine has set up outside, once more in here.

use crate::failure::{Context as _, Failure, Result};
use netlink::{Link, LinkChange, Netlink};
use workload::Interface;

/// Brings up the loopback and gives each network device its name, MTU, addresses and routes.
pub fn set_up(interfaces: &[Interface]) -> Result<()> {
    let mut netlink = Netlink::open().context(|| "network".into())?;
    let links = netlink.links().context(|| "network".into())?;
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    for link in links.iter().filter(|link| link.loopback) {
        netlink
            .set_link(link.index, &up)
            .context(|| "bring up the loopback interface".into())?;
    }
    let devices = interfaces
        .iter()
        .map(|interface| device(&links, interface).map(|link| (link, interface)))
        .collect::<Result<Vec<_>>>()?;
    // In two steps, because a new name may be another device's old one.
    for (index, (link, _)) in devices.iter().enumerate() {
        rename(&mut netlink, link.index, &format!("device{index}"))?;
    }
    for (link, interface) in devices {
        rename(&mut netlink, link.index, &interface.name)?;
        configure(&mut netlink, link.index, interface)?;
    }
    Ok(())
}

/// The network device with the interface's hardware address.
fn device<'a>(links: &'a [Link], interface: &Interface) -> Result<&'a Link> {
    links
        .iter()
        .find(|link| link.mac == Some(interface.mac))
        .ok_or_else(|| {
            Failure::other(format!(
                "network interface {}: no device has the address {}",
                interface.name, interface.mac
            ))
        })
}

fn rename(netlink: &mut Netlink, link: u32, name: &str) -> Result<()> {
    let change = LinkChange {
        name: Some(name),
        ..LinkChange::default()
    };
    netlink
        .set_link(link, &change)
        .context(|| format!("network interface {name}: its name"))
}

fn configure(netlink: &mut Netlink, link: u32, interface: &Interface) -> Result<()> {
    let name = &interface.name;
    let change = LinkChange {
        mtu: Some(interface.mtu),
        up: Some(true),
        ..LinkChange::default()
    };
    netlink
        .set_link(link, &change)
        .context(|| format!("network interface {name}: an MTU of {}", interface.mtu))?;
    for address in &interface.addresses {
        netlink
            .add_address(link, *address)
            .context(|| format!("network interface {name}: address {address}"))?;
    }
    for neighbour in &interface.neighbours {
        netlink
            .add_neighbour(link, neighbour)
            .context(|| format!("network interface {name}: neighbour {}", neighbour.address))?;
    }
    for route in &interface.routes {
        netlink
            .add_route(link, route)
            .context(|| format!("network interface {name}: route to {}", route.to))?;
    }
    Ok(())
}
