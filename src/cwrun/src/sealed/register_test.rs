use super::*;
use std::io::Write as _;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

const DOCUMENT: &[u8] = b"{the document}";

/// A server that answers one request; returns its URL, and the request when it is over.
fn server(answer: String) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/below/", listener.local_addr().unwrap());
    let request = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut request, mut buffer) = (Vec::new(), [0; 1000]);
        while !request.ends_with(DOCUMENT) {
            let got = stream.read(&mut buffer).unwrap();
            assert!(got > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&buffer[..got]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap().to_ascii_lowercase()
    });
    (url, request)
}

fn token_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn put(url: &str, token: &str) -> Result<()> {
    let token = token_file(token);
    Registrar::new(url, token.path(), &settings::Broker::default())?.put("nginx-1", DOCUMENT)
}

#[test]
fn one_request_registers() {
    let (url, request) = server("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n".to_owned());
    put(&url, "t0ken\n").unwrap();
    let request = request.join().unwrap();
    assert!(
        request.starts_with("put /below/admin/v0/workloads/nginx-1 http/1.1\r\n"),
        "{request}"
    );
    for field in ["authorization: bearer t0ken", "content-length: 14"] {
        assert!(request.contains(&format!("\r\n{field}\r\n")), "{request}");
    }
}

#[test]
fn a_refusal_is_told_without_what_could_be_hidden_in_it() {
    let body = r#"{"type":"x","detail":"no\u001b[2J token"}"#;
    let length = body.len();
    let (url, request) = server(format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: {length}\r\n\r\n{body}"
    ));
    let error = format!("{:#}", put(&url, "x").unwrap_err());
    request.join().unwrap();
    assert!(error.starts_with("--register http://127.0.0.1:"), "{error}");
    assert!(
        error.ends_with("refuses the registration (401 Unauthorized): no\\u{1b}[2J token"),
        "{error}"
    );
    for answer in [
        &b""[..],
        b"nonsense",
        b"{}",
        b"[]",
        b"{\"detail\":1}",
        b"\xff\xff",
    ] {
        assert_eq!(detail(answer), None);
    }
}

#[test]
fn a_key_is_not_sent_in_the_clear() {
    for url in ["http://192.0.2.1:8080", "http://[2001:db8::1]"] {
        let error = format!("{:#}", put(url, "x").unwrap_err());
        assert!(error.contains("readable on the way"), "{error}");
    }
    let token = token_file("x");
    let settings = settings::Broker {
        proxy: Some("http://127.0.0.1:3128".to_owned()),
        ..settings::Broker::default()
    };
    let through = Registrar::new("http://127.0.0.1:1", token.path(), &settings);
    assert!(through.is_err(), "a proxy would read it");
}

#[test]
fn a_token_is_one_word() {
    for text in ["", "\n", "two words", "a\nb"] {
        let error = token(token_file(text).path()).unwrap_err();
        assert!(format!("{error:#}").contains("holds no token"), "{error:#}");
    }
}
