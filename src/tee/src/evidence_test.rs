//! Evidence as it travels, and as it must not.

use proptest::prelude::*;

use super::*;
use crate::certs::certs_test::vcek;
use crate::report::report_test::{GENOA, MILAN, MILAN_RENTED, real};
use crate::sim::sim_test::{sample, signed_with, signed_with_all};

fn same(a: &Evidence, b: &Evidence) {
    assert_eq!(a.report, b.report);
    let certificates = |chain: &Chain| [chain.ark.clone(), chain.ask.clone(), chain.vek.clone()];
    assert_eq!(certificates(&a.chain), certificates(&b.chain));
}

/// Evidence as JSON with another value of a field of the report.
fn json_with(field: &str, value: serde_json::Value) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_str(&sample().to_json()).unwrap();
    json["attestation_report"][field] = value;
    json.to_string().into_bytes()
}

#[test]
fn json_brings_back_every_byte_of_a_report() {
    let vcek = vcek(include_str!("../tests/vectors/milan-vcek.pem"));
    for report in [MILAN, MILAN_RENTED, GENOA] {
        let evidence = Evidence {
            report: Report::parse(&real(report)).unwrap(),
            chain: vcek.clone(),
        };
        same(
            &Evidence::from_json(evidence.to_json().as_bytes()).unwrap(),
            &evidence,
        );
    }
    same(
        &Evidence::from_json(sample().to_json().as_bytes()).unwrap(),
        &sample(),
    );
    let tcb = [1u8, 2, 3, 4, 0, 0, 0, 8].as_slice();
    let tcbs = [0x038, 0x180, 0x1e0, 0x1f0].map(|at| (at, tcb));
    let turin = signed_with_all(&[tcbs.as_slice(), &[(0x188, [0x1a, 0x02].as_slice())]].concat());
    let version5 = [5u8, 0, 0, 0];
    for evidence in [turin, signed_with(0, &version5), signed_with(0x1a0, &[0; 64])] {
        same(
            &Evidence::from_json(evidence.to_json().as_bytes()).unwrap(),
            &evidence,
        );
    }
}

#[test]
fn a_chain_may_be_missing_or_null() {
    let json: serde_json::Value = serde_json::from_str(&sample().to_json()).unwrap();
    let report = &json["attestation_report"];
    for text in [
        serde_json::json!({ "attestation_report": report }),
        serde_json::json!({ "attestation_report": report, "cert_chain": null }),
        serde_json::json!({ "attestation_report": report, "cert_chain": [] }),
        serde_json::json!({ "attestation_report": report, "cert_chain": [{ "cert_type": { "OTHER": "x" }, "data": [1] }] }),
    ] {
        assert!(
            Evidence::from_json(text.to_string().as_bytes())
                .unwrap()
                .chain
                .vek
                .is_none()
        );
    }
}

#[test]
fn json_of_another_shape_is_refused() {
    let refused = |field: &str, value| {
        Evidence::from_json(&json_with(field, value))
            .unwrap_err()
            .to_string()
    };
    assert!(refused("measurement", vec![0; 47].into()).contains("invalid length 47, expected 48 bytes"));
    assert!(refused("measurement", vec![0; 49].into()).contains("invalid length 49, expected 48 bytes"));
    assert!(refused("extra", 0.into()).contains("unknown field `extra`"));
    assert!(refused("version", 300.into()).contains("the mitigation vectors don't belong"));
    assert!(refused("cpuid_fam_id", serde_json::Value::Null).contains("the CPUID fields don't belong"));
    assert!(refused("launch_mit_vector", 1.into()).contains("the mitigation vectors don't belong"));
    assert!(refused("policy", (-1).into()).contains("invalid value"));
    assert!(
        Evidence::from_json(&vec![b' '; MAX_JSON + 1])
            .unwrap_err()
            .to_string()
            .contains("larger than")
    );
}

#[test]
fn two_certificates_of_a_kind_are_refused() {
    let mut json: serde_json::Value = serde_json::from_str(&sample().to_json()).unwrap();
    let chain = json["cert_chain"].as_array_mut().unwrap();
    chain.push(chain[0].clone());
    let error = Evidence::from_json(json.to_string().as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "the evidence has two certificates of the ARK");
}

#[test]
fn the_firmwares_table_brings_back_every_certificate() {
    let evidence = sample();
    let table = evidence.chain.to_table();
    same(
        &Evidence::from_raw(evidence.report.bytes(), &table).unwrap(),
        &evidence,
    );
    assert!(
        Evidence::from_raw(evidence.report.bytes(), &[])
            .unwrap()
            .chain
            .vek
            .is_none()
    );
}

#[test]
fn guids_are_written_as_the_firmware_has_them() {
    let table = sample().chain.to_table();
    assert_eq!(
        table[..16],
        [
            0xa4, 0x06, 0xb4, 0xc0, 0x03, 0xa8, 0x52, 0x49, 0x97, 0x43, 0x3f, 0xb6, 0x01, 0x4c, 0xd0, 0xae
        ]
    );
    assert_eq!(table[48..52], [0x8d, 0x75, 0xda, 0x63]);
}

#[test]
fn tables_that_point_outside_are_refused() {
    let refused = |at: usize, bytes: &[u8]| {
        let mut table = sample().chain.to_table();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        Evidence::from_raw(sample().report.bytes(), &table)
            .unwrap_err()
            .to_string()
    };
    let outside = "the certificate table is not valid: a certificate lies outside";
    assert_eq!(refused(16, &[0xff; 4]), outside);
    assert_eq!(refused(16, &[0xff; 8]), outside);
    let end = Evidence::from_raw(sample().report.bytes(), &[1; 30]).unwrap_err();
    assert_eq!(end.to_string(), outside);
    let none = Evidence::from_raw(sample().report.bytes(), &[0; 23]).unwrap_err();
    assert_eq!(
        none.to_string(),
        "the certificate table is not valid: it has no end"
    );
}

proptest! {
    #[test]
    fn any_table_ends(bytes in prop::collection::vec(any::<u8>(), 0..200), entries in 0usize..4) {
        let mut table = bytes;
        for entry in table.chunks_mut(ENTRY).take(entries) {
            if entry.len() == ENTRY {
                entry[..16].copy_from_slice(&GUIDS[0].1);
                entry[17..20].fill(0);
                entry[21..24].fill(0);
            }
        }
        let _ = parse_table(&table);
    }

    #[test]
    fn any_text_ends(text: String, at in 0usize..1000, byte: u8) {
        let _ = Evidence::from_json(text.as_bytes());
        let mut json = sample().to_json().into_bytes();
        json[at] = byte;
        let _ = Evidence::from_json(&json);
    }
}
