//! Evidence of the software TEE, which is good, and everything that can be wrong with it.

use super::*;
use std::path::PathBuf;
use tee::launch::Policy;
use tee::sim::Guest;
use workload::Nonce;

const WORKLOAD: &str = "{\"stands\":\"for a Workload\"}";

fn nonce() -> Nonce {
    "0123456789abcdef".parse().unwrap()
}

struct Case {
    dir: tempfile::TempDir,
    statement: Value,
    policy: String,
    args: Verify,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest {
        measurement: LaunchDigest([5; 48]),
        host_data: hash(WORKLOAD.as_bytes()),
        policy: Policy::STRICT,
        identity: None,
    };
    let evidence = guest.attest(ReportData(nonce().report_data()));
    let statement = serde_json::to_value(Statement {
        version: Statement::VERSION,
        tee: Some(workload::TeeKind::Sim),
        nonce: nonce(),
        evidence: serde_json::from_str(&evidence.to_json()).unwrap(),
        workload: WORKLOAD.to_owned(),
    })
    .unwrap();
    let policy = format!(
        "launch_digests = [\"{}\"]\nhost_data = [\"{}\"]\nprocessors = [\"genoa\"]\n",
        guest.measurement, guest.host_data
    );
    let path = |name: &str| dir.path().join(name);
    let args = Verify {
        policy: path("policy"),
        nonce: Some(nonce()),
        workload: None,
        vcek: None,
        crl: Vec::new(),
        sim: true,
        json: true,
        evidence: path("evidence"),
    };
    Case {
        dir,
        statement,
        policy,
        args,
    }
}

impl Case {
    fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// What comes of it: `accepted`, or the clause.
    fn verdict(&self) -> String {
        self.write("policy", self.policy.as_bytes());
        self.write("evidence", self.statement.to_string().as_bytes());
        let mut policy = read_policy(&self.args.policy).unwrap();
        if let Some(path) = &self.args.workload {
            demand(&mut policy, &read(path).unwrap()).unwrap();
        }
        let verdict = Given::read(&self.args).and_then(|given| judge(&given, &policy, &self.args, &[]));
        let status = run(&self.args).unwrap();
        match verdict {
            Ok(_) => {
                assert_eq!(status, 0);
                "accepted".to_owned()
            }
            Err(Problem::Refused(refused)) => {
                assert_eq!(status, REFUSED);
                refused.clause.name().to_owned()
            }
            Err(Problem::Other(error)) => panic!("{error:#}"),
        }
    }
}

#[test]
fn good_evidence_is_accepted_in_either_form() {
    let mut case = case();
    assert_eq!(case.verdict(), "accepted");
    case.statement = case.statement["evidence"].take();
    assert_eq!(case.verdict(), "accepted");
    case.args.nonce = None;
    assert_eq!(case.verdict(), "accepted");
}

#[test]
fn the_simulation_is_never_amd() {
    let mut case = case();
    case.args.sim = false;
    assert_eq!(case.verdict(), "root");
}

#[test]
fn evidence_for_somebody_else_is_refused() {
    let mut case = case();
    case.args.nonce = Some("0123456789abcdeg".parse().unwrap());
    assert_eq!(case.verdict(), "report-data");
    // What the statement says of its nonce counts for nothing.
    case.statement["nonce"] = "0123456789abcdeg".into();
    assert_eq!(case.verdict(), "report-data");
}

#[test]
fn a_guest_that_the_host_may_debug_is_refused() {
    let mut case = case();
    let guest = Guest {
        measurement: LaunchDigest([5; 48]),
        host_data: hash(WORKLOAD.as_bytes()),
        policy: Policy::STRICT.with(Policy::DEBUG),
        identity: None,
    };
    let evidence = guest.attest(ReportData(nonce().report_data()));
    case.statement["evidence"] = serde_json::from_str(&evidence.to_json()).unwrap();
    assert_eq!(case.verdict(), "debug");
}

#[test]
fn every_changed_bit_of_a_measured_field_is_caught() {
    for (field, clause) in [
        ("measurement", "signature"),
        ("host_data", "signature"),
        ("report_data", "signature"),
        ("policy", "signature"),
    ] {
        let mut case = case();
        let value = &mut case.statement["evidence"]["attestation_report"][field];
        match value.as_u64() {
            Some(bits) => *value = (bits | 1 << 16).into(),
            None => value[3] = (value[3].as_u64().unwrap() ^ 1).into(),
        }
        assert_eq!(case.verdict(), clause, "{field}");
    }
}

#[test]
fn another_launch_or_workload_than_the_policy_names_is_refused() {
    let mut other = case();
    other.policy = other.policy.replacen("[\"05", "[\"06", 1);
    assert_eq!(other.verdict(), "launch-digest");
    let mut other = case();
    let named = hash(WORKLOAD.as_bytes()).to_string();
    other.policy = other.policy.replace(&named, &hash(b"another").to_string());
    assert_eq!(other.verdict(), "host-data");
}

#[test]
fn the_workload_that_comes_along_must_be_the_one_that_was_launched() {
    let mut case = case();
    case.statement["workload"] = WORKLOAD.replace("stands", "stood").into();
    assert_eq!(case.verdict(), "host-data");
}

#[test]
fn a_workload_at_hand_decides_alone_or_with_the_policy() {
    let mut case = case();
    let named = hash(WORKLOAD.as_bytes()).to_string();
    case.args.workload = Some(case.write("workload", WORKLOAD.as_bytes()));
    assert_eq!(case.verdict(), "accepted");
    case.policy = case.policy.replace(&format!("\"{named}\""), "");
    assert_eq!(case.verdict(), "accepted");
    case.args.workload = Some(case.write("workload", b"another"));
    assert_eq!(case.verdict(), "host-data");
    let mut policy: AppraisalPolicy = toml::from_str(&case.policy).unwrap();
    policy.host_data = [hash(WORKLOAD.as_bytes())].into();
    let error = demand(&mut policy, b"another").unwrap_err().to_string();
    assert!(error.contains("is not in host_data of the policy"), "{error}");
}

#[test]
fn what_is_no_evidence_is_refused_and_not_an_error() {
    let mut case = case();
    for statement in [
        Value::Null,
        serde_json::json!({}),
        serde_json::json!({"evidence": {}}),
        serde_json::json!({"evidence": {}, "version": 1, "nonce": "0123456789abcdef", "workload": ""}),
    ] {
        case.statement = statement;
        assert_eq!(case.verdict(), "format");
    }
    let mut newer = self::case();
    newer.statement["version"] = 2.into();
    assert_eq!(newer.verdict(), "format");
    case.write("evidence", b"\xff");
    assert_eq!(run(&case.args).unwrap(), REFUSED);
}

#[test]
fn a_certificate_can_come_from_elsewhere() {
    let mut case = case();
    case.statement["evidence"]["cert_chain"] = Value::Null;
    assert_eq!(case.verdict(), "format");
    let vcek = tee::sim::chain().vek.unwrap();
    case.args.vcek = Some(case.write("vcek", vcek.bytes()));
    assert_eq!(case.verdict(), "accepted");
}

#[test]
fn a_report_alone_is_evidence_with_a_certificate_from_elsewhere() {
    let mut case = case();
    assert_eq!(case.verdict(), "accepted");
    let evidence = Evidence::from_json(case.statement["evidence"].to_string().as_bytes()).unwrap();
    case.write("evidence", evidence.report.bytes());
    assert_eq!(run(&case.args).unwrap(), REFUSED);
    case.args.vcek = Some(case.write("vcek", evidence.chain.vek.unwrap().bytes()));
    assert_eq!(run(&case.args).unwrap(), 0);
}

#[test]
fn a_policy_that_cant_be_read_is_an_error_with_its_place() {
    let case = case();
    for (text, expected) in [
        ("launch_digests = 1\n", "launch_digests"),
        ("debug = true\n", "unknown field `debug`"),
        ("=", "policy "),
    ] {
        case.write("policy", text.as_bytes());
        let error = format!("{:#}", run(&case.args).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}
