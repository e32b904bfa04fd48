//! podman's networks (netavark, aardvark-dns), with cwrun and with crun: what the container has of them and what reaches it must be the same.

use crate::podman::{IMAGE, Podman};
use crate::podman_shell::{same, same_with};
use e2e::process::eventually;
use e2e::{Run, rounds};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// Prints what the container sees of its interfaces. The guest's kernel gets routes as they are outside and makes none by itself, which
/// its addresses show. podman takes several networks in any order.
const LOOK: &str = r#"for i in /sys/class/net/*; do echo ${i##*/} $(cat $i/address) $(cat $i/mtu); done;
            ip -o addr show | grep -v fe80 | sed "s/^[0-9]*: //; s/ *valid_lft.*//; s/[\\].*//; s/ noprefixroute//; s/ flags .*//; s/ *$//";
            ip route | sort; cat /etc/resolv.conf"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_a_container_sees_of_its_network() {
    let links = links();
    same(|podman| {
        podman.ok("network create --subnet 10.77.0.0/24 --ipv6 --subnet fd00:77::/64 --opt mtu=1300 one");
        podman.ok("network create --subnet 10.78.0.0/24 --disable-dns two");
        podman.say(&format!(
            "run --rm --network one --ip 10.77.0.9 --ip6 fd00:77::9 --mac-address 02:00:00:00:00:09 --dns-search example.org
            --add-host db:192.0.2.7 $IMAGE sh -c '{LOOK}; grep 192.0.2.7 /etc/hosts'"
        ));
        podman.say(&format!(
            "run --rm --network one:ip=10.77.0.9,ip6=fd00:77::9,mac=02:00:00:00:00:09
            --network two:ip=10.78.0.9,mac=02:00:00:00:00:0a --dns 192.0.2.53 $IMAGE sh -c '({LOOK}) | sed \"s,eth[01],eth,g\" | sort'"
        ));
        podman.say(&format!("run --rm --network none $IMAGE sh -c '{LOOK}'"));
        podman.ok("network rm one two");
    });
    assert_eq!(links, links_of_bridges_gone(&links), "left behind");
}

/// Names of the host's interfaces.
fn links() -> Vec<String> {
    let text = Run::new("ip").args(["-o", "link"]).finish().ok().text();
    text.lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()))
        .collect()
}

/// The host's interfaces once they are as few as before, or what there is after a while.
fn links_of_bridges_gone(before: &[String]) -> Vec<String> {
    for _ in 0..50 {
        if links() == before {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    links()
}

/// Answers on port 80 with a page.
const SERVER: &str = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www";
/// Answers every packet on UDP port 7 with what is in it. The image has nothing that can, so the host's perl does, with these volumes.
pub(crate) const ECHO: &str = r#"perl -MSocket -e "socket S, AF_INET, SOCK_DGRAM, 0 or die \$!; bind S, sockaddr_in(7, INADDR_ANY) or die \$!;
            send S, qq(echo \$text), 0, \$from while \$from = recv S, \$text, 2000, 0" &"#;
pub(crate) const PERL: &str =
    "-v /usr/lib:/lib:ro -v /usr/lib:/usr/lib:ro -v /lib64:/lib64:ro -v /usr/bin/perl:/usr/bin/perl:ro";

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn ports_names_and_neighbours() {
    same(|podman| {
        podman.ok("network create --subnet 10.77.0.0/24 --ipv6 --subnet fd00:77::/64 lan");
        podman.say(&format!(
            "run --detach --name server --network lan --network-alias alias --ip 10.77.0.5 --ip6 fd00:77::5 --publish 8080:80
            --publish 127.0.0.1:7007:7/udp {PERL} $IMAGE sh -c '{ECHO} {SERVER}'"
        ));
        // By the published port and by the address, once it listens.
        for address in ["127.0.0.1:8080", "10.77.0.5:80", "[fd00:77::5]:80"] {
            let page = eventually(address, 60, || get(address, "/").ok());
            podman.note(format!("{address}: {page}"));
        }
        podman.note(format!(
            "a port that nobody listens on: {:?}",
            TcpStream::connect("10.77.0.5:81")
                .map_err(|error| error.kind())
                .err()
        ));
        podman.ok("exec --detach server nc -l -p 82 -e sleep 5");
        let reset = eventually("a connection to be reset", 60, || {
            let mut stream = TcpStream::connect("10.77.0.5:82").ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
            // Nobody reads it, so the end is a reset.
            stream.write_all(b"something").ok()?;
            Some(stream.read(&mut [0; 10]).map_err(|error| error.kind()))
        });
        podman.note(format!("a connection that is broken off: {reset:?}"));
        for address in ["10.77.0.5:7", "127.0.0.1:7007"] {
            podman.note(format!("UDP {address}: {}", echo(address)));
        }
        podman.note(format!(
            "ping: {}",
            Run::new("busybox")
                .args(["ping", "-c", "2", "-w", "20", "10.77.0.5"])
                .finish()
                .code
        ));
        podman.say(
            "run --rm --network lan $IMAGE sh -c 'for name in server alias 10.77.0.5 [fd00:77::5]; do wget -qO- http://$name/; done;
            wget -qO- http://no-such-name/ || echo unknown; nc -w 30 server 81 </dev/null 2>&1 | grep -o refused;
            ping -c 1 -w 20 server >/dev/null && echo ping; ping -6 -c 1 -w 20 server >/dev/null && echo ping6'",
        );
        podman.say("exec server wget -qO- http://127.0.0.1/");
        podman.say("rm --force --time 0 server");
        podman.note(format!(
            "after its end: {:?}",
            TcpStream::connect("127.0.0.1:8080")
                .map_err(|error| error.kind())
                .err()
        ));
        podman.ok("network rm lan");
    });
}

pub(crate) fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    // In one packet: a server that has read its end of line may close, which is a reset while there is more to read.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| std::io::Error::new(ErrorKind::InvalidData, answer.clone()))?;
    assert!(
        head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"),
        "{head}"
    );
    Ok(body.to_owned())
}

/// What comes back by UDP.
pub(crate) fn echo(address: &str) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    eventually(address, 60, || {
        socket.send_to(b"one packet", address).ok()?;
        let mut buffer = [0; 100];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        String::from_utf8(buffer[..length].to_vec()).ok()
    })
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn many_connections() {
    let podman = Podman::new();
    podman.ok(&[
        "run",
        "--detach",
        "--name",
        "server",
        "--publish",
        "8080:80",
        IMAGE,
        "sh",
        "-c",
        SERVER,
    ]);
    eventually("the page", 60, || get("127.0.0.1:8080", "/").ok());
    for _ in 0..rounds(5, 50) {
        let requests: Vec<_> = (0..20)
            .map(|_| thread::spawn(|| get("127.0.0.1:8080", "/").map_err(|error| error.to_string())))
            .collect();
        for request in requests {
            assert_eq!(request.join().unwrap().as_deref(), Ok("page\n"));
        }
    }
}

/// podman's older networks, made by the programs of CNI: the interface is there before the runtime is called, as with netavark.
const CNI: &str = r#"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
network_config_dir = "/tmp/podman-test/cni"
"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn networks_of_cni() {
    same_with(Some(CNI), |podman| {
        podman.ok("network create --subnet 10.79.0.0/24 --disable-dns lan");
        podman.say("info --format '{{.Host.NetworkBackend}}'");
        podman.say(&format!(
            "run --rm --network lan --ip 10.79.0.9 --mac-address 02:00:00:00:00:19 $IMAGE sh -c '{LOOK}'"
        ));
        podman.say(&format!(
            "run --detach --name server --network lan --ip 10.79.0.5 --publish 8081:80 {PERL} $IMAGE sh -c '{ECHO} {SERVER}'"
        ));
        for address in ["127.0.0.1:8081", "10.79.0.5:80"] {
            let page = eventually(address, 60, || get(address, "/").ok());
            podman.note(format!("{address}: {page}"));
        }
        podman.note(format!("UDP: {}", echo("10.79.0.5:7")));
        podman.say(
            "run --rm --network lan $IMAGE sh -c 'wget -qO- http://10.79.0.5/; nc -w 30 10.79.0.5 81 </dev/null 2>&1 | grep -o refused;
            ping -c 1 -w 20 10.79.0.5 >/dev/null && echo ping'",
        );
        podman.say("rm --force --time 0 server");
        podman.ok("network rm lan");
    });
}

/// Containers on one interface of the host reach each other; their host they don't, with any runtime.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn networks_of_macvlan() {
    let ip = |line: &str| Run::new("ip").args(line.split(' ')).finish().ok();
    ip("link add lower type dummy");
    ip("link set lower up");
    same(|podman| {
        podman.ok("network create --driver macvlan --opt parent=lower --subnet 10.76.0.0/24 --gateway 10.76.0.1 lan");
        podman.say(&format!(
            "run --rm --network lan --ip 10.76.0.9 --mac-address 02:00:00:00:00:29 $IMAGE sh -c '{LOOK}'"
        ));
        podman.say(&format!(
            "run --detach --name server --network lan --ip 10.76.0.5 $IMAGE sh -c '{SERVER}'"
        ));
        podman.say(
            "run --rm --network lan $IMAGE sh -c 'until wget -qO- http://10.76.0.5/; do sleep 1; done;
            ping -c 1 -w 20 10.76.0.5 >/dev/null && echo ping'",
        );
        podman.say("rm --force --time 0 server");
        podman.ok("network rm lan");
    });
    ip("link delete lower");
}

/// Whoever changes a network of a running container finds out in its log that the guest goes on with what it had.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_network_that_is_connected_later_is_spoken_of_in_the_log() {
    let podman = Podman::new();
    for name in ["first", "second"] {
        podman.ok(&["network", "create", name]);
    }
    podman.ok(&[
        "run",
        "--detach",
        "--name",
        "c",
        "--network",
        "first",
        IMAGE,
        "sleep",
        "1000",
    ]);
    podman.ok(&["network", "connect", "second", "c"]);
    let said = |text: &str| {
        eventually(text, 30, || {
            podman
                .command(&["logs", "c"])
                .finish()
                .ok()
                .stderr
                .contains(text)
                .then_some(())
        });
    };
    said(
        "network interface eth1 has been added to the container's network, but a running guest does not get it",
    );
    podman.ok(&["network", "disconnect", "second", "c"]);
    said("network interface eth1 has been removed");
    // It is there after a restart.
    podman.ok(&["network", "connect", "second", "c"]);
    podman.ok(&["restart", "--time", "0", "c"]);
    assert_eq!(
        podman.ok(&["exec", "c", "ls", "/sys/class/net"]),
        "eth0\neth1\nlo\n"
    );
    podman.ok(&["rm", "--force", "--time", "0", "c"]);
    podman.ok(&["network", "rm", "first", "second"]);
}

/// One network namespace has one address of each kind, and only one machine can have it.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_second_machine_in_a_network_is_refused_by_name() {
    let podman = Podman::new();
    podman.ok(&["run", "--detach", "--name", "first", IMAGE, "sleep", "1000"]);
    let second = podman
        .command(&["run", "--rm", "--network", "container:first", IMAGE, "true"])
        .finish();
    assert_eq!(second.code, 126);
    assert!(
        second
            .stderr
            .contains("already belongs to another virtual machine"),
        "{}",
        second.stderr
    );
}
