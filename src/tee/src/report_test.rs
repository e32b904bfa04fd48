//! Reports, field by field: real ones, and ones that lie.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::sim::sim_test::sample;

/// A real report of `tests/vectors`.
pub(crate) fn real(text: &str) -> [u8; REPORT_SIZE] {
    let digits: String = text.split_whitespace().collect();
    crate::hex::parse(&digits).unwrap()
}

pub(crate) const MILAN: &str = include_str!("../tests/vectors/milan-report.hex");
pub(crate) const MILAN_RENTED: &str = include_str!("../tests/vectors/milan-rented-report.hex");
pub(crate) const GENOA: &str = include_str!("../tests/vectors/genoa-report.hex");

/// A valid report of this version. Its signature is one, but not of these bytes.
fn of_version(version: u32) -> [u8; REPORT_SIZE] {
    static SAMPLE: LazyLock<[u8; REPORT_SIZE]> = LazyLock::new(|| *sample().report.bytes());
    let mut bytes = *SAMPLE;
    bytes[0] = version as u8;
    if version < 3 {
        bytes[0x188..0x18b].fill(0);
    }
    bytes
}

fn refused(version: u32, at: usize, bytes: &[u8]) -> String {
    let mut report = of_version(version);
    report[at..at + bytes.len()].copy_from_slice(bytes);
    match Report::parse(&report) {
        Ok(report) => panic!("accepted: {report:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_real_report_of_a_milan_is_read() {
    let report = Report::parse(&real(MILAN)).unwrap();
    assert_eq!((report.version(), report.guest_svn(), report.vmpl()), (2, 0, 0));
    assert_eq!(report.policy(), Policy::STRICT.with(Policy::SMT));
    assert_eq!(report.signing_key(), SigningKey::Vcek);
    assert_eq!(
        (report.cpu(), report.cpuid(), report.mitigation_vectors()),
        (None, None, None)
    );
    let tcb = Tcb::from_raw(report.tcb(TcbField::Reported), CpuModel::Milan).unwrap();
    assert_eq!(tcb.to_string(), "bootloader 3, tee 0, snp 8, microcode 115");
    assert_eq!(report.platform_info(), 1);
    assert!(report.chip_id().to_string().starts_with("d49554ec717f4e5b"));
}

#[test]
fn a_real_report_of_a_genoa_is_read() {
    let report = Report::parse(&real(GENOA)).unwrap();
    assert_eq!((report.version(), report.vmpl()), (2, 1));
    assert_eq!(
        report.current_version(),
        FirmwareVersion {
            major: 1,
            minor: 54,
            build: 6
        }
    );
    let tcb = Tcb::from_raw(report.tcb(TcbField::Launch), CpuModel::Genoa).unwrap();
    assert_eq!(
        tcb,
        Tcb {
            fmc: None,
            bootloader: 7,
            tee: 0,
            snp: 11,
            microcode: 62
        }
    );
    assert_eq!(report.report_data().0, [7; 64]);
}

#[test]
fn fields_came_with_their_versions() {
    let fields = |version| {
        let report = Report::parse(&of_version(version)).unwrap();
        (report.cpu().is_some(), report.mitigation_vectors().is_some())
    };
    assert_eq!(
        [2, 3, 4, 5].map(fields),
        [(false, false), (true, false), (true, false), (true, true)]
    );
}

#[test]
fn versions_that_are_not_known_are_refused() {
    for version in [0, 1, 6, u32::MAX] {
        let message = format!("report version {version} is not known (2 to 5 are)");
        assert_eq!(refused(3, 0, &version.to_le_bytes()), message);
    }
}

#[test]
fn every_reserved_byte_is_looked_at() {
    let reserved = |version: u32| {
        let from = if version >= 3 { 0x18b } else { 0x188 };
        let to = if version >= 5 { 0x208 } else { 0x1f8 };
        (0x4c..0x50)
            .chain(from..0x1a0)
            .chain([0x1eb, 0x1ef])
            .chain(to..0x2a0)
    };
    for version in 2..=5 {
        for at in reserved(version) {
            assert!(
                refused(version, at, &[1]).starts_with("reserved bytes at"),
                "version {version}, byte {at:#x}"
            );
        }
    }
}

#[test]
fn fields_without_a_meaning_are_refused_by_name() {
    assert_eq!(refused(3, 0x30, &[4]), "VMPL is 0x4, which means nothing");
    assert_eq!(
        refused(3, 0x34, &[0]),
        "SIGNATURE_ALGO is 0x0, which means nothing"
    );
    assert_eq!(
        refused(3, 0x40, &[0x00, 0x01]),
        "PLATFORM_INFO is 0x100, which means nothing"
    );
    assert_eq!(
        refused(3, 0x48, &[0x08]),
        "SIGNING_KEY is 0x8, which means nothing"
    );
    assert_eq!(
        refused(3, 0x48, &[0x20]),
        "SIGNING_KEY is 0x20, which means nothing"
    );
    assert_eq!(
        refused(3, 0x0a, &[0]),
        "POLICY is not valid: guest policy 0x0 lacks bit 17, which must be one"
    );
    assert_eq!(
        refused(3, 0x188, &[0x17]),
        "CPUID family 0x17, model 0x11 is no processor known here"
    );
    assert_eq!(
        refused(3, 0x2a0, &[0; 72]),
        "SIGNATURE is not valid: R or S is out of range"
    );
}

#[test]
fn the_host_asks_with_a_vmpl_of_its_own() {
    let mut bytes = of_version(3);
    bytes[0x30..0x34].fill(0xff);
    assert_eq!(Report::parse(&bytes).unwrap().vmpl(), VMPL_HOST);
}

#[test]
fn signing_keys_are_told() {
    let kinds = [
        (0, SigningKey::Vcek),
        (1 << 2, SigningKey::Vlek),
        (7 << 2, SigningKey::None),
    ];
    for (flags, kind) in kinds {
        let mut bytes = of_version(3);
        bytes[0x48] = flags;
        assert_eq!(Report::parse(&bytes).unwrap().signing_key(), kind);
    }
}

#[test]
fn turin_has_a_tcb_layout_of_its_own() {
    let raw = u64::from_le_bytes([1, 2, 3, 4, 0, 0, 0, 8]);
    let turin = Tcb {
        fmc: Some(1),
        bootloader: 2,
        tee: 3,
        snp: 4,
        microcode: 8,
    };
    assert_eq!(Tcb::from_raw(raw, CpuModel::Turin), Some(turin));
    assert_eq!(Tcb::from_raw(raw, CpuModel::Milan), None);
    let milan = Tcb {
        fmc: None,
        bootloader: 1,
        tee: 2,
        snp: 7,
        microcode: 8,
    };
    assert_eq!(Tcb::from_raw(milan.to_raw(), CpuModel::Genoa), Some(milan));
    assert_eq!(Tcb::from_raw(milan.to_raw(), CpuModel::Turin), None);
}

#[test]
fn generations_are_told_by_family_and_model() {
    let models = [
        (0x19, 0x01),
        (0x19, 0x11),
        (0x19, 0xa0),
        (0x1a, 0x02),
        (0x1a, 0x11),
    ];
    use CpuModel::*;
    let expected = [Milan, Genoa, Genoa, Turin, Turin].map(Some);
    assert_eq!(models.map(|(family, model)| cpu_model(family, model)), expected);
    for (family, model) in [
        (0x17, 0x31),
        (0x19, 0x21),
        (0x19, 0x61),
        (0x1a, 0x44),
        (0x1a, 0x50),
    ] {
        assert_eq!(cpu_model(family, model), None);
    }
}

#[test]
fn other_lengths_are_refused() {
    let bytes = of_version(3);
    assert_eq!(Report::parse(&bytes[..1183]), Err(Error::Length(1183)));
    assert_eq!(
        Report::parse(&[bytes.as_slice(), &[0]].concat()),
        Err(Error::Length(1185))
    );
    assert_eq!(Report::parse(&[]), Err(Error::Length(0)));
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), REPORT_SIZE), version in 0u8..7) {
        let mut bytes = bytes;
        let _ = Report::parse(&bytes);
        bytes[..4].copy_from_slice(&[version, 0, 0, 0]);
        let _ = Report::parse(&bytes);
    }

    #[test]
    fn a_changed_report_is_refused_or_holds_the_change(at in 0..REPORT_SIZE, byte: u8, version in 2u32..6) {
        let mut bytes = of_version(version);
        bytes[at] = byte;
        if let Ok(report) = Report::parse(&bytes) {
            prop_assert_eq!(report.bytes(), &bytes);
        }
    }
}
