//! Footers as `buildah mkcw` writes them, and others.

use super::*;

const REAL: &str = r#"{"tee":"snp","tee_data":"{\"gen\":\"milan\"}","workload_id":"sample","cpus":2,"ram_mib":512,"attestation_url":""}"#;

/// A disk of 8 KiB with a footer.
fn disk(json: &[u8], magic: &[u8], length: u64) -> Vec<u8> {
    let mut disk = vec![0; 8192 - json.len() - 12];
    disk.extend(json);
    disk.extend(magic);
    disk.extend(length.to_le_bytes());
    disk
}

fn read(json: &str, length: u64) -> Result<Option<Footer>, Error> {
    Footer::read(&*disk(json.as_bytes(), MAGIC, length))
}

/// The cause, which names the field.
fn cause<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result.expect_err("an error") {
        Error::Footer(cause) | Error::Workload(cause) => cause.to_string(),
        Error::Json { source, .. } => source.to_string(),
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_real_one() {
    let footer = read(REAL, REAL.len() as u64).unwrap().expect("a footer");
    assert_eq!(footer.offset, 8192 - 12 - REAL.len() as u64);
    let workload = WorkloadConfig {
        tee: Tee::Snp,
        tee_data: r#"{"gen":"milan"}"#.to_owned(),
        workload_id: "sample".to_owned(),
        cpus: 2,
        memory_mib: 512,
        attestation_url: String::new(),
    };
    assert_eq!(footer.workload, workload);
    assert_eq!(WorkloadConfig::parse(REAL.as_bytes()).unwrap(), workload);
}

#[test]
fn no_footer() {
    for none in [
        &b""[..],
        b"KRUN",
        &[0; 11],
        &[0; 12],
        &disk(REAL.as_bytes(), b"KRUM", 113),
    ] {
        assert_eq!(Footer::read(none).unwrap(), None);
    }
}

#[test]
fn lengths_that_lie() {
    for length in [0, 8181, 1 << 17, u64::MAX] {
        assert_eq!(
            cause(read(REAL, length)),
            format!("length is {length} bytes and should be 1 to 8180 bytes")
        );
    }
    let mut long = vec![b' '; 1 << 20];
    long.extend(disk(REAL.as_bytes(), MAGIC, MAX_WORKLOAD + 1));
    assert_eq!(
        cause(Footer::read(&*long)),
        "length is 65537 bytes and should be 1 to 65536 bytes"
    );
    // One too short or too long is no JSON.
    assert!(read(REAL, REAL.len() as u64 - 1).is_err());
    assert!(read(REAL, REAL.len() as u64 + 1).is_err());
}

#[test]
fn wrong_values_are_named() {
    let long = format!("\"{}\"", "x".repeat(256));
    for (from, to, expected) in [
        (r#""cpus":2"#, r#""cpus":0"#, "cpus is 0 and should be 1 to 255"),
        (r#""cpus":2"#, r#""cpus":256"#, "invalid value: integer `256`"),
        (r#""cpus":2"#, r#""cpus":-1"#, "invalid value: integer `-1`"),
        ("512", "0", "ram_mib is 0 and should be 1 to 4294967295"),
        ("512", "1e99", "invalid type: floating point"),
        ("sample", "", "workload_id is empty and should be a name"),
        (
            "sample",
            "a\\nb",
            "workload_id is \"a\\nb\" and should be printable text of at most 255 bytes",
        ),
        (
            r#""sample""#,
            &long,
            "and should be printable text of at most 255 bytes",
        ),
        (r#":"""#, &format!(":{long}"), "attestation_url is \"xxx"),
        (r#""snp""#, r#""tdx""#, "unknown variant `tdx`"),
        (r#""cpus":2,"#, "", "missing field `cpus`"),
        (r#""cpus":2"#, r#""cpus":2,"cpus":2"#, "duplicate field `cpus`"),
        (r#""cpus":2"#, r#""cpus":2,"x":1"#, "unknown field `x`"),
    ] {
        let json = REAL.replace(from, to);
        assert_ne!(json, REAL);
        let message = cause(WorkloadConfig::parse(json.as_bytes()));
        assert!(message.contains(expected), "{message}");
        assert!(message.len() < 300, "{message}");
        assert!(read(&json, json.len() as u64).is_err());
    }
    assert!(cause(WorkloadConfig::parse(&vec![b' '; 65537])).contains("length is 65537 bytes"));
}
