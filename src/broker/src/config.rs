//! The configuration file. `contrib/broker/cwrun-broker.toml` shows every key with its default.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tee::vmsa::CpuModel;
use workload::Hex;

use crate::session;

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not TOML of this shape.
    #[error("{path}: {field}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// The cause, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value out of range, or two that contradict each other.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// A sentence that names the key.
        what: &'static str,
    },
}

/// Everything that the broker is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The store, made by `cwrun-broker init`.
    #[serde(default = "default_store")]
    pub store: PathBuf,
    /// The key file, made by `cwrun-broker init`.
    #[serde(default = "default_key_file")]
    pub key_file: PathBuf,
    /// Where verdicts go: a file, or "-" for standard output.
    #[serde(default = "default_verdict_log")]
    pub verdict_log: PathBuf,
    /// Directory with policy files; see [`crate::policy`].
    pub policies: Option<PathBuf>,
    /// SHA-256 of the admin token. Without it there is no admin API.
    pub admin_token_sha256: Option<Hex<32>>,
    /// Certificate and key; without them the broker speaks plain HTTP.
    pub tls: Option<Tls>,
    /// What evidence is accepted.
    #[serde(default)]
    pub evidence: Evidence,
    /// Sessions.
    #[serde(default)]
    pub sessions: Sessions,
    /// Limits of HTTP.
    #[serde(default)]
    pub limits: Limits,
    /// The older dialect.
    #[serde(default)]
    pub mkcw: Mkcw,
}

/// Section `[tls]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM, the server's certificate first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Section `[evidence]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evidence {
    /// Accept reports of the software TEE, which protect nothing.
    pub accept_sim: bool,
    /// Directory with VCEKs, `<chip id>/<tcb>.der`, which the broker also fills from `kds_url`.
    pub vcek_cache: Option<PathBuf>,
    /// AMD's key distribution service or a mirror of it.
    pub kds_url: Option<String>,
    /// PEM file with the roots that `kds_url` is trusted by.
    pub kds_roots: Option<PathBuf>,
    /// AMD's revocation list for each processor generation.
    pub revocation_lists: BTreeMap<CpuModel, PathBuf>,
}

/// Section `[sessions]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Seconds that a nonce waits for its attestation.
    pub nonce_seconds: u64,
    /// Seconds that an attested session gets resources.
    pub seconds: u64,
    /// Most sessions at once.
    pub total: usize,
    /// Most sessions at once of one client address.
    pub per_client: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            nonce_seconds: 60,
            seconds: 300,
            total: 10_000,
            per_client: 1_000,
        }
    }
}

/// Section `[limits]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most connections at once.
    pub connections: usize,
    /// Requests per second of one client address, in the long run.
    pub requests_per_second: u32,
    /// Requests of one client address at once.
    pub burst: u32,
    /// Bytes of a body of the protocol.
    pub body: usize,
    /// Bytes of a registration.
    pub registration: usize,
    /// Seconds for the head of a request, for its body, and for a TLS handshake.
    pub read_seconds: u64,
    /// Seconds that a connection lasts.
    pub connection_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_000,
            requests_per_second: 50,
            burst: 200,
            body: 256 << 10,
            registration: 1 << 20,
            read_seconds: 10,
            connection_seconds: 120,
        }
    }
}

/// Section `[mkcw]`: clients and registrations of images that `buildah mkcw` made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mkcw {
    /// Speak the older dialect.
    pub enabled: bool,
    /// Let anybody register workloads whose id is new, since buildah has no admin token.
    pub open_registration: bool,
    /// Directory with files that admit launches of cwrun to what was registered so; see [`crate::policy`].
    pub launches: Option<PathBuf>,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

fn default_store() -> PathBuf {
    "/var/lib/cwrun-broker/store".into()
}

fn default_key_file() -> PathBuf {
    "/var/lib/cwrun-broker/store.key".into()
}

fn default_verdict_log() -> PathBuf {
    "/var/log/cwrun-broker/verdicts.jsonl".into()
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let parse = |field: String, source| Error::Parse {
            path: path.to_path_buf(),
            field,
            source: Box::new(source),
        };
        let deserializer =
            toml::Deserializer::parse(text).map_err(|source| parse("syntax".into(), source))?;
        let config: Self = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let field = error.path().to_string();
            parse(field, error.into_inner())
        })?;
        config.check().map_err(|what| Error::Value {
            path: path.to_path_buf(),
            what,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), &'static str> {
        let (sessions, limits) = (&self.sessions, &self.limits);
        if sessions.nonce_seconds == 0
            || sessions.seconds == 0
            || sessions.total == 0
            || sessions.per_client == 0
        {
            return Err("every value of [sessions] should be at least 1");
        }
        if limits.connections == 0 || limits.requests_per_second == 0 || limits.burst == 0 {
            return Err("every value of [limits] should be at least 1");
        }
        if !(1 << 12..=16 << 20).contains(&limits.body) || !(1 << 12..=1 << 20).contains(&limits.registration)
        {
            return Err("limits.body should be 4 KiB to 16 MiB, and limits.registration 4 KiB to 1 MiB");
        }
        if !(1..=600).contains(&limits.read_seconds) || !(1..=86_400).contains(&limits.connection_seconds) {
            return Err("limits.read_seconds should be 1 to 600, and limits.connection_seconds 1 to 86400");
        }
        if self.mkcw.open_registration && !self.mkcw.enabled {
            return Err("mkcw.open_registration needs mkcw.enabled");
        }
        match &self.evidence.kds_url {
            Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                Err("evidence.kds_url should begin with https:// or http://")
            }
            Some(url) if url.starts_with("https://") && self.evidence.kds_roots.is_none() => Err(
                "evidence.kds_url with https:// needs evidence.kds_roots, a PEM file with the roots to trust",
            ),
            _ => Ok(()),
        }
    }

    /// The limits of the table of sessions.
    pub fn session_limits(&self) -> session::Limits {
        session::Limits {
            nonce: Duration::from_secs(self.sessions.nonce_seconds),
            session: Duration::from_secs(self.sessions.seconds),
            total: self.sessions.total,
            per_client: self.sessions.per_client,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("broker.toml"), text)
    }

    #[test]
    fn an_empty_file_has_the_defaults_and_no_admin() {
        let config = parse("").unwrap();
        assert!(config.admin_token_sha256.is_none());
        assert!(!config.evidence.accept_sim);
        assert!(!config.mkcw.enabled);
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let text = include_str!("../../../contrib/broker/cwrun-broker.toml");
        let given = parse(text).unwrap();
        let all: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let all = parse(&all).unwrap();
        assert!(
            all.tls.is_some()
                && all.policies.is_some()
                && all.mkcw.launches.is_some()
                && all.evidence.kds_url.is_some()
        );
        let mut default = parse("").unwrap();
        default.admin_token_sha256 = given.admin_token_sha256;
        assert_eq!(format!("{given:?}"), format!("{default:?}"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("listen = 1", "broker.toml: listen: "),
            ("listen = \"x\"", "broker.toml: listen: "),
            ("[sessions]\ntotal = 0", "broker.toml: every value of [sessions]"),
            ("[limits]\nbody = 1", "broker.toml: limits.body"),
            (
                "[mkcw]\nopen_registration = true",
                "broker.toml: mkcw.open_registration needs",
            ),
            (
                "[evidence]\nkds_url = \"ftp://x\"",
                "broker.toml: evidence.kds_url should",
            ),
            (
                "[evidence]\nkds_url = \"https://x\"",
                "broker.toml: evidence.kds_url with https",
            ),
            ("admin_token_sha256 = \"x\"", "broker.toml: admin_token_sha256: "),
            ("= 1", "broker.toml: syntax: "),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
