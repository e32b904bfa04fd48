//! The messages, as trustee 0.4.0 takes and gives them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};

use crate::jwe::{ALGORITHM, CURVE, GuestKey};

/// Version of the protocol.
pub const VERSION: &str = "0.4.0";
/// Path of the first message.
pub const AUTH: &str = "/kbs/v0/auth";
/// Path of the second message.
pub const ATTEST: &str = "/kbs/v0/attest";
/// What paths of resources begin with.
pub const RESOURCE: &str = "/kbs/v0/resource/";
/// Name of the cookie that carries the session.
pub const COOKIE: &str = "kbs-session-id";
/// Bytes of REPORT_DATA in an SNP report (AMD 56860, table 23).
pub const REPORT_DATA: usize = 64;

/// Longest nonce that a broker may send; trustee's have 44 characters.
const MAX_NONCE: usize = 1024;
/// Longest value of the cookie.
const MAX_COOKIE: usize = 1024;
/// Characters of a broker's words that are shown.
const MAX_SHOWN: usize = 400;
/// What types of errors begin with.
const ERRORS: &str = "https://github.com/confidential-containers/kbs/errors/";

/// What a guest says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tee {
    /// SEV-SNP.
    Snp,
    /// The software TEE, which protects nothing. The protocol calls that a sample.
    Sim,
}

impl Tee {
    /// Its name in the first message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Sim => "sample",
        }
    }
}

/// Path of a resource, `<repository>/<type>/<tag>`: names that trustee takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource(String);

impl Resource {
    /// `None` unless each part has 1 to 128 of `A–Z a–z 0–9 _ - .` and does not begin with a dot.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Option<Self> {
        let parts = [repository, kind, tag];
        parts.into_iter().all(is_name).then(|| Self(parts.join("/")))
    }

    /// The path of a request, if it is for a resource.
    pub fn of_target(target: &str) -> Option<Self> {
        let mut parts = target.strip_prefix(RESOURCE)?.splitn(4, '/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(repository), Some(kind), Some(tag), None) => Self::new(repository, kind, tag),
            _ => None,
        }
    }

    /// The path of the request for it.
    pub fn target(&self) -> String {
        format!("{RESOURCE}{}", self.0)
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(letter)
}

/// The first message.
#[derive(Serialize)]
pub(crate) struct Request {
    version: &'static str,
    tee: &'static str,
    #[serde(rename = "extra-params")]
    extra_params: &'static str,
}

impl Request {
    pub(crate) fn of(tee: Tee) -> Self {
        Self {
            version: VERSION,
            tee: tee.name(),
            // No algorithms are offered, which leaves SHA-384.
            extra_params: "",
        }
    }
}

/// What the broker asks.
#[derive(Debug)]
pub(crate) struct Challenge {
    pub nonce: String,
    /// `name=value`, for requests.
    pub cookie: String,
}

#[derive(Deserialize)]
struct WireChallenge {
    nonce: String,
}

impl Challenge {
    /// From the answer's body and its fields `Set-Cookie`.
    pub(crate) fn parse<'a>(
        body: &[u8],
        cookies: impl Iterator<Item = &'a str>,
    ) -> Result<Self, &'static str> {
        let WireChallenge { nonce } = serde_json::from_slice(body).map_err(|_| "it has no nonce")?;
        if nonce.is_empty() || nonce.len() > MAX_NONCE {
            return Err("its nonce is not one");
        }
        let cookie = cookies
            .filter_map(|cookie| cookie.split(';').next())
            .find(|pair| {
                pair.strip_prefix(COOKIE)
                    .is_some_and(|rest| rest.starts_with('='))
            })
            .ok_or("it has no session cookie")?;
        if cookie.len() > MAX_COOKIE || !is_cookie(cookie) {
            return Err("its session cookie is not one");
        }
        let cookie = cookie.to_owned();
        Ok(Self { nonce, cookie })
    }
}

/// Whether a field `Cookie` can carry it (RFC 6265 §4.1.1).
pub fn is_cookie(text: &str) -> bool {
    let octet = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
    text.bytes().all(octet)
}

/// A public key as a JWK (RFC 7517). Members in the order in which they are hashed: alphabetical (RFC 8785).
#[derive(Serialize)]
pub(crate) struct PublicKey {
    alg: &'static str,
    crv: &'static str,
    kty: &'static str,
    x: String,
    y: String,
}

impl PublicKey {
    pub(crate) fn of(key: &GuestKey) -> Self {
        let (x, y) = key.coordinates();
        Self {
            alg: ALGORITHM,
            crv: CURVE,
            kty: "EC",
            x,
            y,
        }
    }
}

/// What REPORT_DATA vouches for, members in alphabetical order.
#[derive(Serialize)]
struct Bound<'a> {
    #[serde(rename = "additional-evidence")]
    additional_evidence: &'static str,
    nonce: &'a str,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: &'a PublicKey,
}

/// SHA-384 of the canonical JSON of nonce, key and (no) additional evidence, filled up with zeros: as trustee's clients have it.
pub(crate) fn report_data(nonce: &str, key: &PublicKey) -> Result<[u8; REPORT_DATA], serde_json::Error> {
    // serde_json escapes what RFC 8785 §3.2.2.2 escapes, and in the same way.
    let text = serde_json::to_string(&Bound {
        additional_evidence: "",
        nonce,
        tee_pubkey: key,
    })?;
    let digest = Sha384::digest(text.as_bytes());
    let mut data = [0; REPORT_DATA];
    data.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    Ok(data)
}

/// What the second message repeats.
#[derive(Serialize)]
struct RuntimeData<'a> {
    nonce: &'a str,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: &'a PublicKey,
}

/// The second message. `evidence` is JSON of the TEE's, and goes in as it is.
pub(crate) fn attestation(nonce: &str, key: &PublicKey, evidence: &str) -> Result<String, serde_json::Error> {
    let runtime = serde_json::to_string(&RuntimeData {
        nonce,
        tee_pubkey: key,
    })?;
    Ok(format!(
        r#"{{"init-data":null,"runtime-data":{runtime},"tee-evidence":{{"additional_evidence":"","primary_evidence":{evidence}}}}}"#
    ))
}

/// Body of a refusal (RFC 7807).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// Which kind of error: a URL of the protocol's.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// One sentence.
    #[serde(default)]
    pub detail: String,
}

impl ErrorInformation {
    /// One of ours.
    pub fn new(kind: &str, detail: String) -> Self {
        let kind = format!("{ERRORS}{kind}");
        Self { kind, detail }
    }

    /// What a broker wrote, fit to be shown; empty where it wrote something else.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let said: Self = serde_json::from_slice(body).unwrap_or_default();
        let kind = said.kind.strip_prefix(ERRORS).unwrap_or(&said.kind);
        Self {
            kind: shown(kind),
            detail: shown(&said.detail),
        }
    }
}

/// Somebody else's words, cut short, in one line.
pub fn shown(text: &str) -> String {
    let letter = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut shown: String = text.chars().take(MAX_SHOWN).map(letter).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
#[path = "protocol_test.rs"]
mod tests;
