//! The older dialect, that of virtee's reference-kbs and of kbs-types 0.2, which clients in images of `buildah mkcw` speak.
//!
//! ```text
//!   POST /kbs/v0/register_workload  {workload_id, launch_measurement, tee_config, passphrase}
//!   POST /kbs/v0/auth               extra-params is a text: {"workload_id": …}        ► nonce, cookie session_id
//!   POST /kbs/v0/attest             {tee-pubkey: {alg, k-mod, k-exp}, tee-evidence: a text: {report, cert_chain, gen}}
//!   GET  /kbs/v0/key/<workload_id>  ► the passphrase under RSA PKCS #1 v1.5, a text of hexadecimal digits
//! ```
//!
//! REPORT_DATA is SHA-512 of the nonce and the two numbers of the key as their texts are.
//!
//! What buildah registers is the launch of krun, with krun's kernel and init. Guests of cwrun ask for the same passphrase in the KBS
//! protocol, as the resource `<workload_id>/key/disk`, and get it where [a file](crate::policy::Launches) admits their launch.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rsa::{Pkcs1v15Encrypt, PublicKey as RsaPublicKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha512};
use workload::{Hex, Passphrase};
use zeroize::Zeroize as _;

use crate::appraisal::PolicyFile;
use crate::jwe;
use crate::protocol::{self, REPORT_DATA_LEN, Request};
use crate::record::Registration;

/// Name of this dialect's cookie.
pub const COOKIE: &str = "session_id";

/// Length of a report, in bytes.
const REPORT_LEN: usize = 1184;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The inner text is not JSON of its shape.
    #[error("tee-evidence is not valid: {0}")]
    Evidence(serde_json::Error),
    /// Not the report's digits.
    #[error("report should be {} hexadecimal digits", 2 * REPORT_LEN)]
    Report,
    /// Not base64.
    #[error("k-mod and k-exp should be base64")]
    Base64,
    /// A key that is none.
    #[error(transparent)]
    Key(#[from] jwe::Error),
    /// A field of a registration.
    #[error("{field} should be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Too long for the guest's key, or no random numbers.
    #[error("the passphrase can't be encrypted to the guest's key")]
    Encrypt,
}

#[derive(Deserialize)]
struct ExtraParams {
    workload_id: String,
}

/// The workload of a request in this dialect, whose versions are all below 0.4. `None` for other requests.
pub fn workload_of(request: &Request) -> Option<String> {
    if request.version == protocol::VERSION {
        return None;
    }
    let params: ExtraParams = serde_json::from_str(request.extra_params.as_str()?).ok()?;
    protocol::is_name(&params.workload_id).then_some(params.workload_id)
}

/// A nonce as these clients expect it: 64 hexadecimal digits.
pub fn nonce(bytes: &[u8; 32]) -> String {
    Hex(*bytes).to_string()
}

/// The guest's key.
#[derive(Debug, Deserialize)]
struct PublicKey {
    #[serde(rename = "k-mod")]
    modulus: String,
    #[serde(rename = "k-exp")]
    exponent: String,
}

/// The message of `/attest`.
#[derive(Debug, Deserialize)]
pub struct Attestation {
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: PublicKey,
    #[serde(rename = "tee-evidence")]
    tee_evidence: String,
}

#[derive(Deserialize)]
struct Evidence {
    report: String,
}

impl Attestation {
    /// The key, and the report's bytes. The generation that the client names is ignored: the report says it.
    pub fn open(&self) -> Result<(RsaPublicKey, Vec<u8>), Error> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| Error::Base64);
        let key = jwe::parse_rsa(
            &decode(&self.tee_pubkey.modulus)?,
            &decode(&self.tee_pubkey.exponent)?,
        )?;
        let evidence: Evidence = serde_json::from_str(&self.tee_evidence).map_err(Error::Evidence)?;
        Ok((
            key,
            hex(&evidence.report)
                .filter(|report| report.len() == REPORT_LEN)
                .ok_or(Error::Report)?,
        ))
    }

    /// What REPORT_DATA should be.
    pub fn report_data(&self, nonce: &str) -> [u8; REPORT_DATA_LEN] {
        let mut hash = Sha512::new();
        hash.update(nonce);
        hash.update(&self.tee_pubkey.modulus);
        hash.update(&self.tee_pubkey.exponent);
        hash.finalize().into()
    }
}

/// The passphrase as the client gets it.
pub fn encrypt(key: &RsaPublicKey, passphrase: &[u8]) -> Result<String, Error> {
    let ciphertext = key
        .encrypt(&mut getrandom::SysRng, Pkcs1v15Encrypt, passphrase)
        .map_err(|_| Error::Encrypt)?;
    Ok(ciphertext.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What `buildah mkcw` registers.
#[derive(Deserialize)]
pub struct Workload {
    workload_id: String,
    launch_measurement: String,
    #[serde(default)]
    tee_config: String,
    passphrase: String,
}

#[derive(Deserialize)]
struct TeeConfig {
    cpus: Option<u32>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.passphrase.zeroize();
    }
}

impl Workload {
    /// krun's launch. buildah has none to tell where krun's firmware is not installed and `--ignore-attestation-errors` is given.
    fn launch_digests(&self) -> Result<BTreeMap<u32, Hex<48>>, Error> {
        if self.launch_measurement.is_empty() {
            return Ok(BTreeMap::new());
        }
        let digest: [u8; 48] = hex(&self.launch_measurement)
            .and_then(|digest| digest.try_into().ok())
            .ok_or(Error::Field {
                field: "launch_measurement",
                expected: "96 hexadecimal digits, or empty",
            })?;
        let config: Option<TeeConfig> = serde_json::from_str(&self.tee_config).ok();
        let vcpus = config.and_then(|config| config.cpus).unwrap_or(1);
        Ok(BTreeMap::from([(vcpus, Hex(digest))]))
    }

    /// The registration that it means.
    pub fn registration(&self) -> Result<Registration, Error> {
        let field = |field, expected| Error::Field { field, expected };
        if !protocol::is_name(&self.workload_id) {
            return Err(field(
                "workload_id",
                "1 to 128 of A-Z a-z 0-9 _ - . and not begin with a dot",
            ));
        }
        if self.passphrase.is_empty() {
            return Err(field("passphrase", "1 byte or more"));
        }
        Ok(Registration {
            version: 1,
            id: self.workload_id.clone(),
            launch_digests: self.launch_digests()?,
            host_data: None,
            key: Some(Passphrase::from_bytes(self.passphrase.as_bytes().to_vec())),
            secrets: BTreeMap::new(),
            // What krun launches its guests with.
            policy: PolicyFile {
                allow_smt: Some(true),
                ..PolicyFile::default()
            },
        })
    }
}

/// Bytes of hexadecimal digits in either case.
fn hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8))
        .collect()
}

#[cfg(test)]
#[path = "mkcw_test.rs"]
mod tests;
