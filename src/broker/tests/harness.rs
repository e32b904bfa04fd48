//! A broker in a directory of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::client::{Http, Response};

pub const TOKEN: &str = "the admin token of tests";
pub const KEY: &str = "c2VjcmV0IHZvbHVtZSBrZXk=";
pub const KEY_TEXT: &[u8] = b"secret volume key";

const LAX: &str =
    "[limits]\nrequests_per_second = 1000000\nburst = 1000000\n[sessions]\nper_client = 10000\n";

/// A directory with a configuration, a key and a store.
pub struct Place {
    directory: TempDir,
}

/// A running broker.
pub struct Broker {
    child: Child,
    pub address: SocketAddr,
    pub log: Arc<Mutex<String>>,
}

pub fn soak() -> bool {
    std::env::var_os("CWRUN_SOAK").is_some()
}

pub fn broker_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cwrun-broker"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

impl Place {
    /// `more`: TOML beside the paths and the admin token.
    pub fn new(more: &str) -> Self {
        let place = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        place.configure(more);
        let output = place.run("init");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        place
    }

    /// Accepts the software TEE, and limits no client.
    pub fn lax() -> Self {
        Self::new(&format!("{LAX}[evidence]\naccept_sim = true\n"))
    }

    pub fn configure(&self, more: &str) {
        let path = |name: &str| self.path(name).display().to_string();
        let hash: String = Sha256::digest(TOKEN)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let text = format!(
            "listen = \"127.0.0.1:0\"\nstore = {:?}\nkey_file = {:?}\nverdict_log = {:?}\nadmin_token_sha256 = \"{hash}\"\n{more}",
            path("store"),
            path("key"),
            path("verdicts"),
        );
        std::fs::write(self.path("config"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run(&self, command: &str) -> Output {
        broker_command()
            .arg(command)
            .arg("--config")
            .arg(self.path("config"))
            .output()
            .unwrap()
    }

    pub fn serve(&self) -> Broker {
        Broker::start(&self.path("config"))
    }

    /// All verdicts so far.
    pub fn verdicts(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("verdicts")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The last verdict's event, outcome and clause.
    pub fn last_verdict(&self) -> (String, String, String) {
        let verdicts = self.verdicts();
        let last = verdicts.last().expect("there is a verdict");
        let text = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
        (text("event"), text("outcome"), text("clause"))
    }

    #[track_caller]
    pub fn assert_refused(&self, event: &str, clause: &str) {
        let expected = (event.to_owned(), "refused".to_owned(), clause.to_owned());
        assert_eq!(self.last_verdict(), expected);
    }
}

impl Broker {
    pub fn start(config: &Path) -> Self {
        let mut child = broker_command()
            .arg("serve")
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                panic!("the broker did not start: {}", log.lock().unwrap());
            }
            log.lock().unwrap().push_str(&line);
            if let Some((_, address)) = line.split_once("listening at ") {
                break address.trim().parse().unwrap();
            }
        };
        let rest = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|count| count > 0) {
                rest.lock().unwrap().push_str(&line);
                line.clear();
            }
            let _ = lines.read_to_string(&mut line);
        });
        Self { child, address, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power failure would, as far as a process sees one.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn http(&self) -> Http {
        Http::connect(self.address)
    }

    pub fn admin(&self, method: &str, path: &str, token: &str, body: &Value) -> Response {
        let authorization = format!("Bearer {token}");
        let path = format!("/admin/v0/workloads{path}");
        self.http().call(
            method,
            &path,
            &[("Authorization", &authorization)],
            body.to_string().as_bytes(),
        )
    }

    #[track_caller]
    pub fn register(&self, registration: &Value) {
        let response = self.admin("POST", "", TOKEN, registration);
        assert_eq!(response.status, 201, "{}", response.text());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the broker said:\n{}", self.log.lock().unwrap());
        }
    }
}

/// A workload whose launch digest and HOST_DATA are one byte repeated.
pub fn registration(id: &str, digest: u8, host_data: u8) -> Value {
    json!({
        "version": 1,
        "id": id,
        "launch_digests": {"1": format!("{digest:02x}").repeat(48)},
        "host_data": format!("{host_data:02x}").repeat(32),
        "key": KEY,
        "secrets": {"tls.key": "c2VjcmV0IG9mIFRMUw=="},
    })
}
