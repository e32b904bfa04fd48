//! The messages of trustee's KBS attestation protocol, version 0.4.0 (`kbs/docs/kbs_attestation_protocol.md` of
//! confidential-containers/trustee), and what is computed from them.
//!
//! ```text
//!   guest                                                       broker
//!     ── POST /kbs/v0/auth      Request ───────────────────────►
//!     ◄─ Challenge (nonce), Set-Cookie: kbs-session-id ─────────
//!     ── POST /kbs/v0/attest    Attestation, Cookie ───────────►   REPORT_DATA = SHA-384 of the runtime data
//!     ◄─ AttestationToken ──────────────────────────────────────
//!     ── GET  /kbs/v0/resource/<repository>/<type>/<tag>, Cookie ►
//!     ◄─ Response (JWE to the guest's key) ─────────────────────
//! ```
//!
//! Fields that the protocol does not know are ignored, as trustee does: the messages are open to extension. Bodies are
//! limited in size before they get here.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha384};

/// Version of the protocol that this broker speaks, the only one that trustee 0.4.0 accepts.
pub const VERSION: &str = "0.4.0";

/// Length of REPORT_DATA in an SNP report, in bytes (AMD 56860, table 23).
pub const REPORT_DATA_LEN: usize = 64;

/// Name of the cookie that carries the session.
pub const COOKIE: &str = "kbs-session-id";

/// First message: the guest says what it is.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// Version of the protocol.
    pub version: String,
    /// Kind of TEE: "snp", "sample", or one that this broker does not know.
    pub tee: String,
    /// Hash algorithms that the client knows, or, in the older dialect, a JSON text with the workload's id.
    #[serde(rename = "extra-params", default)]
    pub extra_params: Value,
}

/// Answer to [`Request`].
#[derive(Debug, Serialize)]
pub struct Challenge {
    /// 32 random bytes in base64, for one attestation.
    pub nonce: String,
    /// Empty: no algorithm is selected, which means SHA-384.
    #[serde(rename = "extra-params")]
    pub extra_params: &'static str,
}

/// The guest's ephemeral public key, a JWK (RFC 7517) of one of the two kinds that are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kty")]
pub enum TeePublicKey {
    /// An elliptic-curve key.
    EC {
        /// Name of the curve.
        crv: String,
        /// How the content key is wrapped: "ECDH-ES+A256KW".
        alg: String,
        /// Coordinate, base64url without padding.
        x: String,
        /// Coordinate, base64url without padding.
        y: String,
    },
    /// An RSA key.
    RSA {
        /// How the content key is wrapped: "RSA-OAEP-256".
        alg: String,
        /// Modulus, big-endian, base64url without padding.
        n: String,
        /// Exponent, big-endian, base64url without padding.
        e: String,
    },
}

impl TeePublicKey {
    /// The key in the one way that is hashed: members in alphabetical order, no white space (RFC 8785).
    pub fn canonical(&self) -> String {
        match self {
            Self::EC { crv, alg, x, y } => {
                object(&[("alg", alg), ("crv", crv), ("kty", "EC"), ("x", x), ("y", y)])
            }
            Self::RSA { alg, n, e } => object(&[("alg", alg), ("e", e), ("kty", "RSA"), ("n", n)]),
        }
    }
}

/// What the report vouches for.
#[derive(Debug, Deserialize)]
pub struct RuntimeData {
    /// The challenge's nonce.
    pub nonce: String,
    /// The key that resources are encrypted to.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: TeePublicKey,
}

/// Evidence of the TEE and of devices that belong to it.
#[derive(Debug, Deserialize)]
pub struct CompositeEvidence {
    /// The TEE's own, in a shape that depends on the TEE.
    pub primary_evidence: Value,
    /// A JSON text with the devices' evidence; empty if there are none.
    #[serde(default)]
    pub additional_evidence: String,
}

/// Second message of the guest.
#[derive(Debug, Deserialize)]
pub struct Attestation {
    /// What the report vouches for.
    #[serde(rename = "runtime-data")]
    pub runtime_data: RuntimeData,
    /// The evidence.
    #[serde(rename = "tee-evidence")]
    pub tee_evidence: CompositeEvidence,
}

/// Answer to [`Attestation`].
#[derive(Debug, Serialize)]
pub struct AttestationToken {
    /// A JWT; see [`crate::token`].
    pub token: String,
}

/// Body of every refusal (RFC 7807).
#[derive(Debug, Serialize)]
pub struct ErrorInformation {
    /// `https://github.com/confidential-containers/kbs/errors/<kind>`.
    #[serde(rename = "type")]
    pub error_type: String,
    /// One sentence.
    pub detail: String,
}

impl RuntimeData {
    /// The two values of REPORT_DATA that bind a report to this runtime data: what clients of trustee put there, which
    /// includes the text of the additional evidence, and what the protocol's document says, which does not. Both bind
    /// nonce and key.
    pub fn report_data(&self, additional_evidence: &str) -> [[u8; REPORT_DATA_LEN]; 2] {
        let key = self.tee_pubkey.canonical();
        let nonce = quote(&self.nonce);
        let additional = quote(additional_evidence);
        [
            format!(r#"{{"additional-evidence":{additional},"nonce":{nonce},"tee-pubkey":{key}}}"#),
            format!(r#"{{"nonce":{nonce},"tee-pubkey":{key}}}"#),
        ]
        .map(|text| padded(&Sha384::digest(text.as_bytes())))
    }
}

fn padded(digest: &[u8]) -> [u8; REPORT_DATA_LEN] {
    std::array::from_fn(|i| digest.get(i).copied().unwrap_or(0))
}

/// A JSON object of texts, whose names must come sorted.
fn object(members: &[(&str, &str)]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(name, value)| format!("{}:{}", quote(name), quote(value)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON text. serde_json escapes what RFC 8785 §3.2.2.2 escapes, and in the same way.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// The path of a resource: `<repository>/<type>/<tag>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcePath {
    /// Id of the registration that the resource belongs to.
    pub repository: String,
    /// "key" or "secret".
    pub kind: String,
    /// Name within its type.
    pub tag: String,
}

impl ResourcePath {
    /// Takes three segments, each a [name](is_name). A slash before them is nothing: trustee's clients ask for `resource//<repository>/…`.
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.splitn(4, '/').collect();
        match segments[..] {
            [repository, kind, tag] if [repository, kind, tag].into_iter().all(is_name) => Some(Self {
                repository: repository.into(),
                kind: kind.into(),
                tag: tag.into(),
            }),
            _ => None,
        }
    }
}

impl std::fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.repository, self.kind, self.tag)
    }
}

/// A text of a client, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}

/// Whether a text can name a registration or a secret: 1 to 128 of `A–Z a–z 0–9 _ - .`, not beginning with a dot. That is what
/// trustee allows in the segments of a resource's path.
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(&c))
}

#[cfg(test)]
#[path = "protocol_test.rs"]
mod tests;
