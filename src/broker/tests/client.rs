//! A guest's client, written from trustee's protocol document and not from the broker's code.

#![allow(dead_code, reason = "the benchmark uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use aes_gcm::aead::{Aead as _, Generate as _, KeyInit as _, Payload};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};
use tee::launch::{LaunchDigest, Policy};
use tee::report::{HostData, ReportData};
use tee::sim::Guest;

/// One connection.
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The last part of ErrorInformation's type.
    pub fn error_kind(&self) -> String {
        let body = self.json();
        assert!(!body["detail"].as_str().unwrap().is_empty());
        let kind = body["type"].as_str().unwrap();
        kind.strip_prefix("https://github.com/confidential-containers/kbs/errors/")
            .unwrap()
            .to_owned()
    }
}

impl Http {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: broker\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let message = [head.as_bytes(), b"\r\n", body].concat();
        // A broker that refuses a long body closes before all of it is sent.
        let _ = self.send_raw(&message);
        self.receive().expect("the broker answers")
    }

    pub fn receive(&mut self) -> Option<Response> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
        };
        let length = response
            .header("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        response.body = vec![0; length];
        self.stream.read_exact(&mut response.body).ok()?;
        Some(response)
    }

    /// Says that nothing more will come.
    pub fn finish_sending(&mut self) {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Write);
    }

    /// Whether the broker has closed the connection without another word.
    pub fn closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}

/// A guest that speaks to a broker.
pub struct Client {
    pub http: Http,
    pub secret: SecretKey,
    pub cookie: String,
    pub nonce: String,
    pub token: String,
}

/// A guest of the software TEE, with a launch digest and HOST_DATA of one byte each.
pub fn guest(digest: u8, host_data: u8) -> Guest {
    Guest {
        measurement: LaunchDigest([digest; 48]),
        host_data: HostData([host_data; 32]),
        policy: Policy::STRICT,
        identity: None,
    }
}

/// SHA-384 of a text, filled up to the length of REPORT_DATA.
pub fn report_data(text: &str) -> ReportData {
    let digest = Sha384::digest(text);
    ReportData(std::array::from_fn(|i| digest.get(i).copied().unwrap_or(0)))
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self {
            http: Http::connect(address),
            secret: SecretKey::try_generate().unwrap(),
            cookie: String::new(),
            nonce: String::new(),
            token: String::new(),
        }
    }

    pub fn request(tee: &str) -> Value {
        json!({"version": "0.4.0", "tee": tee, "extra-params": {"supported-hash-algorithms": ["sha256", "sha384"]}})
    }

    pub fn auth(&mut self, tee: &str) -> Response {
        let body = Self::request(tee).to_string();
        let response = self.http.call(
            "POST",
            "/kbs/v0/auth",
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        );
        if response.status == 200 {
            let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap();
            assert!(cookie.starts_with("kbs-session-id="));
            self.cookie = cookie.to_owned();
            self.nonce = response.json()["nonce"].as_str().unwrap().to_owned();
        }
        response
    }

    pub fn pubkey(&self) -> Value {
        let point = self.secret.public_key().to_sec1_point(false);
        json!({
            "kty": "EC",
            "crv": "P-256",
            "alg": "ECDH-ES+A256KW",
            "x": URL_SAFE_NO_PAD.encode(point.x().unwrap()),
            "y": URL_SAFE_NO_PAD.encode(point.y().unwrap()),
        })
    }

    /// The text whose hash is REPORT_DATA: JSON with sorted members, as trustee's client makes it.
    pub fn runtime_text(&self, nonce: &str) -> String {
        let key = self.pubkey();
        format!(
            r#"{{"additional-evidence":"","nonce":"{nonce}","tee-pubkey":{{"alg":{},"crv":{},"kty":{},"x":{},"y":{}}}}}"#,
            key["alg"], key["crv"], key["kty"], key["x"], key["y"]
        )
    }

    /// The message of `/attest` with any evidence.
    pub fn attestation(&self, nonce: &str, evidence: &str) -> String {
        json!({
            "init-data": null,
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.pubkey()},
            "tee-evidence": {
                "primary_evidence": serde_json::from_str::<Value>(evidence).unwrap(),
                "additional_evidence": "",
            },
        })
        .to_string()
    }

    pub fn evidence(&self, guest: &Guest) -> String {
        guest
            .attest(report_data(&self.runtime_text(&self.nonce)))
            .to_json()
    }

    pub fn post_attestation(&mut self, body: &str) -> Response {
        let cookie = self.cookie.clone();
        let response = self
            .http
            .call("POST", "/kbs/v0/attest", &[("Cookie", &cookie)], body.as_bytes());
        if response.status == 200 && !response.body.is_empty() {
            self.token = response.json()["token"].as_str().unwrap().to_owned();
        }
        response
    }

    pub fn attest(&mut self, guest: &Guest) -> Response {
        let body = self.attestation(&self.nonce, &self.evidence(guest));
        self.post_attestation(&body)
    }

    /// Both steps, which must succeed.
    pub fn handshake(&mut self, guest: &Guest) {
        let response = self.auth("sample");
        assert_eq!(response.status, 200, "{}", response.text());
        let response = self.attest(guest);
        assert_eq!(response.status, 200, "{}", response.text());
    }

    pub fn resource(&mut self, path: &str) -> Response {
        let cookie = self.cookie.clone();
        self.http.call(
            "GET",
            &format!("/kbs/v0/resource/{path}"),
            &[("Cookie", &cookie)],
            b"",
        )
    }

    /// Opens a resource's JWE (RFC 7516 §5.2). `None` if it does not open.
    pub fn open(&self, jwe: &Value) -> Option<Vec<u8>> {
        let field = |name: &str| URL_SAFE_NO_PAD.decode(jwe[name].as_str()?).ok();
        let header: Value = serde_json::from_slice(&field("protected")?).ok()?;
        if header["alg"] != "ECDH-ES+A256KW" || header["enc"] != "A256GCM" || header["epk"]["crv"] != "P-256"
        {
            return None;
        }
        let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(header["epk"][name].as_str()?).ok();
        let point = [&[4][..], &coordinate("x")?, &coordinate("y")?].concat();
        let ephemeral = p256::PublicKey::from_sec1_bytes(&point).ok()?;
        let shared = p256::ecdh::diffie_hellman(self.secret.to_nonzero_scalar(), ephemeral.as_affine());
        let mut hash = Sha256::new();
        hash.update([0, 0, 0, 1]);
        hash.update(shared.raw_secret_bytes());
        hash.update([0, 0, 0, 14]);
        hash.update("ECDH-ES+A256KW");
        hash.update([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let mut content_key = [0; 32];
        aes_kw::KwAes256::new_from_slice(&hash.finalize())
            .ok()?
            .unwrap_key(&field("encrypted_key")?, &mut content_key)
            .ok()?;
        let sealed = [field("ciphertext")?, field("tag")?].concat();
        let iv: [u8; 12] = field("iv")?.try_into().ok()?;
        let payload = Payload {
            msg: &sealed,
            aad: jwe["protected"].as_str()?.as_bytes(),
        };
        aes_gcm::Aes256Gcm::new_from_slice(&content_key)
            .ok()?
            .decrypt(&iv.into(), payload)
            .ok()
    }
}
