//! Images of `buildah mkcw`: registered as buildah does it, and asked for by guests of cwrun, in the KBS protocol.

use serde_json::{Value, json};
use std::fs;
use tee::launch::Policy;

use crate::client::{Client, Response, guest};
use crate::harness::{Broker, Place, TOKEN};

const PASSPHRASE: &str = "correct horse battery staple";

/// What buildah 1.39 sends, byte for byte but for these values. `measurement` is what `krunfw_measurement` has said of krun's launch; it is
/// empty where that is not installed and `--ignore-attestation-errors` is given.
fn sent_by_buildah(id: &str, measurement: &str) -> String {
    format!(
        r#"{{"workload_id":"{id}","launch_measurement":"{measurement}","passphrase":"{PASSPHRASE}","tee_config":"{{\"flags\":{{\"bits\":15}},\"minfw\":{{\"major\":0,\"minor\":0}}}}"}}"#
    )
}

fn register(broker: &Broker, body: &str) -> Response {
    let headers = [
        ("User-Agent", "Go-http-client/1.1"),
        ("Content-Type", "application/json"),
        ("Accept-Encoding", "gzip"),
    ];
    broker
        .http()
        .call("POST", "/kbs/v0/register_workload", &headers, body.as_bytes())
}

/// With a directory for files that admit launches.
fn place() -> Place {
    let place = Place::lax();
    fs::create_dir(place.path("launches")).unwrap();
    fs::create_dir(place.path("policies")).unwrap();
    place.configure(&format!(
        "policies = {:?}\n[evidence]\naccept_sim = true\n[mkcw]\nenabled = true\nopen_registration = true\nlaunches = {:?}\n",
        place.path("policies"),
        place.path("launches"),
    ));
    place
}

/// Admits one launch, as `cwrun measure --policy` writes it.
fn admit(place: &Place, id: &str, digest: u8, host_data: u8) {
    let text = format!(
        "launch_digests = [\n  \"{}\", # 1 vCPUs, genoa, linux-6.11\n]\nhost_data = [\n  \"{}\",\n]\nprocessors = [\"genoa\"]\nallow_smt = false\nallow_debug = false\n",
        format!("{digest:02x}").repeat(48),
        format!("{host_data:02x}").repeat(32),
    );
    fs::write(place.path("launches").join(format!("{id}.toml")), text).unwrap();
}

/// What a guest of cwrun gets, which says no more than that it is a guest.
fn ask(broker: &Broker, digest: u8, host_data: u8) -> Result<Vec<u8>, Response> {
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(digest, host_data));
    let response = client.resource("sample/key/disk");
    match response.status {
        200 => Ok(client.open(&response.json()).unwrap()),
        _ => Err(response),
    }
}

#[test]
fn a_guest_whose_launch_is_admitted_gets_the_passphrase_that_buildah_registered() {
    let place = place();
    let broker = place.serve();
    let response = register(&broker, &sent_by_buildah("sample", &"aa".repeat(48)));
    assert_eq!(response.status, 200, "{}", response.text());
    // Nothing is admitted by being registered.
    let refused = ask(&broker, 1, 2).unwrap_err();
    assert_eq!(refused.status, 403);
    assert!(
        refused
            .text()
            .contains("launches: buildah registered sample for krun"),
        "{}",
        refused.text()
    );
    place.assert_refused("resource", "launches");
    // Not even what was measured, whatever its HOST_DATA: it does not speak this protocol.
    for host_data in [0, 2] {
        assert_eq!(ask(&broker, 0xaa, host_data).unwrap_err().status, 403);
        place.assert_refused("resource", "launches");
    }
    admit(&place, "sample", 1, 2);
    assert_eq!(ask(&broker, 1, 2).unwrap(), PASSPHRASE.as_bytes());
    for (digest, host_data, clause) in [
        (9, 2, "launch-digest"),
        (0xaa, 2, "launch-digest"),
        (1, 9, "host-data"),
        (1, 0, "host-data"),
    ] {
        let refused = ask(&broker, digest, host_data).unwrap_err();
        assert!(
            refused.text().contains(&format!("{clause}: ")),
            "{}",
            refused.text()
        );
        place.assert_refused("resource", clause);
    }
    // Of one workload, for another.
    assert_eq!(
        register(&broker, &sent_by_buildah("other", &"aa".repeat(48))).status,
        200
    );
    let mut client = Client::connect(broker.address);
    client.handshake(&guest(1, 2));
    assert_eq!(client.resource("other/key/disk").status, 403);
    place.assert_refused("resource", "launches");
    // Policy files still only make it stricter, and what was admitted can be taken back.
    fs::write(
        place.path("policies").join("sample.toml"),
        "[minimum_tcb.genoa]\nsnp = 99\n",
    )
    .unwrap();
    assert_eq!(ask(&broker, 1, 2).unwrap_err().status, 403);
    place.assert_refused("resource", "minimum-tcb");
    fs::remove_file(place.path("policies").join("sample.toml")).unwrap();
    fs::remove_file(place.path("launches").join("sample.toml")).unwrap();
    assert_eq!(ask(&broker, 1, 2).unwrap_err().status, 403);
    place.assert_refused("resource", "launches");
    fs::write(place.path("launches").join("sample.toml"), "host_data = []\n").unwrap();
    assert_eq!(ask(&broker, 1, 2).unwrap_err().status, 503);
    place.assert_refused("resource", "broker");
}

#[test]
fn a_registration_without_a_measurement_waits_for_a_file_that_admits_a_launch() {
    let place = place();
    let broker = place.serve();
    assert_eq!(register(&broker, &sent_by_buildah("sample", "")).status, 200);
    broker.kill();
    let broker = place.serve();
    let summary = broker.admin("GET", "/sample", TOKEN, &Value::Null).json();
    assert_eq!(summary["launch_digests"], json!({}));
    assert_eq!(ask(&broker, 1, 2).unwrap_err().status, 403);
    place.assert_refused("resource", "launches");
    admit(&place, "sample", 1, 2);
    assert_eq!(ask(&broker, 1, 2).unwrap(), PASSPHRASE.as_bytes());
    // A debugged guest is another, though its launch is the same.
    let mut client = Client::connect(broker.address);
    client.handshake(&tee::sim::Guest {
        policy: Policy::STRICT.with(Policy::DEBUG),
        ..guest(1, 2)
    });
    assert_eq!(client.resource("sample/key/disk").status, 403);
    place.assert_refused("resource", "debug");
    // Nobody takes the place of a registration, and with it that of what was admitted.
    assert_eq!(register(&broker, &sent_by_buildah("sample", "")).status, 409);
}

#[test]
fn a_file_admits_nothing_to_what_its_owner_registered_with_a_workload() {
    let place = place();
    let broker = place.serve();
    broker.register(&crate::harness::registration("sample", 1, 2));
    admit(&place, "sample", 9, 9);
    assert_eq!(ask(&broker, 9, 9).unwrap_err().status, 403);
    place.assert_refused("resource", "launch-digest");
    assert_eq!(ask(&broker, 1, 2).unwrap(), crate::harness::KEY_TEXT);
}
