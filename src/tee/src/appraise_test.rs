//! Verdicts: real reports that pass, and the clause that fails for everything that was changed.

use super::*;
use crate::certs::certs_test::{THEN, vcek};
use crate::certs::{Certificate, Link};
use crate::report::REPORT_SIZE;
use crate::report::report_test::{GENOA, MILAN, MILAN_RENTED, real};
use crate::sim::sim_test::{NOW, REPORT_DATA, context, guest, sample, signed_with};

const MILAN_VCEK: &str = include_str!("../tests/vectors/milan-vcek.pem");
const MILAN_RENTED_VCEK: &str = include_str!("../tests/vectors/milan-rented-vcek.pem");
const GENOA_VCEK: &str = include_str!("../tests/vectors/genoa-vcek.pem");

/// What the simulation's guest passes by.
fn policy() -> AppraisalPolicy {
    AppraisalPolicy {
        launch_digests: [guest().measurement].into(),
        host_data: [guest().host_data].into(),
        processors: [CpuModel::Genoa].into(),
        minimum_tcb: BTreeMap::new(),
        minimum_guest_svn: 0,
        maximum_vmpl: 0,
        allow_debug: false,
        allow_migration: false,
        allow_smt: false,
        allow_vlek: false,
        require_platform: BTreeSet::new(),
        forbid_platform: BTreeSet::new(),
    }
}

fn judge(evidence: &Evidence, policy: &AppraisalPolicy) -> Verdict {
    appraise(evidence, policy, &context(Roots::Sim))
}

/// Clause and sentence about the simulation's guest with another field in its report, signed.
fn refused(at: usize, field: &[u8]) -> (Clause, String) {
    let Refused { clause, sentence } = judge(&signed_with(at, field), &policy()).unwrap_err();
    (clause, sentence)
}

fn real_evidence(report: &str, pem: &str) -> Evidence {
    Evidence {
        report: Report::parse(&real(report)).unwrap(),
        chain: vcek(pem),
    }
}

/// Policy and context that a real report passes by.
fn terms(evidence: &Evidence, cpu: CpuModel) -> (AppraisalPolicy, Context<'static>) {
    let report = &evidence.report;
    let policy = AppraisalPolicy {
        launch_digests: [report.measurement()].into(),
        host_data: [report.host_data()].into(),
        processors: [cpu].into(),
        maximum_vmpl: report.vmpl() as u8,
        allow_smt: true,
        allow_debug: report.policy().has(Policy::DEBUG),
        ..policy()
    };
    let report_data = report.report_data();
    (
        policy,
        Context {
            roots: Roots::Amd,
            now: THEN,
            report_data,
            lists: &[],
        },
    )
}

#[test]
fn real_reports_are_accepted() {
    let reports = [
        (MILAN, MILAN_VCEK, CpuModel::Milan),
        (MILAN_RENTED, MILAN_RENTED_VCEK, CpuModel::Milan),
        (GENOA, GENOA_VCEK, CpuModel::Genoa),
    ];
    for (report, pem, cpu) in reports {
        let evidence = real_evidence(report, pem);
        let (policy, context) = terms(&evidence, cpu);
        let accepted = appraise(&evidence, &policy, &context).unwrap();
        assert_eq!((accepted.key.cpu, accepted.key.kind), (cpu, SigningKey::Vcek));
    }
}

#[test]
fn a_real_guest_that_its_host_may_debug_is_refused() {
    let evidence = real_evidence(MILAN_RENTED, MILAN_RENTED_VCEK);
    let (policy, context) = terms(&evidence, CpuModel::Milan);
    let policy = AppraisalPolicy {
        allow_debug: false,
        ..policy
    };
    assert_eq!(
        appraise(&evidence, &policy, &context).unwrap_err().clause,
        Clause::Debug
    );
}

#[test]
fn a_real_report_with_another_chips_key_is_refused() {
    let evidence = real_evidence(MILAN, MILAN_RENTED_VCEK);
    let (policy, context) = terms(&evidence, CpuModel::Milan);
    let refused = appraise(&evidence, &policy, &context).unwrap_err();
    let sentence = "REPORTED_TCB is 0x7308000000000003, and the certificate is for bootloader 2, tee 0, snp 5, microcode 68";
    assert_eq!(
        refused.to_string(),
        format!("evidence refused (certified-tcb): {sentence}")
    );
}

/// 200 changes of a real report and its certificate, each of one bit. What parses is refused by the clause that the byte
/// belongs to; what does not is refused as unreadable.
#[test]
fn each_of_200_changes_of_a_real_report_and_chain_is_refused_by_its_clause() {
    let evidence = real_evidence(GENOA, GENOA_VCEK);
    let (policy, context) = terms(&evidence, CpuModel::Genoa);
    let mut seen = BTreeMap::<&str, usize>::new();
    for number in 0..100 {
        let at = number * 11;
        let mut bytes: [u8; REPORT_SIZE] = *evidence.report.bytes();
        bytes[at] ^= 1 << (number % 8);
        let verdict = match Report::parse(&bytes) {
            Ok(report) => appraise(
                &Evidence {
                    report,
                    chain: evidence.chain.clone(),
                },
                &policy,
                &context,
            ),
            Err(error) => Err(crate::evidence::Error::from(error).into()),
        };
        let clause = verdict.expect_err(&format!("report byte {at:#x}")).clause;
        assert!(
            report_clauses(at).contains(&clause),
            "report byte {at:#x}: {clause}"
        );
        *seen.entry(clause.name()).or_default() += 1;
    }
    let der = evidence.chain.vek.as_ref().unwrap().bytes().to_vec();
    for number in 0..100 {
        let at = number * der.len() / 100;
        let mut bytes = der.clone();
        bytes[at] ^= 1 << (number % 8);
        let verdict = match Certificate::from_der(&bytes, Link::Vek) {
            Ok(vek) => {
                let chain = certs::Chain {
                    vek: Some(vek),
                    ask: None,
                    ark: None,
                };
                appraise(
                    &Evidence {
                        report: evidence.report.clone(),
                        chain,
                    },
                    &policy,
                    &context,
                )
            }
            Err(error) => Err(crate::evidence::Error::from(error).into()),
        };
        let clause = verdict.expect_err(&format!("certificate byte {at}")).clause;
        let expected = [Clause::Format, Clause::Root, Clause::Chain, Clause::Time];
        assert!(expected.contains(&clause), "certificate byte {at}: {clause}");
        *seen.entry(clause.name()).or_default() += 1;
    }
    assert_eq!(seen.values().sum::<usize>(), 200);
    for clause in ["format", "certified-tcb", "chip", "signature", "chain"] {
        assert!(
            seen.contains_key(clause),
            "no change was refused by {clause}: {seen:?}"
        );
    }
}

/// The clauses that a change of this byte of a report may be refused by: nothing is believed before the signature.
fn report_clauses(at: usize) -> &'static [Clause] {
    match at {
        0x048..0x04c => &[Clause::Format, Clause::SigningKey, Clause::Signature],
        0x180..0x188 => &[Clause::Format, Clause::CertifiedTcb],
        0x1a0..0x1e0 => &[Clause::Chip],
        _ => &[Clause::Format, Clause::Signature],
    }
}

#[test]
fn a_signed_report_is_refused_by_the_clause_that_it_breaks() {
    let smt = "the guest may share its cores with other threads (SMT), which the policy does not allow";
    let cases: [(usize, &[u8], Clause, &str); 9] = [
        (
            0x050,
            &[9],
            Clause::ReportData,
            "REPORT_DATA is not what this session asked for",
        ),
        (
            0x00a,
            &[0x0a],
            Clause::Debug,
            "the host may debug the guest, which the policy does not allow",
        ),
        (
            0x00a,
            &[0x06],
            Clause::Migration,
            "a migration agent may move the guest, which the policy does not allow",
        ),
        (0x00a, &[0x03], Clause::Smt, smt),
        (
            0x030,
            &[1],
            Clause::Vmpl,
            "VMPL is 1, and the policy asks for at most 0",
        ),
        (
            0x030,
            &[0xff; 4],
            Clause::Vmpl,
            "VMPL is 4294967295, and the policy asks for at most 0",
        ),
        (
            0x1a0,
            &[9],
            Clause::Chip,
            "CHIP_ID is not the certificate's hardware id",
        ),
        (
            0x180,
            &[9],
            Clause::CertifiedTcb,
            "REPORTED_TCB is 0x5417000000000009, and the certificate is for bootloader 10, tee 0, snp 23, microcode 84",
        ),
        (
            0x188,
            &[0x19, 0x01],
            Clause::Product,
            "the report is of a milan processor, and the certificate of a genoa",
        ),
    ];
    for (at, field, clause, sentence) in cases {
        assert_eq!(refused(at, field), (clause, sentence.to_owned()));
    }
    assert_eq!(refused(0x090, &[9]).0, Clause::LaunchDigest);
    assert_eq!(refused(0x0c0, &[9]).0, Clause::HostData);
    assert_eq!(refused(0x048, &[4]).0, Clause::SigningKey);
    assert_eq!(refused(0x048, &[28]).0, Clause::SigningKey);
    assert_eq!(
        refused(0x1f4, &[1]),
        (
            Clause::Format,
            "reserved bytes of LAUNCH_TCB are not zero".to_owned()
        )
    );
    assert!(judge(&sample(), &policy()).is_ok());
}

#[test]
fn a_report_that_the_key_did_not_sign_is_refused() {
    let mut bytes = *sample().report.bytes();
    bytes[0x90] ^= 1;
    let report = Report::parse(&bytes).unwrap();
    let refused = judge(&Evidence { report, ..sample() }, &policy()).unwrap_err();
    assert_eq!(refused.clause, Clause::Signature);
    assert_eq!(
        refused.sentence,
        "the report's signature is not that of the endorsement key"
    );
}

#[test]
fn a_hidden_chip_is_told_by_the_signature() {
    assert!(judge(&signed_with(0x1a0, &[0; 64]), &policy()).is_ok());
}

#[test]
fn every_component_has_its_least_version() {
    let with = |minimum: MinimumTcb| {
        let policy = AppraisalPolicy {
            minimum_tcb: [(CpuModel::Genoa, minimum)].into(),
            ..policy()
        };
        judge(&sample(), &policy).map_err(|refused| refused.sentence)
    };
    assert!(
        with(MinimumTcb {
            fmc: 0,
            bootloader: 10,
            tee: 0,
            snp: 23,
            microcode: 84
        })
        .is_ok()
    );
    let zero = MinimumTcb::default();
    let cases = [
        (
            MinimumTcb { fmc: 1, ..zero },
            "fmc of REPORTED_TCB is 0, and the policy asks for 1 or later",
        ),
        (
            MinimumTcb {
                bootloader: 11,
                ..zero
            },
            "bootloader of REPORTED_TCB is 10, and the policy asks for 11 or later",
        ),
        (
            MinimumTcb { tee: 1, ..zero },
            "tee of REPORTED_TCB is 0, and the policy asks for 1 or later",
        ),
        (
            MinimumTcb { snp: 24, ..zero },
            "snp of REPORTED_TCB is 23, and the policy asks for 24 or later",
        ),
        (
            MinimumTcb {
                microcode: 85,
                ..zero
            },
            "microcode of REPORTED_TCB is 84, and the policy asks for 85 or later",
        ),
    ];
    for (minimum, sentence) in cases {
        assert_eq!(with(minimum).unwrap_err(), sentence);
    }
}

#[test]
fn a_guest_that_old_firmware_launched_is_refused() {
    let minimum = MinimumTcb {
        snp: 23,
        ..MinimumTcb::default()
    };
    let policy = AppraisalPolicy {
        minimum_tcb: [(CpuModel::Genoa, minimum)].into(),
        ..policy()
    };
    for (at, name) in [(0x1e6, "COMMITTED_TCB"), (0x1f6, "LAUNCH_TCB")] {
        let refused = judge(&signed_with(at, &[22]), &policy).unwrap_err();
        assert_eq!(
            refused.sentence,
            format!("snp of {name} is 22, and the policy asks for 23 or later")
        );
    }
}

#[test]
fn platform_bits_are_required_and_forbidden() {
    let ecc = PlatformBit::Ecc;
    let (with, without) = (signed_with(0x40, &[ecc.mask() as u8]), sample());
    let require = AppraisalPolicy {
        require_platform: [ecc].into(),
        ..policy()
    };
    let forbid = AppraisalPolicy {
        forbid_platform: [ecc].into(),
        ..policy()
    };
    assert!(judge(&with, &require).is_ok() && judge(&without, &forbid).is_ok());
    let refused = judge(&without, &require).unwrap_err();
    assert_eq!(
        refused.sentence,
        "the platform lacks \"ecc\", which the policy requires"
    );
    let refused = judge(&with, &forbid).unwrap_err();
    assert_eq!(
        refused.sentence,
        "the platform has \"ecc\", which the policy forbids"
    );
}

#[test]
fn processors_and_security_versions_are_the_policys() {
    let policy = AppraisalPolicy {
        processors: [CpuModel::Turin].into(),
        ..policy()
    };
    assert_eq!(
        judge(&sample(), &policy).unwrap_err().sentence,
        "the policy does not allow genoa processors"
    );
    let policy = AppraisalPolicy {
        minimum_guest_svn: 1,
        ..self::policy()
    };
    let refused = judge(&sample(), &policy).unwrap_err();
    assert_eq!(
        refused.sentence,
        "GUEST_SVN is 0, and the policy asks for 1 or higher"
    );
    assert!(judge(&signed_with(4, &[1]), &policy).is_ok());
}

#[test]
fn what_a_policy_allows_it_allows() {
    let policy = AppraisalPolicy {
        allow_debug: true,
        allow_migration: true,
        allow_smt: true,
        ..policy()
    };
    assert!(judge(&signed_with(0x0a, &[0x0f]), &policy).is_ok());
}

#[test]
fn an_empty_policy_accepts_nothing() {
    let policy = AppraisalPolicy {
        launch_digests: BTreeSet::new(),
        ..policy()
    };
    assert_eq!(
        judge(&sample(), &policy).unwrap_err().clause,
        Clause::LaunchDigest
    );
    let policy = AppraisalPolicy {
        host_data: BTreeSet::new(),
        ..self::policy()
    };
    assert_eq!(judge(&sample(), &policy).unwrap_err().clause, Clause::HostData);
}

#[test]
fn revocation_and_time_are_clauses() {
    let list = RevocationList::parse(include_bytes!("../tests/vectors/sim-crl-ask.pem")).unwrap();
    let context = Context {
        lists: &[list],
        ..context(Roots::Sim)
    };
    let refused = appraise(&sample(), &policy(), &context).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "evidence refused (revocation): the ASK has been revoked"
    );
    let early = Context {
        roots: Roots::Sim,
        now: UnixTime(0),
        report_data: REPORT_DATA,
        lists: &[],
    };
    assert_eq!(
        appraise(&sample(), &policy(), &early).unwrap_err().clause,
        Clause::Time
    );
    assert!(NOW > early.now);
}

#[test]
fn policies_read_as_people_write_them() {
    let text = format!(
        r#"
        launch_digests = ["{}"]
        host_data = ["{}"]
        processors = ["genoa"]
        require_platform = ["alias-check-complete"]
        [minimum_tcb.genoa]
        snp = 23
        "#,
        guest().measurement,
        guest().host_data
    );
    let read: AppraisalPolicy = toml::from_str(&text).unwrap();
    let minimum = MinimumTcb {
        snp: 23,
        ..MinimumTcb::default()
    };
    let expected = AppraisalPolicy {
        minimum_tcb: [(CpuModel::Genoa, minimum)].into(),
        require_platform: [PlatformBit::AliasCheckComplete].into(),
        ..policy()
    };
    assert_eq!(read, expected);
    let json = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<AppraisalPolicy>(&json).unwrap(), expected);
    for wrong in [
        text.replace("snp =", "svp ="),
        text.replace("host_data", "host"),
        text.replace("genoa", "rome"),
    ] {
        assert!(toml::from_str::<AppraisalPolicy>(&wrong).is_err());
    }
}
