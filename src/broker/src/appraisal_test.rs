use super::*;
use crate::record::Registration;
use std::path::PathBuf;
use tee::launch::Policy;
use tee::sim::Guest;
use workload::Hex;

const EXPECTED: [u8; 64] = [5; 64];

fn guest() -> Guest {
    Guest {
        measurement: LaunchDigest([1; 48]),
        host_data: HostData([2; 32]),
        policy: Policy::from_bits(1 << 17).unwrap(),
        identity: None,
    }
}

fn evidence(guest: &Guest) -> Value {
    serde_json::from_str(&guest.attest(ReportData(EXPECTED)).to_json()).unwrap()
}

fn appraiser(accept_sim: bool) -> (tokio::runtime::Runtime, Appraiser) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = config::Evidence {
        accept_sim,
        ..config::Evidence::default()
    };
    let appraiser = Appraiser::new(&config, runtime.handle().clone()).unwrap();
    (runtime, appraiser)
}

fn registration() -> Registration {
    Registration {
        version: 1,
        id: "a".into(),
        launch_digests: [(1, Hex([1; 48]))].into(),
        host_data: Some(Hex([2; 32])),
        key: None,
        secrets: BTreeMap::new(),
        policy: PolicyFile::default(),
    }
}

fn file(text: &str) -> PolicyFile {
    toml::from_str(text).unwrap()
}

/// The clause by which a guest is refused.
fn decided(guest: &Guest, registration: &Registration, files: &[PolicyFile]) -> Option<&'static str> {
    let (_runtime, appraiser) = appraiser(true);
    let genuine = appraiser
        .verify_json(Tee::Sim, &evidence(guest), &[EXPECTED])
        .unwrap();
    appraiser
        .decide(&genuine, registration, None, files)
        .err()
        .map(|refused| refused.clause)
}

#[test]
fn the_registered_guest_is_accepted() {
    assert_eq!(decided(&guest(), &registration(), &[]), None);
}

#[test]
fn each_clause_refuses_by_its_name() {
    let with = |change: fn(&mut Registration)| {
        let mut registration = registration();
        change(&mut registration);
        decided(&guest(), &registration, &[])
    };
    assert_eq!(
        with(|r| r.launch_digests = [(1, Hex([9; 48]))].into()),
        Some("launch-digest")
    );
    assert_eq!(with(|r| r.host_data = Some(Hex([9; 32]))), Some("host-data"));
    assert_eq!(
        with(|r| r.policy = file("[minimum_tcb.genoa]\nsnp = 24")),
        Some("minimum-tcb")
    );
    assert_eq!(with(|r| r.policy = file("[minimum_tcb.genoa]\nsnp = 23")), None);
    assert_eq!(
        with(|r| r.policy = file("processors = [\"milan\"]")),
        Some("processor")
    );
    assert_eq!(
        with(|r| r.policy = file("require_platform = [\"ecc\"]")),
        Some("platform")
    );
    let with = |flag| Guest {
        policy: guest().policy.with(flag),
        ..guest()
    };
    assert_eq!(decided(&with(Policy::DEBUG), &registration(), &[]), Some("debug"));
    assert_eq!(decided(&with(Policy::SMT), &registration(), &[]), Some("smt"));
    let mut allowed = registration();
    allowed.policy = file("allow_smt = true");
    assert_eq!(decided(&with(Policy::SMT), &allowed, &[]), None);
}

/// A launch that HOST_DATA goes with is not krun's: its digest would say nothing of what runs.
#[test]
fn a_guest_of_the_older_dialect_has_no_host_data() {
    let registered = Registration {
        host_data: None,
        ..registration()
    };
    assert_eq!(decided(&guest(), &registered, &[]), Some("host-data"));
    let krun = Guest {
        host_data: HostData([0; 32]),
        ..guest()
    };
    assert_eq!(decided(&krun, &registered, &[]), None);
    let unmeasured = Registration {
        launch_digests: BTreeMap::new(),
        ..registered
    };
    assert_eq!(decided(&krun, &unmeasured, &[]), Some("launch-digest"));
}

#[test]
fn a_policy_file_only_makes_it_stricter() {
    let stranger = Guest {
        measurement: LaunchDigest([9; 48]),
        ..guest()
    };
    let generous = file(&format!(
        "launch_digests = [\"{}\"]\nallow_debug = true",
        LaunchDigest([9; 48])
    ));
    assert_eq!(
        decided(&stranger, &registration(), std::slice::from_ref(&generous)),
        Some("launch-digest")
    );
    assert_eq!(
        decided(&guest(), &registration(), &[generous]),
        Some("launch-digest"),
        "the file objects"
    );
    assert_eq!(decided(&guest(), &registration(), &[file("")]), None);
    assert_eq!(
        decided(
            &guest(),
            &registration(),
            &[file(""), file("[minimum_tcb.genoa]\nsnp = 99")]
        ),
        Some("minimum-tcb")
    );
}

#[test]
fn evidence_of_another_session_is_refused() {
    let (_runtime, appraiser) = appraiser(true);
    let refused = appraiser
        .verify_json(Tee::Sim, &evidence(&guest()), &[[6; 64]])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "report-data");
}

#[test]
fn the_software_tee_needs_permission_and_never_passes_for_a_real_one() {
    let (_runtime, strict) = appraiser(false);
    let refused = strict
        .verify_json(Tee::Sim, &evidence(&guest()), &[EXPECTED])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "tee");
    let refused = strict
        .verify_json(Tee::Snp, &evidence(&guest()), &[EXPECTED])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "root");
    let (_runtime, lax) = appraiser(true);
    let refused = lax
        .verify_json(Tee::Snp, &evidence(&guest()), &[EXPECTED])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "root");
}

#[test]
fn an_altered_report_is_refused() {
    let (_runtime, appraiser) = appraiser(true);
    let text = guest().attest(ReportData(EXPECTED)).to_json();
    let zeros = format!("{:?}", [2; 32]).replace(' ', "");
    let altered = text.replacen(&zeros, &zeros.replacen('2', "3", 1), 1);
    assert_ne!(altered, text);
    let altered = serde_json::from_str(&altered).unwrap();
    let refused = appraiser
        .verify_json(Tee::Sim, &altered, &[EXPECTED])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "signature");
}

#[test]
fn a_real_report_without_its_certificate_says_what_is_missing() {
    let (_runtime, appraiser) = appraiser(true);
    let report = guest().attest(ReportData(EXPECTED)).report;
    let refused = appraiser
        .verify_report(Tee::Snp, report.bytes(), &[EXPECTED])
        .err()
        .unwrap();
    assert_eq!(refused.clause, "vcek");
    assert_eq!(
        refused.detail,
        "the report came without a VCEK, and it is not in the cache"
    );
}

#[test]
fn a_wrong_revocation_list_stops_the_broker_at_its_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("crl");
    let config = |path: PathBuf| config::Evidence {
        revocation_lists: [(CpuModel::Milan, path)].into(),
        ..config::Evidence::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let new = |config| {
        Appraiser::new(&config, runtime.handle().clone())
            .err()
            .unwrap()
            .to_string()
    };
    assert!(new(config(path.clone())).starts_with("cannot read"));
    std::fs::write(&path, "no list").unwrap();
    assert!(new(config(path)).contains("is not a revocation list"));
}
