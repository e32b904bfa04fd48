//! Sessions with a broker, and what is done when something goes wrong.
//!
//! ```text
//!   resource ─► session? ──no──► connect, auth, evidence, attest ─► GET ─► open
//!                  ▲                                                 │
//!                  │ connection broke, 429, 5xx: again, later        │
//!                  └ 401: a new session, once ◄──────────────────────┘
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::http::{self, Connection, Response};
use crate::jwe::{self, GuestKey, NoRandom};
use crate::protocol::{
    self, ATTEST, AUTH, Challenge, ErrorInformation, PublicKey, REPORT_DATA, Request, Resource, Tee,
};

/// Longest body of an answer, in bytes: a secret of 1 MiB as a JWE.
pub const MAX_ANSWER: usize = 2 << 20;

/// What a client needs from where it runs.
pub trait Surroundings {
    /// What leads to the broker.
    type Stream: Read + Write;

    /// Opens a new stream. Its reads and writes must end after some time.
    fn connect(&mut self) -> io::Result<Self::Stream>;

    /// Evidence with this REPORT_DATA, as JSON that the broker understands. The error is a sentence.
    fn evidence(&mut self, report_data: &[u8; REPORT_DATA]) -> Result<String, String>;

    /// Time since any fixed moment.
    fn now(&mut self) -> Duration;

    /// Waits.
    fn sleep(&mut self, time: Duration);
}

/// How long a broker is waited for that does not answer.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Wait before the second try; each further one is twice as long.
    pub first: Duration,
    /// Longest wait between two tries.
    pub longest: Duration,
    /// Time after which there is no further try, for one resource.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
            total: Duration::from_secs(45),
        }
    }
}

/// Why there is no resource.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no stream.
    #[error("the key broker can't be reached: {}", words(.0))]
    Connect(#[source] io::Error),
    /// What came over it is no answer.
    #[error("the key broker's answer to {asked} can't be read: {}", http_words(.source))]
    Answer {
        /// What was asked for.
        asked: Asked,
        /// The cause.
        source: http::Error,
    },
    /// An answer that the protocol does not have.
    #[error("the key broker's answer to {asked} can't be used: {problem}")]
    Protocol {
        /// What was asked for.
        asked: Asked,
        /// A sentence.
        problem: &'static str,
    },
    /// The broker says no.
    #[error("the key broker refuses {asked}: {said}")]
    Refused {
        /// What was asked for.
        asked: Asked,
        /// What it says.
        said: Refusal,
    },
    /// The TEE gives none.
    #[error("there is no evidence for the key broker: {0}")]
    Evidence(String),
    /// A resource does not open.
    #[error("{asked}, as the key broker sent it, can't be opened: {source}")]
    Sealed {
        /// Which.
        asked: Asked,
        /// The cause.
        source: jwe::Error,
    },
    /// No key can be made.
    #[error(transparent)]
    Random(#[from] NoRandom),
    /// A message of ours can't be written.
    #[error("a message to the key broker can't be written: {0}")]
    Message(#[from] serde_json::Error),
    /// The same thing went wrong until patience ran out.
    #[error("{last} (given up after {tries} tries in {} seconds)", .time.as_secs())]
    GivenUp {
        /// How it went wrong the last time.
        #[source]
        last: Box<Error>,
        /// How often it was tried.
        tries: u32,
        /// Over how long.
        time: Duration,
    },
}

/// What a broker was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A nonce.
    Challenge,
    /// To believe the evidence.
    Attestation,
    /// A resource.
    Resource(Resource),
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Challenge => f.write_str("the request for a challenge"),
            Self::Attestation => f.write_str("the attestation"),
            Self::Resource(resource) => write!(f, "the resource {resource}"),
        }
    }
}

/// What a broker says when it says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of HTTP.
    pub status: u16,
    /// Its ErrorInformation, in words that can be shown.
    pub information: ErrorInformation,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status, information, ..
        } = self;
        match (&*information.detail, &*information.kind) {
            ("", "") => write!(f, "it does not say why (HTTP {status})"),
            (detail, "") => write!(f, "{detail} (HTTP {status})"),
            ("", kind) => write!(f, "{kind} (HTTP {status})"),
            (detail, kind) => write!(f, "{detail} ({kind}, HTTP {status})"),
        }
    }
}

/// The system's words for an error, without the number that Rust appends.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn http_words(error: &http::Error) -> String {
    match error {
        http::Error::Stream(error) if is_timeout(error) => "it does not come".to_owned(),
        http::Error::Stream(error) => words(error),
        error => error.to_string(),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What may help.
enum Remedy {
    /// Nothing.
    None,
    /// The same, some time later.
    Later(Option<Duration>),
    /// A new session.
    NewSession,
}

impl Error {
    fn remedy(&self) -> Remedy {
        match self {
            Self::Connect(_) => Remedy::Later(None),
            Self::Answer { source, .. } if source.is_broken_connection() => Remedy::Later(None),
            Self::Refused { asked, said } => match (said.status, &*said.information.kind, asked) {
                (429 | 500..=599, ..) => Remedy::Later(said.retry_after),
                (401, "AttestationError", Asked::Attestation) => Remedy::None,
                (401, kind, _) if BEHIND_THE_SESSION.contains(&kind) => Remedy::None,
                (401, _, Asked::Attestation | Asked::Resource(_)) => Remedy::NewSession,
                _ => Remedy::None,
            },
            _ => Remedy::None,
        }
    }
}

/// A broker's client in a guest of one TEE. It attests when the first resource is asked for.
pub struct Client<'a, S: Surroundings> {
    surroundings: &'a mut S,
    tee: Tee,
    patience: Patience,
    connection: Option<Connection<S::Stream>>,
    session: Option<Session>,
}

/// An attested session, with a key of its own.
struct Session {
    cookie: String,
    key: GuestKey,
}

impl<'a, S: Surroundings> Client<'a, S> {
    /// A client that has not said anything.
    pub fn new(surroundings: &'a mut S, tee: Tee, patience: Patience) -> Self {
        Self {
            surroundings,
            tee,
            patience,
            connection: None,
            session: None,
        }
    }

    /// A resource's bytes, wiped when dropped.
    pub fn resource(&mut self, resource: &Resource) -> Result<Zeroizing<Vec<u8>>, Error> {
        let start = self.surroundings.now();
        let (mut tries, mut renewed, mut wait) = (0, false, self.patience.first);
        loop {
            tries += 1;
            let error = match self.try_resource(resource) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match error.remedy() {
                Remedy::NewSession if !renewed => {
                    renewed = true;
                    self.session = None;
                }
                Remedy::Later(asked) => {
                    self.connection = None;
                    let next = asked.unwrap_or(jittered(wait)?).max(self.patience.first);
                    let spent = self.surroundings.now().saturating_sub(start);
                    if spent + next > self.patience.total {
                        return Err(Error::GivenUp {
                            last: Box::new(error),
                            tries,
                            time: spent,
                        });
                    }
                    self.surroundings.sleep(next);
                    wait = (wait * 2).min(self.patience.longest);
                }
                Remedy::NewSession | Remedy::None => return Err(error),
            }
        }
    }

    fn try_resource(&mut self, resource: &Resource) -> Result<Zeroizing<Vec<u8>>, Error> {
        // A session that is left half made is none: its nonce may have been used.
        let session = match self.session.take() {
            Some(session) => session,
            None => self.attest()?,
        };
        let asked = Asked::Resource(resource.clone());
        let answer = self.exchange(
            &asked,
            "GET",
            &resource.target(),
            &[("Cookie", &session.cookie)],
            b"",
        );
        let session = self.session.insert(session);
        session
            .key
            .open(&answer?.body)
            .map_err(|source| Error::Sealed { asked, source })
    }

    fn attest(&mut self) -> Result<Session, Error> {
        let request = serde_json::to_vec(&Request::of(self.tee))?;
        let answer = self.exchange(&Asked::Challenge, "POST", AUTH, &[JSON], &request)?;
        let challenge =
            Challenge::parse(&answer.body, answer.head.fields("set-cookie")).map_err(|problem| {
                Error::Protocol {
                    asked: Asked::Challenge,
                    problem,
                }
            })?;
        let key = GuestKey::generate()?;
        let public = PublicKey::of(&key);
        let report_data = protocol::report_data(&challenge.nonce, &public)?;
        let evidence = self
            .surroundings
            .evidence(&report_data)
            .map_err(Error::Evidence)?;
        let message = protocol::attestation(&challenge.nonce, &public, &evidence)?;
        let cookie = challenge.cookie;
        self.exchange(
            &Asked::Attestation,
            "POST",
            ATTEST,
            &[JSON, ("Cookie", &cookie)],
            message.as_bytes(),
        )?;
        Ok(Session { cookie, key })
    }

    /// One request and its answer, which must be 200.
    fn exchange(
        &mut self,
        asked: &Asked,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::new(self.surroundings.connect().map_err(Error::Connect)?),
        };
        let fields = [&[HOST], fields].concat();
        let start = format!("{method} {target} HTTP/1.1");
        // One that refuses early may close before it has read everything, and has still said why.
        let sent = connection.send(&start, &fields, body);
        let answer = connection.receive_response(MAX_ANSWER).map_err(|received| {
            let source = match sent {
                Err(source) if received.is_broken_connection() => source,
                _ => received,
            };
            let asked = asked.clone();
            Error::Answer { asked, source }
        })?;
        if !answer.last {
            self.connection = Some(connection);
        }
        match answer.status {
            200 => Ok(answer),
            _ => Err(Error::Refused {
                asked: asked.clone(),
                said: Refusal::of(&answer),
            }),
        }
    }
}

impl Refusal {
    fn of(answer: &Response) -> Self {
        let seconds = answer.head.fields("retry-after").next();
        let seconds: Option<u16> = seconds.and_then(|seconds| seconds.parse().ok());
        Self {
            status: answer.status,
            information: ErrorInformation::parse(&answer.body),
            retry_after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// Kinds of errors that a session has been found for: trustee has status 401 for them too, and another session would get the same. It says
/// PluginInternalError of a resource that does not exist.
const BEHIND_THE_SESSION: [&str; 5] = [
    "PolicyDeny",
    "PolicyEngineError",
    "PluginInternalError",
    "JweError",
    "SerdeError",
];
const JSON: (&str, &str) = ("Content-Type", "application/json");
/// Whoever carries the bytes knows where to.
const HOST: (&str, &str) = ("Host", "broker");

/// Between a half and the whole of it, so that guests that have waited for one broker do not come back all at once.
fn jittered(time: Duration) -> Result<Duration, NoRandom> {
    let mut byte = [0];
    getrandom::fill(&mut byte).map_err(|_| NoRandom)?;
    Ok(time / 2 + time / 2 * u32::from(byte[0]) / 255)
}

#[cfg(test)]
#[path = "client_test.rs"]
mod tests;
