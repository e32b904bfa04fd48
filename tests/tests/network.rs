//! The guest's network: namespaces made by hand, and podman's networks with the real netavark and aardvark-dns.

use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Run, bed, pattern};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// A network namespace with one interface, `eth0`, whose other end is in this one.
pub(crate) struct Namespace {
    name: String,
}

const HOST_4: &str = "10.99.0.1";
const GUEST_4: &str = "10.99.0.2";
const HOST_6: &str = "fd99::1";
const GUEST_6: &str = "fd99::2";

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let namespace = Self {
            name: name.to_owned(),
        };
        let far = format!("{name}-far");
        for command in [
            format!("netns add {name}"),
            format!(
                "link add {far} mtu 1400 type veth peer name eth0 address 02:00:00:00:99:02 mtu 1400 netns {name}"
            ),
            format!("address add {HOST_4}/24 dev {far}"),
            format!("address add {HOST_6}/64 dev {far} nodad"),
            format!("link set {far} up"),
            format!("-n {name} address add {GUEST_4}/24 dev eth0"),
            format!("-n {name} address add {GUEST_6}/64 dev eth0 nodad"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {HOST_4}"),
            format!("-n {name} route add 192.0.2.0/24 via {HOST_4} metric 7"),
            format!("-n {name} route add 169.254.7.7 dev eth0 scope link"),
            format!("-n {name} route add default via {HOST_6}"),
            format!("-n {name} neighbour add 10.99.0.77 lladdr 02:00:00:00:99:77 dev eth0"),
        ] {
            ip(&command);
        }
        namespace
    }

    pub(crate) fn bundle(&self, script: &str) -> Bundle {
        let path = format!("/run/netns/{}", self.name);
        Bundle::script(script).with(|config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().expect("a list") {
                if namespace["type"] == "network" {
                    namespace["path"] = path.clone().into();
                }
            }
            // For ping.
            for set in ["bounding", "effective", "permitted"] {
                let set = config["process"]["capabilities"][set]
                    .as_array_mut()
                    .expect("a list");
                set.push("CAP_NET_RAW".into());
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        Run::new("ip").args(["netns", "delete", &self.name]).finish();
        // The pair ends with the namespace, but not at once.
        Run::new("ip")
            .args(["link", "delete", &format!("{}-far", self.name)])
            .finish();
    }
}

#[track_caller]
fn ip(command: &str) {
    Run::new("ip").args(command.split_whitespace()).finish().ok();
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().expect("an address");
    let stream = eventually("the guest listens", 60, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()
    });
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_interface_is_the_one_that_was_set_up() {
    let namespace = Namespace::new("looks");
    let cwrun = Cwrun::new();
    let script = "ip -o link show eth0; ip -o address show eth0; ip route; ip -6 route; cat /proc/net/arp
        ping -c 1 -w 20 10.99.0.1 >/dev/null && echo ping4; ping6 -c 1 -w 20 fd99::1 >/dev/null && echo ping6
        ls /sys/class/net | tr '\\n' ' '";
    let text = cwrun.run("looks", &namespace.bundle(script)).finish().ok().text();
    for line in [
        "mtu 1400",
        "02:00:00:00:99:02",
        "inet 10.99.0.2/24 brd 10.99.0.255 scope global",
        "inet6 fd99::2/64 scope global",
        "default via 10.99.0.1 dev eth0",
        "10.99.0.0/24 dev eth0 scope link  src 10.99.0.2",
        "169.254.7.7 dev eth0 scope link",
        "192.0.2.0/24 via 10.99.0.1 dev eth0  metric 7",
        "default via fd99::1 dev eth0",
        // Complete and permanent.
        "10.99.0.77       0x1         0x6         02:00:00:00:99:77",
        "ping4",
        "ping6",
        "eth0 lo ",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

/// The guest's side of the conversation below.
const TALK: &str = r#"
import socket
with socket.create_connection(("10.99.0.1", 7001)) as out:
    out.sendall(b"hello\n")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.sendto(b"datagram\n", ("10.99.0.1", 7002))
try:
    socket.create_connection(("10.99.0.1", 7009))
except ConnectionRefusedError:
    print("refused", flush=True)
with socket.create_server(("", 80)) as server:
    with server.accept()[0] as peer:
        peer.sendall(b"answer\n")
        while data := peer.recv(4096):
            peer.sendall(data)
with socket.create_server(("fd99::2", 81), family=socket.AF_INET6) as server:
    with server.accept()[0] as peer:
        peer.sendall(b"six\n")
print("over")
"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn streams_and_datagrams_both_ways() {
    let namespace = Namespace::new("talks");
    let cwrun = Cwrun::new();
    let outside = TcpListener::bind((HOST_4, 7001)).unwrap();
    let datagrams = UdpSocket::bind((HOST_4, 7002)).unwrap();
    datagrams.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut bundle = namespace.bundle("");
    bundle = bundle.with(|config| {
        config["root"]["path"] = bed().debian().to_string_lossy().into();
        config["process"]["args"] = serde_json::json!(["python3", "-c", TALK]);
    });
    let container = cwrun.create("talks", &bundle);
    cwrun.ok(["start", "talks"]);
    let (mut from_guest, peer) = outside.accept().unwrap();
    assert_eq!(peer.ip().to_string(), GUEST_4);
    let mut text = String::new();
    from_guest.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    let mut buffer = [0; 64];
    let bytes = datagrams.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..bytes], b"datagram\n");
    let mut to_guest = connect(&format!("{GUEST_4}:80"));
    to_guest.write_all(b"and back").unwrap();
    to_guest.shutdown(std::net::Shutdown::Write).unwrap();
    text.clear();
    to_guest.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer\nand back");
    let mut six = connect(&format!("[{GUEST_6}]:81"));
    text.clear();
    six.read_to_string(&mut text).unwrap();
    assert_eq!(text, "six\n");
    assert_eq!(cwrun.wait(&container), 0);
    assert_eq!(container.output(), "refused\nover\n");
    cwrun.ok(["delete", "talks"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_large_transfer_arrives_whole_both_ways() {
    let namespace = Namespace::new("bulk");
    let cwrun = Cwrun::new();
    let bytes = pattern::bytes(e2e::rounds(16, 1024) << 20);
    let sum = pattern::sha256(&bytes);
    let outside = TcpListener::bind((HOST_4, 7003)).unwrap();
    // In, then the same out again.
    let script = format!("nc {HOST_4} 7003 >/data; sha256sum </data; nc {HOST_4} 7003 </data");
    let bundle = namespace.bundle(&script);
    let container = cwrun.create("bulk", &bundle);
    cwrun.ok(["start", "bulk"]);
    let (mut stream, _) = outside.accept().unwrap();
    let started = std::time::Instant::now();
    let sender = {
        let bytes = bytes.clone();
        thread::spawn(move || {
            stream.write_all(&bytes).unwrap();
        })
    };
    sender.join().unwrap();
    let (mut stream, _) = outside.accept().unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    drop(stream); // which `nc` waits for
    eprintln!("{} MiB in and out: {:?}", bytes.len() >> 20, started.elapsed());
    assert_eq!(pattern::sha256(&back), sum);
    assert_eq!(cwrun.wait(&container), 0);
    assert_eq!(container.output().split_whitespace().next(), Some(sum.as_str()));
    cwrun.ok(["delete", "bulk"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_namespace_serves_one_machine_at_a_time() {
    let namespace = Namespace::new("one");
    let cwrun = Cwrun::new();
    let script = format!("ping -c 1 -w 20 {HOST_4} >/dev/null && echo reached");
    let bundle = namespace.bundle(&script);
    cwrun.create("first", &bundle);
    let second = cwrun
        .command(["create", "--bundle"])
        .arg(bundle.path())
        .arg("second")
        .finish();
    assert_eq!(second.code, 1);
    assert!(
        second.stderr.contains(
            "the network namespace already belongs to another virtual machine (its interface is cwrun0)"
        ),
        "{}",
        second.stderr
    );
    cwrun.ok(["delete", "--force", "first"]);
    // What the first has left there is in nobody's way.
    for id in ["third", "fourth"] {
        assert_eq!(cwrun.run(id, &bundle).finish().ok().text(), "reached\n");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_namespace_of_its_own_has_the_loopback_only() {
    let cwrun = Cwrun::new();
    let script = "ls /sys/class/net; nc -l -p 5 -e echo local & sleep 1; nc 127.0.0.1 5";
    assert_eq!(
        cwrun.run("alone", &Bundle::script(script)).finish().ok().text(),
        "lo\nlocal\n"
    );
}
