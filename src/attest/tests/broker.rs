//! The client against the real broker, over HTTP on loopback: who gets a key, and who does not.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use attest::http::Connection;
use attest::{Client, Patience, Resource, Surroundings, Tee};
use broker::api::{Broker, Parts};
use broker::appraisal::Appraiser;
use broker::config::Config;
use broker::key_file::StoreKey;
use broker::policy::{Launches, Policies};
use broker::server::Server;
use broker::store::Store;
use broker::token::Tokens;
use broker::verdict::VerdictLog;
use tee::launch::{LaunchDigest, Policy};
use tee::report::{HostData, ReportData};
use tee::sim::Guest;
use tempfile::TempDir;

const TOKEN: &str = "the admin token of tests";
/// SHA-256 of the token.
const TOKEN_HASH: fn() -> String = || {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(TOKEN);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
};

/// A broker that serves as long as this lives.
struct Place {
    directory: TempDir,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Place {
    fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = format!(
            "store = {:?}\nkey_file = {:?}\nverdict_log = {:?}\nadmin_token_sha256 = \"{}\"\n{more}",
            path("store"),
            path("key"),
            path("verdicts"),
            TOKEN_HASH(),
        );
        std::fs::write(path("config"), text).unwrap();
        let config = Config::read(&path("config")).unwrap();
        StoreKey::generate().unwrap().create(&config.key_file).unwrap();
        let key = StoreKey::read(&config.key_file).unwrap();
        Store::create(&config.store, &key).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let broker = Broker::new(Parts {
            policies: Policies::open(None).unwrap(),
            launches: Launches::open(config.mkcw.launches.as_deref()).unwrap(),
            appraiser: Appraiser::new(&config.evidence, runtime.handle().clone()).unwrap(),
            store: Store::open(&config.store, &key).unwrap(),
            sessions: config.session_limits(),
            tokens: Tokens::new(key.signing_key()),
            verdicts: VerdictLog::open(&config.verdict_log).unwrap(),
            admin: config.admin_token_sha256,
            mkcw: config.mkcw.clone(),
        });
        let (server, listener) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            (Server::new(Arc::new(broker), config.limits, None), listener)
        });
        let address = listener.local_addr().unwrap();
        runtime.spawn(server.serve(listener, std::future::pending()));
        let place = Self {
            directory,
            address,
            runtime: Some(runtime),
        };
        place.register("workload-1", 1);
        place
    }

    fn lax() -> Self {
        Self::new("[evidence]\naccept_sim = true\n")
    }

    /// A workload whose launch digest and HOST_DATA have this byte throughout.
    fn register(&self, id: &str, byte: u8) {
        let hex = |count: usize| format!("{byte:02x}").repeat(count);
        let body = format!(
            r#"{{"version":1,"id":"{id}","launch_digests":{{"1":"{}"}},"host_data":"{}","key":"dm9sdW1lIGtleQ==","secrets":{{"tls.key":"cHJpdmF0ZQ=="}}}}"#,
            hex(48),
            hex(32)
        );
        let mut connection = Connection::new(TcpStream::connect(self.address).unwrap());
        let authorization = format!("Bearer {TOKEN}");
        let fields = [("Host", "broker"), ("Authorization", &*authorization)];
        let start = format!("PUT /admin/v0/workloads/{id} HTTP/1.1");
        connection.send(&start, &fields, body.as_bytes()).unwrap();
        let answer = connection.receive_response(1 << 20).unwrap();
        assert!((200..300).contains(&answer.status), "{answer:?}");
    }

    /// Clauses of all refusals so far.
    fn refusals(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("verdicts")).unwrap();
        let verdicts = text
            .lines()
            .map(|line| serde_json::from_str::<BTreeMap<String, serde_json::Value>>(line).unwrap());
        verdicts
            .filter(|verdict| verdict["outcome"] == "refused")
            .map(|verdict| verdict["clause"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// A guest of the software TEE.
struct Sim {
    address: SocketAddr,
    guest: Guest,
    /// What it says in place of a report of its own.
    replayed: Option<String>,
    /// All evidence that it has shown.
    shown: Vec<String>,
    start: Instant,
}

impl Sim {
    fn new(address: SocketAddr, byte: u8) -> Self {
        Self {
            address,
            guest: Guest {
                measurement: LaunchDigest([byte; 48]),
                host_data: HostData([byte; 32]),
                policy: Policy::STRICT,
                identity: None,
            },
            replayed: None,
            shown: Vec::new(),
            start: Instant::now(),
        }
    }

    fn ask(&mut self, id: &str, kind: &str, tag: &str) -> Result<Vec<u8>, String> {
        let resource = Resource::new(id, kind, tag).unwrap();
        let patience = Patience {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(50),
            total: Duration::from_secs(2),
        };
        Client::new(self, Tee::Sim, patience)
            .resource(&resource)
            .map(|bytes| bytes.to_vec())
            .map_err(|error| error.to_string())
    }
}

impl Surroundings for Sim {
    type Stream = TcpStream;

    fn connect(&mut self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn evidence(&mut self, report_data: &[u8; 64]) -> Result<String, String> {
        let own = || self.guest.attest(ReportData(*report_data)).to_json();
        let evidence = self.replayed.clone().unwrap_or_else(own);
        self.shown.push(evidence.clone());
        Ok(evidence)
    }

    fn now(&mut self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

/// A host in the middle, which changes what it likes: requests are for `ask`, answers for `answer`.
fn middle(
    broker: SocketAddr,
    ask: impl Fn(String) -> String + Send + 'static,
    answer: impl Fn(&str, String) -> String + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut guest = Connection::new(stream.unwrap());
            let mut broker = Connection::new(TcpStream::connect(broker).unwrap());
            while let Ok(request) = guest.receive_request(1 << 20) {
                let cookie = request.head.field("cookie").unwrap().unwrap_or_default();
                let cookie = ask(cookie.to_owned());
                let fields = [("Host", "broker"), ("Cookie", &*cookie)];
                let fields = if cookie.is_empty() {
                    &fields[..1]
                } else {
                    &fields[..]
                };
                let start = format!("{} {} HTTP/1.1", request.method, request.target);
                broker.send(&start, fields, &request.body).unwrap();
                let response = broker.receive_response(1 << 20).unwrap();
                let body = answer(&request.target, String::from_utf8(response.body).unwrap());
                let cookies: Vec<_> = response
                    .head
                    .fields("set-cookie")
                    .map(|value| ("Set-Cookie", value))
                    .collect();
                let start = format!("HTTP/1.1 {} x", response.status);
                guest.send(&start, &cookies, body.as_bytes()).unwrap();
            }
        }
    });
    address
}

#[test]
fn the_workload_that_is_registered_gets_its_key_and_its_secrets() {
    let place = Place::lax();
    let mut guest = Sim::new(place.address, 1);
    let mut client = Client::new(&mut guest, Tee::Sim, Patience::default());
    for (kind, tag, expected) in [
        ("key", "disk", &b"volume key"[..]),
        ("secret", "tls.key", b"private"),
    ] {
        let resource = Resource::new("workload-1", kind, tag).unwrap();
        assert_eq!(*client.resource(&resource).unwrap(), expected);
    }
    assert_eq!(place.refusals(), [""; 0]);
}

/// As `buildah mkcw` has it, which knows nothing of our launches: those that a file names are good.
#[test]
fn an_image_of_mkcw_gets_its_passphrase_once_its_launch_is_admitted() {
    let launches = tempfile::tempdir().unwrap();
    let place = Place::new(&format!(
        "[evidence]\naccept_sim = true\n[mkcw]\nenabled = true\nopen_registration = true\nlaunches = {:?}\n",
        launches.path()
    ));
    let mut connection = Connection::new(TcpStream::connect(place.address).unwrap());
    let start = "POST /kbs/v0/register_workload HTTP/1.1";
    let fields = [("Host", "broker"), ("Content-Type", "application/json")];
    let body = r#"{"workload_id":"image","launch_measurement":"","passphrase":"open sesame","tee_config":"{\"flags\":{\"bits\":15},\"minfw\":{\"major\":0,\"minor\":0}}"}"#;
    connection.send(start, &fields, body.as_bytes()).unwrap();
    assert_eq!(connection.receive_response(1 << 20).unwrap().status, 200);
    let ask = |byte| Sim::new(place.address, byte).ask("image", "key", "disk");
    let refused = ask(1).unwrap_err();
    assert!(
        refused
            .starts_with("the key broker refuses the resource image/key/disk: launches: buildah registered "),
        "{refused}"
    );
    let policy = format!(
        "launch_digests = [\"{}\"]\nhost_data = [\"{}\"]\nprocessors = [\"genoa\"]\n",
        "01".repeat(48),
        "01".repeat(32)
    );
    std::fs::write(launches.path().join("image.toml"), policy).unwrap();
    assert_eq!(ask(1).unwrap(), b"open sesame");
    assert!(ask(2).unwrap_err().contains(": launch-digest: "));
    assert_eq!(place.refusals(), ["launches", "launch-digest"]);
}

#[test]
fn another_workload_does_not_get_them() {
    let place = Place::lax();
    let error = Sim::new(place.address, 2)
        .ask("workload-1", "key", "disk")
        .unwrap_err();
    assert!(
        error.starts_with("the key broker refuses the resource workload-1/key/disk: launch-digest: ")
            && error.ends_with(" (PolicyDeny, HTTP 403)"),
        "{error}"
    );
    let mut guest = Sim::new(place.address, 1);
    guest.guest.host_data = HostData([3; 32]);
    let error = guest.ask("workload-1", "secret", "tls.key").unwrap_err();
    assert!(
        error.contains("refuses the resource workload-1/secret/tls.key: host-data: "),
        "{error}"
    );
    assert_eq!(place.refusals(), ["launch-digest", "host-data"]);
}

#[test]
fn what_is_not_registered_is_named() {
    let place = Place::lax();
    for (id, kind, tag) in [("workload-2", "key", "disk"), ("workload-1", "secret", "nothing")] {
        let error = Sim::new(place.address, 1).ask(id, kind, tag).unwrap_err();
        assert!(
            error.starts_with(&format!(
                "the key broker refuses the resource {id}/{kind}/{tag}: unregistered: "
            )),
            "{error}"
        );
        assert!(error.ends_with(", HTTP 404)"), "{error}");
    }
}

#[test]
fn a_broker_that_does_not_take_the_software_tee_says_so() {
    let place = Place::new("");
    let error = Sim::new(place.address, 1)
        .ask("workload-1", "key", "disk")
        .unwrap_err();
    assert_eq!(
        error,
        "the key broker refuses the request for a challenge: tee: this broker does not accept the software TEE, which protects nothing \
         (AttestationError, HTTP 401)"
    );
}

#[test]
fn a_report_that_is_replayed_gets_nothing() {
    let place = Place::lax();
    let mut guest = Sim::new(place.address, 1);
    assert!(guest.ask("workload-1", "key", "disk").is_ok());
    guest.replayed = guest.shown.pop();
    let error = guest.ask("workload-1", "key", "disk").unwrap_err();
    assert!(
        error.starts_with("the key broker refuses the attestation: report-data: "),
        "{error}"
    );
    assert_eq!(place.refusals(), ["report-data"]);
}

#[test]
fn a_resource_that_is_altered_on_its_way_does_not_open() {
    let place = Place::lax();
    for part in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
        let alter = move |target: &str, body: String| {
            if !target.contains("/resource/") {
                return body;
            }
            let mut jwe: serde_json::Value = serde_json::from_str(&body).unwrap();
            let text = jwe[part].as_str().unwrap().to_owned();
            let first = if text.starts_with('A') { 'B' } else { 'A' };
            jwe[part] = format!("{first}{}", &text[1..]).into();
            jwe.to_string()
        };
        let address = middle(place.address, |cookie| cookie, alter);
        let error = Sim::new(address, 1).ask("workload-1", "key", "disk").unwrap_err();
        assert!(
            error.starts_with(
                "the resource workload-1/key/disk, as the key broker sent it, can't be opened: "
            ),
            "{part}: {error}"
        );
    }
}

#[test]
fn a_resource_that_was_encrypted_to_somebody_else_does_not_open() {
    let place = Place::lax();
    // What another session got, under another key.
    let kept = Arc::new(Mutex::new(None::<String>));
    let replay = move |target: &str, body: String| {
        if !target.contains("/resource/") {
            return body;
        }
        kept.lock().unwrap().get_or_insert(body).clone()
    };
    let address = middle(place.address, |cookie| cookie, replay);
    assert!(Sim::new(address, 1).ask("workload-1", "key", "disk").is_ok());
    let error = Sim::new(address, 1).ask("workload-1", "key", "disk").unwrap_err();
    assert!(
        error.ends_with("it was encrypted to another key, or altered on its way"),
        "{error}"
    );
}

#[test]
fn another_sessions_cookie_gets_what_only_that_session_can_open() {
    let place = Place::lax();
    // The first session's cookie goes with every later request.
    let first = Arc::new(Mutex::new(None::<String>));
    let swap = move |cookie: String| match cookie.is_empty() {
        true => cookie,
        false => first.lock().unwrap().get_or_insert(cookie).clone(),
    };
    let address = middle(place.address, swap, |_, body| body);
    assert!(Sim::new(address, 1).ask("workload-1", "key", "disk").is_ok());
    let error = Sim::new(address, 1).ask("workload-1", "key", "disk").unwrap_err();
    assert!(
        error.starts_with("the key broker refuses the attestation: nonce: "),
        "{error}"
    );
    assert_eq!(place.refusals(), ["nonce"]);
}

#[test]
fn an_impersonated_broker_learns_nothing_that_opens_the_real_ones_answers() {
    let (place, impostor) = (Place::lax(), Place::lax());
    // It takes the guest's evidence and shows it to the real broker in a session of its own.
    let mut guest = Sim::new(impostor.address, 1);
    assert!(guest.ask("workload-1", "key", "disk").is_ok());
    let mut thief = Sim::new(place.address, 1);
    thief.replayed = guest.shown.pop();
    let error = thief.ask("workload-1", "key", "disk").unwrap_err();
    assert!(error.contains("report-data: "), "{error}");
}

#[test]
fn an_answer_without_attestation_is_no_key() {
    let place = Place::lax();
    let address = middle(
        place.address,
        |cookie| cookie,
        |target, body| match target.contains("/resource/") {
            true => r#"{"key":"dm9sdW1lIGtleQ=="}"#.to_owned(),
            false => body,
        },
    );
    let error = Sim::new(address, 1).ask("workload-1", "key", "disk").unwrap_err();
    assert!(error.ends_with("it is not a JWE in flattened JSON"), "{error}");
}

#[test]
fn a_broker_that_is_restarted_between_two_resources_is_asked_anew() {
    let (place, again) = (Place::lax(), Place::lax());
    let mut guest = Sim::new(place.address, 1);
    let target = Arc::new(Mutex::new(place.address));
    struct Moving<'a>(&'a mut Sim, Arc<Mutex<SocketAddr>>);
    impl Surroundings for Moving<'_> {
        type Stream = TcpStream;
        fn connect(&mut self) -> io::Result<TcpStream> {
            self.0.address = *self.1.lock().unwrap();
            self.0.connect()
        }
        fn evidence(&mut self, report_data: &[u8; 64]) -> Result<String, String> {
            self.0.evidence(report_data)
        }
        fn now(&mut self) -> Duration {
            self.0.now()
        }
        fn sleep(&mut self, time: Duration) {
            self.0.sleep(time);
        }
    }
    let mut moving = Moving(&mut guest, Arc::clone(&target));
    let mut client = Client::new(&mut moving, Tee::Sim, Patience::default());
    let resource = Resource::new("workload-1", "key", "disk").unwrap();
    assert!(client.resource(&resource).is_ok());
    *target.lock().unwrap() = again.address;
    // Ends all connections of the first.
    drop(place);
    assert!(client.resource(&resource).is_ok());
    assert_eq!(again.refusals(), ["session"]);
}
