//! The software TEE, and that nobody takes it for a real one.

use super::*;
use crate::appraise::{Clause, Context, verify};
use crate::certs::{Roots, UnixTime};

/// 2030-01-01.
pub(crate) const NOW: UnixTime = UnixTime(1_893_456_000);

/// A guest of the software TEE.
pub(crate) fn guest() -> Guest {
    Guest {
        measurement: LaunchDigest([1; 48]),
        host_data: HostData([2; 32]),
        policy: Policy::STRICT,
        identity: None,
    }
}

/// What it asks for.
pub(crate) const REPORT_DATA: ReportData = ReportData([3; 64]);

/// Evidence of it.
pub(crate) fn sample() -> Evidence {
    guest().attest(REPORT_DATA)
}

/// Evidence of the software TEE with a changed report, signed.
pub(crate) fn signed_with(at: usize, field: &[u8]) -> Evidence {
    signed_with_all(&[(at, field)])
}

/// The same with several changes.
pub(crate) fn signed_with_all(changes: &[(usize, &[u8])]) -> Evidence {
    let mut bytes = guest().unsigned(REPORT_DATA, 0);
    for (at, field) in changes {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    Evidence {
        report: Report::parse(&sign(bytes)).unwrap(),
        chain: chain(),
    }
}

pub(crate) fn context(roots: Roots) -> Context<'static> {
    Context {
        roots,
        now: NOW,
        report_data: REPORT_DATA,
        lists: &[],
    }
}

#[test]
fn evidence_verifies_against_the_simulations_root() {
    let accepted = verify(&sample(), &context(Roots::Sim)).unwrap();
    assert_eq!(accepted.key.tcb, TCB);
    assert_eq!(accepted.key.key, public_key());
    assert_eq!(accepted.key.hwid.as_deref(), Some(chip_id().0.as_slice()));
    assert_eq!(accepted.report.measurement(), LaunchDigest([1; 48]));
    assert_eq!(accepted.report.host_data(), HostData([2; 32]));
    assert_eq!(accepted.report.report_data(), REPORT_DATA);
}

#[test]
fn evidence_never_verifies_against_amds_roots() {
    let mut evidence = sample();
    for _ in 0..2 {
        let refused = verify(&evidence, &context(Roots::Amd)).unwrap_err();
        assert_eq!(refused.clause, Clause::Root);
        assert_eq!(
            refused.to_string(),
            "evidence refused (root): the endorsement key leads to no root among AMD's roots"
        );
        evidence.chain.ark = None;
        evidence.chain.ask = None;
    }
}

#[test]
fn an_id_block_shows_in_reports() {
    let identity = Identity {
        family_id: [4; 16],
        image_id: [5; 16],
        guest_svn: 6,
        id_key: KeyDigest([7; 48]),
        author_key: Some(KeyDigest([8; 48])),
    };
    let report = Guest {
        identity: Some(identity),
        ..guest()
    }
    .attest(REPORT_DATA)
    .report;
    assert_eq!(
        (report.family_id(), report.image_id(), report.guest_svn()),
        ([4; 16], [5; 16], 6)
    );
    assert_eq!(report.id_key_digest(), KeyDigest([7; 48]));
    assert_eq!(report.author_key_digest(), KeyDigest([8; 48]));
}

#[test]
fn every_vmpl_may_ask() {
    for vmpl in 0..4 {
        assert_eq!(guest().attest_at(REPORT_DATA, vmpl).report.vmpl(), vmpl);
    }
}
