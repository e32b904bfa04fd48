//! HTTP/1.1 around [`Broker::answer`]: connections, TLS, limits and time-outs. Nothing of a request is believed before it is counted:
//!
//! ```text
//!   accept ─► at most `connections` ─► TLS handshake ─► head within read_seconds, 16 KiB
//!          ─► rate of this client ─► body within read_seconds, up to the route's limit ─► Broker::answer on a worker thread
//! ```
//!
//! A connection ends after `connection_seconds`, whatever it is doing.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    SET_COOKIE,
};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::api::{self, Broker, Call, Refusal, Reply};
use crate::config::{Limits, Tls};
use crate::limit::RateLimit;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How often expired sessions are forgotten.
const SWEEP: Duration = Duration::from_secs(30);
/// How long running requests have when the broker is stopped.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a certificate is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read or is not PEM.
    #[error("cannot read {path}: {source}")]
    Pem {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("the certificate and key of [tls] can't be used")]
    Config(#[source] rustls::Error),
}

/// A broker that listens.
pub struct Server {
    broker: Arc<Broker>,
    limits: Limits,
    rate: RateLimit,
    /// Requests that are answered at once: processor time is what they take.
    workers: Semaphore,
    tls: Option<TlsAcceptor>,
}

/// Reads certificate and key.
pub fn tls_acceptor(tls: &Tls) -> Result<TlsAcceptor, TlsError> {
    let pem = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(&tls.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(pem(&tls.key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Server {
    /// A server that is not listening yet.
    pub fn new(broker: Arc<Broker>, limits: Limits, tls: Option<TlsAcceptor>) -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
        Self {
            broker,
            rate: RateLimit::new(limits.requests_per_second, limits.burst),
            limits,
            workers: Semaphore::new(workers),
            tls,
        }
    }

    /// Serves until `stop` ends, then lets running requests finish.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let server = Arc::new(self);
        let connections = Arc::new(Semaphore::new(server.limits.connections));
        let mut stop = std::pin::pin!(stop);
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = sweep.tick() => {
                    server.broker.sweep();
                    continue;
                }
                () = &mut stop => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // No file descriptors, most likely: others have to end first.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Above the limit, connections are closed at once: who waits would only wait longer.
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                tracing::debug!(%peer, "too many connections");
                continue;
            };
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let _permit = permit;
                server.connection(stream, peer).await;
            });
        }
        drop(listener);
        let all = u32::try_from(server.limits.connections).unwrap_or(u32::MAX);
        let _ = timeout(FAREWELL, connections.acquire_many(all)).await;
    }

    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let lifetime = Duration::from_secs(self.limits.connection_seconds);
        let client = peer.ip().to_canonical();
        let server = Arc::clone(&self);
        let served = async move {
            match &self.tls {
                None => server.requests(stream, client).await,
                Some(acceptor) => match timeout(self.read_time(), acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => server.requests(stream, client).await,
                    Ok(Err(error)) => tracing::debug!(%peer, "TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                },
            }
        };
        if timeout(lifetime, served).await.is_err() {
            tracing::debug!(%peer, "connection ended after its time");
        }
    }

    fn read_time(&self) -> Duration {
        Duration::from_secs(self.limits.read_seconds)
    }

    async fn requests(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        client: IpAddr,
    ) {
        let read_time = self.read_time();
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.request(request, client).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(read_time)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%client, "connection ended: {error}");
        }
    }

    async fn request(self: &Arc<Self>, request: Request<Incoming>, client: IpAddr) -> Response<Full<Bytes>> {
        let start = Instant::now();
        let route = api::route(request.uri().path());
        let reply = match self.limited(request, route, client).await {
            Ok(reply) => reply,
            Err(refusal) => refusal.reply(),
        };
        self.broker.metrics.request(route, reply.status, start.elapsed());
        response(reply)
    }

    async fn limited(
        self: &Arc<Self>,
        request: Request<Incoming>,
        route: &str,
        client: IpAddr,
    ) -> Result<Reply, Refusal> {
        if !self.rate.allows(client, Instant::now()) {
            return Err(refused(429, "too many requests from this address"));
        }
        let (head, body) = request.into_parts();
        let limit = match route {
            "admin" | "register_workload" => self.limits.registration * 4 / 3 + 4096,
            _ => self.limits.body,
        };
        // By what it says of itself, before any of it has come.
        if body.size_hint().lower() > limit as u64 {
            return Err(refused(413, "the body is too long"));
        }
        let body = timeout(self.read_time(), Limited::new(body, limit).collect())
            .await
            .map_err(|_| refused(408, "the body took too long"))?
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    refused(413, "the body is too long")
                } else {
                    refused(400, "the body did not arrive")
                }
            })?
            .to_bytes();
        let cookie = text(&head.headers, &COOKIE)?;
        let authorization = text(&head.headers, &AUTHORIZATION)?;
        let permit = self
            .workers
            .acquire()
            .await
            .map_err(|_| refused(503, "the broker is stopping"))?;
        let server = Arc::clone(self);
        let answered = tokio::task::spawn_blocking(move || {
            server.broker.answer(&Call {
                method: head.method.as_str(),
                path: head.uri.path(),
                cookie: cookie.as_deref(),
                authorization: authorization.as_deref(),
                body: &body,
                client,
            })
        })
        .await;
        drop(permit);
        answered.map_err(Refusal::internal)
    }
}

/// A header that may come once and is text.
fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(|value| Some(value.to_owned()))
            .map_err(|_| refused(400, "a header is not text")),
        _ => Err(refused(400, "a header comes twice")),
    }
}

fn refused(status: u16, detail: &'static str) -> Refusal {
    Refusal::new(status, "HTTPFailed", "request", detail)
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let limited = reply.status == 429;
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if limited {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some(cookie) = reply.cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        headers.insert(SET_COOKIE, cookie);
    }
    response
}

/// Opens a listener; a sentence says which address it was.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
