use super::*;
use crate::http::Request as HttpRequest;
use std::cell::RefCell;
use std::io::Cursor;
use std::rc::Rc;

/// What a request is answered with.
#[derive(Clone)]
enum Reply {
    /// This status, with these fields and this body.
    Say(u16, Vec<(&'static str, &'static str)>, String),
    /// Nothing: the connection ends.
    Close,
    /// Nothing, ever.
    Hang,
}

type Handler = Box<dyn FnMut(&HttpRequest) -> Reply>;

#[derive(Default)]
struct Told {
    requests: Vec<(String, Option<String>)>,
    sleeps: Vec<Duration>,
    reports: Vec<[u8; 64]>,
    connections: usize,
}

/// A broker in this thread.
struct Fake {
    handler: Rc<RefCell<Handler>>,
    told: Rc<RefCell<Told>>,
    unreachable: usize,
    now: Duration,
}

struct Stream {
    handler: Rc<RefCell<Handler>>,
    told: Rc<RefCell<Told>>,
    asked: Vec<u8>,
    answer: Cursor<Vec<u8>>,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.answer.position() == self.answer.get_ref().len() as u64 {
            let asked = Connection::new(Cursor::new(std::mem::take(&mut self.asked)))
                .receive_request(1 << 20)
                .expect("clients ask properly");
            let cookie = asked.head.field("cookie").unwrap().map(str::to_owned);
            let line = format!("{} {}", asked.method, asked.target);
            self.told.borrow_mut().requests.push((line, cookie));
            match (self.handler.borrow_mut())(&asked) {
                Reply::Close => return Ok(0),
                Reply::Hang => return Err(io::ErrorKind::WouldBlock.into()),
                Reply::Say(status, fields, body) => {
                    let mut connection = Connection::new(Cursor::new(Vec::new()));
                    connection
                        .send(&format!("HTTP/1.1 {status} x"), &fields, body.as_bytes())
                        .unwrap();
                    self.answer = Cursor::new(connection.stream().get_ref().clone());
                }
            }
        }
        self.answer.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Surroundings for Fake {
    type Stream = Stream;

    fn connect(&mut self) -> io::Result<Stream> {
        if self.unreachable > 0 {
            self.unreachable -= 1;
            return Err(io::Error::from_raw_os_error(111));
        }
        self.told.borrow_mut().connections += 1;
        Ok(Stream {
            handler: Rc::clone(&self.handler),
            told: Rc::clone(&self.told),
            asked: Vec::new(),
            answer: Cursor::new(Vec::new()),
        })
    }

    fn evidence(&mut self, report_data: &[u8; 64]) -> Result<String, String> {
        self.told.borrow_mut().reports.push(*report_data);
        Ok("{}".to_owned())
    }

    fn now(&mut self) -> Duration {
        self.now
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.told.borrow_mut().sleeps.push(time);
    }
}

fn fake(handler: impl FnMut(&HttpRequest) -> Reply + 'static) -> Fake {
    Fake {
        handler: Rc::new(RefCell::new(Box::new(handler))),
        told: Rc::default(),
        unreachable: 0,
        now: Duration::from_secs(1000),
    }
}

fn say(status: u16, body: &str) -> Reply {
    Reply::Say(status, Vec::new(), body.to_owned())
}

fn refusal(status: u16, kind: &str, detail: &str) -> Reply {
    let body = serde_json::to_string(&ErrorInformation::new(kind, detail.to_owned())).unwrap();
    say(status, &body)
}

/// A broker that believes everything and encrypts `volume key` to whoever attested last.
#[derive(Default)]
struct Honest {
    sessions: usize,
    key: Option<broker::jwe::EncryptionKey>,
}

impl Honest {
    fn answer(&mut self, request: &HttpRequest) -> Reply {
        match &*request.target {
            AUTH => {
                self.sessions += 1;
                let cookie = format!("kbs-session-id=session-{}; Path=/", self.sessions);
                Reply::Say(
                    200,
                    vec![("Set-Cookie", String::leak(cookie))],
                    r#"{"nonce":"bm9uY2U=","extra-params":""}"#.to_owned(),
                )
            }
            ATTEST => {
                let said: broker::protocol::Attestation = serde_json::from_slice(&request.body).unwrap();
                let key = broker::jwe::EncryptionKey::parse(&said.runtime_data.tee_pubkey).unwrap();
                self.key = Some(key);
                say(200, "")
            }
            _ => {
                let key = self.key.as_ref().expect("an attested client");
                say(
                    200,
                    &serde_json::to_string(&key.encrypt(b"volume key").unwrap()).unwrap(),
                )
            }
        }
    }
}

fn resource() -> Resource {
    Resource::new("id", "key", "disk").unwrap()
}

/// Asks once, and says what came of it.
fn ask(fake: &mut Fake) -> Result<Vec<u8>, String> {
    Client::new(fake, Tee::Sim, Patience::default())
        .resource(&resource())
        .map(|bytes| bytes.to_vec())
        .map_err(|error| error.to_string())
}

fn lines(fake: &Fake) -> Vec<String> {
    let told = fake.told.borrow();
    told.requests.iter().map(|(line, _)| line.clone()).collect()
}

const A: &str = "POST /kbs/v0/auth";
const B: &str = "POST /kbs/v0/attest";
const C: &str = "GET /kbs/v0/resource/id/key/disk";

#[test]
fn one_session_and_one_connection_serve_all_resources() {
    let mut honest = Honest::default();
    let mut fake = fake(move |request| honest.answer(request));
    let told = Rc::clone(&fake.told);
    let mut client = Client::new(&mut fake, Tee::Snp, Patience::default());
    for _ in 0..2 {
        assert_eq!(*client.resource(&resource()).unwrap(), b"volume key");
    }
    drop(client);
    assert_eq!(lines(&fake), [A, B, C, C]);
    let told = told.borrow();
    assert_eq!(told.connections, 1);
    assert_eq!(told.requests[0].1, None);
    assert!(
        told.requests[1..]
            .iter()
            .all(|(_, cookie)| cookie.as_deref() == Some("kbs-session-id=session-1"))
    );
}

#[test]
fn a_broker_that_comes_late_is_waited_for_a_little_longer_each_time() {
    let mut honest = Honest::default();
    let mut fake = fake(move |request| honest.answer(request));
    fake.unreachable = 6;
    assert_eq!(ask(&mut fake).unwrap(), b"volume key");
    let told = fake.told.borrow();
    let expected = [200, 400, 800, 1600, 3200, 5000];
    assert_eq!(told.sleeps.len(), expected.len());
    for (slept, most) in told.sleeps.iter().zip(expected) {
        let range = (most / 2).max(200)..=most;
        assert!(range.contains(&(slept.as_millis() as u64)), "{slept:?}");
    }
}

#[test]
fn a_broker_that_does_not_come_is_given_up() {
    let mut fake = fake(|_| Reply::Close);
    fake.unreachable = usize::MAX;
    let error = ask(&mut fake).unwrap_err();
    assert!(
        error.starts_with("the key broker can't be reached: Connection refused (given up after "),
        "{error}"
    );
    let told = fake.told.borrow();
    assert!(told.sleeps.iter().sum::<Duration>() <= Patience::default().total);
    assert!((10..40).contains(&told.sleeps.len()));
}

#[test]
fn connections_that_break_and_overload_are_tried_again_with_a_new_nonce() {
    let mut honest = Honest::default();
    let mut count = 0;
    let mut fake = fake(move |request| {
        count += 1;
        match count {
            1 => Reply::Close,
            3 => say(503, ""),
            5 => Reply::Hang,
            8 => refusal(429, "HTTPFailed", "slower"),
            _ => honest.answer(request),
        }
    });
    assert_eq!(ask(&mut fake).unwrap(), b"volume key");
    // The nonce of an attestation that got no answer may be spent; a session that is attested stays so.
    assert_eq!(lines(&fake), [A, A, B, A, B, A, B, C, C]);
}

#[test]
fn a_broker_says_when_it_wants_to_be_asked_again() {
    let mut honest = Honest::default();
    let mut count = 0;
    let mut fake = fake(move |request| {
        count += 1;
        match count {
            1 => Reply::Say(429, vec![("Retry-After", "7")], String::new()),
            _ => honest.answer(request),
        }
    });
    assert_eq!(ask(&mut fake).unwrap(), b"volume key");
    assert_eq!(fake.told.borrow().sleeps, [Duration::from_secs(7)]);
    let mut fake = self::fake(|_| Reply::Say(503, vec![("Retry-After", "3600")], String::new()));
    let error = ask(&mut fake).unwrap_err();
    assert_eq!(
        error,
        "the key broker refuses the request for a challenge: it does not say why (HTTP 503) (given up after 1 tries in 0 seconds)"
    );
}

#[test]
fn a_session_that_has_expired_is_made_anew_once() {
    let mut honest = Honest::default();
    let mut count = 0;
    let mut fake = fake(move |request| {
        count += 1;
        match count {
            3 => refusal(
                401,
                "TokenNotFound",
                "session: there is no such session, or it has expired",
            ),
            _ => honest.answer(request),
        }
    });
    assert_eq!(ask(&mut fake).unwrap(), b"volume key");
    assert_eq!(lines(&fake), [A, B, C, A, B, C]);
    let told = fake.told.borrow();
    assert_ne!(
        told.reports[0], told.reports[1],
        "each session has a key of its own"
    );

    let mut honest = Honest::default();
    let mut fake = self::fake(
        move |request| match request.target.starts_with("/kbs/v0/resource") {
            true => refusal(401, "TokenNotFound", "no"),
            false => honest.answer(request),
        },
    );
    let error = ask(&mut fake).unwrap_err();
    assert_eq!(
        error,
        "the key broker refuses the resource id/key/disk: no (TokenNotFound, HTTP 401)"
    );
    assert_eq!(lines(&fake), [A, B, C, A, B, C]);
}

#[test]
fn a_verdict_is_final_and_told_in_the_brokers_words() {
    let mut honest = Honest::default();
    let mut fake = fake(move |request| match &*request.target {
        ATTEST => refusal(
            401,
            "AttestationError",
            "signature: the report is not signed by its key",
        ),
        _ => honest.answer(request),
    });
    assert_eq!(
        ask(&mut fake).unwrap_err(),
        "the key broker refuses the attestation: signature: the report is not signed by its key (AttestationError, HTTP 401)"
    );
    assert_eq!(lines(&fake), [A, B]);
    for status in [401, 403] {
        let mut honest = Honest::default();
        let mut fake = self::fake(move |request| match &*request.target {
            AUTH | ATTEST => honest.answer(request),
            _ => refusal(status, "PolicyDeny", "host-data: another Workload"),
        });
        assert_eq!(
            ask(&mut fake).unwrap_err(),
            format!(
                "the key broker refuses the resource id/key/disk: host-data: another Workload (PolicyDeny, HTTP {status})"
            )
        );
        assert_eq!(lines(&fake), [A, B, C]);
    }
}

#[test]
fn what_trustee_says_of_a_resource_that_it_does_not_have_is_final_though_it_is_401() {
    let mut honest = Honest::default();
    let mut fake = fake(move |request| match &*request.target {
        AUTH | ATTEST => honest.answer(request),
        _ => say(
            401,
            r#"{"type":"https://github.com/confidential-containers/kbs/errors/PluginInternalError","detail":"Plugin internal error"}"#,
        ),
    });
    assert_eq!(
        ask(&mut fake).unwrap_err(),
        "the key broker refuses the resource id/key/disk: Plugin internal error (PluginInternalError, HTTP 401)"
    );
    assert_eq!(lines(&fake), [A, B, C]);
}

#[test]
fn answers_that_are_none_are_told_and_not_tried_again() {
    for (body, why) in [
        ("{}", "it has no nonce"),
        (r#"{"nonce":"n"}"#, "it has no session cookie"),
    ] {
        let mut fake = fake(move |_| say(200, body));
        assert_eq!(
            ask(&mut fake).unwrap_err(),
            format!("the key broker's answer to the request for a challenge can't be used: {why}")
        );
    }
    let mut honest = Honest::default();
    let mut fake = fake(move |request| match &*request.target {
        AUTH | ATTEST => honest.answer(request),
        _ => say(200, "the key"),
    });
    assert_eq!(
        ask(&mut fake).unwrap_err(),
        "the resource id/key/disk, as the key broker sent it, can't be opened: it is not a JWE in flattened JSON"
    );
    assert_eq!(lines(&fake), [A, B, C]);
    let mut fake = self::fake(|_| Reply::Say(200, vec![("X", "\u{1}")], String::new()));
    assert_eq!(
        ask(&mut fake).unwrap_err(),
        "the key broker's answer to the request for a challenge can't be read: it is not a message of HTTP/1.1: its head is not text"
    );
    let mut fake = self::fake(|_| Reply::Say(302, vec![("Location", "http://elsewhere/")], String::new()));
    let error = ask(&mut fake).unwrap_err();
    assert!(error.ends_with("it does not say why (HTTP 302)"), "{error}");
}

#[test]
fn a_tee_without_evidence_is_told() {
    struct Without(Fake);
    impl Surroundings for Without {
        type Stream = Stream;
        fn connect(&mut self) -> io::Result<Stream> {
            self.0.connect()
        }
        fn evidence(&mut self, _: &[u8; 64]) -> Result<String, String> {
            Err("the firmware is busy".to_owned())
        }
        fn now(&mut self) -> Duration {
            self.0.now()
        }
        fn sleep(&mut self, time: Duration) {
            self.0.sleep(time);
        }
    }
    let mut honest = Honest::default();
    let mut without = Without(fake(move |request| honest.answer(request)));
    let error = Client::new(&mut without, Tee::Snp, Patience::default())
        .resource(&resource())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no evidence for the key broker: the firmware is busy"
    );
}
