//! Registrations: what the owner of a workload tells the broker.
//!
//! ```json
//! {
//!   "version": 1,
//!   "id": "nginx-1",
//!   "launch_digests": { "1": "<96 hex digits>", "2": "…" },
//!   "host_data": "<64 hex digits>",
//!   "key": "<base64>",
//!   "secrets": { "tls.key": "<base64>" },
//!   "policy": { … more clauses, as in a policy file … }
//! }
//! ```
//!
//! The key is the resource `<id>/key/disk`, a secret is `<id>/secret/<name>`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use workload::{Hex, Passphrase};

use crate::appraisal::PolicyFile;
use crate::protocol::{ResourcePath, is_name};

/// Tag of the workload's key, of type "key".
pub const KEY_TAG: &str = "disk";

/// Most secrets of one registration.
const MAX_SECRETS: usize = 64;
/// Most launch digests: one for each number of vCPUs.
const MAX_DIGESTS: usize = 256;

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not JSON of this shape.
    #[error("{path}: {source}")]
    Json {
        /// The field.
        path: String,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A field that holds what it must not.
    #[error("{field} should be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

/// A workload and what is released to it. Secrets are wiped when it is dropped.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Version of this format: 1.
    pub version: u32,
    /// Names the workload, and begins the path of its resources.
    pub id: String,
    /// Expected launch digest for each number of vCPUs. Only registrations of the older dialect may have none, and then no launch is good.
    pub launch_digests: BTreeMap<u32, Hex<48>>,
    /// SHA-256 of the Workload. Only registrations of the older dialect have none: krun's launch digest covers everything, and guests of
    /// cwrun need a file in [`mkcw.launches`](crate::config::Mkcw::launches).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_data: Option<Hex<32>>,
    /// What unlocks the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Passphrase>,
    /// Named secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Passphrase>,
    /// More clauses of the policy.
    #[serde(default)]
    pub policy: PolicyFile,
}

impl Registration {
    /// Takes a registration that the admin sent.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let registration = Self::read(json)?;
        if registration.host_data.is_none() {
            return Err(Error::Field {
                field: "host_data",
                expected: "the SHA-256 of the Workload",
            });
        }
        Ok(registration)
    }

    /// Takes a registration from the store, where those of the older dialect are too.
    pub fn read(json: &[u8]) -> Result<Self, Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let registration: Self =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|error| Error::Json {
                path: error.path().to_string(),
                source: error.into_inner(),
            })?;
        deserializer.end().map_err(|source| Error::Json {
            path: "registration".into(),
            source,
        })?;
        registration.check()?;
        Ok(registration)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |field, expected| Err(Error::Field { field, expected });
        if self.version != 1 {
            return wrong("version", "1");
        }
        if !is_name(&self.id) {
            return wrong("id", "1 to 128 of A-Z a-z 0-9 _ - . and not begin with a dot");
        }
        let fewest = usize::from(self.host_data.is_some());
        if !(fewest..=MAX_DIGESTS).contains(&self.launch_digests.len()) {
            return wrong("launch_digests", "at least one and at most 256 digests");
        }
        if self.secrets.len() > MAX_SECRETS || !self.secrets.keys().all(|name| is_name(name)) {
            return wrong("secrets", "at most 64, with names as an id's");
        }
        Ok(())
    }

    /// The resource of a path whose repository is this registration.
    pub fn resource(&self, path: &ResourcePath) -> Option<&Passphrase> {
        match path.kind.as_str() {
            "key" if path.tag == KEY_TAG => self.key.as_ref(),
            "secret" => self.secrets.get(&path.tag),
            _ => None,
        }
    }

    /// What may be shown to an admin: all but the secrets.
    pub fn summary(&self) -> serde_json::Value {
        serde_json::json!({
            "version": self.version,
            "id": self.id,
            "launch_digests": self.launch_digests,
            "host_data": self.host_data,
            "key": self.key.is_some(),
            "secrets": self.secrets.keys().collect::<Vec<_>>(),
            "policy": self.policy,
        })
    }
}

#[cfg(test)]
#[path = "record_test.rs"]
mod tests;
