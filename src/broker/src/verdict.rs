//! The verdict log: one JSON line for each decision, with the clause that decided. It never holds secrets, and no key is released
//! whose line could not be written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A report is genuine and fresh.
    Accepted,
    /// A resource was released.
    Released,
    /// A registration was made, replaced or removed.
    Changed,
    /// Nothing was given.
    Refused,
}

/// One decision.
#[derive(Debug, Serialize)]
pub struct Verdict<'a> {
    /// "auth" (only if refused), "attest", "resource" or "admin".
    pub event: &'static str,
    /// What was decided.
    pub outcome: Outcome,
    /// The clause that decided, if something was refused: a clause of the policy, or "session", "nonce", "evidence", ….
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clause: Option<&'a str>,
    /// A sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    /// Who asked.
    pub client: IpAddr,
    /// The first digits of the session's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<&'a str>,
    /// Kind of TEE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tee: Option<&'a str>,
    /// The resource, or the id of a registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<&'a str>,
    /// Launch digest of the report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_digest: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    verdict: &'a Verdict<'a>,
}

/// Where verdicts go.
pub struct VerdictLog(Mutex<Box<dyn Write + Send>>);

impl VerdictLog {
    /// Appends to a file, which it makes with mode 0640; "-" is standard output.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::to(io::stdout()));
        }
        let file: File = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        Ok(Self::to(file))
    }

    /// Writes to anything.
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(writer)))
    }

    /// Writes one line.
    pub fn write(&self, verdict: &Verdict) -> io::Result<()> {
        let time = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .map_err(io::Error::other)?;
        let mut line = serde_json::to_vec(&Line { time, verdict })?;
        line.push(b'\n');
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line)?;
        writer.flush()
    }
}
