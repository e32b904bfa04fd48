//! What works: KBS protocol, the older dialect, administration.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Encrypt, PrivateKey as RsaPrivateKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use tee::report::ReportData;

use crate::client::{Client, guest, report_data};
use crate::harness::{KEY, KEY_TEXT, Place, TOKEN, broker_command, registration};

#[test]
fn a_registered_guest_gets_its_key_and_its_secrets() {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    let response = client.resource("nginx/key/disk");
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(client.open(&response.json()).unwrap(), KEY_TEXT);
    let _: kbs_types::Response = serde_json::from_slice(&response.body).unwrap();
    let response = client.resource("nginx/secret/tls.key");
    assert_eq!(client.open(&response.json()).unwrap(), b"secret of TLS");
    let verdicts = place.verdicts();
    let last = verdicts.last().unwrap();
    assert_eq!(last["outcome"], "released");
    assert_eq!(last["resource"], "nginx/secret/tls.key");
    assert_eq!(last["launch_digest"], "01".repeat(48));
    assert_eq!(last["tee"], "sim");
    assert_eq!(last["client"], "127.0.0.1");
}

#[test]
fn no_secret_shows_in_any_file_or_message_of_the_broker() {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    assert_eq!(client.resource("nginx/key/disk").status, 200);
    let summary = broker.admin("GET", "/nginx", TOKEN, &Value::Null);
    assert_eq!(summary.status, 200);
    let mut texts = vec![summary.body, broker.log.lock().unwrap().clone().into_bytes()];
    texts.extend(["store", "verdicts"].map(|name| std::fs::read(place.path(name)).unwrap()));
    let secrets = [
        KEY.as_bytes(),
        KEY_TEXT,
        TOKEN.as_bytes(),
        client.cookie.as_bytes(),
    ];
    for text in texts {
        for secret in secrets {
            assert!(!text.windows(secret.len()).any(|window| window == secret));
        }
    }
}

#[test]
fn the_token_of_an_attestation_stands_for_the_cookie() {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    let get = |client: &mut Client, token: &str| {
        let authorization = format!("Bearer {token}");
        client.http.call(
            "GET",
            "/kbs/v0/resource/nginx/key/disk",
            &[("Authorization", &authorization)],
            b"",
        )
    };
    let token = client.token.clone();
    let response = get(&mut client, &token);
    assert_eq!(client.open(&response.json()).unwrap(), KEY_TEXT);
    let response = get(&mut client, &token.replacen('.', ".A", 1));
    assert_eq!(
        (response.status, response.error_kind()),
        (401, "TokenNotFound".into())
    );
}

#[test]
fn report_data_without_additional_evidence_is_good_too() {
    let place = Place::lax();
    let broker = place.serve();
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    let text = client
        .runtime_text(&client.nonce)
        .replace(r#""additional-evidence":"","#, "");
    let evidence = guest(1, 2).attest(report_data(&text)).to_json();
    let body = client.attestation(&client.nonce, &evidence);
    assert_eq!(client.post_attestation(&body).status, 200);
}

#[test]
fn registrations_survive_a_restart_and_can_be_replaced_and_removed() {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    assert_eq!(
        broker
            .admin("POST", "", TOKEN, &registration("nginx", 1, 2))
            .status,
        409
    );
    assert_eq!(
        broker
            .admin("PUT", "/nginx", TOKEN, &registration("nginx", 3, 2))
            .status,
        200
    );
    assert_eq!(
        broker
            .admin("PUT", "/other", TOKEN, &registration("other", 1, 2))
            .status,
        201
    );
    assert_eq!(
        broker
            .admin("PUT", "/third", TOKEN, &registration("other", 1, 2))
            .status,
        400
    );
    broker.kill();
    let broker = place.serve();
    let list = broker.admin("GET", "", TOKEN, &Value::Null).json();
    assert_eq!(list, json!({"workloads": ["nginx", "other"]}));
    let summary = broker.admin("GET", "/nginx", TOKEN, &Value::Null).json();
    assert_eq!(summary["launch_digests"]["1"], "03".repeat(48));
    assert_eq!(summary["key"], true);
    assert_eq!(broker.admin("DELETE", "/nginx", TOKEN, &Value::Null).status, 204);
    assert_eq!(broker.admin("DELETE", "/nginx", TOKEN, &Value::Null).status, 404);
    assert_eq!(broker.admin("GET", "/nginx", TOKEN, &Value::Null).status, 404);
}

#[test]
fn policy_files_apply_as_soon_as_they_are_written() {
    let place = Place::lax();
    let policies = place.path("policies");
    std::fs::create_dir(&policies).unwrap();
    place.configure(&format!(
        "policies = {:?}\n[evidence]\naccept_sim = true\n",
        policies.display().to_string()
    ));
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    assert_eq!(client.resource("nginx/key/disk").status, 200);
    std::fs::write(policies.join("default.toml"), "[minimum_tcb.genoa]\nsnp = 99\n").unwrap();
    assert_eq!(client.resource("nginx/key/disk").status, 403);
    place.assert_refused("resource", "minimum-tcb");
    std::fs::write(policies.join("default.toml"), "typo = 1\n").unwrap();
    assert_eq!(client.resource("nginx/key/disk").status, 503);
    place.assert_refused("resource", "broker");
}

#[test]
fn the_older_dialect_registers_attests_and_gets_its_passphrase() {
    let place =
        Place::new("[evidence]\naccept_sim = true\n[mkcw]\nenabled = true\nopen_registration = true\n");
    let broker = place.serve();
    assert!(broker.log.lock().unwrap().contains("open_registration is true"));
    let workload = json!({
        "workload_id": "sealed",
        "launch_measurement": "01".repeat(48),
        "tee_config": "{\"cpus\":2}",
        "passphrase": "open sesame",
    });
    let register = |workload: &Value| {
        broker.http().call(
            "POST",
            "/kbs/v0/register_workload",
            &[],
            workload.to_string().as_bytes(),
        )
    };
    assert_eq!(register(&workload).status, 200);
    assert_eq!(
        register(&workload).status,
        409,
        "nobody replaces a registration without the token"
    );
    let mut http = broker.http();
    let request =
        json!({"version": "0.0.0", "tee": "sample", "extra-params": "{\"workload_id\":\"sealed\"}"});
    let response = http.call("POST", "/kbs/v0/auth", &[], request.to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    let cookie = response
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    assert!(cookie.starts_with("session_id="));
    let nonce = response.json()["nonce"].as_str().unwrap().to_owned();
    let secret = RsaPrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let modulus = STANDARD.encode(secret.n().to_be_bytes_trimmed_vartime());
    let exponent = STANDARD.encode(secret.e().to_be_bytes_trimmed_vartime());
    let hash = Sha512::digest(format!("{nonce}{modulus}{exponent}"));
    let evidence = guest(1, 0).attest(ReportData(hash.into()));
    let report: String = evidence
        .report
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let attestation = json!({
        "tee-pubkey": {"alg": "RSA", "k-mod": modulus, "k-exp": exponent},
        "tee-evidence": json!({"report": report, "cert_chain": "", "gen": "genoa"}).to_string(),
    });
    let response = http.call(
        "POST",
        "/kbs/v0/attest",
        &[("Cookie", &cookie)],
        attestation.to_string().as_bytes(),
    );
    assert_eq!(response.status, 200, "{}", response.text());
    let response = http.call("GET", "/kbs/v0/key/sealed", &[("Cookie", &cookie)], b"");
    assert_eq!(response.status, 200, "{}", response.text());
    let digits: String = serde_json::from_slice(&response.body).unwrap();
    let sealed: Vec<u8> = (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    assert_eq!(secret.decrypt(Pkcs1v15Encrypt, &sealed).unwrap(), b"open sesame");
    let response = http.call("GET", "/kbs/v0/key/other", &[("Cookie", &cookie)], b"");
    assert_eq!(response.status, 403);
    place.assert_refused("resource", "session");
}

#[test]
fn the_older_dialect_is_off_unless_it_is_turned_on() {
    let place = Place::lax();
    let broker = place.serve();
    let request =
        json!({"version": "0.0.0", "tee": "snp", "extra-params": "{\"workload_id\":\"x\"}"}).to_string();
    let response = broker
        .http()
        .call("POST", "/kbs/v0/auth", &[], request.as_bytes());
    assert_eq!(
        (response.status, response.error_kind()),
        (401, "AttestationError".into())
    );
    for (method, path) in [("POST", "/kbs/v0/register_workload"), ("GET", "/kbs/v0/key/x")] {
        assert_eq!(broker.http().call(method, path, &[], b"{}").status, 404);
    }
}

#[test]
fn health_and_metrics_are_there() {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let response = broker.http().call("GET", "/healthz", &[], b"");
    assert_eq!((response.status, response.text().as_str()), (200, "ok\n"));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    client.resource("nginx/key/disk");
    client.resource("nginx/key/other");
    let page = broker.http().call("GET", "/metrics", &[], b"").text();
    for line in [
        "cwrun_broker_verdicts_total{event=\"resource\",outcome=\"released\",clause=\"\"} 1",
        "cwrun_broker_verdicts_total{event=\"resource\",outcome=\"refused\",clause=\"unregistered\"} 1",
        "cwrun_broker_requests_total{route=\"attest\",status=\"200\"} 1",
        "cwrun_broker_registrations 1",
        "cwrun_broker_sessions 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

#[test]
fn the_broker_stops_when_it_is_told_to() {
    let place = Place::lax();
    let mut broker = place.serve();
    let status = std::process::Command::new("kill")
        .arg(broker.pid().to_string())
        .status()
        .unwrap();
    assert!(status.success());
    for _ in 0..200 {
        if !broker.runs() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the broker still runs");
}

#[test]
fn a_token_that_the_program_made_is_the_admins() {
    let output = broker_command().arg("token").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let token = text.lines().nth(2).unwrap().trim();
    let line = text
        .lines()
        .find(|line| line.contains("admin_token_sha256"))
        .unwrap()
        .trim();
    let place = Place::lax();
    let config = std::fs::read_to_string(place.path("config")).unwrap();
    let old = config
        .lines()
        .find(|line| line.starts_with("admin_token_sha256"))
        .unwrap();
    std::fs::write(place.path("config"), config.replace(old, line)).unwrap();
    let broker = place.serve();
    assert_eq!(broker.admin("GET", "", token, &Value::Null).status, 200);
    assert_eq!(broker.admin("GET", "", TOKEN, &Value::Null).status, 401);
}
