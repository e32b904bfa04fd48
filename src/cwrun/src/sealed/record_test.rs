use super::*;
use std::fs;

#[test]
fn a_record_is_the_document_that_the_broker_reads() {
    let digests = BTreeMap::from([(1, LaunchDigest([1; 48])), (10, LaunchDigest([2; 48]))]);
    let secrets = Secrets::from([("tls.key".to_owned(), Passphrase::from_bytes(b"secret".to_vec()))]);
    let key = Passphrase::from_bytes(vec![7; 64]);
    let record = Record::new(
        "nginx-1",
        &digests,
        Hex([3; 32]),
        key,
        secrets,
        json!({"allow_smt": true}),
    );
    let value: Value = serde_json::from_slice(&record.to_json().unwrap()).unwrap();
    assert_eq!(
        value,
        json!({
            "version": 1,
            "id": "nginx-1",
            "launch_digests": {"1": "01".repeat(48), "10": "02".repeat(48)},
            "host_data": "03".repeat(32),
            "key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==",
            "secrets": {"tls.key": "c2VjcmV0"},
            "policy": {"allow_smt": true}
        })
    );
}

#[test]
fn policies_are_toml_or_json() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        policy(Some(&path))
    };
    let expected = json!({"allow_smt": true, "minimum_tcb": {"genoa": {"snp": 23}}});
    let toml = write("p.toml", "allow_smt = true\n[minimum_tcb.genoa]\nsnp = 23\n");
    assert_eq!(toml.unwrap(), expected);
    assert_eq!(write("p.json", &expected.to_string()).unwrap(), expected);
    assert_eq!(policy(None).unwrap(), json!({"allow_smt": true}));
    for (name, text) in [
        ("a.toml", "allow_smt"),
        ("a.json", "[1]"),
        ("b.toml", &"#".repeat(70_000)),
    ] {
        let error = format!("{:#}", write(name, text).unwrap_err());
        assert!(error.starts_with("policy ") && error.contains(name), "{error}");
    }
    assert!(policy(Some(&dir.path().join("none"))).is_err());
}

#[test]
fn a_secret_is_a_file_that_is_neither_empty_nor_endless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, b"\0binary\n").unwrap();
    assert_eq!(secret(&path).unwrap().as_bytes(), b"\0binary\n");
    fs::write(&path, vec![1; MAX_SECRET]).unwrap();
    assert_eq!(secret(&path).unwrap().as_bytes().len(), MAX_SECRET);
    for content in [vec![], vec![1; MAX_SECRET + 1]] {
        fs::write(&path, content).unwrap();
        assert!(format!("{:#}", secret(&path).err().unwrap()).contains("bytes long"));
    }
}
