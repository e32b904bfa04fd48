use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn valid() -> Value {
    json!({
        "version": 1,
        "id": "nginx-1",
        "launch_digests": {"1": "ab".repeat(48), "2": "cd".repeat(48)},
        "host_data": "01".repeat(32),
        "key": "a2V5",
        "secrets": {"tls.key": "c2VjcmV0"},
    })
}

fn parse(value: &Value) -> Result<Registration, Error> {
    Registration::parse(value.to_string().as_bytes())
}

#[test]
fn a_registration_round_trips() {
    let registration = parse(&valid()).unwrap();
    let again = Registration::read(&serde_json::to_vec(&registration).unwrap()).unwrap();
    assert_eq!(again.launch_digests[&2], Hex([0xcd; 48]));
    let path = |text| ResourcePath::parse(text).unwrap();
    assert_eq!(
        again.resource(&path("nginx-1/key/disk")).unwrap().as_bytes(),
        b"key"
    );
    assert_eq!(
        again
            .resource(&path("nginx-1/secret/tls.key"))
            .unwrap()
            .as_bytes(),
        b"secret"
    );
    for missing in ["nginx-1/key/tls.key", "nginx-1/secret/disk", "nginx-1/other/disk"] {
        assert!(again.resource(&path(missing)).is_none());
    }
}

#[test]
fn what_an_admin_is_shown_holds_no_secret() {
    let text = parse(&valid()).unwrap().summary().to_string();
    assert!(!text.contains("a2V5") && !text.contains("c2VjcmV0"));
    assert!(text.contains("tls.key"));
}

#[test]
fn wrong_fields_are_refused_by_name() {
    for (field, value, message) in [
        ("version", json!(2), "version should be 1"),
        ("id", json!("../x"), "id should be"),
        (
            "launch_digests",
            json!({}),
            "launch_digests should be at least one",
        ),
        (
            "launch_digests",
            json!({"1": "ab"}),
            "launch_digests.1: expected 96 hexadecimal digits",
        ),
        ("host_data", Value::Null, "host_data should be the SHA-256"),
        ("key", json!("!"), "key: expected a passphrase in base64"),
        ("secrets", json!({"a/b": ""}), "secrets should be"),
        ("typo", json!(1), "typo: unknown field"),
    ] {
        let mut document = valid();
        document[field] = value;
        let error = parse(&document).err().unwrap().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_registration_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Registration::read(&bytes);
    }
}
