//! Sealed containers and their key broker: what a guest gets from whom, and what everybody is told when it gets nothing.
//!
//! In the simulated TEE, which protects nothing and goes the same way.

use e2e::{Bundle, Cwrun, bed};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const TOKEN: &str = "an-admin-token-of-tests";

/// `cwrun-broker` on loopback, ended when dropped.
struct Broker {
    child: Child,
    url: String,
    verdicts: PathBuf,
}

impl Broker {
    /// With an empty store in this directory.
    fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the bed is writable");
        let path = |name: &str| dir.join(name);
        let hash: String = Sha256::digest(TOKEN)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstore = {:?}\nkey_file = {:?}\nverdict_log = {:?}\nadmin_token_sha256 = \"{hash}\"\n\
             [evidence]\naccept_sim = true\n",
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

    /// Event, outcome and clause of the last decision.
    fn last_verdict(&self) -> [String; 3] {
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
    let write = |name: &str, text: &str| {
        let path = cwrun.path(name);
        fs::write(&path, text).expect("the bed is writable");
        path.to_str().expect("a path of ours").to_owned()
    };
    let token = write("token", TOKEN);
    let (key, word) = (write("tls.key", "a private key\n"), write("word", "a word"));
    let source = Bundle::script(SCRIPT);
    let image = cwrun.path("image");
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
        "e2e-1",
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
    let rootfs = cwrun.path("rootfs");
    unpack(&image, &rootfs);
    Bundle::on(&rootfs, ["sh", "-c", SCRIPT]).annotation("krun.cpus", "1")
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
    let bundle = sealed(&cwrun, &broker).annotation("io.cwrun.broker", &broker.url);
    let done = cwrun.run("c", &bundle).deadline(180).finish().expect(7);
    assert_eq!(done.text(), "a word\na private key\n440:5\ntmpfs\n");
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
    assert!(cwrun.state("c").is_none(), "nothing is left of it");
}
