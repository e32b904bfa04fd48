//! Attestations per second: a broker on loopback, and clients in this process that each do the whole exchange (auth, attest with
//! evidence of the software TEE, one resource) over a connection that stays open. Client and broker share the processors, so the
//! figure includes making reports, which the secure processor does elsewhere. Prints one line, and JSON to the file that is named.
//!
//! usage: cargo bench -p broker -- [SECONDS] [CLIENTS] [FILE]

#[path = "../tests/client.rs"]
mod client;
#[path = "../tests/harness.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod harness;

use std::time::{Duration, Instant};

use client::{Client, guest};
use harness::{Place, registration};
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let number = |at: usize, default: u64| {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (seconds, clients) = (number(0, 10), number(1, 4));
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("bench", 1, 2));
    let (address, start) = (broker.address, Instant::now());
    let end = start + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    client.handshake(&guest(1, 2));
                    let response = client.resource("bench/key/disk");
                    assert!(client.open(&response.json()).is_some());
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies: Vec<Duration> = threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("a client"))
        .collect();
    let elapsed = start.elapsed();
    latencies.sort();
    let milliseconds = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (p50, p99) = (milliseconds(50), milliseconds(99));
    println!(
        "{rate:.0} attestations per second on {processors} processors shared with {clients} clients; median {p50:.1} ms, 99 % {p99:.1} ms"
    );
    let result = json!({
        "attestations_per_second": rate,
        "goal": 200,
        "processors": processors,
        "clients": clients,
        "seconds": elapsed.as_secs_f64(),
        "exchanges": latencies.len(),
        "latency_ms": {"p50": p50, "p99": p99},
    });
    if let Some(path) = arguments.get(2) {
        std::fs::write(path, format!("{result:#}\n")).expect("the file can be written");
    }
}
