//! Sealed containers and their key broker: what a guest gets from whom, and what everybody is told when it gets nothing.
//!
//! In the simulated TEE, which protects nothing and goes the same way.

use crate::podman::Podman;
use crate::secrecy::{found_in, searched};
use e2e::pattern::find;
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Run, bed, host};
use rustix::process::{Pid, Signal};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

const TOKEN: &str = "an-admin-token-of-tests";

/// What the key broker proves by to be `localhost`, with the root that it is verified by.
const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/cwrun/src/broker/tls");

/// `cwrun-broker` on loopback, ended when dropped.
pub(crate) struct Broker {
    child: Child,
    pub(crate) url: String,
    verdicts: PathBuf,
    /// `cwrun.toml` of a machine that trusts its certificate; none if it speaks HTTP.
    settings: Option<PathBuf>,
}

impl Broker {
    /// With an empty store in this directory, speaking HTTP.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// The same, configured by more than the tests of sealed workloads need.
    pub(crate) fn start_with(dir: &Path, more: &str) -> Self {
        Self::serve(dir, more, "http://127.0.0.1", None)
    }

    /// The same, speaking HTTPS.
    fn start_tls(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the bed is writable");
        let settings = dir.join("cwrun.toml");
        fs::write(&settings, format!("[broker]\nca = \"{TLS}/root.pem\"\n")).expect("the bed is writable");
        let section = format!("[tls]\ncertificate = \"{TLS}/server.pem\"\nkey = \"{TLS}/server.key\"\n");
        Self::serve(dir, &section, "https://localhost", Some(settings))
    }

    fn serve(dir: &Path, more: &str, server: &str, settings: Option<PathBuf>) -> Self {
        fs::create_dir_all(dir).expect("the bed is writable");
        let path = |name: &str| dir.join(name);
        let hash: String = Sha256::digest(TOKEN)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstore = {:?}\nkey_file = {:?}\nverdict_log = {:?}\nadmin_token_sha256 = \"{hash}\"\n\
             [evidence]\naccept_sim = true\n{more}",
            path("store"),
            path("key"),
            path("verdicts"),
        );
        fs::write(path("config"), config).expect("the bed is writable");
        let command = |name: &str| {
            let mut command = Command::new(bed().broker());
            command
                .arg(name)
                .arg("--config")
                .arg(path("config"))
                .stdin(Stdio::null());
            command
        };
        assert!(command("init").status().expect("cwrun-broker runs").success());
        let mut child = command("serve")
            .stderr(Stdio::piped())
            .spawn()
            .expect("cwrun-broker runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let url = loop {
            let mut line = String::new();
            assert_ne!(
                lines.read_line(&mut line).expect("it talks"),
                0,
                "the broker has ended"
            );
            if let Some((_, address)) = line.split_once("listening at ") {
                let port = address.trim().rsplit(':').next().unwrap_or_default();
                break format!("{server}:{port}");
            }
        };
        std::thread::spawn(move || drop(lines.read_to_end(&mut Vec::new())));
        let verdicts = path("verdicts");
        Self {
            child,
            url,
            verdicts,
            settings,
        }
    }

    /// A command of `cwrun` on a machine that trusts the broker's certificate.
    fn trusted(&self, run: Run) -> Run {
        match &self.settings {
            Some(settings) => run.env("CWRUN_CONFIG", settings),
            None => run,
        }
    }

    /// Address and port.
    fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("plain HTTP")
    }

    /// Puts a registration into its store.
    fn register(&self, id: &str, record: &serde_json::Value) {
        let head = format!("PUT /admin/v0/workloads/{id} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n");
        self.send(&head, &record.to_string());
    }

    /// Sends a JSON document, which the broker must take.
    pub(crate) fn send(&self, head: &str, body: &str) {
        let mut stream = TcpStream::connect(self.address()).expect("the broker listens");
        let request = format!(
            "{head}Host: broker\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }

    /// Event, outcome and clause of the last decision.
    pub fn last_verdict(&self) -> [String; 3] {
        let text = fs::read_to_string(&self.verdicts).expect("the broker writes it");
        let last = text.lines().last().expect("there is a verdict");
        let last: serde_json::Value = serde_json::from_str(last).expect("it is JSON");
        ["event", "outcome", "clause"].map(|name| last[name].as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SCRIPT: &str = "echo $TOKEN; cat /run/key; stat -c %a:%u /run/key; grep ' /run/key ' /proc/mounts | cut -d' ' -f3; exit 7";

/// The secret file of the workloads here that have no use for it.
pub(crate) const KEY: &str = "a private key\n";

/// The image that `seal` makes of a bundle under this id, registered with the broker; the owner's record is beside it, in `ID-record`.
pub(crate) fn seal(cwrun: &Cwrun, broker: &Broker, id: &str, source: &Bundle, key: &str) -> PathBuf {
    let write = |name: &str, text: &str| {
        let path = cwrun.path(name);
        fs::write(&path, text).expect("the bed is writable");
        path.to_str().expect("a path of ours").to_owned()
    };
    let token = write("token", TOKEN);
    let (key, word) = (write("tls.key", key), write("word", "a word"));
    let image = cwrun.path(&format!("{id}-image"));
    let record = cwrun.path(&format!("{id}-record"));
    let output = format!("oci:{}", image.display());
    let (key, word) = (format!("tls.key={key}"), format!("word={word}"));
    let command = cwrun.command([
        "seal",
        source.path().to_str().expect("a path of ours"),
        "--output",
        &output,
        "--tee",
        "sim",
        "--vcpus",
        "1",
        "--id",
        id,
        "--record",
        record.to_str().expect("a path of ours"),
        "--register",
        &broker.url,
        "--token-file",
        &token,
        "--secret",
        "word=env:TOKEN",
        "--secret-file",
        &word,
        "--secret",
        "tls.key=/run/key,mode=0440,owner=5:6",
        "--secret-file",
        &key,
    ]);
    broker.trusted(command).finish().ok();
    image
}

/// The same as an engine lays it out, in a directory `ID-rootfs`.
fn sealed(cwrun: &Cwrun, broker: &Broker, id: &str, source: &Bundle) -> Bundle {
    let image = seal(cwrun, broker, id, source, KEY);
    let rootfs = cwrun.path(&format!("{id}-rootfs"));
    unpack(&image, &rootfs);
    let args = source.config["process"]["args"].clone();
    Bundle::on(&rootfs, ["true"])
        .with(|config| config["process"]["args"] = args)
        .annotation("krun.cpus", "1")
        .annotation("io.cwrun.broker", &broker.url)
}

/// The one layer of the one image of a layout.
fn unpack(layout: &Path, to: &Path) {
    let read = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).expect("seal writes it")).expect("it is JSON")
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let manifest = read(blob(&read(layout.join("index.json"))["manifests"][0]));
    fs::create_dir(to).expect("the bed is writable");
    let status = Command::new("tar")
        .arg("-C")
        .arg(to)
        .arg("-xf")
        .arg(blob(&manifest["layers"][0]))
        .status();
    assert!(status.expect("tar runs").success());
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_sealed_workload_gets_its_key_and_its_secrets_from_its_broker_and_from_no_other() {
    let cwrun = Cwrun::new();
    let broker = Broker::start_tls(&cwrun.path("broker"));
    let bundle = sealed(&cwrun, &broker, "e2e-1", &Bundle::script(SCRIPT));
    let done = broker.trusted(cwrun.run("c", &bundle)).deadline(180).finish();
    assert_eq!(done.expect(7).text(), "a word\na private key\n440:5\ntmpfs\n");
    assert_eq!(broker.last_verdict(), ["resource", "released", ""]);
    // Another one accepts the same evidence and has no such workload.
    let other = Broker::start(&cwrun.path("other"));
    let bundle = bundle.annotation("io.cwrun.broker", &other.url);
    let refused = cwrun.run("c", &bundle).deadline(180).finish().expect(1);
    assert!(
        refused
            .stderr
            .contains("the key broker refuses the resource e2e-1/key/disk: unregistered: "),
        "{}",
        refused.stderr
    );
    assert_eq!(other.last_verdict(), ["resource", "refused", "unregistered"]);
    // Even if it had: a secret that is not the owner's is none, whoever put it there.
    let record = fs::read(cwrun.path("e2e-1-record")).expect("seal writes it");
    let mut record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
    record["secrets"]["tls.key"] = "YSBwcml2YXRlIGtlego=".into();
    other.register("e2e-1", &record);
    let refused = cwrun.run("c", &bundle).deadline(180).finish().expect(1);
    assert!(
        refused
            .stderr
            .contains("the secret tls.key is not the one that the workload was sealed with"),
        "{}",
        refused.stderr
    );
    assert!(cwrun.state("c").is_none(), "nothing is left of it");
}

/// To a configuration.
type Change = dyn Fn(&mut serde_json::Value);

/// What the host may try with a sealed image that it has, and the word by which everybody is told why it gets nowhere.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_a_host_tries_with_a_sealed_image_is_refused_by_name() {
    let cwrun = Cwrun::new();
    let broker = Broker::start(&cwrun.path("broker"));
    let idle = "trap 'exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let bundle = sealed(&cwrun, &broker, "victim", &Bundle::script(idle));
    let other = sealed(&cwrun, &broker, "other", &Bundle::script("echo other"));

    // Before anything is started.
    let push = |list: &'static str, value: serde_json::Value| {
        move |config: &mut serde_json::Value| {
            config
                .pointer_mut(list)
                .and_then(|list| list.as_array_mut())
                .expect("a list")
                .push(value.clone());
        }
    };
    let cases: [(&str, Box<Change>); 5] = [
        ("process.args", Box::new(push("/process/args", "more".into()))),
        (
            "process.env",
            Box::new(push("/process/env", "LD_PRELOAD=/evil.so".into())),
        ),
        (
            "process.user",
            Box::new(|config| config["process"]["user"]["uid"] = 7.into()),
        ),
        (
            "/evil",
            Box::new(push(
                "/mounts",
                json!({"destination": "/evil", "type": "tmpfs", "source": "tmpfs"}),
            )),
        ),
        (
            "/evil",
            Box::new(push(
                "/mounts",
                json!({"destination": "/evil", "type": "bind", "source": "/tmp", "options": ["rbind"]}),
            )),
        ),
    ];
    for (field, change) in cases {
        let refused = cwrun
            .run("c", &bundle.copy().with(change))
            .finish()
            .expect(1)
            .stderr;
        assert!(refused.contains(field), "{field}: {refused}");
    }

    // What gets as far as the broker: more processors than are registered, another initrd, another Workload.
    let refused = |bundle: &Bundle, guest: &Path, clause: &str| {
        let run = cwrun.run("c", bundle).env("CWRUN_GUEST_DIR", guest).deadline(180);
        let said = run.finish().expect(1).stderr;
        assert!(
            said.contains("the key broker refuses the resource victim/key/disk: ") && said.contains(clause),
            "{clause}: {said}"
        );
        assert_eq!(broker.last_verdict(), ["resource", "refused", clause]);
    };
    refused(
        &bundle.copy().annotation("krun.cpus", "2"),
        &bed().guest(),
        "launch-digest",
    );
    let guest = cwrun.path("guest");
    copy(&bed().guest(), &guest);
    let initrd = fs::read(guest.join("initrd")).expect("it is there");
    fs::write(guest.join("initrd"), [&initrd[..], &[0; 512]].concat()).expect("the bed is writable");
    refused(&bundle, &guest, "launch-digest");
    let place = cwrun.path("victim-rootfs/.cwrun");
    let (workload, disk) = (place.join("workload.json"), place.join("disk.img"));
    let honest = fs::read_to_string(&workload).expect("it is there");
    fs::write(&workload, honest.replace("trap 'exit 0'", "trap 'exit 1'")).expect("the bed is writable");
    let changed = bundle
        .copy()
        .with(|config| config["process"]["args"][2] = idle.replace("exit 0", "exit 1").into());
    refused(&changed, &bed().guest(), "host-data");
    fs::write(&workload, &honest).expect("the bed is writable");

    // What gets the key, and nothing with it: another's disk.
    let own = fs::read(&disk).expect("it is there");
    fs::copy(cwrun.path("other-rootfs/.cwrun/disk.img"), &disk).expect("the bed is writable");
    let swapped = cwrun.run("c", &bundle).deadline(180).finish();
    assert_ne!(swapped.code, 0);
    assert!(!swapped.text().contains("other"), "{}", swapped.text());
    fs::write(&disk, &own[..own.len() / 2]).expect("the bed is writable");
    assert_ne!(cwrun.run("c", &bundle).deadline(180).finish().code, 0);
    fs::write(&disk, &own).expect("the bed is writable");
    drop(other);

    // What runs, and lets nobody in.
    let container = cwrun.create("c", &bundle);
    cwrun.ok(["start", "c"]);
    container.expect_output("ready");
    let refused = cwrun.refused(["exec", "c", "true"]);
    assert!(
        refused.contains("does not let the host run more processes"),
        "{refused}"
    );
    // The way to the broker has been gone: the workload has what it needs.
    let proxy = the_proxy();
    assert_eq!(cgroup(proxy), cgroup(container.pid));
    kill(proxy);
    eventually("the proxy's end", 10, || proxies().is_empty().then_some(()));
    assert_eq!(cwrun.status("c"), "running");
    cwrun.ok(["kill", "c", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "c"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn without_its_proxy_a_guest_that_has_no_key_yet_gives_up() {
    let cwrun = Cwrun::new();
    let broker = Broker::start(&cwrun.path("broker"));
    // Takes requests and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    let bundle =
        sealed(&cwrun, &broker, "e2e-4", &Bundle::script("echo ran")).annotation("io.cwrun.broker", &url);
    let run = cwrun.run("c", &bundle).deadline(180);
    let done = std::thread::scope(|scope| {
        let run = scope.spawn(|| run.finish());
        let (_connection, _) = silent.accept().expect("the guest asks");
        kill(the_proxy());
        run.join().expect("cwrun runs")
    });
    let refused = done.expect(1);
    assert!(
        refused.stderr.contains("key broker") && refused.text().is_empty(),
        "{}",
        refused.stderr
    );
    assert!(
        proxies().is_empty() && cwrun.state("c").is_none(),
        "nothing is left of it"
    );
}

/// Processes that carry bytes between a guest and its broker.
pub(crate) fn proxies() -> Vec<i32> {
    host::reap();
    let is_proxy = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| find(&line, b"broker-proxy").is_some())
    };
    let pids = host::processes().into_iter().map(|(pid, _)| pid);
    pids.filter(is_proxy).collect()
}

/// The one there is while one container has a broker.
fn the_proxy() -> i32 {
    match proxies()[..] {
        [proxy] => proxy,
        _ => panic!("one container, one proxy: {:?}", host::processes()),
    }
}

/// In which cgroup a process is.
fn cgroup(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process is there")
}

fn kill(pid: i32) {
    let process = Pid::from_raw(pid).expect("a process has a number");
    rustix::process::kill_process(process, Signal::KILL).expect("it is there");
}

/// An ordinary image to podman.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podman_runs_a_sealed_image_and_changes_nothing_of_it() {
    let podman = Podman::new();
    let cwrun = &podman.cwrun;
    let broker = Broker::start(&cwrun.path("broker"));
    seal(cwrun, &broker, "podman", &Bundle::script(SCRIPT), KEY);
    let broker = format!("io.cwrun.broker={}", broker.url);
    let run = |options: &[&str], args: &[&str]| {
        let begin = [
            "run",
            "--rm",
            "--network",
            "none",
            "--annotation",
            "krun.cpus=1",
            "--annotation",
            &broker,
        ];
        let words: Vec<_> = begin
            .iter()
            .chain(options)
            .chain(&["oci:podman-image"]) // it takes small letters alone
            .chain(args)
            .copied()
            .collect();
        podman.command(&words).dir(&cwrun.path("")).deadline(180).finish()
    };
    let done = run(&[], &[]).expect(7);
    assert_eq!(done.text(), "a word\na private key\n440:5\ntmpfs\n");
    for (options, args, field) in [
        (&["--env", "EVIL=1"][..], &[][..], "process.env"),
        (&["--volume", "/tmp:/evil"], &[], "/evil"),
        (&["--user", "7"], &[], "process.user"),
        (&[], &["sh", "-c", "cat /run/key"], "process.args"),
    ] {
        let refused = run(options, args);
        assert_ne!(refused.code, 0, "{field}");
        assert!(refused.stderr.contains(field), "{field}: {}", refused.stderr);
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

/// Hands on to a server from an address of its own, and keeps what both have said.
fn overheard(server: &str) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let to = server.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    let wire = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&wire);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            // One that is not there yet has nothing to say.
            let Ok(server) = TcpStream::connect(&to) else {
                continue;
            };
            let ends = [(&client, &server), (&server, &client)].map(|(from, to)| {
                let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
                (clone(from), clone(to), Arc::clone(&kept))
            });
            for (mut from, mut to, kept) in ends {
                thread::spawn(move || {
                    let mut block = [0; 4096];
                    while let Ok(length @ 1..) = from.read(&mut block) {
                        kept.lock().expect("nobody panics").extend(&block[..length]);
                        if to.write_all(&block[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (address, wire)
}

/// nginx of Debian's packages, in a soak with all else of that Debian. It serves this page at port 443 under this certificate, whose key is
/// a secret.
fn web_server(root: &Path, page: &str, certificate: &Path) {
    copy(&bed().services(), root);
    let write = |name: &str, text: &str| fs::write(root.join(name), text).expect("the bed is writable");
    fs::create_dir_all(root.join("var/www")).expect("the bed is writable");
    write("var/www/index.html", page);
    write(
        "etc/nginx/nginx.conf",
        "daemon off; user nobody nogroup; pid /run/nginx.pid; error_log stderr; events {}
        http {
            access_log off; root /var/www;
            server { listen 443 ssl; ssl_certificate /etc/nginx/tls.pem; ssl_certificate_key /run/key; }
        }",
    );
    fs::copy(certificate, root.join("etc/nginx/tls.pem")).expect("the bed is writable");
}

/// A certificate of `localhost`'s own, in files of the directory; its private key.
fn certificate(dir: &Path) -> (PathBuf, String) {
    let [certificate, key] = ["tls.pem", "tls.key"].map(|name| dir.join(name));
    Run::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args([
            "-out".as_ref(),
            certificate.as_os_str(),
            "-keyout".as_ref(),
            key.as_os_str(),
        ])
        .finish()
        .ok();
    let key = fs::read_to_string(key).expect("openssl has made it");
    (certificate, key)
}

/// What a server that proves to be `localhost` answers.
fn get(server: SocketAddr, certificate: &Path) -> Option<String> {
    let done = Run::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
        ])
        .args(["-connect", &server.to_string(), "-CAfile"])
        .arg(certificate)
        .stdin("GET / HTTP/1.0\r\n\r\n")
        .finish();
    (done.code == 0 && !done.stdout.is_empty()).then(|| done.text())
}

/// Neither content, nor key, nor secret is in a file of the host's, in what the runtime says, or on the wire, while the workload has them
/// and serves them to who knows its certificate.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn nothing_of_a_sealed_web_server_is_readable_on_its_host() {
    let podman = Podman::new();
    let cwrun = &podman.cwrun;
    let home = bed().scratch(); // the owner's machine, which is searched by nobody
    let broker = Broker::start(&home.path().join("broker"));
    let (exchange, key_wire) = overheard(broker.address());
    let planted = "PLANTED-5d07c2-in-the-image";
    let root = home.path().join("root");
    let (certificate, private) = certificate(home.path());
    web_server(&root, &planted.repeat(5_000), &certificate);
    let script = "[ ${#TOKEN} = 6 ] && grep -q ' / ' /proc/mounts && exec nginx";
    seal(
        cwrun,
        &broker,
        "web",
        &Bundle::on(&root, ["sh", "-c", script]),
        &private,
    );
    // What the owner keeps is not on the host that runs it.
    let record = fs::read(cwrun.path("web-record")).expect("seal writes it");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
    let key = record["key"].as_str().expect("the key in base64").to_owned();
    for name in ["web-record", "tls.key", "word", "token"] {
        fs::remove_file(cwrun.path(name)).expect("it was there");
    }

    let log = format!("log={}", cwrun.path("log").display());
    let broker = format!("io.cwrun.broker=http://{exchange}");
    let run = [
        "--runtime-flag",
        &log,
        "--runtime-flag",
        "debug",
        "run",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8443:443",
        "--annotation",
        "krun.cpus=1",
        "--annotation",
        &broker,
        "oci:web-image",
    ];
    podman
        .command(&run)
        .dir(&cwrun.path(""))
        .deadline(300)
        .finish()
        .ok();
    let (server, page_wire) = overheard("127.0.0.1:8443");
    let page = eventually("the page", 60, || get(server, &certificate));
    assert!(page.ends_with(&planted.repeat(5_000)), "{} bytes", page.len());

    let pem: Vec<_> = private.lines().filter(|line| !line.starts_with('-')).collect();
    let (der, raw) = (decoded(&pem.concat()), decoded(&key));
    let needles: [&[u8]; 6] = [
        planted.as_bytes(),
        key.as_bytes(),
        &raw[..32],
        pem[1].as_bytes(),
        &der[36..68], // the number itself, in a PKCS #8 of P-256
        b"a word",
    ];
    let pids: Vec<i32> = host::processes().into_iter().map(|(pid, _)| pid).collect();
    let proxy = the_proxy();
    let storage = [
        "/var/lib/containers",
        "/run/containers",
        "/run/cwrun",
        "/var/cache/cwrun",
    ]
    .map(Path::new);
    let files = searched(&[&storage[..], &[&cwrun.path("")]].concat(), &pids);
    for name in ["/.cwrun/disk.img", "/ctr.log", "/log"] {
        assert!(
            files.iter().any(|file| file.to_string_lossy().ends_with(name)),
            "{name}"
        );
    }
    for needle in needles {
        assert_eq!(found_in(&files, needle), Vec::<PathBuf>::new(), "{needle:?}");
        for (wire, least) in [(&key_wire, 2_000), (&page_wire, 100_000)] {
            let wire = wire.lock().expect("nobody panics");
            assert!(
                wire.len() > least && find(&wire, needle).is_none(),
                "{needle:?} on the wire"
            );
        }
    }

    // However the VMM ends, the way to the broker ends with it.
    let pid = podman.ok(&["inspect", "--format", "{{.State.Pid}}", "web"]);
    let pid = pid.trim().parse().expect("a number");
    assert!(pids.contains(&pid) && pid != proxy);
    kill(pid);
    eventually("the proxy's end", 10, || proxies().is_empty().then_some(()));
    assert_eq!(podman.ok(&["wait", "web"]).trim(), "137");
    podman.ok(&["rm", "web"]);
}

fn decoded(base64: &str) -> Vec<u8> {
    let run = Run::new("base64").arg("--decode").stdin(base64);
    run.finish().ok().stdout
}
