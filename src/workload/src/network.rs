//! The network as the guest is to have it: what the engine has set up in the network namespace that it handed over.
//!
//! Part of the [`Environment`](crate::Environment): names and numbers of one run, which nobody can know beforehand. In JSON,
//! hardware addresses are `aa:bb:cc:dd:ee:ff` and prefixes `10.88.0.5/16`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One Ethernet interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name: 1 to 15 bytes (`IFNAMSIZ`) without `/`, white space or colon.
    pub name: String,
    /// Its hardware address, by which the guest finds the device.
    pub mac: Mac,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Its addresses, each with the length of the network's prefix.
    pub addresses: Vec<Prefix>,
    /// Routes over it, in the order in which they are to be added.
    pub routes: Vec<Route>,
    /// Neighbours whose hardware addresses were set by hand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where to; a default route has the length 0.
    pub to: Prefix,
    /// The next hop; without one, the destination is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Whether the next hop is on this link whatever the addresses say.
    #[serde(default, skip_serializing_if = "is_false")]
    pub on_link: bool,
    /// Source address for packets that have none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Priority: the lowest wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Largest packet over this route, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A neighbour that needs no resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An IP address and how many of its leading bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// The prefix's length in bits: at most 32 or 128.
    pub length: u8,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Interface {
    /// Interfaces of one guest, at most.
    pub const MAX: usize = 8;
    /// Addresses, routes or neighbours of one interface, at most.
    const MAX_ENTRIES: usize = 1024;

    /// Checks what the types do not.
    pub fn check(&self) -> Result<(), &'static str> {
        let byte_fits =
            |byte: u8| !byte.is_ascii_whitespace() && !byte.is_ascii_control() && !b"/:%".contains(&byte);
        let name_fits = (1..=15).contains(&self.name.len())
            && self.name.bytes().all(byte_fits)
            && !matches!(self.name.as_str(), "." | ".." | "lo" | "all" | "default");
        if !name_fits {
            return Err("a network interface's name is not one that Linux takes");
        }
        // The least is IPv4's (RFC 791), the most what fits an IP packet's length.
        if !(68..=65535).contains(&self.mtu) {
            return Err("a network interface's MTU is not between 68 and 65535");
        }
        if [self.addresses.len(), self.routes.len(), self.neighbours.len()]
            .iter()
            .any(|count| *count > Self::MAX_ENTRIES)
        {
            return Err("a network interface has more than 1024 addresses, routes or neighbours");
        }
        Ok(())
    }
}

impl Prefix {
    /// Bits of an address of this kind.
    fn max_length(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }

    /// A prefix, if it is not longer than the address.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= Self::max_length(address)).then_some(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(address, length)| Self::new(address.parse().ok()?, length.parse().ok()?))
            .ok_or_else(|| format!("{text:?} is not an address and the length of a prefix"))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is not a hardware address"))?;
        }
        if parts.next().is_some() {
            return Err(format!("{text:?} is not a hardware address"));
        }
        Ok(Self(bytes))
    }
}

/// As text in JSON.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(Mac, Prefix);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_are_read_as_they_are_written(mac: [u8; 6], address: IpAddr, length in 0u8..=32) {
            prop_assert_eq!(Mac(mac).to_string().parse(), Ok(Mac(mac)));
            let prefix = Prefix { address, length };
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }

        #[test]
        fn whatever_else_is_an_error(text in "[0-9a-f:./]{0,40}") {
            if let Ok(prefix) = text.parse::<Prefix>() {
                prop_assert!(prefix.length <= Prefix::max_length(prefix.address));
            }
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string(), text);
            }
        }
    }

    #[test]
    fn prefixes_are_not_longer_than_addresses() {
        assert!("10.0.0.1/32".parse::<Prefix>().is_ok());
        assert!("10.0.0.1/33".parse::<Prefix>().is_err());
        assert!("fd00::1/128".parse::<Prefix>().is_ok());
        assert!("fd00::1/129".parse::<Prefix>().is_err());
        assert!("fd00::1".parse::<Prefix>().is_err());
    }

    #[test]
    fn names_and_sizes_are_what_linux_takes() {
        let interface = |name: &str, mtu| Interface {
            name: name.to_owned(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu,
            addresses: vec![],
            routes: vec![],
            neighbours: vec![],
        };
        assert!(interface("eth0", 1500).check().is_ok());
        assert!(interface("a23456789012345", 65535).check().is_ok());
        for name in ["", "a234567890123456", "a/b", "a b", "lo", "..", "a:b", "all"] {
            assert!(interface(name, 1500).check().is_err(), "{name:?}");
        }
        for mtu in [0, 67, 65536] {
            assert!(interface("eth0", mtu).check().is_err(), "{mtu}");
        }
    }
}
