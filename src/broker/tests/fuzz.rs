//! Requests that nobody would send: mutations of good exchanges, and noise. The broker must answer or close, and go on.

use std::time::{Duration, Instant};

use crate::client::{Client, guest};
use crate::harness::{KEY_TEXT, Place, TOKEN, registration, soak};

/// xorshift64*: a seed that a failure prints repeats what was sent.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const TOKENS: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "null",
    "0",
    "-1",
    "1e999",
    "\\u0000",
    "\\ud800",
    "\u{fffd}",
    ":",
    ",",
    "\r\n",
    "99999999999999999999",
];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let to = (at + random.below(40)).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..to)),
            2 => drop(bytes.splice(at..at, random.pick(&TOKENS).bytes())),
            3 => {
                let copy = bytes[at..to].to_vec();
                let place = random.below(bytes.len() + 1);
                bytes.splice(place..place, copy);
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.splice(
                at..to,
                random.pick(&TOKENS).repeat(random.below(300)).into_bytes(),
            )),
        }
    }
}

/// A request like those that a guest or an admin sends.
fn request(random: &mut Random, client: &Client) -> Vec<u8> {
    let cookie = client.cookie.clone();
    let attestation = client.attestation(&client.nonce, &client.evidence(&guest(1, 2)));
    let auth = Client::request("sample").to_string();
    let old = r#"{"version":"0.0.0","tee":"sample","extra-params":"{\"workload_id\":\"nginx\"}"}"#.to_owned();
    let workload = format!(
        r#"{{"workload_id":"w","launch_measurement":"{}","tee_config":"{{}}","passphrase":"p"}}"#,
        "0".repeat(96)
    );
    let registered = registration("fuzzed", 1, 2).to_string();
    let (method, path, mut body) = match random.below(9) {
        0 => ("POST", "/kbs/v0/auth", auth),
        1 => ("POST", "/kbs/v0/auth", old),
        2 | 3 => ("POST", "/kbs/v0/attest", attestation),
        4 => ("GET", "/kbs/v0/resource/nginx/key/disk", String::new()),
        5 => ("GET", "/kbs/v0/key/nginx", String::new()),
        6 => ("POST", "/kbs/v0/register_workload", workload),
        7 => ("PUT", "/admin/v0/workloads/fuzzed", registered),
        _ => ("GET", "/metrics", String::new()),
    };
    if random.below(4) > 0 {
        let mut bytes = body.into_bytes();
        mutate(random, &mut bytes);
        body = String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        if random.below(3) == 0 { &client.token } else { TOKEN },
        body.len()
    )
    .into_bytes();
    if random.below(4) == 0 {
        mutate(random, &mut head);
    }
    [head, body.into_bytes()].concat()
}

#[test]
fn random_requests_neither_stop_the_broker_nor_get_its_key() {
    let time = match std::env::var("CWRUN_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::from_secs(if soak() { 600 } else { 5 }),
    };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = u64::from_le_bytes(seed) | 1;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let place = Place::new(
        "[limits]\nrequests_per_second = 1000000\nburst = 1000000\n[sessions]\nper_client = 10000\n\
         [evidence]\naccept_sim = true\n[mkcw]\nenabled = true\nopen_registration = true\n",
    );
    let mut broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let (start, mut sent) = (Instant::now(), 0_u64);
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    while start.elapsed() < time || sent <= 50 {
        let bytes = request(&mut random, &client);
        let mut http = broker.http();
        let _ = http.send_raw(&bytes);
        http.finish_sending();
        if let Some(response) = http.receive() {
            assert_ne!(response.status, 500, "{}", response.text());
            assert!(!response.text().contains("secret volume key"));
        }
        sent += 1;
        if sent % 50 == 0 {
            assert!(broker.runs(), "seed {seed:#x}: {}", broker.log.lock().unwrap());
            client = Client::connect(broker.address);
            assert_eq!(client.auth("sample").status, 200, "seed {seed:#x}");
        }
    }
    println!("{sent} requests in {:?}", start.elapsed());
    let log = broker.log.lock().unwrap().clone();
    assert!(!log.contains("panicked"), "{log}");
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    let response = client.resource("nginx/key/disk");
    assert_eq!(client.open(&response.json()).unwrap(), KEY_TEXT);
    drop(broker);
    assert!(place.run("check").status.success());
}
