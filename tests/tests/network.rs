//! The guest's network: namespaces made by hand, and podman's networks with the real netavark and aardvark-dns.

use e2e::cwrun::Container;
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Run, bed, pattern};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

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
        Self::with_mtu(name, 1400)
    }

    pub(crate) fn with_mtu(name: &str, mtu: u32) -> Self {
        let namespace = Self {
            name: name.to_owned(),
        };
        let far = format!("{name}-far");
        for command in [
            format!("netns add {name}"),
            format!(
                "link add {far} mtu {mtu} type veth peer name eth0 address 02:00:00:00:99:02 mtu {mtu} netns {name}"
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

    /// All that there is to see of its interfaces and what is done with what arrives there.
    pub(crate) fn look(&self) -> String {
        let name = &self.name;
        let commands = [
            format!("ip -n {name} -details link show"),
            format!("ip -n {name} address show"),
            format!("ip -n {name} route show"),
            format!("ip -n {name} -6 route show"),
            format!("tc -n {name} qdisc show"),
            format!("tc -n {name} filter show dev eth0 ingress"),
        ];
        let looks = commands.map(|command| {
            let words: Vec<_> = command.split_whitespace().collect();
            let done = Run::new(words[0]).args(&words[1..]).finish();
            // Without an ingress qdisc there are no filters to show.
            format!("{command}: {}\n{}", done.text(), done.stderr)
        });
        looks.concat()
    }

    /// A program in Python, on Debian's root file system.
    fn python(&self, program: &str) -> Bundle {
        self.bundle("").with(|config| {
            config["root"]["path"] = bed().debian().to_string_lossy().into();
            config["process"]["args"] = serde_json::json!(["python3", "-c", program]);
        })
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
        echo features $(cut -c 1,2,8,9,12,13,16 /sys/class/net/eth0/device/features)
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
        // Checksums and segmentation of TCP left to the other side, both ways, and packets in several buffers (VIRTIO 1.2 §5.1.3).
        "features 1111111",
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

/// A machine on which the host's kernel moves the packets, or the VMM does.
fn machine(vhost: bool) -> Cwrun {
    Cwrun::with_settings(&format!("[vm]\nvhost_net = {vhost}\n"))
}

/// Which of the two it is: by what the VMM has open, under whatever name it was.
#[track_caller]
fn expect_vhost(container: &Container, vhost: bool) {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.rdev());
    let vhost_net = device(Path::new("/dev/vhost-net")).expect("the bed has it");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", container.pid)).expect("the VMM runs");
    let held = descriptors
        .filter_map(|entry| device(&entry.ok()?.path()).ok())
        .any(|device| device == vhost_net);
    assert_eq!(held, vhost);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn streams_and_datagrams_both_ways() {
    streams_and_datagrams(false);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn streams_and_datagrams_both_ways_through_the_kernel() {
    streams_and_datagrams(true);
}

fn streams_and_datagrams(vhost: bool) {
    let namespace = Namespace::new("talks");
    let cwrun = machine(vhost);
    let outside = TcpListener::bind((HOST_4, 7001)).unwrap();
    let datagrams = UdpSocket::bind((HOST_4, 7002)).unwrap();
    datagrams.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let container = cwrun.create("talks", &namespace.python(TALK));
    expect_vhost(&container, vhost);
    cwrun.ok(["start", "talks"]);
    let (mut from_guest, peer) = outside.accept().unwrap();
    assert_eq!(peer.ip().to_string(), GUEST_4);
    let mut text = String::new();
    from_guest.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    let mut buffer = [0; 64];
    // A socket with a time-out is interrupted by signals.
    let bytes = loop {
        match datagrams.recv(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => break received.unwrap(),
        }
    };
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
    large_transfer(false);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_large_transfer_arrives_whole_both_ways_through_the_kernel() {
    large_transfer(true);
}

fn large_transfer(vhost: bool) {
    let namespace = Namespace::new("bulk");
    let cwrun = machine(vhost);
    let chunk = pattern::bytes(4 << 20);
    let count = e2e::rounds(4, 256);
    let mut sum = Sha256::new();
    (0..count).for_each(|_| sum.update(&chunk));
    let sum = pattern::hex(&sum.finalize());
    let outside = TcpListener::bind((HOST_4, 7003)).unwrap();
    // One piece to have; then all in, and all out.
    let program = format!(
        r#"
import hashlib, socket
def connection():
    return socket.create_connection(("{HOST_4}", 7003))
def pieces(peer):
    while piece := peer.recv(1 << 20):
        yield piece
with connection() as peer:
    chunk = b"".join(pieces(peer))
digest = hashlib.sha256()
with connection() as peer:
    for piece in pieces(peer):
        digest.update(piece)
print(digest.hexdigest(), flush=True)
with connection() as peer:
    for _ in range({count}):
        peer.sendall(chunk)
"#
    );
    let bundle = namespace.python(&program);
    let container = cwrun.create("bulk", &bundle);
    expect_vhost(&container, vhost);
    cwrun.ok(["start", "bulk"]);
    for copies in [1, count] {
        let (mut stream, _) = outside.accept().unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(300))).unwrap();
        let started = Instant::now();
        for _ in 0..copies {
            stream.write_all(&chunk).unwrap();
        }
        eprintln!("{} MiB in: {:?}", (copies * chunk.len()) >> 20, started.elapsed());
    }
    let (mut stream, _) = outside.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    let (started, mut back, mut total) = (Instant::now(), Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => {
                total += bytes;
                back.update(&buffer[..bytes]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("after {total} bytes: {error}"),
        }
    }
    eprintln!("{} MiB out: {:?}", total >> 20, started.elapsed());
    assert_eq!(
        (total, pattern::hex(&back.finalize())),
        (chunk.len() * count, sum.clone())
    );
    assert_eq!(cwrun.wait(&container), 0);
    assert_eq!(container.output().split_whitespace().next(), Some(sum.as_str()));
    cwrun.ok(["delete", "bulk"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn packets_are_as_large_as_the_interface_allows() {
    let cwrun = Cwrun::new();
    for mtu in [1400, 9000] {
        let namespace = Namespace::with_mtu("large", mtu);
        // One packet, and one that is cut into pieces: headers take 28 and 48 bytes.
        let script = format!(
            "for size in {} {}; do ping -c 1 -w 20 -s $size {HOST_4} >/dev/null && ping6 -c 1 -w 20 -s $size {HOST_6} >/dev/null && echo $size; done;
            cat /sys/class/net/eth0/mtu; echo ready; sleep 1000",
            mtu - 48,
            mtu * 2
        );
        let container = cwrun.create("large", &namespace.bundle(&script));
        cwrun.ok(["start", "large"]);
        container.expect_output("ready");
        assert_eq!(
            container.output(),
            format!("{}\n{}\n{mtu}\nready\n", mtu - 48, mtu * 2)
        );
        // The other way, and back.
        for size in [mtu - 28, mtu * 2] {
            let ping = ["ping", "-c", "1", "-w", "20", "-s", &size.to_string(), GUEST_4];
            Run::new("busybox").args(ping).finish().ok();
        }
        cwrun.ok(["delete", "--force", "large"]);
        assert_eq!(cwrun.wait(&container), 128 + 9);
    }
}

/// What Docker does: the network is there only when a hook has run, after the namespaces have been made.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_hook_may_bring_the_network() {
    let cwrun = Cwrun::new();
    let hook = r#"
        PATH=/usr/sbin:/usr/bin:/sbin:/bin
        pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/')
        ip link add docker-far type veth peer name docker-near
        ip address add 10.96.0.1/24 dev docker-far
        ip link set docker-far up
        ip link set docker-near netns $pid name eth0
        inside="nsenter --target $pid --net"
        $inside ip address add 10.96.0.2/24 dev eth0
        $inside ip link set eth0 up
        $inside ip route add default via 10.96.0.1
    "#;
    for kind in ["prestart", "createRuntime"] {
        let bundle = Bundle::script("ip -o -4 address show eth0; nc 10.96.0.1 7004").with(|config| {
            config["hooks"][kind] = serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-ec", hook]}]);
        });
        let container = cwrun.create("docker", &bundle);
        let outside = TcpListener::bind(("10.96.0.1", 7004)).unwrap();
        cwrun.ok(["start", "docker"]);
        outside.accept().unwrap().0.write_all(b"reached\n").unwrap();
        assert_eq!(cwrun.wait(&container), 0);
        assert!(
            container.output().contains("inet 10.96.0.2/24"),
            "{}",
            container.output()
        );
        assert!(
            container.output().ends_with("reached\n"),
            "{}",
            container.output()
        );
        cwrun.ok(["delete", "docker"]);
        // The pair goes with the container's namespace, a moment later.
        eventually("the interface ends", 20, || {
            (Run::new("ip").args(["link", "show", "docker-far"]).finish().code != 0).then_some(())
        });
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_namespace_is_left_as_it_was_found() {
    let namespace = Namespace::new("same");
    let cwrun = Cwrun::new();
    // The kernel takes a moment to find both ends up and the link-local address nobody else's.
    let before = eventually("the link is up", 20, || {
        Some(namespace.look()).filter(|look| look.contains("state UP") && !look.contains("tentative"))
    });
    let expect_same = |when: &str| {
        assert_eq!(namespace.look(), before, "{when}");
    };
    let idle = namespace.bundle("sleep 1000");
    // While it runs there is a tap and a redirection, which this test could not do without.
    let container = cwrun.create("same", &idle);
    let during = namespace.look();
    assert!(during.contains("cwrun0") && during.contains("mirred"), "{during}");
    cwrun.ok(["start", "same"]);
    cwrun.ok(["kill", "same", "KILL"]);
    cwrun.wait(&container);
    cwrun.ok(["delete", "same"]);
    expect_same("after delete");

    let container = cwrun.create("same", &idle);
    Run::new("kill")
        .args(["-9", &container.pid.to_string()])
        .finish()
        .ok();
    cwrun.wait(&container);
    cwrun.ok(["delete", "same"]);
    expect_same("after the end of the VMM by SIGKILL");

    let create = |bundle: &Bundle| {
        let args = [
            "create".as_ref(),
            "--bundle".as_ref(),
            bundle.path().as_os_str(),
            "same".as_ref(),
        ];
        cwrun.command(args)
    };
    let hook = |kind: &str| {
        namespace.bundle("true").with(|config| {
            config["hooks"][kind] = serde_json::json!([{"path": "/bin/false"}]);
        })
    };
    let no_program = namespace.bundle("true").with(|config| {
        config["process"]["args"] = serde_json::json!(["/no/such/program"]);
    });
    for (bundle, what) in [
        (hook("createRuntime"), "createRuntime"),
        (hook("createContainer"), "createContainer"),
        (no_program, "the program"),
    ] {
        assert_ne!(create(&bundle).finish().code, 0);
        expect_same(what);
    }

    let mut choices = pattern::Choices::new();
    for round in 0..e2e::rounds(6, 60) {
        let mut command = create(&idle).command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("cwrun starts");
        thread::sleep(Duration::from_millis(choices.below(1500)));
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        cwrun.ok(["delete", "--force", "same"]);
        expect_same(&format!("after create was killed, round {round}"));
    }
}

/// What `podman network connect` and `disconnect` come to.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn an_interface_that_comes_later_is_spoken_of() {
    let namespace = Namespace::new("later");
    let cwrun = Cwrun::new();
    let container = cwrun.create("later", &namespace.bundle("sleep 1000"));
    cwrun.ok(["start", "later"]);
    ip("-n later link add eth1 type dummy");
    ip("-n later link set eth1 up");
    let said = |text: &str| {
        eventually(text, 20, || container.errors().contains(text).then_some(()));
    };
    said(
        "cwrun: network interface eth1 has been added to the container's network, but a running guest does not get it",
    );
    ip("-n later link delete eth1");
    said("cwrun: network interface eth1 has been removed");
    assert_eq!(container.errors().lines().count(), 2, "{}", container.errors());
    cwrun.ok(["delete", "--force", "later"]);
    assert_eq!(cwrun.wait(&container), 128 + 9);
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
    let script =
        "ls /sys/class/net; nc -l -p 5 -e echo local & until nc 127.0.0.1 5 2>/dev/null; do sleep 0.1; done";
    assert_eq!(
        cwrun.run("alone", &Bundle::script(script)).finish().ok().text(),
        "lo\nlocal\n"
    );
}
