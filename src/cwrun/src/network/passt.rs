//! The host's network, for containers that share it with the host (`--network host`): a user-mode network through `passt`.
//!
//! ```text
//!   guest's eth0 ═ virtio-net ═ VMM ── socket pair: frames ── passt ── sockets ──► the host's network
//!   10.0.2.100/24, fd00:2::100/64        10.0.2.2 is the gateway, and the host's loopback
//! ```
//!
//! A guest can't have the host's interfaces. passt (a process of its own, without privileges and in a sandbox of its own) translates the
//! guest's connections into sockets of the host, so the guest reaches what the host reaches, and the host's loopback under the
//! gateway's address. The other way leads only through ports of the host that an annotation names.
//!
//! passt is started by the VMM process before that is confined, so it is in the container's cgroup and namespaces. It ends when its socket
//! does, which nobody but the VMM holds: so it ends with the VMM, however that ends.

use crate::bundle::Bundle;
use crate::bundle::annotations::HOST_PORTS;
use crate::bundle::host::{HostSpec, Kind};
use anyhow::{Context, Result, bail, ensure};
use netlink::Netlink;
use rustix::io::FdFlags;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};
use vmm::{Link, Nic};
use workload::{Blob, Environment, InjectedFile, Interface, Mac, Prefix, Route};

const PROGRAM: &str = "passt";
/// Where it is looked for behind `PATH`, of which engines may hand on none.
const DIRECTORIES: &str = "/usr/local/bin:/usr/bin:/bin";
const NAME: &str = "eth0";
const MAC: Mac = Mac([0x02, 0, 0x0a, 0, 0x02, 0x64]);
const GATEWAY_MAC: Mac = Mac([0x02, 0, 0x0a, 0, 0x02, 0x02]);
/// The largest packet, in bytes: a stream has no limit, and larger ones spare the guest and passt work (passt(1) suggests this one).
const MTU: u16 = 65520;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PREFIX: u8 = 24;
const ADDRESS_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x100);
const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);
const PREFIX_6: u8 = 64;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks (systemd-resolved.service(8), /ETC/RESOLV.CONF).
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// Ports that a container may ask for, at most.
const MAX_PORTS: usize = 1024;

/// passt, found but not started.
#[derive(Debug)]
pub struct Passt {
    program: PathBuf,
    ports: Ports,
}

/// Ports of the host that lead into the guest, as passt takes them: `none`, or numbers and ranges.
#[derive(Debug, PartialEq, Eq)]
struct Ports {
    tcp: String,
    udp: String,
}

impl Passt {
    /// Looks for it if the bundle shares the network of this process, which is the host's.
    pub fn find(bundle: &Bundle, host: &HostSpec) -> Result<Option<Self>> {
        let asked = bundle.annotation(HOST_PORTS);
        if !shares_network(host) {
            ensure!(
                asked.is_none(),
                "config.json: annotation {HOST_PORTS}: the container has a network of its own, so the engine publishes its ports"
            );
            return Ok(None);
        }
        let ports = Ports::parse(asked.unwrap_or(""))
            .with_context(|| format!("config.json: annotation {HOST_PORTS}"))?;
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = env::split_paths(&path).chain(env::split_paths(DIRECTORIES));
        let mut candidates = directories
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(PROGRAM));
        let program = candidates.find(|program| program.is_file()).context(
            "config.json: linux.namespaces: the container shares the host's network, which a virtual machine reaches through passt, and \
             that is not installed: install the package passt, or give the container a network of its own or none",
        )?;
        if repeats_data(&version(&program)) {
            tracing::warn!(
                "{}: this release of passt repeats what a peer sends after the guest has closed its direction of a TCP connection: install a newer one",
                program.display()
            );
        }
        Ok(Some(Self { program, ports }))
    }

    /// Starts it in this process's namespaces. In the environment, resolvers at the host's loopback are replaced.
    pub fn start(&self, environment: &mut Environment) -> Result<(Nic, Interface)> {
        let context = || format!("the host's network through {}", self.program.display());
        let ipv6 = has_ipv6().with_context(context)?;
        redirect_resolvers(&mut environment.files, || fs::read_to_string(UPSTREAM).ok());
        let (ours, theirs) = UnixStream::pair().with_context(context)?;
        ours.set_nonblocking(true).with_context(context)?;
        self.run(&theirs, ipv6).with_context(context)?;
        let nic = Nic {
            link: Link::Stream(ours),
            vhost: None,
            mac: MAC.0,
            mtu: MTU,
        };
        Ok((nic, interface(ipv6)))
    }

    /// Returns once it serves in the background, where it has gone by itself.
    fn run(&self, socket: &UnixStream, ipv6: bool) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args(["--quiet", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--dns", "none"])
            // Addresses of our own choice need no interface to be derived from, and a host may have none with a default route.
            .args(["--interface", "lo"])
            .args(["--fd", &socket.as_raw_fd().to_string()])
            .args(["--mac-addr", &GATEWAY_MAC.to_string()])
            .args(["--mtu", &MTU.to_string()])
            .args(["--address", &ADDRESS.to_string()])
            .args(["--netmask", &PREFIX.to_string()])
            .args(["--gateway", &GATEWAY.to_string()])
            .args(["--tcp-ports", &self.ports.tcp])
            .args(["--udp-ports", &self.ports.udp]);
        if ipv6 {
            command
                .args(["--address", &ADDRESS_6.to_string()])
                .args(["--gateway", &GATEWAY_6.to_string()]);
        } else {
            command.arg("--ipv4-only");
        }
        // The one descriptor that it inherits. This process has one thread, and starts nothing else meanwhile.
        rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
        let output = command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        if !output.status.success() {
            bail!("{}", complaint(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    }
}

/// What passt says of its version; nothing where it does not.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").env_clear().output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    said.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Whether this is a release that does not take what it has sent to a guest out of its socket, once that guest has sent its FIN, and so
/// sends it again with new sequence numbers: seen with that of Debian 12 (2023-03-09), which does not know its version. Since May 2024
/// (`tcp_set_peek_offset`) the kernel keeps count.
fn repeats_data(version: &str) -> bool {
    let version: String = version.chars().filter(|char| *char != '_').collect();
    let mut numbers = version.split(|char: char| !char.is_ascii_digit());
    let date = numbers.find(|number| number.len() == 8);
    date.is_none_or(|date| date < "20240501")
}

/// What passt says of its failure: its last line that is not about the log.
fn complaint(stderr: &str) -> String {
    let of_log = |line: &str| line.starts_with("Failed to send ") && line.ends_with("to syslog");
    let mut lines = stderr.lines().rev().map(str::trim);
    let said = lines.find(|line| !line.is_empty() && !of_log(line));
    said.unwrap_or("it failed and did not say why").to_owned()
}

/// Whether the container is to have the network of this process.
fn shares_network(host: &HostSpec) -> bool {
    let namespace = host
        .namespaces
        .iter()
        .find(|namespace| namespace.kind == Kind::Net);
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.st_dev(), metadata.st_ino()))
    };
    match namespace.map(|namespace| &namespace.path) {
        None => true,
        Some(None) => false,
        // One that can't be looked at can't be entered either, which is told then.
        Some(Some(path)) => identity(path).is_some_and(|theirs| {
            identity(Path::new("/proc/self/ns/net")).is_some_and(|ours| ours == theirs)
        }),
    }
}

/// Whether this network namespace has an IPv6 address that leads anywhere.
fn has_ipv6() -> Result<bool> {
    let mut netlink = Netlink::open()?;
    for link in netlink.links()?.iter().filter(|link| link.up && !link.loopback) {
        if netlink
            .addresses(link.index)?
            .iter()
            .any(|prefix| prefix.address.is_ipv6())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the guest is to set up.
fn interface(ipv6: bool) -> Interface {
    let mut networks = vec![(IpAddr::V4(ADDRESS), IpAddr::V4(GATEWAY), PREFIX)];
    if ipv6 {
        networks.push((ADDRESS_6.into(), GATEWAY_6.into(), PREFIX_6));
    }
    let (mut addresses, mut on_link, mut default) = (Vec::new(), Vec::new(), Vec::new());
    for (address, gateway, length) in networks {
        let (network, anywhere) = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX << (32 - u32::from(length));
                (
                    IpAddr::from((u32::from(address) & mask).to_be_bytes()),
                    IpAddr::from([0; 4]),
                )
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX << (128 - u32::from(length));
                (
                    IpAddr::from((u128::from(address) & mask).to_be_bytes()),
                    IpAddr::from([0; 16]),
                )
            }
        };
        let route = |to, length, via| Route {
            to: Prefix { address: to, length },
            via,
            on_link: false,
            source: None,
            metric: None,
            mtu: None,
        };
        addresses.push(Prefix { address, length });
        on_link.push(route(network, length, None));
        default.push(route(anywhere, 0, Some(gateway)));
    }
    Interface {
        name: NAME.to_owned(),
        mac: MAC,
        mtu: MTU.into(),
        addresses,
        routes: [on_link, default].concat(),
        neighbours: Vec::new(),
    }
}

/// Replaces resolvers at the host's loopback, which in the guest is the guest's own: 127.0.0.1 and ::1 by the gateway, behind which they
/// are; that of systemd-resolved by those that it asks itself, which `upstream` is to read. passt leads to no other.
fn redirect_resolvers(files: &mut [InjectedFile], upstream: impl FnOnce() -> Option<String>) {
    let Some(file) = files
        .iter_mut()
        .rev()
        .find(|file| file.destination == RESOLV_CONF)
    else {
        return;
    };
    let Ok(text) = String::from_utf8(file.content.0.clone()) else {
        return;
    };
    let is_loopback = |line: &&str| resolver(line).is_some_and(|address| address.is_loopback());
    if !text.lines().any(|line| is_loopback(&line)) {
        return;
    }
    let mut upstream = Some(upstream);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        match resolver(line).filter(IpAddr::is_loopback) {
            None => lines.push(line.to_owned()),
            Some(address)
                if [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address) =>
            {
                lines.push(format!("nameserver {GATEWAY}"));
            }
            Some(address) => {
                let asked = upstream.take().and_then(|read| read()).unwrap_or_default();
                let usable = |line: &&str| resolver(line).is_some_and(|address| !address.is_loopback());
                lines.extend(asked.lines().filter(usable).map(str::to_owned));
                if !asked.lines().any(|line| usable(&line)) {
                    tracing::warn!(
                        "resolver {address} of the host can't be reached from a guest and is left out"
                    );
                }
            }
        }
    }
    file.content = Blob((lines.join("\n") + "\n").into_bytes());
}

/// The address in a line of resolv.conf(5) that names a resolver.
fn resolver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = words
        .next()
        .filter(|word| *word == "nameserver")
        .and(words.next())?;
    address.parse().ok()
}

impl Ports {
    /// `8080 5000-5010,53/udp`: numbers and ranges, of TCP unless they say otherwise, behind each other with spaces or commas (which
    /// podman takes for the end of an annotation). Nothing for no port.
    fn parse(text: &str) -> Result<Self> {
        let (mut tcp, mut udp, mut count) = (Vec::new(), Vec::new(), 0);
        let items = text.split(|letter: char| letter == ',' || letter.is_whitespace());
        for item in items.filter(|item| !item.is_empty()) {
            let (range, list) = match item.split_once('/') {
                None | Some((_, "tcp")) => (item.trim_end_matches("/tcp"), &mut tcp),
                Some((range, "udp")) => (range, &mut udp),
                Some((_, other)) => bail!("{item:?}: {other:?} is neither tcp nor udp"),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<u16>().ok().filter(|number| digits && *number > 0)
            };
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                bail!("{item:?} is not a port or a range of ports, such as 8080, 5000-5010 or 53/udp");
            };
            ensure!(first <= last, "{item:?}: the range ends before it begins");
            count += usize::from(last - first) + 1;
            list.push(if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            });
        }
        ensure!(
            count <= MAX_PORTS,
            "{count} ports, more than the {MAX_PORTS} that there can be"
        );
        let list = |ports: Vec<String>| match ports.as_slice() {
            [] => "none".to_owned(),
            ports => ports.join(","),
        };
        Ok(Self {
            tcp: list(tcp),
            udp: list(udp),
        })
    }
}

#[cfg(test)]
#[path = "passt_test.rs"]
mod tests;
