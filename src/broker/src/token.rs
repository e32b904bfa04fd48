//! Attestation tokens: what `/attest` answers with. A JWT (RFC 7519) signed with ES256, which names its session: the broker takes it in
//! place of the cookie, and others can check it with the key in its header, once they have that from a place they trust.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde::Deserialize;
use serde_json::json;

use crate::session::SessionId;

/// Longest token that is looked at.
const MAX_TOKEN: usize = 8192;

/// Makes and checks tokens.
pub struct Tokens {
    key: SigningKey,
    verifying: VerifyingKey,
    header: String,
}

/// What a token says.
pub struct Claims<'a> {
    /// The session.
    pub session: SessionId,
    /// Seconds since the epoch.
    pub issued: u64,
    /// Seconds since the epoch.
    pub expires: u64,
    /// Kind of TEE.
    pub tee: &'a str,
    /// Launch digest.
    pub launch_digest: &'a str,
    /// HOST_DATA.
    pub host_data: &'a str,
    /// The guest's key, a JWK.
    pub tee_pubkey: serde_json::Value,
}

#[derive(Deserialize)]
struct Checked {
    exp: u64,
    jti: SessionId,
}

impl Tokens {
    /// Signs with `key`.
    pub fn new(key: SigningKey) -> Self {
        let verifying = *key.verifying_key();
        let point = p256::PublicKey::from(verifying).to_sec1_point(false);
        let coordinate = |bytes: Option<&p256::FieldBytes>| bytes.map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let header = json!({
            "alg": "ES256",
            "typ": "JWT",
            "jwk": {"kty": "EC", "crv": "P-256", "x": coordinate(point.x()), "y": coordinate(point.y())},
        });
        Self {
            key,
            verifying,
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
        }
    }

    /// A token.
    pub fn issue(&self, claims: &Claims) -> String {
        let claims = json!({
            "iss": "cwrun-broker",
            "iat": claims.issued,
            "exp": claims.expires,
            "jti": claims.session,
            "tee": claims.tee,
            "launch_digest": claims.launch_digest,
            "host_data": claims.host_data,
            "tee-pubkey": claims.tee_pubkey,
        });
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature: Signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// The session of a token that this broker made and that has not expired at `now`, in seconds since the epoch.
    pub fn check(&self, token: &str, now: u64) -> Option<SessionId> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        // The header is ours to the byte: there is no algorithm to choose.
        if header != self.header {
            return None;
        }
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        self.verifying.verify(signed.as_bytes(), &signature).ok()?;
        let claims: Checked = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        (claims.exp > now).then_some(claims.jti)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_file::StoreKey;
    use proptest::prelude::*;
    use workload::Hex;

    fn tokens() -> Tokens {
        Tokens::new(StoreKey::generate().unwrap().signing_key())
    }

    fn token(tokens: &Tokens) -> String {
        tokens.issue(&Claims {
            session: Hex([7; 32]),
            issued: 1000,
            expires: 2000,
            tee: "snp",
            launch_digest: "ab",
            host_data: "cd",
            tee_pubkey: json!({}),
        })
    }

    #[test]
    fn a_token_names_its_session_until_it_expires() {
        let tokens = tokens();
        let token = token(&tokens);
        assert_eq!(tokens.check(&token, 1999), Some(Hex([7; 32])));
        assert_eq!(tokens.check(&token, 2000), None);
    }

    #[test]
    fn another_brokers_or_an_altered_token_is_refused() {
        let tokens = tokens();
        let token = token(&tokens);
        assert_eq!(self::tokens().check(&token, 1000), None);
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
        parts[1] = URL_SAFE_NO_PAD.encode(claims.replace("2000", "9000"));
        assert_eq!(tokens.check(&parts.join("."), 1000), None);
        parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(tokens.check(&format!("{}.{}.", parts[0], parts[1]), 1000), None);
    }

    proptest! {
        #[test]
        fn any_text_as_a_token_is_refused(text in "[A-Za-z0-9_.-]{0,200}") {
            prop_assert_eq!(tokens().check(&text, 0), None);
        }
    }
}
