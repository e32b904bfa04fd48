use super::*;
use proptest::prelude::*;
use std::io::Cursor;

/// What comes in, in pieces of any size; what goes out is kept.
struct Wire {
    incoming: Cursor<Vec<u8>>,
    piece: usize,
    sent: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.piece.min(buffer.len());
        self.incoming.read(&mut buffer[..room])
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wire(bytes: impl AsRef<[u8]>, piece: usize) -> Connection<Wire> {
    Connection::new(Wire {
        incoming: Cursor::new(bytes.as_ref().to_vec()),
        piece,
        sent: Vec::new(),
    })
}

fn response(text: &str) -> Result<Response, Error> {
    wire(text, usize::MAX).receive_response(64)
}

fn request(text: &str) -> Result<Request, Error> {
    wire(text, usize::MAX).receive_request(64)
}

#[track_caller]
fn refused(text: &str, why: &str) {
    let error = response(text).unwrap_err().to_string();
    assert!(error.contains(why), "{text:?}: {error}");
}

#[test]
fn answers_that_follow_each_other_are_read_whatever_their_pieces() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nSet-Cookie: a=b; Path=/\r\n\r\nabc\
                HTTP/1.1 404 Not Found\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nde\r\n0A\r\n0123456789\r\n0\r\n\r\n\
                HTTP/1.1 204 \r\nConnection: keep-alive, Close\r\n\r\n";
    for piece in 1..text.len() {
        let mut connection = wire(text, piece);
        let first = connection.receive_response(64).unwrap();
        assert_eq!(
            (first.status, &*first.body, first.last),
            (200, &b"abc"[..], false)
        );
        assert_eq!(first.head.field("set-cookie").unwrap(), Some("a=b; Path=/"));
        let second = connection.receive_response(64).unwrap();
        assert_eq!((second.status, &*second.body), (404, &b"de0123456789"[..]));
        let third = connection.receive_response(64).unwrap();
        assert_eq!((third.status, third.body.len(), third.last), (204, 0, true));
        assert!(matches!(connection.receive_response(64), Err(Error::Closed)));
    }
}

#[test]
fn requests_are_read_and_written() {
    let read = request("GET /a?b HTTP/1.1\r\nHost: x\r\nCookie: \t c=d \r\n\r\n").unwrap();
    assert_eq!((&*read.method, &*read.target, read.last), ("GET", "/a?b", false));
    assert_eq!(read.head.field("COOKIE").unwrap(), Some("c=d"));
    let mut connection = wire("", 1);
    connection
        .send("POST /x HTTP/1.1", &[("Host", "broker")], b"12345")
        .unwrap();
    assert_eq!(
        connection.stream().sent,
        b"POST /x HTTP/1.1\r\nContent-Length: 5\r\nHost: broker\r\n\r\n12345"
    );
    let sent = connection.stream().sent.clone();
    let read = wire(sent, 3).receive_request(5).unwrap();
    assert_eq!((&*read.method, &*read.body), ("POST", &b"12345"[..]));
}

#[test]
fn what_two_readers_could_take_in_two_ways_is_refused() {
    for (text, why) in [
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "first line"),
        ("HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", "longer"),
        ("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", "status"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "status"),
        ("HTTP/1.1 +200 OK\r\nContent-Length: 0\r\n\r\n", "number"),
        ("HTTP/1.1 200 OK\r\n\r\n", "how long"),
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", "line"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", "line"),
        ("HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n", "not text"),
        ("HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n", "not text"),
        ("HTTP/1.1 200 Ö\r\nContent-Length: 0\r\n\r\n", "not text"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n folded\r\n\r\n",
            "no name",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", "no name"),
        ("HTTP/1.1 200 OK\r\n: 0\r\n\r\n", "no name"),
        ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na", "number"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na", "number"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            "twice",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
            "two ways",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "transfer coding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
            "size",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
            "size",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "chunk",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
            "chunk",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000000000001\r\na",
            "size",
        ),
    ] {
        refused(text, why);
    }
    for text in [
        "GET http://x/ HTTP/1.1\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "G(T / HTTP/1.1\r\n\r\n",
        "GET /\r\n\r\n",
    ] {
        assert!(matches!(request(text), Err(Error::Malformed(_))), "{text:?}");
    }
}

#[test]
fn nothing_is_longer_than_it_may_be() {
    refused(
        "HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n",
        "longer than 64 bytes",
    );
    refused(
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "longer than 64 bytes",
    );
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("20\r\n{}\r\n", "a".repeat(32));
    assert!(response(&format!("{chunked}{chunk}{chunk}0\r\n\r\n")).is_ok());
    refused(
        &format!("{chunked}{chunk}{chunk}1\r\na\r\n0\r\n\r\n"),
        "longer than 64 bytes",
    );
    refused(&format!("{chunked}FFFFFFFF\r\n"), "longer than 64 bytes");
    let field = format!("A: {}\r\n", "b".repeat(1000));
    refused(
        &format!("HTTP/1.1 200 OK\r\n{}\r\n", field.repeat(17)),
        "longer than 16384 bytes",
    );
    refused(&"a".repeat(MAX_HEAD + 10), "longer than 16384 bytes");
    refused(
        &format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(65)),
        "64 fields",
    );
}

#[test]
fn a_connection_that_ends_is_told_from_one_that_carries_something_wrong() {
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
    assert!(matches!(response(""), Err(Error::Closed)));
    for end in 1..whole.len() {
        let error = response(&whole[..end]).unwrap_err();
        assert!(
            matches!(error, Error::Cut) && error.is_broken_connection(),
            "{end}: {error}"
        );
    }
    assert!(!response("nonsense\r\n\r\n").unwrap_err().is_broken_connection());
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_message_within_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..50) {
        if let Ok(response) = wire(&bytes, piece).receive_response(64) {
            prop_assert!(response.body.len() <= 64);
        }
        if let Ok(request) = wire(&bytes, piece).receive_request(64) {
            prop_assert!(request.body.len() <= 64);
        }
    }

    #[test]
    fn changed_messages_are_an_error_or_a_message_within_the_limit(
        chunked in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        piece in 1_usize..50,
    ) {
        let mut bytes = if chunked {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n0123456789abcdef0123456789abcdef\r\n0\r\n\r\n".to_vec()
        } else {
            b"HTTP/1.1 401 No\r\nContent-Length: 20\r\nSet-Cookie: a=b\r\n\r\n0123456789abcdef0123".to_vec()
        };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(response) = wire(&bytes, piece).receive_response(64) {
            prop_assert!(response.body.len() <= 64);
            prop_assert!((200..600).contains(&response.status));
        }
    }
}
