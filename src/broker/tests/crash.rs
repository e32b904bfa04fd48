//! The store through crashes and damage, seen from outside.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::client::{Client, guest};
use crate::harness::{KEY_TEXT, Place, TOKEN, registration, soak};

/// Registers workloads until the broker is gone; returns the ids that were acknowledged.
fn register_until_killed(address: std::net::SocketAddr, prefix: String, stop: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{prefix}-{number}");
        let body = registration(&id, 1, 2).to_string();
        let Ok(stream) = std::net::TcpStream::connect(address) else {
            break;
        };
        drop(stream);
        let result = std::panic::catch_unwind(|| {
            let mut http = crate::client::Http::connect(address);
            let head = format!(
                "PUT /admin/v0/workloads/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            http.send_raw(head.as_bytes()).ok()?;
            http.receive().map(|response| response.status)
        });
        match result {
            Ok(Some(200 | 201)) => acknowledged.push(id),
            Ok(Some(status)) => panic!("status {status}"),
            _ => break,
        }
    }
    acknowledged
}

#[test]
fn no_acknowledged_registration_is_lost_when_the_broker_is_killed() {
    let rounds = if soak() { 200 } else { 20 };
    let place = Place::lax();
    let mut expected = BTreeSet::new();
    for round in 0..rounds {
        let broker = place.serve();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (address, stop) = (broker.address, Arc::clone(&stop));
                std::thread::spawn(move || {
                    register_until_killed(address, format!("r{round}w{writer}"), &stop)
                })
            })
            .collect();
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes(random)) * 3));
        broker.kill();
        stop.store(true, Ordering::Relaxed);
        expected.extend(writers.into_iter().flat_map(|writer| writer.join().unwrap()));
        let broker = place.serve();
        let list = broker.admin("GET", "", TOKEN, &Value::Null).json();
        let found: BTreeSet<String> = serde_json::from_value(list["workloads"].clone()).unwrap();
        let lost: Vec<_> = expected.difference(&found).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        broker.kill();
    }
    println!("{} registrations were acknowledged", expected.len());
    assert!(!expected.is_empty());
    let broker = place.serve();
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    let last = client.resource(&format!("{}/key/disk", expected.last().unwrap()));
    assert_eq!(client.open(&last.json()).unwrap(), KEY_TEXT);
}

#[test]
fn a_damaged_store_is_a_sentence() {
    let place = Place::lax();
    let broker = place.serve();
    for id in ["a", "b", "c"] {
        broker.register(&registration(id, 1, 2));
    }
    broker.kill();
    let good = std::fs::read(place.path("store")).unwrap();
    let mut bad = good.clone();
    let middle = (12288 + good.len()) / 2;
    bad[middle] ^= 1;
    for (bytes, sentence) in [
        (&bad[..], "is damaged at byte 1"),
        (
            &good[..good.len() - 1],
            "the file is shorter than what was acknowledged",
        ),
        (&good[..100], "neither commit slot is whole"),
        (&[][..], "is not a store of cwrun-broker"),
    ] {
        std::fs::write(place.path("store"), bytes).unwrap();
        for command in ["serve", "check"] {
            let output = place.run(command);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(sentence), "{said}");
            assert_eq!(said.trim().lines().count(), 1, "{said}");
        }
    }
    std::fs::write(place.path("store"), good).unwrap();
    let output = place.run("check");
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("3 workloads are registered")
    );
}

#[test]
fn one_store_has_one_broker_and_its_own_key() {
    let place = Place::lax();
    let broker = place.serve();
    let said = String::from_utf8(place.run("serve").stderr).unwrap();
    assert!(said.contains("another broker holds the store"), "{said}");
    broker.kill();
    std::fs::remove_file(place.path("key")).unwrap();
    let said = String::from_utf8(place.run("init").stderr).unwrap();
    assert!(said.contains("but its key file"), "{said}");
    std::fs::rename(place.path("store"), place.path("old")).unwrap();
    assert!(place.run("init").status.success());
    std::fs::rename(place.path("old"), place.path("store")).unwrap();
    let said = String::from_utf8(place.run("serve").stderr).unwrap();
    assert!(
        said.contains("the key file does not belong to the store"),
        "{said}"
    );
}
