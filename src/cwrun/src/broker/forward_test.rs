use super::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use workload::Blob;

/// A broker of one answer: it tells what it was sent, head and body.
fn broker(answer: &'static str) -> (u16, mpsc::Receiver<String>) {
    serve(move |stream, told| talk(stream, answer, &told))
}

fn serve(
    work: impl Fn(TcpStream, mpsc::Sender<String>) + Send + Sync + 'static,
) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            work(stream.unwrap(), tell.clone());
        }
    });
    (port, told)
}

fn talk(mut stream: impl Read + Write, answer: &str, told: &mpsc::Sender<String>) {
    let mut sent = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let Ok(count) = stream.read(&mut piece) else {
            return;
        };
        if count == 0 {
            return;
        }
        sent.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&sent).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            let _ = told.send(text.clone());
            let _ = stream.write_all(answer.as_bytes());
            return;
        }
    }
}

fn upstream(url: String) -> Upstream {
    Upstream {
        url,
        roots: Vec::new(),
        proxy: None,
        timeout_seconds: 5,
    }
}

/// What the guest is answered to these bytes: status, fields and body.
fn ask(upstream: &Upstream, bytes: &str) -> (u16, attest::http::Response) {
    let forwarder = Forwarder::new(upstream).unwrap();
    let (mut guest, host) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || drop(forwarder.serve(host)));
    guest.write_all(bytes.as_bytes()).unwrap();
    let mut connection = Connection::new(guest);
    let answer = connection.receive_response(MAX_ANSWER).unwrap();
    drop(connection);
    thread.join().unwrap();
    (answer.status, answer)
}

/// The sentence that a guest gets.
fn sentence(upstream: &Upstream, bytes: &str) -> (u16, String) {
    let (status, answer) = ask(upstream, bytes);
    let said: ErrorInformation = serde_json::from_slice(&answer.body).unwrap();
    assert!(said.kind.ends_with("/HTTPFailed"));
    (status, said.detail)
}

const AUTH_REQUEST: &str = "POST /kbs/v0/auth HTTP/1.1\r\nHost: broker\r\nContent-Length: 2\r\n\r\n{}";
const RESOURCE: &str =
    "GET /kbs/v0/resource/id/key/disk HTTP/1.1\r\nHost: broker\r\nCookie: kbs-session-id=s1\r\n\r\n";

#[test]
fn a_question_and_its_answer_are_written_anew() {
    let (port, told) = broker(
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nSet-Cookie: tracker=1\r\nSet-Cookie: kbs-session-id=abc; Path=/\r\n\
         Server: x\r\nRetry-After: 3\r\n\r\n{\"a\":1",
    );
    let upstream = upstream(format!("http://localhost:{port}/prefix"));
    let (status, answer) = ask(
        &upstream,
        "POST /kbs/v0/attest HTTP/1.1\r\nHost: evil\r\nX-Forwarded-For: 1.2.3.4\r\nAuthorization: Bearer x\r\n\
         Cookie: other=1; kbs-session-id=s1; admin=2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    assert_eq!((status, &*answer.body), (401, &b"{\"a\":1"[..]));
    let cookies: Vec<_> = answer.head.fields("set-cookie").collect();
    assert_eq!(cookies, ["kbs-session-id=abc"]);
    assert_eq!(answer.head.field("retry-after").unwrap(), Some("3"));
    assert_eq!(answer.head.field("server").unwrap(), None);
    let sent = told.recv().unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head.lines().map(str::to_lowercase).collect();
    assert_eq!(lines.remove(0), "post /prefix/kbs/v0/attest http/1.1");
    assert_eq!(body, "hello");
    lines.sort();
    let names: Vec<_> = lines.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert!(lines.contains(&format!("host: localhost:{port}")), "{lines:?}");
    assert!(
        lines.contains(&"cookie: kbs-session-id=s1".to_owned()),
        "{lines:?}"
    );
    for name in names {
        let known = [
            "accept",
            "accept-encoding",
            "content-length",
            "content-type",
            "cookie",
            "host",
            "user-agent",
        ];
        assert!(known.contains(&name), "{name}");
    }
}

#[test]
fn a_resource_is_asked_for_with_the_sessions_cookie() {
    let (port, told) = broker("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    let (status, answer) = ask(&upstream(format!("http://127.0.0.1:{port}")), RESOURCE);
    assert_eq!((status, &*answer.body), (200, &b"{}"[..]));
    let sent = told.recv().unwrap().to_lowercase();
    assert!(
        sent.starts_with("get /kbs/v0/resource/id/key/disk http/1.1\r\n"),
        "{sent}"
    );
    assert!(sent.contains("\r\ncookie: kbs-session-id=s1\r\n"), "{sent}");
}

#[test]
fn nothing_else_reaches_the_broker() {
    let (port, told) = broker("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let upstream = upstream(format!("http://127.0.0.1:{port}"));
    for (first, expected) in [
        ("PUT /admin/v0/workloads/x", 404),
        ("GET /metrics", 404),
        ("GET /", 404),
        ("POST /kbs/v0/auth?x", 404),
        ("POST /kbs/v0/auth/", 404),
        ("POST /kbs/v0/../admin", 404),
        ("GET /kbs/v0/resource/a/b/c?d", 404),
        ("GET /kbs/v0/resource/a/../c", 404),
        ("GET /kbs/v0/resource/a/b/c/d", 404),
        ("GET /kbs/v0/resource/a/b/%2e%2e", 404),
        ("GET /kbs/v0/key/a", 404),
        ("POST /kbs/v0/register_workload", 404),
        ("GET /kbs/v0/auth", 405),
        ("DELETE /kbs/v0/resource/a/b/c", 405),
        ("POST /kbs/v0/resource/a/b/c", 405),
        ("GET http://10.0.0.1/", 400),
        ("CONNECT 10.0.0.1:80", 400),
    ] {
        let (status, said) = sentence(&upstream, &format!("{first} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(status, expected, "{first}: {said}");
        assert!(said.starts_with("the host's proxy: "), "{said}");
    }
    let with_body = "GET /kbs/v0/resource/a/b/c HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(sentence(&upstream, with_body).0, 400);
    let long = format!(
        "POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        MAX_QUESTION + 1
    );
    assert_eq!(sentence(&upstream, &long).0, 413);
    let two = "POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(sentence(&upstream, two).0, 400);
    assert!(told.try_recv().is_err(), "the broker heard of none of them");
}

#[test]
fn cookies_are_the_sessions_own() {
    assert_eq!(session("a=b; kbs-session-id=x1; c"), Some("kbs-session-id=x1"));
    assert_eq!(
        session("kbs-session-id=x; Path=/; HttpOnly"),
        Some("kbs-session-id=x")
    );
    for none in [
        "",
        "kbs-session-id",
        "xkbs-session-id=1",
        "kbs-session-id-2=1",
        "kbs-session-id=a b",
        "kbs-session-id=\"a\"",
    ] {
        assert_eq!(session(none), None, "{none}");
    }
    assert_eq!(session(&format!("kbs-session-id={}", "x".repeat(2000))), None);
}

#[test]
fn a_stream_serves_one_request_after_the_other() {
    let (port, _told) = broker("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    let forwarder = Forwarder::new(&upstream(format!("http://127.0.0.1:{port}"))).unwrap();
    let (guest, host) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || drop(forwarder.serve(host)));
    let mut connection = Connection::new(guest);
    for _ in 0..3 {
        connection.send("POST /kbs/v0/auth HTTP/1.1", &[], b"{}").unwrap();
        let answer = connection.receive_response(100).unwrap();
        assert_eq!((answer.status, answer.last), (200, false));
    }
    drop(connection);
    thread.join().unwrap();
}

#[test]
fn what_goes_wrong_on_the_way_is_a_sentence_and_a_status_that_says_whether_to_try_again() {
    // Nobody listens at a port that was given back.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}");
    assert_eq!(
        sentence(&upstream(url.clone()), AUTH_REQUEST),
        (
            502,
            format!("the host's proxy: {url} can't be reached: Connection refused")
        )
    );
    let (port, _told) = serve(|stream, _| {
        thread::sleep(Duration::from_secs(3));
        drop(stream);
    });
    let slow = Upstream {
        timeout_seconds: 1,
        ..upstream(format!("http://127.0.0.1:{port}"))
    };
    let (status, said) = sentence(&slow, AUTH_REQUEST);
    assert_eq!(status, 504);
    assert!(said.ends_with("does not answer within 1 seconds"), "{said}");
    let (port, _told) =
        broker("HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n");
    let (status, said) = sentence(&upstream(format!("http://127.0.0.1:{port}")), AUTH_REQUEST);
    assert_eq!(status, 421);
    assert!(
        said.ends_with("is not the key broker, but leads to https://elsewhere/"),
        "{said}"
    );
    let (port, _told) = broker("SSH-2.0-OpenSSH_9.2\r\n");
    let (status, said) = sentence(&upstream(format!("http://127.0.0.1:{port}")), AUTH_REQUEST);
    assert_eq!(status, 502, "{said}");
    let missing = upstream("http://missing.invalid".to_owned());
    assert_eq!(sentence(&missing, AUTH_REQUEST).0, 502);
}

#[test]
fn an_answer_that_is_too_long_is_not_passed_on() {
    let (port, _told) = serve(|mut stream, _| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while stream.write_all(chunk.as_bytes()).is_ok() {}
    });
    let (status, said) = sentence(&upstream(format!("http://127.0.0.1:{port}")), RESOURCE);
    assert_eq!(status, 421);
    assert!(said.ends_with("answers with more than 2097152 bytes"), "{said}");
}

/// The same over TLS, with the certificate of "localhost".
fn tls_broker() -> u16 {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let (port, _told) = serve(move |stream, told| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        talk(
            &mut stream,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            &told,
        );
    });
    port
}

fn over_tls(host: &str, port: u16, root: &[u8]) -> Upstream {
    Upstream {
        roots: vec![Blob(CertificateDer::from_pem_slice(root).unwrap().to_vec())],
        ..upstream(format!("https://{host}:{port}"))
    }
}

#[test]
fn over_tls_the_broker_has_a_certificate_of_the_roots_that_were_named() {
    let port = tls_broker();
    let (root, other) = (include_bytes!("tls/root.pem"), include_bytes!("tls/other.pem"));
    let (status, answer) = ask(&over_tls("localhost", port, root), AUTH_REQUEST);
    assert_eq!((status, &*answer.body), (200, &b"{}"[..]));
    for (host, root, why) in [
        ("localhost", &other[..], "invalid peer certificate"),
        ("127.0.0.1", &root[..], "certificate not valid for name"),
    ] {
        let (status, said) = sentence(&over_tls(host, port, root), AUTH_REQUEST);
        assert_eq!(status, 421, "{said}");
        assert!(
            said.contains("does not prove to be the key broker") && said.contains(why),
            "{said}"
        );
    }
}

#[test]
fn a_proxy_is_used_where_one_is_named() {
    let (port, told) = broker("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let root = include_bytes!("tls/root.pem");
    let through = Upstream {
        proxy: Some(format!("http://127.0.0.1:{port}")),
        ..over_tls("broker.invalid", 443, root)
    };
    let (status, _) = sentence(&through, AUTH_REQUEST);
    assert_eq!(status, 502);
    assert!(
        told.recv()
            .unwrap()
            .starts_with("CONNECT broker.invalid:443 HTTP/1.1\r\n")
    );
}
