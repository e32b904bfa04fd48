//! Certificates of chips (VCEK) for reports that came without: from a directory, or from AMD's key distribution service.
//!
//! ```text
//!   <vcek_cache>/<chip id>/<REPORTED_TCB, 16 hexadecimal digits>.der
//!   <kds_url>/vcek/v1/<product>/<hardware id>?[fmcSPL=]&blSPL=&teeSPL=&snpSPL=&ucodeSPL=     (AMD 57230 §4)
//! ```
//!
//! What comes from either is not believed: the certificate has to be signed by AMD's like one that came with the report. So plain HTTP to
//! a mirror is no worse than HTTPS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tee::report::{Report, Tcb, TcbField};
use tee::vmsa::CpuModel;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;

use crate::limit::RateLimit;

/// Largest certificate that is taken, in bytes.
const MAX_CERTIFICATE: usize = 16 << 10;
/// How long the service may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Questions to the service, per second and at once, whoever caused them: anybody can send a report of a chip that does not exist.
const RATE: (u32, u32) = (1, 10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The report does not say enough.
    #[error("the report came without a VCEK, and does not say which chip it is from")]
    Nameless,
    /// Neither source has it.
    #[error("the report came without a VCEK, and it is not in the cache")]
    Missing,
    /// The cache can't be read.
    #[error("cannot read the VCEK {path}: {source}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The service has been asked too often.
    #[error("the key distribution service has been asked too often; try again later")]
    Busy,
    /// The service did not answer, or not with a certificate.
    #[error("the key distribution service did not give the VCEK: {0}")]
    Service(String),
}

/// Where VCEKs come from.
pub struct VcekSource {
    cache: Option<PathBuf>,
    service: Option<Service>,
}

struct Service {
    /// Without a slash at the end.
    base: String,
    tls: Option<TlsConnector>,
    rate: RateLimit,
    runtime: Handle,
}

/// What names a certificate.
struct Name {
    cpu: CpuModel,
    chip: [u8; 64],
    raw_tcb: u64,
    tcb: Tcb,
}

impl VcekSource {
    /// `roots`: PEM file for a `url` with https. The service is asked on `runtime`.
    pub fn new(
        cache: Option<&Path>,
        url: Option<&str>,
        roots: Option<&Path>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let service = match url {
            None => None,
            Some(url) => Some(Service {
                base: url.trim_end_matches('/').to_owned(),
                tls: roots.map(connector).transpose()?,
                rate: RateLimit::new(RATE.0, RATE.1),
                runtime,
            }),
        };
        Ok(Self {
            cache: cache.map(Path::to_path_buf),
            service,
        })
    }

    /// The certificate of the chip that a report says it is from, in DER. May block for some seconds.
    pub fn find(&self, report: &Report) -> Result<Vec<u8>, Error> {
        let name = Name::of(report).ok_or(Error::Nameless)?;
        let path = self.cache.as_ref().map(|cache| cache.join(name.file()));
        if let Some(path) = &path {
            match std::fs::read(path) {
                Ok(der) => return Ok(der),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::Cache {
                        path: path.clone(),
                        source,
                    });
                }
            }
        }
        self.service.as_ref().ok_or(Error::Missing)?.fetch(&name.query())
    }

    /// Keeps a certificate of the service, once a report has been verified with it.
    pub fn keep(&self, report: &Report, der: &[u8]) {
        let (Some(cache), Some(name), Some(_)) = (&self.cache, Name::of(report), &self.service) else {
            return;
        };
        let path = cache.join(name.file());
        if !path.exists()
            && let Err(error) = write_new(&path, der)
        {
            tracing::warn!(path = %path.display(), "cannot keep a VCEK: {error}");
        }
    }
}

/// Writes a file that appears whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let temporary = path.with_extension(format!("{:016x}", u64::from_le_bytes(random)));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

impl Name {
    fn of(report: &Report) -> Option<Self> {
        let cpu = report.cpu()?;
        let chip = report.chip_id().0;
        let raw_tcb = report.tcb(TcbField::Reported);
        let tcb = Tcb::from_raw(raw_tcb, cpu)?;
        (chip != [0; 64]).then_some(Self {
            cpu,
            chip,
            raw_tcb,
            tcb,
        })
    }

    /// Hexadecimal digits alone: nothing of a report becomes another path.
    fn file(&self) -> String {
        format!("{}/{:016x}.der", digits(&self.chip), self.raw_tcb)
    }

    fn query(&self) -> String {
        let (product, hardware_id) = match self.cpu {
            CpuModel::Milan => ("Milan", &self.chip[..]),
            CpuModel::Genoa => ("Genoa", &self.chip[..]),
            CpuModel::Turin => ("Turin", &self.chip[..8]),
        };
        let Tcb {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = self.tcb;
        let fmc = fmc.map(|fmc| format!("fmcSPL={fmc:02}&")).unwrap_or_default();
        format!(
            "/vcek/v1/{product}/{}?{fmc}blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}",
            digits(hardware_id)
        )
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn connector(roots: &Path) -> io::Result<TlsConnector> {
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(roots).map_err(io::Error::other)?;
    store.add_parsable_certificates(certificates.filter_map(Result::ok));
    if store.is_empty() {
        return Err(io::Error::other(format!(
            "{} holds no certificate",
            roots.display()
        )));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Service {
    fn fetch(&self, query: &str) -> Result<Vec<u8>, Error> {
        if !self
            .rate
            .allows(std::net::Ipv4Addr::UNSPECIFIED.into(), Instant::now())
        {
            return Err(Error::Busy);
        }
        let fetched = self
            .runtime
            .block_on(async { tokio::time::timeout(TIMEOUT, self.get(query)).await });
        match fetched {
            Ok(Ok(der)) => Ok(der),
            Ok(Err(error)) => Err(Error::Service(error.to_string())),
            Err(_) => Err(Error::Service("it took too long".into())),
        }
    }

    async fn get(&self, query: &str) -> io::Result<Vec<u8>> {
        let url: hyper::Uri = format!("{}{query}", self.base)
            .parse()
            .map_err(io::Error::other)?;
        let host = url
            .host()
            .ok_or_else(|| io::Error::other("its URL has no host"))?;
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        match &self.tls {
            Some(tls) if secure => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                exchange(tls.connect(name, stream).await?, &url).await
            }
            _ if secure => Err(io::Error::other("there are no roots to trust it by")),
            _ => exchange(stream, &url).await,
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &hyper::Uri,
) -> io::Result<Vec<u8>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends with the sender.
    let driver = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    if status != hyper::StatusCode::OK {
        return Err(io::Error::other(format!(
            "it answered with status {}",
            status.as_u16()
        )));
    }
    let body = Limited::new(response.into_body(), MAX_CERTIFICATE)
        .collect()
        .await
        .map_err(io::Error::other)?;
    drop(sender);
    driver.abort();
    Ok(body.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(cpu: CpuModel, raw_tcb: u64) -> Name {
        Name {
            cpu,
            chip: std::array::from_fn(|i| i as u8),
            raw_tcb,
            tcb: Tcb::from_raw(raw_tcb, cpu).unwrap(),
        }
    }

    #[test]
    fn certificates_are_asked_for_as_amd_documents_it() {
        let milan = name(CpuModel::Milan, u64::from_le_bytes([3, 0, 0, 0, 0, 0, 8, 115]));
        assert_eq!(
            milan.query(),
            format!(
                "/vcek/v1/Milan/{}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115",
                digits(&milan.chip)
            )
        );
        let turin = name(CpuModel::Turin, u64::from_le_bytes([1, 2, 3, 4, 0, 0, 0, 75]));
        assert_eq!(
            turin.query(),
            "/vcek/v1/Turin/0001020304050607?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=75"
        );
        assert!(turin.file().ends_with("3e3f/4b00000004030201.der"));
    }

    #[test]
    fn a_service_is_asked_over_http_and_not_too_often() {
        use std::io::{Read as _, Write as _};
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            for answer in [
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nder",
                "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = vec![0; 4096];
                let count = stream.read(&mut head).unwrap();
                assert!(head[..count].starts_with(b"GET /vcek/v1/x HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let source = VcekSource::new(None, Some(&url), None, runtime.handle().clone()).unwrap();
        let service = source.service.unwrap();
        assert_eq!(service.fetch("/vcek/v1/x").unwrap(), b"der");
        let error = service.fetch("/vcek/v1/x").unwrap_err().to_string();
        assert!(error.ends_with("it answered with status 404"), "{error}");
        served.join().unwrap();
        for _ in 0..8 {
            assert!(
                matches!(service.fetch("/"), Err(Error::Service(_))),
                "nobody listens any more"
            );
        }
        assert!(matches!(service.fetch("/"), Err(Error::Busy)));
    }
}
