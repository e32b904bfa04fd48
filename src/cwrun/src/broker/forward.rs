//! One request of a guest's after the other: checked, written anew, passed on to the broker, and the answer likewise.
//!
//! | passed on | not passed on |
//! |---|---|
//! | POST /kbs/v0/auth and attest, GET /kbs/v0/resource/A/B/C | everything else |
//! | the body, up to 256 KiB | queries, further header fields |
//! | the cookie `kbs-session-id` | other cookies, and authorization of any kind |
//! | status, body up to 2 MiB, that cookie, Retry-After | redirections, further header fields |
//!
//! SECURITY: the guest is not trusted with this host's network. It reaches one server, that three ways, and nothing of what it says but the
//! body and names of plain letters gets there. What goes wrong on the way is told to the guest as a broker would, since its sentence is
//! what people read.

use super::upstream::Upstream;
use anyhow::Result;
use attest::Resource;
use attest::client::MAX_ANSWER;
use attest::http::{Connection, Error as HttpError, Request};
use attest::protocol::{ATTEST, AUTH, COOKIE, ErrorInformation, is_cookie, shown};
use rustls::crypto::ring;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

/// Longest body of a request, in bytes: what brokers take.
const MAX_QUESTION: usize = 256 << 10;
/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Passes requests on to one broker.
pub struct Forwarder {
    agent: Agent,
    url: String,
    timeout: Duration,
}

/// What the guest is answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// A request that may be passed on.
#[derive(Debug, PartialEq, Eq)]
enum Question<'a> {
    /// POST of a body to this path.
    Post(&'static str, &'a [u8]),
    /// GET of a resource.
    Get(Resource),
}

impl Answer {
    /// One of our own.
    fn of_ours(status: u16, detail: String) -> Self {
        let information = ErrorInformation::new("HTTPFailed", format!("the host's proxy: {detail}"));
        Self {
            status,
            fields: Vec::new(),
            // Two texts, which JSON can say.
            body: serde_json::to_vec(&information).unwrap_or_default(),
        }
    }
}

impl Forwarder {
    /// To this broker. Makes no connection yet.
    pub fn new(upstream: &Upstream) -> Result<Self> {
        Ok(Self {
            agent: agent(upstream)?,
            url: upstream.url.clone(),
            timeout: Duration::from_secs(upstream.timeout_seconds),
        })
    }

    /// Answers requests until the guest ends its stream, or says something that is no request.
    pub fn serve(&self, stream: impl Read + Write) -> Result<()> {
        let mut guest = Connection::new(stream);
        loop {
            let (answer, last) = match guest.receive_request(MAX_QUESTION) {
                Ok(request) => (self.answer(&request), request.last),
                Err(error) if error.is_broken_connection() => return Ok(()),
                Err(error) => (refusal(&error), true),
            };
            let start = format!("HTTP/1.1 {} {}", answer.status, reason(answer.status));
            let mut fields = vec![("Content-Type", "application/json")];
            fields.extend(answer.fields.iter().map(|(name, value)| (*name, &**value)));
            if last {
                fields.push(("Connection", "close"));
            }
            guest.send(&start, &fields, &answer.body)?;
            if last {
                return Ok(());
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let question = match question(request) {
            Ok(question) => question,
            Err(answer) => return answer,
        };
        let cookie = request.head.fields("cookie").find_map(session);
        self.ask(&question, cookie)
            .unwrap_or_else(|error| self.told(&error))
    }

    fn ask(&self, question: &Question, cookie: Option<&str>) -> Result<Answer, ureq::Error> {
        let mut response = match question {
            Question::Post(path, body) => {
                let request = self
                    .agent
                    .post(format!("{}{path}", self.url))
                    .header("Content-Type", "application/json");
                match cookie {
                    Some(cookie) => request.header("Cookie", cookie).send(*body)?,
                    None => request.send(*body)?,
                }
            }
            Question::Get(resource) => {
                let request = self.agent.get(format!("{}{}", self.url, resource.target()));
                match cookie {
                    Some(cookie) => request.header("Cookie", cookie).call()?,
                    None => request.call()?,
                }
            }
        };
        let status = response.status().as_u16();
        if (300..400).contains(&status) {
            let to = response.headers().get("location");
            let to = to.and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            return Ok(Answer::of_ours(
                421,
                format!("{} is not the key broker, but leads to {}", self.url, shown(to)),
            ));
        }
        let values = |name| response.headers().get_all(name).into_iter();
        let cookies = values("set-cookie").filter_map(|value| session(value.to_str().ok()?));
        let mut fields: Vec<_> = cookies.map(|cookie| ("Set-Cookie", cookie.to_owned())).collect();
        let seconds = values("retry-after").filter_map(|value| value.to_str().ok()?.parse::<u16>().ok());
        fields.extend(seconds.map(|seconds| ("Retry-After", seconds.to_string())));
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER as u64)
            .read_to_vec()?;
        Ok(Answer { status, fields, body })
    }

    /// What went wrong between here and the broker. 502 and 504 are worth another try, and 421 is not.
    fn told(&self, error: &ureq::Error) -> Answer {
        let url = &self.url;
        if let Some(error) = tls(error) {
            let detail = format!("the server at {url} does not prove to be the key broker: {error}");
            return Answer::of_ours(421, detail);
        }
        match error {
            ureq::Error::Timeout(_) => {
                let seconds = self.timeout.as_secs();
                Answer::of_ours(504, format!("{url} does not answer within {seconds} seconds"))
            }
            ureq::Error::HostNotFound => {
                Answer::of_ours(502, format!("{url}: there is no host of this name"))
            }
            ureq::Error::BodyExceedsLimit(limit) => {
                Answer::of_ours(421, format!("{url} answers with more than {limit} bytes"))
            }
            error => {
                let text = match error {
                    ureq::Error::Io(error) => error.to_string(),
                    error => error.to_string(),
                };
                let text = text.find(" (os error").map_or(&*text, |end| &text[..end]);
                Answer::of_ours(502, format!("{url} can't be reached: {}", shown(text)))
            }
        }
    }
}

/// The error of TLS that this is about, if it is one.
fn tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// What makes connections to this broker.
pub fn agent(upstream: &Upstream) -> Result<Agent> {
    let roots: Vec<Certificate> = upstream
        .roots
        .iter()
        .map(|root| Certificate::from_der(&root.0).to_owned())
        .collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    let timeout = Duration::from_secs(upstream.timeout_seconds);
    Ok(Agent::config_builder()
        .tls_config(tls)
        .proxy(upstream.proxy.as_deref().map(Proxy::new).transpose()?)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent("cwrun")
        .max_response_header_size(MAX_HEAD)
        .timeout_connect(Some(CONNECT.min(timeout)))
        .timeout_global(Some(timeout))
        .build()
        .new_agent())
}

/// What a request asks, if it may.
fn question(request: &Request) -> Result<Question<'_>, Answer> {
    let method = |allowed| Answer::of_ours(405, format!("only {allowed} is passed on here"));
    for path in [AUTH, ATTEST] {
        if request.target == path {
            return match &*request.method {
                "POST" => Ok(Question::Post(path, &request.body)),
                _ => Err(method("POST")),
            };
        }
    }
    let resource = Resource::of_target(&request.target).ok_or_else(|| {
        Answer::of_ours(
            404,
            "only /kbs/v0/auth, attest and resource are passed on".to_owned(),
        )
    })?;
    match (&*request.method, request.body.is_empty()) {
        ("GET", true) => Ok(Question::Get(resource)),
        ("GET", false) => Err(Answer::of_ours(
            400,
            "a question for a resource has no body".to_owned(),
        )),
        _ => Err(method("GET")),
    }
}

/// The session's cookie, without attributes and others.
fn session(cookies: &str) -> Option<&str> {
    let mut pairs = cookies.split(';').map(str::trim);
    pairs.find(|pair| {
        let value = pair.strip_prefix(COOKIE).and_then(|rest| rest.strip_prefix('='));
        value.is_some_and(is_cookie) && pair.len() <= 1024
    })
}

fn refusal(error: &HttpError) -> Answer {
    let status = if matches!(error, HttpError::TooLong { .. }) {
        413
    } else {
        400
    };
    Answer::of_ours(status, format!("the request is not passed on: {error}"))
}

/// Words for people.
fn reason(status: u16) -> &'static str {
    match status {
        200..300 => "OK",
        _ => "Not OK",
    }
}

#[cfg(test)]
#[path = "forward_test.rs"]
mod tests;
