//! Which broker a sealed container asks, and how this host gets there.

use crate::bundle::Bundle;
use crate::bundle::annotations::BROKER;
use crate::settings::Broker as Settings;
use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use std::path::Path;
use ureq::http::Uri;
use workload::Blob;

/// Longest URL of a broker, in bytes.
const MAX_URL: usize = 2048;

/// A broker's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `http://` or `https://`, host, port and the directory that the protocol's paths are below; no slash at its end.
    pub url: String,
    /// Certificates (DER) that one of the broker's has to be verified by. Empty for HTTP.
    pub roots: Vec<Blob>,
    /// The HTTP proxy in between.
    pub proxy: Option<String>,
    /// Seconds for one request and its answer.
    pub timeout_seconds: u64,
}

impl Upstream {
    /// For a sealed container. `image` is what its image says, where it does, and where that is.
    pub fn choose(bundle: &Bundle, settings: &Settings, image: Option<(&str, &str)>) -> Result<Self> {
        let annotated = bundle.annotation(BROKER);
        let (url, by) = decide(annotated, settings, image)?;
        Self::at(url, &by, settings)
    }

    /// The one with this URL. `by` says whose word that is.
    pub fn at(url: &str, by: &str, settings: &Settings) -> Result<Self> {
        let url = parse(url).with_context(|| by.to_owned())?;
        let roots = if url.starts_with("https:") {
            roots(settings.ca.as_deref())?
        } else {
            Vec::new()
        };
        if let Some(proxy) = &settings.proxy {
            parse(proxy).context("cwrun.toml: broker.proxy")?;
        }
        Ok(Self {
            url,
            roots,
            proxy: settings.proxy.clone(),
            timeout_seconds: settings.timeout_seconds,
        })
    }
}

/// Refuses the annotation on a container that asks no broker.
pub fn refuse_unused(bundle: &Bundle) -> Result<()> {
    ensure!(
        bundle.annotation(BROKER).is_none(),
        "config.json: annotation {BROKER}: the container is not sealed, so it asks no key broker"
    );
    Ok(())
}

/// The URL, and who says so.
fn decide<'a>(
    annotated: Option<&'a str>,
    settings: &'a Settings,
    image: Option<(&'a str, &str)>,
) -> Result<(&'a str, String)> {
    let own = settings.url.as_deref();
    let by = format!("config.json: annotation {BROKER}");
    let (url, by) = match (annotated, own, image) {
        (Some(url), ..) => (url, by),
        (None, Some(url), _) => return Ok((url, "cwrun.toml: broker.url".to_owned())),
        (None, None, Some((url, by))) => (url, by.to_owned()),
        (None, None, None) => bail!(
            "the container is sealed, and nobody names its key broker: annotation {BROKER}, broker.url in cwrun.toml, or the image"
        ),
    };
    ensure!(
        settings.others || own == Some(url),
        "{by}: {url:?} is not the key broker of this host, and cwrun.toml forbids others (broker.others)"
    );
    Ok((url, by))
}

/// A URL of HTTP without the parts that have no place in one of a broker.
fn parse(text: &str) -> Result<String> {
    let wrong = |what: &str| format!("{text:?} is not the URL of an HTTP server: {what}");
    ensure!(text.len() <= MAX_URL, "the URL is longer than {MAX_URL} bytes");
    let uri: Uri = text.parse().with_context(|| wrong("it can't be read"))?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")),
        wrong("it begins neither with http:// nor with https://")
    );
    let authority = uri.authority().with_context(|| wrong("it names no host"))?;
    ensure!(
        !authority.as_str().contains('@') && !authority.host().is_empty(),
        wrong("it names a user, or no host")
    );
    ensure!(
        uri.query().is_none() && !text.contains('#'),
        wrong("it has a query or a fragment")
    );
    Ok(text.trim_end_matches('/').to_owned())
}

/// What the broker's certificate is verified by: those of a file, or the system's.
fn roots(file: Option<&Path>) -> Result<Vec<Blob>> {
    let certificates = match file {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cwrun.toml: broker.ca: {}", path.display()))?,
        None => {
            let found = rustls_native_certs::load_native_certs();
            if let (true, Some(error)) = (found.certs.is_empty(), found.errors.into_iter().next()) {
                return Err(error).context("the system's certificates");
            }
            found.certs
        }
    };
    ensure!(
        !certificates.is_empty(),
        "there is no certificate to verify the key broker's by: {}",
        match file {
            Some(path) => format!("{} has none (cwrun.toml: broker.ca)", path.display()),
            None => "install ca-certificates, or set broker.ca in cwrun.toml".to_owned(),
        }
    );
    Ok(certificates
        .into_iter()
        .map(|certificate| Blob(certificate.to_vec()))
        .collect())
}

#[cfg(test)]
#[path = "upstream_test.rs"]
mod tests;
