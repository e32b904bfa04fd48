//! Containers with the host's network (`--network host`), which a guest has through passt.

use crate::network::connect;
use crate::podman::{IMAGE, Podman};
use crate::podman_networks::{ECHO, PERL, echo};
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Run, bed};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// An address of this machine beside the loopback's own.
const HOST: &str = "10.97.0.1";

/// A bundle without a network namespace, as engines write it for the host's network.
fn bundle(script: &str) -> Bundle {
    Bundle::script(script).with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
    })
}

/// This machine with an address for the time of a test.
struct Address;

impl Address {
    fn new() -> Self {
        // One that failed may have left it.
        Run::new("ip")
            .args(["address", "add", &format!("{HOST}/32"), "dev", "lo"])
            .finish();
        Self
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        Run::new("ip")
            .args(["address", "delete", &format!("{HOST}/32"), "dev", "lo"])
            .finish();
    }
}

/// Processes of passt that have not ended.
fn passts() -> Vec<String> {
    let text = Run::new("ps").args(["-eo", "pid,stat,comm"]).finish().ok().text();
    let lines = text.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words.as_slice(), [_, state, name, ..] if name.starts_with("passt") && !state.starts_with('Z'))
    });
    lines.map(str::to_owned).collect()
}

#[track_caller]
fn expect_no_passt() {
    eventually("passt ends", 10, || passts().is_empty().then_some(()));
}

/// Answers every query for an address with 192.0.2.77, once.
fn resolve_once(socket: UdpSocket) -> thread::JoinHandle<String> {
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket takes a timeout");
    thread::spawn(move || {
        let mut name = String::new();
        let mut answered = false;
        while !answered {
            let mut query = [0; 512];
            let (length, from) = match socket.recv_from(&mut query) {
                // A socket with a time-out is interrupted by signals.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                received => received.expect("a query comes"),
            };
            let question = &query[12..length];
            // Labels, then the type and class.
            let end = question.iter().position(|byte| *byte == 0).expect("a name ends") + 5;
            name = question[1..end - 5]
                .iter()
                .map(|byte| if *byte < 32 { '.' } else { *byte as char })
                .collect();
            let is_ipv4 = question[end - 3] == 1;
            let mut answer = query[..12 + end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            if is_ipv4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            socket.send_to(&answer, from).expect("the answer leaves");
            answered = is_ipv4;
        }
        name
    })
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_guest_reaches_the_host_and_is_reached_where_it_is_asked_for() {
    let _address = Address::new();
    let podman = Podman::new();
    let outside = TcpListener::bind((HOST, 7201)).expect("the address is there");
    let local = TcpListener::bind(("127.0.0.1", 7202)).expect("the loopback is there");
    let greet = |listener: TcpListener, text: &'static str| {
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the guest connects");
            // Debian 12's passt repeats what comes after the guest has closed its direction, so both close later.
            stream.read_exact(&mut [0; 1]).expect("it asks");
            stream.write_all(text.as_bytes()).expect("it reads");
            thread::sleep(Duration::from_secs(1));
        })
    };
    let servers = [greet(outside, "of the host\n"), greet(local, "of its loopback\n")];
    // Nothing ends the guest's direction before the host's. Where nobody listens, Debian 12's passt does not say so.
    let script = format!(
        "ask() {{ mkfifo /tmp/words; nc $1 $2 </tmp/words & exec 4>/tmp/words; echo >&4; wait $!; exec 4>&-; rm /tmp/words; }}; ls /sys/class/net | tr '\\n' ' '; echo; ask {HOST} 7201; ask 10.0.2.2 7202; nc -w 5 {HOST} 7209 </dev/null || echo nobody;
        {ECHO} echo serving; while :; do nc -l -p 80 -e sh -c 'read line; echo \"$line of the guest\"; sleep 1'; done"
    );
    let annotation = "io.cwrun.host-ports=80 7/udp";
    let mut run = vec!["run", "--detach", "--name", "web", "--network", "host"];
    run.extend(["--annotation", annotation]);
    run.extend(PERL.split(' '));
    run.extend([IMAGE, "sh", "-c", &script]);
    podman.ok(&run);
    eventually("what the guest says", 180, || {
        podman.ok(&["logs", "web"]).contains("serving").then_some(())
    });
    for server in servers {
        server.join().expect("it was served");
    }
    assert_eq!(
        podman.ok(&["logs", "web"]),
        "eth0 lo \nof the host\nof its loopback\nnobody\nserving\n"
    );
    // The port of the host is the guest's, under each of the host's addresses; another is not.
    for address in ["127.0.0.1:80", "10.97.0.1:80"] {
        let mut text = String::new();
        eventually(address, 60, || {
            text.clear();
            let mut stream = connect(address);
            stream.write_all(b"word\n").ok()?;
            stream.read_to_string(&mut text).ok().filter(|length| *length > 0)
        });
        assert_eq!(text, "word of the guest\n");
    }
    for address in ["127.0.0.1:7", "10.97.0.1:7"] {
        assert_eq!(echo(address), "echo one packet");
    }
    assert!(std::net::TcpStream::connect("127.0.0.1:7").is_err());
    assert_eq!(passts().len(), 1);
    podman.ok(&["rm", "--force", "--time", "0", "web"]);
    expect_no_passt();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn names_are_resolved_as_on_the_host() {
    let _address = Address::new();
    let cwrun = Cwrun::new();
    // systemd-resolved's file, of whom it asks.
    let upstream = Path::new("/run/systemd/resolve/resolv.conf");
    fs::create_dir_all(upstream.parent().expect("it has one")).expect("the bed is writable");
    fs::write(upstream, format!("nameserver {HOST}\n")).expect("the bed is writable");
    // A resolver that the guest reaches by its address, one on the host's loopback, and systemd-resolved.
    let resolvers = [(HOST, HOST), ("127.0.0.1", "127.0.0.1"), ("127.0.0.53", HOST)];
    for (number, (resolver, asked)) in resolvers.into_iter().enumerate() {
        let server = resolve_once(UdpSocket::bind((asked, 53)).expect("the address is there"));
        let file = cwrun.path(&format!("resolv{number}"));
        fs::write(&file, format!("nameserver {resolver}\n")).expect("the bed is writable");
        let bundle = bundle("nslookup -type=a name.example.org. | grep 192.0.2.77").with(|config| {
            let mounts = config["mounts"].as_array_mut().expect("a list");
            mounts.push(serde_json::json!({"destination": "/etc/resolv.conf", "type": "bind", "source": file, "options": ["bind"]}));
        });
        let done = cwrun.run(&format!("dns{number}"), &bundle).finish().ok();
        assert!(done.text().contains("192.0.2.77"), "{resolver}: {}", done.text());
        assert_eq!(server.join().expect("it was asked"), "name.example.org");
    }
    fs::remove_file(upstream).expect("it is ours");
    expect_no_passt();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn passt_ends_with_its_container_however_that_ends() {
    let cwrun = Cwrun::new();
    let idle = bundle("trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done");
    for pid_namespace in [true, false] {
        let bundle = bundle("sleep 1000").with(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| pid_namespace || namespace["type"] != "pid");
        });
        let container = cwrun.create("killed", &bundle);
        cwrun.ok(["start", "killed"]);
        assert_eq!(passts().len(), 1);
        Run::new("kill")
            .args(["-9", &container.pid.to_string()])
            .finish()
            .ok();
        assert_eq!(cwrun.wait(&container), 128 + 9);
        expect_no_passt();
        cwrun.ok(["delete", "killed"]);
    }
    // Each container has its own.
    let ids = ["one", "two"];
    for id in ids {
        cwrun.create(id, &idle);
    }
    assert_eq!(passts().len(), 2);
    for id in ids {
        cwrun.ok(["delete", "--force", id]);
    }
    expect_no_passt();
    // A guest that never gets ready.
    let broken = idle.with(|config| config["process"]["args"] = serde_json::json!(["/no/such/program"]));
    for _ in 0..2 {
        let args = [
            "create".as_ref(),
            "--bundle".as_ref(),
            broken.path().as_os_str(),
            "broken".as_ref(),
        ];
        assert_ne!(cwrun.command(args).finish().code, 0);
        expect_no_passt();
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_cant_be_had_is_said_in_a_sentence() {
    let cwrun = Cwrun::new();
    let said = |bundle: &Bundle| {
        let done = cwrun.run("c", bundle).finish();
        assert_eq!(
            (done.code, done.stderr.lines().count()),
            (1, 1),
            "{}",
            done.stderr
        );
        done.stderr
    };
    let listener = TcpListener::bind(("0.0.0.0", 7205)).expect("the port is free");
    let taken = said(&bundle("true").annotation("io.cwrun.host-ports", "7205"));
    assert!(
        taken.contains("the host's network through /") && taken.contains("7205"),
        "{taken}"
    );
    drop(listener);
    let nonsense = said(&bundle("true").annotation("io.cwrun.host-ports", "http"));
    assert!(
        nonsense.contains("annotation io.cwrun.host-ports: \"http\" is not a port"),
        "{nonsense}"
    );
    let own = said(&Bundle::script("true").annotation("io.cwrun.host-ports", "80"));
    assert!(own.contains("the engine publishes its ports"), "{own}");
    // Where passt is not installed: a device is no program.
    let script = "for passt in /usr/bin/passt /usr/local/bin/passt; do ! test -e $passt || mount --bind /dev/null $passt; done; exec \"$@\"";
    let without = bundle("true");
    let run = cwrun.run("c", &without).command();
    let missing = Run::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .env("CWRUN_CACHE_DIR", cwrun.cache())
        .env("CWRUN_GUEST_DIR", bed().guest())
        .finish();
    assert_eq!(
        (missing.code, missing.stderr.lines().count()),
        (1, 1),
        "{}",
        missing.stderr
    );
    assert!(
        missing.stderr.contains("install the package passt"),
        "{}",
        missing.stderr
    );
    expect_no_passt();
}
