//! Clients that ask too much, too often, or too slowly.

use std::time::{Duration, Instant};

use crate::client::{Client, Http};
use crate::harness::{Place, TOKEN, registration};

#[test]
fn a_body_that_is_too_long_is_refused() {
    let place = Place::lax();
    let broker = place.serve();
    let long = vec![b' '; 300 << 10];
    let response = broker.http().call("POST", "/kbs/v0/auth", &[], &long);
    assert_eq!(response.status, 413);
    // By its length alone, before any of it has come.
    let mut http = broker.http();
    http.send_raw(b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        .unwrap();
    assert_eq!(http.receive().unwrap().status, 413);
    let mut http = broker.http();
    http.send_raw(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    while http.send_raw(&chunk).is_ok() {}
    let mut huge = registration("nginx", 1, 2);
    huge["key"] = "A".repeat(1 << 20).into();
    let response = broker.admin("POST", "", TOKEN, &huge);
    assert!(
        response.status == 201 || response.status == 413,
        "{}",
        response.text()
    );
    assert_eq!(broker.http().call("GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let place = Place::lax();
    let broker = place.serve();
    let response = broker
        .http()
        .call("GET", "/healthz", &[("X", &"x".repeat(20_000))], b"");
    assert_eq!(response.status, 431);
    let many: Vec<(&str, &str)> = vec![("X", "x"); 200];
    assert_eq!(broker.http().call("GET", "/healthz", &many, b"").status, 431);
}

#[test]
fn a_client_that_asks_too_often_is_told_to_wait() {
    let place = Place::new("[limits]\nrequests_per_second = 1\nburst = 5\n");
    let broker = place.serve();
    let mut http = broker.http();
    let mut status = || http.call("GET", "/healthz", &[], b"").status;
    assert_eq!([(); 5].map(|()| status()), [200; 5]);
    // Where a second goes by between two requests, one more is free.
    assert!((0..100).any(|_| status() == 429));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status(), 200);
}

#[test]
fn clients_that_are_slow_or_silent_are_cut_off() {
    let place = Place::new("[limits]\nread_seconds = 1\nconnection_seconds = 4\n");
    let broker = place.serve();
    let cut_off = |first: &[u8]| {
        let start = Instant::now();
        let mut http = broker.http();
        http.send_raw(first).unwrap();
        let response = http.receive();
        assert!(http.closed());
        (
            start.elapsed() < Duration::from_secs(20),
            response.map(|response| response.status),
        )
    };
    assert_eq!(cut_off(b""), (true, None));
    assert!(cut_off(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\n").0);
    assert_eq!(
        cut_off(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").1,
        Some(408)
    );
}

#[test]
fn connections_and_sessions_are_limited_in_number() {
    let place =
        Place::new("[limits]\nconnections = 4\n[sessions]\nper_client = 3\n[evidence]\naccept_sim = true\n");
    let broker = place.serve();
    let mut client = Client::connect(broker.address);
    for _ in 0..3 {
        assert_eq!(client.auth("sample").status, 200);
    }
    assert_eq!(client.auth("sample").status, 503);
    let mut others: Vec<Http> = (0..3).map(|_| broker.http()).collect();
    for other in &mut others {
        assert_eq!(other.call("GET", "/healthz", &[], b"").status, 200);
    }
    assert!(broker.http().closed(), "a fifth connection");
    drop(others);
    for _ in 0..100 {
        let mut http = broker.http();
        let _ = http.send_raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        if http.receive().is_some_and(|response| response.status == 200) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the places of closed connections stay taken");
}
