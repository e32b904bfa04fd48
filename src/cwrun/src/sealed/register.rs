//! A registration on its way to the broker (docs/broker.md).
//!
//! SECURITY: the registration holds the key. It goes out encrypted to a server whose certificate is trusted, or not farther than this
//! machine's own loopback.

use crate::broker::{self, Upstream};
use crate::settings;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::io::Read as _;
use std::net::ToSocketAddrs as _;
use std::path::Path;
use ureq::http::Uri;
use zeroize::Zeroizing;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Longest token, in bytes.
const MAX_TOKEN: u64 = 4096;

/// A broker that can be registered with.
pub struct Registrar {
    upstream: Upstream,
    token: Zeroizing<String>,
}

impl Registrar {
    /// The one at this URL, which knows the token in this file. Makes no connection yet.
    pub fn new(url: &str, token_file: &Path, settings: &settings::Broker) -> Result<Self> {
        let upstream = Upstream::at(url, "--register", settings)?;
        refuse_clear(&upstream).with_context(|| format!("--register {url}"))?;
        Ok(Self {
            upstream,
            token: token(token_file)?,
        })
    }

    /// Registers `document` as `id`. What the broker says against it is in the error.
    pub fn put(&self, id: &str, document: &[u8]) -> Result<()> {
        let url = &self.upstream.url;
        self.send(id, document)
            .with_context(|| format!("--register {url}"))
    }

    fn send(&self, id: &str, document: &[u8]) -> Result<()> {
        let bearer = Zeroizing::new(format!("Bearer {}", *self.token));
        let mut response = broker::agent(&self.upstream)?
            .put(format!("{}/admin/v0/workloads/{id}", self.upstream.url))
            .header("Authorization", &*bearer)
            .header("Content-Type", "application/json")
            .send(document)
            .map_err(|error| anyhow!("no answer: {error}"))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let mut answer = Vec::new();
        // What can't be read says nothing, and the status is known.
        let _ = response
            .body_mut()
            .as_reader()
            .take(MAX_ANSWER)
            .read_to_end(&mut answer);
        match detail(&answer) {
            Some(detail) => bail!("the broker refuses the registration ({status}): {detail}"),
            None => bail!("the broker refuses the registration ({status})"),
        }
    }
}

/// Over plain HTTP only a broker of this machine is registered with, and nobody in between.
fn refuse_clear(upstream: &Upstream) -> Result<()> {
    let uri: Uri = upstream.url.parse()?;
    if uri.scheme_str() == Some("https") {
        return Ok(());
    }
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = (bare, uri.port_u16().unwrap_or(80))
        .to_socket_addrs()
        .is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()));
    ensure!(
        here && upstream.proxy.is_none(),
        "over http:// the key would be readable on the way: only a broker on this machine's loopback is registered with so, any other by https://"
    );
    Ok(())
}

fn token(path: &Path) -> Result<Zeroizing<String>> {
    let read = || -> Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN as usize + 1));
        File::open(path)?.take(MAX_TOKEN + 1).read_to_string(&mut text)?;
        let token = Zeroizing::new(text.trim().to_owned());
        ensure!(
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()),
            "it holds no token"
        );
        Ok(token)
    };
    read().with_context(|| format!("--token-file {}", path.display()))
}

/// The sentence in trustee's ErrorInformation, which the broker answers with.
fn detail(answer: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(answer).ok()?;
    Some(value.get("detail")?.as_str()?.escape_debug().to_string())
}

#[cfg(test)]
#[path = "register_test.rs"]
mod tests;
