//! The process between a sealed container's VMM and its key broker, as the VMM sees it.

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use std::fs;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

struct Proxy {
    child: Child,
    line: Option<OwnedFd>,
}

impl Proxy {
    fn start(url: &str) -> Self {
        let (line, end) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cwrun"))
            .arg("broker-proxy")
            .stdin(Stdio::piped())
            .stdout(end)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let upstream = serde_json::json!({"url": url, "roots": [], "proxy": null, "timeout_seconds": 600});
        let mut input = child.stdin.take().unwrap();
        input.write_all(upstream.to_string().as_bytes()).unwrap();
        Self {
            child,
            line: Some(line),
        }
    }

    fn connect(&self) -> UnixStream {
        let (guest, proxy) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [proxy.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let line = self.line.as_ref().unwrap();
        sendmsg(line, &[IoSlice::new(b"c")], &mut ancillary, SendFlags::empty()).unwrap();
        guest
    }

    /// Lets the line go, and waits until the process has ended.
    fn ends(mut self) {
        let start = Instant::now();
        drop(self.line.take());
        while self.child.try_wait().unwrap().is_none() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the proxy outlives its line"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const AUTH: &[u8] = b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";

/// A broker that answers everything.
fn broker() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    port
}

fn ask(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(AUTH).unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while !text.contains("\r\n\r\n") || !(text.ends_with("hello") || text.ends_with('}')) {
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn requests_reach_the_broker_by_name_from_a_process_that_can_do_nothing_else() {
    let proxy = Proxy::start(&format!("http://localhost:{}", broker()));
    let mut stream = proxy.connect();
    let answer = ask(&mut stream);
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>()
    };
    assert_eq!(field("Seccomp:"), ["2"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"]);
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(field("Uid:"), ["65534"; 4]);
        assert_eq!(field("Gid:"), ["65534"; 4]);
    }
    drop(stream);
    proxy.ends();
}

#[test]
fn it_ends_with_the_line_even_while_a_broker_keeps_it_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = Proxy::start(&format!("http://127.0.0.1:{port}"));
    let mut stream = proxy.connect();
    stream.write_all(AUTH).unwrap();
    let (_hanging, _) = listener.accept().unwrap();
    proxy.ends();
}

#[test]
fn streams_that_nobody_uses_do_not_keep_others_out() {
    let proxy = Proxy::start(&format!("http://127.0.0.1:{}", broker()));
    let idle: Vec<_> = (0..7).map(|_| proxy.connect()).collect();
    let answer = ask(&mut proxy.connect());
    assert!(answer.ends_with("hello"), "{answer}");
    drop(idle);
    proxy.ends();
}

#[test]
fn a_broker_that_is_not_there_is_told_to_the_guest() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let proxy = Proxy::start(&format!("http://127.0.0.1:{port}"));
    let answer = ask(&mut proxy.connect());
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("Connection refused"),
        "{answer}"
    );
    proxy.ends();
}

#[test]
fn it_cant_be_run_by_hand() {
    let output = Command::new(env!("CARGO_BIN_EXE_cwrun"))
        .arg("broker-proxy")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("can't be run by hand"), "{said}");
}
