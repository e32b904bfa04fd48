//! A registration on its way to the broker (docs/broker.md): one request over HTTP/1.1.
//!
//! SECURITY: the registration holds the key. It goes out encrypted to a server whose certificate the system trusts, or not farther than this
//! machine's own loopback.

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long the broker may take for each step.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Longest token, in bytes.
const MAX_TOKEN: u64 = 4096;
/// Where systems keep the certificates that they trust: Debian and its kin, Fedora and its kin.
const ROOTS: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Where a broker is.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    tls: bool,
    host: &'a str,
    port: u16,
    /// Without a slash at its end.
    path: &'a str,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        super::check_url(text)?;
        let (tls, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.trim_start_matches("http://")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        ensure!(
            !text.contains(['?', '#', '@', '\\']),
            "{text:?} has more in it than a host, a port and a path"
        );
        // [::1]:8080, host:8080, host
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .with_context(|| format!("{text:?}: a bracket is open"))?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .with_context(|| format!("{text:?}: {port:?} is no port"))?,
            None if port.is_empty() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            None => bail!("{text:?}: {port:?} is no port"),
        };
        ensure!(!host.is_empty(), "{text:?} names no host");
        Ok(Self {
            tls,
            host,
            port,
            path: path.trim_end_matches('/'),
        })
    }

    /// Plain HTTP is for a broker on this machine.
    fn addresses(&self) -> Result<Vec<std::net::SocketAddr>> {
        let found: Vec<_> = (self.host, self.port).to_socket_addrs()?.collect();
        let here = |address: &std::net::SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        };
        ensure!(
            self.tls || found.iter().all(here),
            "over http:// the key would be readable on the way: only a broker on this machine's loopback is registered with so, any other by https://"
        );
        Ok(found)
    }
}

/// Whether a registration can go there, as far as that can be told by the URL.
pub fn check(url: &str) -> Result<()> {
    Url::parse(url).map(drop).context("--register")
}

/// Registers `document` as `id`. What the broker says against it is in the error.
pub fn put(url: &str, token_file: &Path, id: &str, document: &[u8]) -> Result<()> {
    let token = token(token_file)?;
    send(url, &token, id, document).with_context(|| format!("--register {url}"))
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

fn send(url: &str, token: &str, id: &str, document: &[u8]) -> Result<()> {
    let url = Url::parse(url)?;
    let mut stream = connect(&url)?;
    let head = Zeroizing::new(format!(
        "PUT {}/admin/v0/workloads/{id} HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        url.path,
        url.host,
        url.port,
        document.len()
    ));
    stream.write_all(head.as_bytes())?;
    stream.write_all(document)?;
    stream.flush()?;
    let mut answer = Vec::new();
    // An end without a farewell is an end all the same: what counts is the status at the beginning.
    let read = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    if answer.is_empty() {
        read.context("no answer")?;
    }
    judge(&answer)
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connect(url: &Url<'_>) -> Result<Box<dyn Stream>> {
    let mut last = None;
    for address in url.addresses()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return match url.tls {
                    true => encrypted(url, stream),
                    false => Ok(Box::new(stream)),
                };
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("{} has no address", url.host),
    }
}

fn encrypted(url: &Url<'_>, stream: TcpStream) -> Result<Box<dyn Stream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots()?)
        .with_no_client_auth();
    let name = ServerName::try_from(url.host.to_owned())?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}

/// `SSL_CERT_FILE`, else what the system has.
fn roots() -> Result<RootCertStore> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let path = given.or_else(|| ROOTS.map(PathBuf::from).into_iter().find(|path| path.exists()));
    let path = path.context("this system has no list of trusted certificates: SSL_CERT_FILE can name one")?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&path).with_context(|| path.display().to_string())?;
    // Some in every system's list are not ones that this library takes.
    let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    ensure!(added > 0, "{}: no certificates in it", path.display());
    Ok(roots)
}

/// The status, and the sentence that comes with one that is not good.
fn judge(answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.lines().next().unwrap_or_default();
    let code: Option<u16> = status
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let Some(code) = code else {
        bail!("the answer is not one of HTTP")
    };
    if (200..300).contains(&code) {
        return Ok(());
    }
    // trustee's ErrorInformation, which the broker answers with.
    let detail = body
        .find('{')
        .and_then(|start| {
            serde_json::Deserializer::from_str(&body[start..])
                .into_iter::<serde_json::Value>()
                .next()
        })
        .and_then(Result::ok)
        .and_then(|value| Some(value.get("detail")?.as_str()?.escape_debug().to_string()));
    match detail {
        Some(detail) => bail!("the broker refuses the registration ({code}): {detail}"),
        None => bail!("the broker refuses the registration ({code})"),
    }
}

#[cfg(test)]
#[path = "register_test.rs"]
mod tests;
