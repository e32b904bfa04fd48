use super::*;
use proptest::prelude::*;
use rsa::PrivateKey as RsaPrivateKey;
use rsa::traits::PublicKeyParts as _;
use serde_json::json;

#[test]
fn requests_of_this_dialect_are_recognised() {
    let request = |version: &str, extra: &str| Request {
        version: version.into(),
        tee: "snp".into(),
        extra_params: extra.into(),
    };
    let extra = r#"{"workload_id":"nginx"}"#;
    assert_eq!(workload_of(&request("0.0.0", extra)).unwrap(), "nginx");
    assert_eq!(workload_of(&request("0.4.0", extra)), None);
    for other in ["", "{}", r#"{"workload_id":"../x"}"#, "[]"] {
        assert_eq!(workload_of(&request("0.0.0", other)), None);
    }
}

#[test]
fn a_registration_of_buildah_is_taken() {
    let workload: Workload = serde_json::from_value(json!({
        "workload_id": "nginx",
        "launch_measurement": "AB".repeat(48),
        "tee_config": "{\"flags\":{\"bits\":15},\"minfw\":{\"major\":0,\"minor\":0}}",
        "passphrase": "open sesame",
    }))
    .unwrap();
    let registration = workload.registration().unwrap();
    assert_eq!(
        registration.launch_digests,
        BTreeMap::from([(1, Hex([0xab; 48]))])
    );
    assert_eq!(registration.key.unwrap().as_bytes(), b"open sesame");
}

/// As where krun's firmware is not installed.
#[test]
fn a_registration_without_a_measurement_admits_no_launch() {
    let workload = Workload {
        workload_id: "nginx".into(),
        launch_measurement: String::new(),
        tee_config: String::new(),
        passphrase: "open sesame".into(),
    };
    let registration = workload.registration().unwrap();
    assert!(registration.launch_digests.is_empty() && registration.host_data.is_none());
    let json = serde_json::to_vec(&registration).unwrap();
    assert!(Registration::read(&json).is_ok(), "the store takes it");
    assert!(Registration::parse(&json).is_err(), "an admin does not");
}

#[test]
fn wrong_registrations_are_refused_by_name() {
    for (id, digest, passphrase, message) in [
        ("", "ab".repeat(48), "p", "workload_id should be"),
        ("x/y", "ab".repeat(48), "p", "workload_id should be"),
        ("x", "ab".repeat(32), "p", "launch_measurement should be"),
        ("x", "zz".repeat(48), "p", "launch_measurement should be"),
        ("x", "ab".repeat(48), "", "passphrase should be"),
    ] {
        let workload = Workload {
            workload_id: id.into(),
            launch_measurement: digest,
            tee_config: String::new(),
            passphrase: passphrase.into(),
        };
        assert!(
            workload
                .registration()
                .err()
                .unwrap()
                .to_string()
                .starts_with(message)
        );
    }
}

#[test]
fn the_owner_of_the_key_opens_the_passphrase() {
    let secret = RsaPrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let attestation: Attestation = serde_json::from_value(json!({
        "tee-pubkey": {
            "alg": "RSA",
            "k-mod": STANDARD.encode(secret.n().to_be_bytes_trimmed_vartime()),
            "k-exp": STANDARD.encode(secret.e().to_be_bytes_trimmed_vartime()),
        },
        "tee-evidence": json!({"report": "00".repeat(REPORT_LEN), "cert_chain": "", "gen": "milan"}).to_string(),
    }))
    .unwrap();
    let (key, report) = attestation.open().unwrap();
    assert_eq!(report, [0; REPORT_LEN]);
    let text = encrypt(&key, b"open sesame").unwrap();
    let opened = secret.decrypt(Pkcs1v15Encrypt, &hex(&text).unwrap()).unwrap();
    assert_eq!(opened, b"open sesame");
    assert!(encrypt(&key, &[0; 300]).is_err(), "longer than the key takes");
}

proptest! {
    #[test]
    fn any_texts_as_evidence_are_an_error_and_never_a_panic(modulus in ".{0,40}", report in ".{0,40}") {
        let attestation = Attestation {
            tee_pubkey: PublicKey { modulus, exponent: "AQAB".into() },
            tee_evidence: report,
        };
        prop_assert!(attestation.open().is_err());
    }
}
