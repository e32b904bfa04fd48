use super::*;
use std::net::TcpListener;
use std::thread;

/// A server that answers one request; returns its URL, and the request when it is over.
fn server(answer: &'static [u8]) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/below/", listener.local_addr().unwrap());
    let request = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 1000];
        while !request.ends_with(b"{the document}") {
            let got = stream.read(&mut buffer).unwrap();
            assert!(got > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&buffer[..got]);
        }
        stream.write_all(answer).unwrap();
        String::from_utf8(request).unwrap()
    });
    (url, request)
}

fn token_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn one_request_registers() {
    let (url, request) = server(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n");
    put(&url, token_file("t0ken\n").path(), "nginx-1", b"{the document}").unwrap();
    let request = request.join().unwrap();
    assert!(
        request.starts_with("PUT /below/admin/v0/workloads/nginx-1 HTTP/1.1\r\nHost: 127.0.0.1:"),
        "{request}"
    );
    assert!(
        request.contains("\r\nAuthorization: Bearer t0ken\r\n"),
        "{request}"
    );
    assert!(request.contains("\r\nContent-Length: 14\r\n"), "{request}");
}

#[test]
fn a_refusal_is_told_without_what_could_be_hidden_in_it() {
    let answer = b"HTTP/1.1 401 Unauthorized\r\n\r\n{\"type\":\"x\",\"detail\":\"no\\u001b[2J token\"}";
    let (url, request) = server(answer);
    let error = put(&url, token_file("x").path(), "a", b"{the document}").unwrap_err();
    request.join().unwrap();
    let error = format!("{error:#}");
    assert!(error.starts_with(&format!("--register {url}: ")), "{error}");
    assert!(
        error.ends_with("refuses the registration (401): no\\u{1b}[2J token"),
        "{error}"
    );
    for answer in [
        &b""[..],
        b"nonsense",
        b"HTTP/1.1 abc",
        b"HTTP/1.1 500 X\r\n\r\n{",
        b"\xff\xff",
    ] {
        assert!(judge(answer).is_err());
    }
}

#[test]
fn a_key_is_not_sent_in_the_clear() {
    let error = put("http://192.0.2.1:8080", token_file("x").path(), "a", b"{}").unwrap_err();
    assert!(format!("{error:#}").contains("readable on the way"), "{error:#}");
}

#[test]
fn urls_are_a_host_a_port_and_a_path() {
    let url = |tls, host, port, path| Url {
        tls,
        host,
        port,
        path,
    };
    let parse = |text| Url::parse(text).unwrap();
    assert_eq!(parse("https://a.example"), url(true, "a.example", 443, ""));
    assert_eq!(parse("http://a:81/x/"), url(false, "a", 81, "/x"));
    assert_eq!(parse("https://[::1]:8/"), url(true, "::1", 8, ""));
    for text in [
        "ftp://a",
        "https://",
        "https:///x",
        "https://a:x",
        "https://a:70000",
        "https://u@a",
        "https://a/?q",
        "https://[::1",
        "https://[::1]x",
        "http://a b",
        "https://:80",
        "a.example",
    ] {
        assert!(Url::parse(text).is_err(), "{text}");
        assert!(check(text).is_err(), "{text}");
    }
}

#[test]
fn a_token_is_one_word() {
    for text in ["", "\n", "two words", "a\nb"] {
        let error = token(token_file(text).path()).unwrap_err();
        assert!(format!("{error:#}").contains("holds no token"), "{error:#}");
    }
}
