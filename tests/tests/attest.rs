//! Sealed containers and their key broker: what a guest gets from whom, and what everybody is told when it gets nothing.
//!
//! In the simulated TEE, which protects nothing and goes the same way.

use crate::podman::Podman;
use crate::secrecy::{found_in, searched};
use e2e::pattern::find;
use e2e::{Bundle, Cwrun, Run, bed, host};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

const TOKEN: &str = "an-admin-token-of-tests";

/// `cwrun-broker` on loopback, ended when dropped.
pub struct Broker {
    child: Child,
    pub url: String,
    verdicts: PathBuf,
}

impl Broker {
    /// With an empty store in this directory.
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// The same, configured by more than the tests of sealed workloads need.
    pub fn start_with(dir: &Path, more: &str) -> Self {
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
                break format!("http://{}", address.trim());
            }
        };
        std::thread::spawn(move || drop(lines.read_to_end(&mut Vec::new())));
        let verdicts = path("verdicts");
        Self { child, url, verdicts }
    }

    /// Puts a registration into its store.
    fn register(&self, id: &str, record: &serde_json::Value) {
        let head = format!("PUT /admin/v0/workloads/{id} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n");
        self.send(&head, &record.to_string());
    }

    /// Sends a JSON document, which the broker must take.
    pub fn send(&self, head: &str, body: &str) {
        let address = self.url.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(address).expect("the broker listens");
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

/// The image that `seal` makes of a script, as an engine lays it out. It is registered with the broker.
fn sealed(cwrun: &Cwrun, broker: &Broker) -> Bundle {
    seal(cwrun, &broker.url, "e2e-1", &Bundle::script(SCRIPT))
}

/// The same of any bundle, under this id, in a directory `ID-rootfs`; with the owner's record in the file `ID-record`.
fn seal(cwrun: &Cwrun, url: &str, id: &str, source: &Bundle) -> Bundle {
    let write = |name: &str, text: &str| {
        let path = cwrun.path(name);
        fs::write(&path, text).expect("the bed is writable");
        path.to_str().expect("a path of ours").to_owned()
    };
    let token = write("token", TOKEN);
    let (key, word) = (write("tls.key", "a private key\n"), write("word", "a word"));
    let image = cwrun.path(&format!("{id}-image"));
    let record = cwrun.path(&format!("{id}-record"));
    let output = format!("oci:{}", image.display());
    let (key, word) = (format!("tls.key={key}"), format!("word={word}"));
    let dir = source.path().to_str().expect("a path of ours");
    cwrun.ok([
        "seal",
        dir,
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
        url,
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
    let rootfs = cwrun.path(&format!("{id}-rootfs"));
    unpack(&image, &rootfs);
    let args = source.config["process"]["args"].clone();
    Bundle::on(&rootfs, ["true"])
        .with(|config| config["process"]["args"] = args)
        .annotation("krun.cpus", "1")
        .annotation("io.cwrun.broker", url)
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
    let broker = Broker::start(&cwrun.path("broker"));
    let bundle = sealed(&cwrun, &broker);
    let done = cwrun.run("c", &bundle).deadline(180).finish().expect(7);
    assert_eq!(done.text(), "a word\na private key\n440:5\ntmpfs\n");
    assert_eq!(broker.last_verdict(), ["resource", "released", ""]);
    // A secret that is not the owner's is none, whoever put it there.
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs::read(cwrun.path("e2e-1-record")).expect("seal writes it"))
            .expect("it is JSON");
    record["secrets"]["tls.key"] = "YSBwcml2YXRlIGtlego=".into();
    broker.register("e2e-1", &record);
    let other = cwrun.run("c", &bundle).deadline(180).finish().expect(1);
    assert!(
        other
            .stderr
            .contains("the secret tls.key is not the one that the workload was sealed with"),
        "{}",
        other.stderr
    );
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
    let bundle = seal(&cwrun, &broker.url, "victim", &Bundle::script(idle));
    let other = seal(&cwrun, &broker.url, "other", &Bundle::script("echo other"));

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
    cwrun.ok(["kill", "c", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "c"]);
}

/// An ordinary image to podman.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podman_runs_a_sealed_image_and_changes_nothing_of_it() {
    let podman = Podman::new();
    let cwrun = &podman.cwrun;
    let broker = Broker::start(&cwrun.path("broker"));
    seal(cwrun, &broker.url, "podman", &Bundle::script(SCRIPT));
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

/// Hands on to the broker, and keeps what both have said.
fn overheard(url: &str) -> (String, Arc<Mutex<Vec<u8>>>) {
    let broker = url.strip_prefix("http://").expect("plain HTTP").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    let wire = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&wire);
    thread::spawn(move || {
        for guest in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&broker).expect("the broker listens");
            let ends = [(&guest, &server), (&server, &guest)].map(|(from, to)| {
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
    (format!("http://{address}"), wire)
}

/// Neither content, nor key, nor secret is in a file of the host's, in what the runtime says, or on the wire, while the workload has them.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn nothing_of_a_sealed_workload_is_readable_on_its_host() {
    let cwrun = Cwrun::with_own_cache();
    let home = bed().scratch(); // the owner's machine, which is searched by nobody
    let broker = Broker::start(&cwrun.path("broker"));
    let (url, wire) = overheard(&broker.url);
    let planted = "PLANTED-5d07c2-in-the-image";
    let root = home.path().join("root");
    copy(&bed().busybox(), &root);
    fs::write(root.join("etc/planted"), planted.repeat(5_000)).expect("the bed is writable");
    let script = "grep -c PLANTED /etc/planted; grep -c 'private key' /run/key; echo ${#TOKEN}
        trap 'exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let bundle = seal(
        &cwrun,
        &broker.url,
        "secret",
        &Bundle::on(&root, ["sh", "-c", script]),
    )
    .annotation("io.cwrun.broker", &url);
    // What the owner keeps is not on the host that runs it.
    let record = fs::read(cwrun.path("secret-record")).expect("seal writes it");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
    let key = record["key"].as_str().expect("the key in base64").to_owned();
    for name in ["secret-record", "tls.key", "word", "token"] {
        fs::remove_file(cwrun.path(name)).expect("it was there");
    }
    fs::remove_dir_all(cwrun.path("secret-image")).expect("it was there");
    let log = cwrun.path("log");
    let options = ["--log", log.to_str().expect("a path of ours")];
    let container = cwrun.create_with("c", &bundle, &options, Stdio::null());
    cwrun.ok(["start", "c"]);
    container.expect_output("ready");
    assert_eq!(container.output(), "1\n1\n6\nready\n");

    let raw = Run::new("base64")
        .arg("--decode")
        .stdin(key.as_str())
        .finish()
        .ok()
        .stdout;
    let needles: [&[u8]; 5] = [
        planted.as_bytes(),
        key.as_bytes(),
        &raw[..32],
        b"a private key",
        b"a word",
    ];
    let dirs = [bundle.path(), &cwrun.path(""), cwrun.cache()];
    let pids: Vec<i32> = host::processes().into_iter().map(|(pid, _)| pid).collect();
    assert!(pids.contains(&container.pid));
    let files = searched(&dirs, &pids);
    assert!(files.iter().any(|file| file.ends_with(".cwrun/disk.img")));
    for needle in needles {
        assert_eq!(found_in(&files, needle), Vec::<PathBuf>::new(), "{needle:?}");
        let wire = wire.lock().expect("nobody panics");
        assert!(
            wire.len() > 2000 && find(&wire, needle).is_none(),
            "{needle:?} on the wire"
        );
    }
    cwrun.ok(["kill", "c", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "c"]);
}
