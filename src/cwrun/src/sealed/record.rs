//! The registration of a sealed workload: what its owner's broker has to know, and nobody else.
//!
//! The JSON document is that of `docs/broker.md`. It holds the key.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::path::Path;
use tee::launch::LaunchDigest;
use workload::{Digest, Hex, Passphrase};
use zeroize::Zeroizing;

/// Longest policy file, in bytes.
const MAX_POLICY: u64 = 64 << 10;
/// Longest secret, in bytes. A registration with all of them has to fit in what a broker reads.
const MAX_SECRET: usize = 256 << 10;

/// A registration.
#[derive(Serialize)]
pub struct Record {
    version: u32,
    /// Names the workload at the broker.
    pub id: String,
    launch_digests: BTreeMap<String, Hex<48>>,
    host_data: Digest,
    key: Passphrase,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secrets: BTreeMap<String, Passphrase>,
    policy: Value,
}

/// Secrets by their names.
pub type Secrets = BTreeMap<String, Passphrase>;

impl Record {
    /// A registration whose key is `key`, the volume keys end to end.
    pub fn new(
        id: &str,
        launch_digests: &BTreeMap<u8, LaunchDigest>,
        host_data: Digest,
        key: Passphrase,
        secrets: Secrets,
        policy: Value,
    ) -> Self {
        let digests = launch_digests.iter();
        Self {
            version: 1,
            id: id.to_owned(),
            launch_digests: digests
                .map(|(count, digest)| (count.to_string(), Hex(digest.0)))
                .collect(),
            host_data,
            key,
            secrets,
            policy,
        }
    }

    /// The document.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>> {
        // Room at once: growing would leave copies behind.
        let secrets = self
            .secrets
            .values()
            .map(|secret| 2 * secret.as_bytes().len() + 256);
        let digests = 128 * self.launch_digests.len();
        let room = MAX_POLICY as usize + 4096 + digests + secrets.sum::<usize>();
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *bytes, self).context("JSON")?;
        Ok(bytes)
    }
}

/// The clauses of a policy file (TOML, or JSON by its name), as `docs/broker.md` lists them.
pub fn policy(path: Option<&Path>) -> Result<Value> {
    let Some(path) = path else {
        // What guests are launched with unless `tee.policy` in cwrun.toml says otherwise.
        return Ok(json!({"allow_smt": true}));
    };
    let read = || -> Result<Value> {
        let mut text = String::new();
        File::open(path)?.take(MAX_POLICY + 1).read_to_string(&mut text)?;
        ensure!(
            text.len() as u64 <= MAX_POLICY,
            "it is longer than {MAX_POLICY} bytes"
        );
        let value: Value = match path.extension().is_some_and(|ext| ext == "json") {
            true => serde_json::from_str(&text)?,
            false => toml::from_str(&text)?,
        };
        ensure!(value.is_object(), "it is not a list of clauses");
        Ok(value)
    };
    read().with_context(|| format!("policy {}", path.display()))
}

/// A file of up to 256 KiB that is a secret.
pub fn secret(path: &Path) -> Result<Passphrase> {
    let context = || path.display().to_string();
    let file = File::open(path).with_context(context)?;
    let bytes = read_secret(&file, MAX_SECRET).with_context(context)?;
    Ok(Passphrase::from_bytes(bytes))
}

/// Reads into a buffer that never moves, so that no copy is left behind. The last holder wipes it.
fn read_secret(file: &impl AsFd, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Zeroizing::new(vec![0; most + 1]);
    let mut length = 0;
    while length <= most {
        match rustix::io::read(file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(got) => length += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    ensure!((1..=most).contains(&length), "it is not 1 to {most} bytes long");
    Ok(bytes[..length].to_vec())
}

#[cfg(test)]
#[path = "record_test.rs"]
mod tests;
