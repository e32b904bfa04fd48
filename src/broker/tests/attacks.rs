//! What must not work, and the clause that says so.

use serde_json::{Value, json};
use tee::launch::Policy;
use tee::sim::Guest;

use crate::client::{Client, Response, guest};
use crate::harness::{Broker, KEY_TEXT, Place, TOKEN, registration};

#[track_caller]
fn refused(response: &Response, status: u16, kind: &str) {
    assert_eq!(
        (response.status, response.error_kind().as_str()),
        (status, kind),
        "{}",
        response.text()
    );
}

fn started() -> (Place, Broker) {
    let place = Place::lax();
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    (place, broker)
}

#[test]
fn a_replayed_attestation_finds_its_nonce_used() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    let body = client.attestation(&client.nonce, &client.evidence(&guest(1, 2)));
    assert_eq!(client.post_attestation(&body).status, 200);
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "nonce");
}

#[test]
fn a_nonce_is_used_up_by_an_attestation_that_fails() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    refused(&client.post_attestation("{}"), 401, "SerdeError");
    refused(&client.attest(&guest(1, 2)), 401, "AttestationError");
    place.assert_refused("attest", "nonce");
    refused(&client.resource("nginx/key/disk"), 401, "TokenNotFound");
}

#[test]
fn a_report_of_an_older_session_is_refused() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    let (old_nonce, old) = (client.nonce.clone(), client.evidence(&guest(1, 2)));
    client.auth("sample");
    let body = client.attestation(&old_nonce, &old);
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "nonce");
    client.auth("sample");
    let body = client.attestation(&client.nonce, &old);
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "report-data");
}

#[test]
fn a_key_that_the_report_does_not_vouch_for_is_refused() {
    let (place, broker) = started();
    let mut victim = Client::connect(broker.address);
    victim.auth("sample");
    let evidence = victim.evidence(&guest(1, 2));
    let mut thief = Client::connect(broker.address);
    thief.cookie = victim.cookie.clone();
    let body = thief.attestation(&victim.nonce, &evidence);
    refused(&thief.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "report-data");
}

#[test]
fn another_sessions_cookie_gets_nothing() {
    let (place, broker) = started();
    let mut one = Client::connect(broker.address);
    let mut two = Client::connect(broker.address);
    one.auth("sample");
    two.auth("sample");
    let body = one.attestation(&one.nonce, &one.evidence(&guest(1, 2)));
    refused(&two.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "nonce");
    assert_eq!(one.post_attestation(&body).status, 200);
    refused(&two.resource("nginx/key/disk"), 401, "TokenNotFound");
    place.assert_refused("resource", "session");
    two.cookie = one.cookie.clone();
    let stolen = two.resource("nginx/key/disk").json();
    assert_eq!(
        two.open(&stolen),
        None,
        "who has the cookie but not the guest's key reads nothing"
    );
    assert_eq!(one.open(&stolen).unwrap(), KEY_TEXT);
}

#[test]
fn requests_without_a_session_get_nothing() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    refused(&client.post_attestation("{}"), 401, "AttestationError");
    place.assert_refused("attest", "session");
    for cookie in ["", "kbs-session-id=", "kbs-session-id=00", "x"] {
        client.cookie = cookie.into();
        refused(&client.resource("nginx/key/disk"), 401, "TokenNotFound");
        place.assert_refused("resource", "session");
    }
}

#[test]
fn a_guest_that_is_another_is_refused_by_the_clause_that_tells() {
    let (place, broker) = started();
    let mut old = registration("old-tcb", 1, 2);
    old["policy"] = json!({"minimum_tcb": {"genoa": {"snp": 24}}});
    broker.register(&old);
    let with = |flag| Guest {
        policy: Policy::STRICT.with(flag),
        ..guest(1, 2)
    };
    for (guest, id, clause) in [
        (guest(9, 2), "nginx", "launch-digest"),
        (guest(1, 9), "nginx", "host-data"),
        (with(Policy::DEBUG), "nginx", "debug"),
        (with(Policy::SMT), "nginx", "smt"),
        (with(Policy::MIGRATE_MA), "nginx", "migration"),
        (guest(1, 2), "old-tcb", "minimum-tcb"),
    ] {
        let mut client = Client::connect(broker.address);
        client.handshake(&guest);
        refused(&client.resource(&format!("{id}/key/disk")), 403, "PolicyDeny");
        place.assert_refused("resource", clause);
    }
}

#[test]
fn a_session_gets_only_what_its_report_passed_for() {
    let (place, broker) = started();
    broker.register(&registration("other", 3, 4));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    assert_eq!(client.resource("nginx/key/disk").status, 200);
    refused(&client.resource("other/key/disk"), 403, "PolicyDeny");
    place.assert_refused("resource", "launch-digest");
}

#[test]
fn an_altered_report_is_refused() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    let evidence = client.evidence(&guest(9, 2));
    let digits = |digit: u8| serde_json::to_string(&vec![digit; 48]).unwrap();
    let altered = evidence.replace(&digits(9), &digits(1));
    assert_ne!(altered, evidence);
    let body = client.attestation(&client.nonce, &altered);
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "signature");
}

#[test]
fn a_client_sees_that_a_resource_was_altered() {
    let (_place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    let jwe = client.resource("nginx/key/disk").json();
    assert!(client.open(&jwe).is_some());
    for field in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
        let mut altered = jwe.clone();
        let text = jwe[field].as_str().unwrap();
        let first = if text.starts_with('A') { "B" } else { "A" };
        altered[field] = Value::from(format!("{first}{}", &text[1..]));
        assert_eq!(client.open(&altered), None, "{field}");
    }
}

#[test]
fn what_is_not_registered_is_not_found() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    for path in ["other/key/disk", "nginx/key/other", "nginx/secret/other"] {
        refused(&client.resource(path), 404, "InvalidRequestPath");
        place.assert_refused("resource", "unregistered");
    }
    for path in [
        "nginx/key",
        "nginx/key/disk/more",
        "../nginx/key/disk",
        "nginx/key/%64isk",
        "",
    ] {
        refused(&client.resource(path), 404, "InvalidRequestPath");
    }
}

#[test]
fn nonces_and_sessions_expire() {
    let place = Place::new("[evidence]\naccept_sim = true\n[sessions]\nnonce_seconds = 1\n");
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    refused(&client.attest(&guest(1, 2)), 401, "TokenNotFound");
    place.assert_refused("attest", "session");

    let place = Place::new("[evidence]\naccept_sim = true\n[sessions]\nseconds = 2\n");
    let broker = place.serve();
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    std::thread::sleep(std::time::Duration::from_millis(2100));
    refused(&client.resource("nginx/key/disk"), 401, "TokenNotFound");
    place.assert_refused("resource", "session");
}

#[test]
fn only_the_admin_token_administers() {
    let (place, broker) = started();
    let other = registration("other", 1, 2);
    for token in ["", "wrong", &TOKEN[1..], &format!("{TOKEN}x")] {
        refused(&broker.admin("POST", "", token, &other), 401, "AdminAuth");
        place.assert_refused("admin", "admin-token");
        refused(
            &broker.admin("GET", "/nginx", token, &Value::Null),
            401,
            "AdminAuth",
        );
        refused(
            &broker.admin("DELETE", "/nginx", token, &Value::Null),
            401,
            "AdminAuth",
        );
    }
    let response = broker.http().call("GET", "/admin/v0/workloads", &[], b"");
    refused(&response, 401, "AdminAuth");
    assert_eq!(broker.admin("GET", "/nginx", TOKEN, &Value::Null).status, 200);
}

#[test]
fn the_software_tee_gets_nothing_unless_it_is_allowed() {
    let place = Place::new("");
    let broker = place.serve();
    assert!(!broker.log.lock().unwrap().contains("accept_sim"));
    broker.register(&registration("nginx", 1, 2));
    let mut client = Client::connect(broker.address);
    for tee in ["sample", "sim", "tdx", "snp\n", ""] {
        refused(&client.auth(tee), 401, "AttestationError");
        place.assert_refused("auth", "tee");
    }
    assert_eq!(client.auth("snp").status, 200);
    refused(&client.attest(&guest(1, 2)), 401, "AttestationError");
    place.assert_refused("attest", "root");
}

#[test]
fn a_broker_that_accepts_the_software_tee_says_so_at_each_start() {
    let place = Place::lax();
    for _ in 0..2 {
        let broker = place.serve();
        assert!(broker.log.lock().unwrap().contains("WARN"));
        assert!(broker.log.lock().unwrap().contains("accept_sim is true"));
    }
}

#[test]
fn other_versions_devices_and_keys_are_refused() {
    let (place, broker) = started();
    let mut client = Client::connect(broker.address);
    let request = json!({"version": "0.1.0", "tee": "sample", "extra-params": ""}).to_string();
    refused(
        &client.http.call("POST", "/kbs/v0/auth", &[], request.as_bytes()),
        401,
        "AttestationError",
    );
    place.assert_refused("auth", "request");
    client.auth("sample");
    let body = client.attestation(&client.nonce, &client.evidence(&guest(1, 2)));
    let body = body.replace(
        r#""additional_evidence":"""#,
        r#""additional_evidence":"{\"nvidia\":{}}""#,
    );
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "evidence");
    client.auth("sample");
    let body = client
        .attestation(&client.nonce, &client.evidence(&guest(1, 2)))
        .replace("P-256", "P-521");
    refused(&client.post_attestation(&body), 401, "AttestationError");
    place.assert_refused("attest", "tee-pubkey");
}

#[test]
fn nothing_is_released_that_can_not_be_logged() {
    let place = Place::lax();
    std::os::unix::fs::symlink("/dev/full", place.path("verdicts")).unwrap();
    let broker = place.serve();
    let response = broker.admin("POST", "", TOKEN, &registration("nginx", 1, 2));
    assert_eq!(response.status, 503, "{}", response.text());
    let mut client = Client::connect(broker.address);
    client.auth("sample");
    assert_eq!(client.attest(&guest(1, 2)).status, 503);
}
