use super::*;
use proptest::prelude::*;

fn ec_key() -> TeePublicKey {
    serde_json::from_str(
        r#"{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eHg","y":"eXk","use":"enc"}"#,
    )
    .unwrap()
}

#[test]
fn runtime_data_is_hashed_as_clients_of_trustee_hash_it() {
    let data = RuntimeData {
        nonce: "bm9uY2U=".into(),
        tee_pubkey: ec_key(),
    };
    let text = r#"{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eHg","y":"eXk"}}"#;
    let [trustee, document] = data.report_data("");
    assert_eq!(trustee[..48], Sha384::digest(text)[..]);
    assert_eq!(trustee[48..], [0; 16]);
    let text = text.replace(r#""additional-evidence":"","#, "");
    assert_eq!(document[..48], Sha384::digest(text)[..]);
}

#[test]
fn members_that_the_protocol_does_not_know_are_not_hashed() {
    assert_eq!(
        ec_key().canonical(),
        r#"{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eHg","y":"eXk"}"#
    );
}

#[test]
fn messages_of_kbs_types_parse() {
    let request = kbs_types::Request {
        version: VERSION.into(),
        tee: kbs_types::Tee::Snp,
        extra_params: serde_json::json!({"supported-hash-algorithms": ["sha384"]}),
    };
    let request: Request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
    assert_eq!(request.tee, "snp");
    let attestation = kbs_types::Attestation {
        init_data: None,
        runtime_data: kbs_types::RuntimeData {
            nonce: "n".into(),
            tee_pubkey: kbs_types::TeePubKey::RSA {
                alg: "RSA-OAEP-256".into(),
                k_mod: "AQ".into(),
                k_exp: "AQAB".into(),
            },
        },
        tee_evidence: kbs_types::CompositeEvidence {
            primary_evidence: serde_json::json!({"attestation_report": {}}),
            additional_evidence: String::new(),
        },
    };
    let attestation: Attestation =
        serde_json::from_str(&serde_json::to_string(&attestation).unwrap()).unwrap();
    assert_eq!(
        attestation.runtime_data.tee_pubkey.canonical(),
        r#"{"alg":"RSA-OAEP-256","e":"AQAB","kty":"RSA","n":"AQ"}"#
    );
    let challenge = Challenge {
        nonce: "bm9uY2U=".into(),
        extra_params: "",
    };
    let challenge: kbs_types::Challenge =
        serde_json::from_str(&serde_json::to_string(&challenge).unwrap()).unwrap();
    assert_eq!(challenge.nonce, "bm9uY2U=");
    let refusal = ErrorInformation {
        error_type: "https://github.com/confidential-containers/kbs/errors/PolicyDeny".into(),
        detail: "host-data: another Workload".into(),
    };
    let refusal: kbs_types::ErrorInformation =
        serde_json::from_str(&serde_json::to_string(&refusal).unwrap()).unwrap();
    assert_eq!(refusal.detail, "host-data: another Workload");
}

#[test]
fn a_resource_has_three_names() {
    let path = ResourcePath::parse("nginx-1/secret/tls.key").unwrap();
    assert_eq!(path.to_string(), "nginx-1/secret/tls.key");
    // trustee's clients have a slash too many.
    assert_eq!(ResourcePath::parse("/nginx-1/secret/tls.key"), Some(path));
    for wrong in [
        "", "a/b", "a/b/c/d", "a//c", "a/b/", "//a/b/c", "/a/b", "../b/c", "a/b/c%2f", "a/b/ü", "a/b/c d",
        "a/.b/c",
    ] {
        assert_eq!(ResourcePath::parse(wrong), None, "{wrong}");
    }
    assert!(!is_name(&"a".repeat(129)));
}

proptest! {
    #[test]
    fn no_nonce_or_key_makes_another_runtime_data_with_the_same_hash(a in ".*", b in ".*", x in ".*", y in ".*") {
        let data = |nonce: &str, x: &str| RuntimeData {
            nonce: nonce.into(),
            tee_pubkey: TeePublicKey::EC { crv: "P-256".into(), alg: "ECDH-ES+A256KW".into(), x: x.into(), y: String::new() },
        };
        let (one, two) = (data(&a, &x).report_data(""), data(&b, &y).report_data(""));
        prop_assert_eq!(one == two, a == b && x == y);
        prop_assert_ne!(one[0], one[1]);
    }

    #[test]
    fn the_canonical_text_is_json_of_the_same_values(x in ".*", y in ".*") {
        let key = TeePublicKey::EC { crv: "P-256".into(), alg: "a\u{8}\u{7f}\"".into(), x, y };
        let back: TeePublicKey = serde_json::from_str(&key.canonical()).unwrap();
        prop_assert_eq!(back, key);
    }
}
