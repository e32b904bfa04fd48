//! Evidence as the `sev` crate (6 and later) serialises its `AttestationReport` and `CertTableEntry` with serde.
//!
//! The report's bytes, which the signature covers, are made again from the fields. What has no field there is reserved, and
//! zero.

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Error, Evidence, Kind};
use crate::certs::{Chain, MAX_CERTIFICATE};
use crate::report::{FirmwareVersion, REPORT_SIZE, Report, SIGNED, Tcb, TcbField};
use crate::vmsa::CpuModel;

/// The most JSON that is looked at, in bytes.
pub const MAX_JSON: usize = 512 << 10;

/// The most certificates.
const MAX_CERTIFICATES: usize = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    attestation_report: WireReport,
    #[serde(default)]
    cert_chain: Option<Vec<WireCertificate>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireReport {
    version: u32,
    guest_svn: u32,
    policy: u64,
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: WireTcb,
    plat_info: u64,
    key_info: u32,
    report_data: Bytes<64>,
    measurement: Bytes<48>,
    host_data: Bytes<32>,
    id_key_digest: Bytes<48>,
    author_key_digest: Bytes<48>,
    report_id: Bytes<32>,
    report_id_ma: Bytes<32>,
    reported_tcb: WireTcb,
    cpuid_fam_id: Option<u8>,
    cpuid_mod_id: Option<u8>,
    cpuid_step: Option<u8>,
    chip_id: Bytes<64>,
    committed_tcb: WireTcb,
    current: FirmwareVersion,
    committed: FirmwareVersion,
    launch_tcb: WireTcb,
    launch_mit_vector: Option<u64>,
    current_mit_vector: Option<u64>,
    signature: WireSignature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTcb {
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    r: Bytes<72>,
    s: Bytes<72>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCertificate {
    cert_type: WireKind,
    data: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum WireKind {
    Empty,
    #[serde(rename = "ARK")]
    Ark,
    #[serde(rename = "ASK")]
    Ask,
    #[serde(rename = "VCEK")]
    Vcek,
    #[serde(rename = "VLEK")]
    Vlek,
    #[serde(rename = "CRL")]
    Crl,
    #[serde(rename = "OTHER")]
    Other(String),
}

/// Exactly `N` numbers in an array.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BytesVisitor::<N>)
    }
}

struct BytesVisitor<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for BytesVisitor<N> {
    type Value = Bytes<N>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{N} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut bytes = [0; N];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = sequence
                .next_element()?
                .ok_or_else(|| A::Error::invalid_length(at, &self))?;
        }
        match sequence.next_element::<u8>()? {
            None => Ok(Bytes(bytes)),
            Some(_) => Err(A::Error::invalid_length(N + 1, &self)),
        }
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Evidence, Error> {
    if text.len() > MAX_JSON {
        return Err(serde_json::Error::custom(format!("it is larger than {MAX_JSON} bytes")).into());
    }
    let wire: Wire = serde_json::from_slice(text)?;
    let mut chain = Chain::default();
    let certificates = wire.cert_chain.unwrap_or_default();
    if certificates.len() > MAX_CERTIFICATES {
        return Err(serde_json::Error::custom(format!("more than {MAX_CERTIFICATES} certificates")).into());
    }
    for certificate in certificates {
        chain.add(certificate.cert_type.kind(), &certificate.data)?;
    }
    Ok(Evidence {
        report: Report::parse(&wire.attestation_report.to_bytes()?)?,
        chain,
    })
}

pub(super) fn write(evidence: &Evidence) -> String {
    let chain: Vec<_> = evidence
        .chain
        .entries()
        .into_iter()
        .map(WireCertificate::of)
        .collect();
    let cert_chain = (!chain.is_empty()).then_some(chain);
    let wire = Wire {
        attestation_report: WireReport::of(&evidence.report),
        cert_chain,
    };
    // Numbers, texts and arrays of them: nothing that JSON can't hold.
    serde_json::to_string(&wire).expect("evidence is JSON")
}

impl WireKind {
    fn kind(&self) -> Kind {
        match self {
            Self::Ark => Kind::Ark,
            Self::Ask => Kind::Ask,
            Self::Vcek => Kind::Vcek,
            Self::Vlek => Kind::Vlek,
            Self::Empty | Self::Crl | Self::Other(_) => Kind::Other,
        }
    }
}

impl WireCertificate {
    fn of((kind, certificate): (Kind, &crate::certs::Certificate)) -> Self {
        let cert_type = match kind {
            Kind::Ark => WireKind::Ark,
            Kind::Ask => WireKind::Ask,
            Kind::Vcek => WireKind::Vcek,
            Kind::Vlek => WireKind::Vlek,
            Kind::Other => WireKind::Empty,
        };
        debug_assert!(certificate.bytes().len() <= MAX_CERTIFICATE);
        Self {
            cert_type,
            data: certificate.bytes().to_vec(),
        }
    }
}

impl WireTcb {
    fn raw(&self) -> u64 {
        let Self {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = *self;
        Tcb {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        }
        .to_raw()
    }

    /// A report of version 2 does not say which layout it has; from Turin, CHIP_ID has 8 bytes and zeros.
    fn of(report: &Report, field: TcbField) -> Self {
        let guess = match report.chip_id().0[8..].iter().all(|byte| *byte == 0) {
            true => CpuModel::Turin,
            false => CpuModel::Genoa,
        };
        let raw = report.tcb(field);
        let cpu = report.cpu().unwrap_or(guess);
        let [
            fmc_or_bootloader,
            bootloader_or_tee,
            tee,
            snp,
            _,
            _,
            genoa_snp,
            microcode,
        ] = raw.to_le_bytes();
        match cpu {
            CpuModel::Turin => Self {
                fmc: Some(fmc_or_bootloader),
                bootloader: bootloader_or_tee,
                tee,
                snp,
                microcode,
            },
            CpuModel::Milan | CpuModel::Genoa => {
                let (bootloader, tee) = (fmc_or_bootloader, bootloader_or_tee);
                Self {
                    fmc: None,
                    bootloader,
                    tee,
                    snp: genoa_snp,
                    microcode,
                }
            }
        }
    }
}

impl WireReport {
    fn of(report: &Report) -> Self {
        let bytes = report.bytes();
        let [family, model, step] = report.cpuid().map_or([None; 3], |cpuid| cpuid.map(Some));
        let [launch, current] = report
            .mitigation_vectors()
            .map_or([None; 2], |vectors| vectors.map(Some));
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            version: report.version(),
            guest_svn: report.guest_svn(),
            policy: report.policy().bits(),
            family_id: Bytes(report.family_id()),
            image_id: Bytes(report.image_id()),
            vmpl: report.vmpl(),
            sig_algo: u32_at(0x034),
            current_tcb: WireTcb::of(report, TcbField::Current),
            plat_info: report.platform_info(),
            key_info: u32_at(0x048),
            report_data: Bytes(report.report_data().0),
            measurement: Bytes(report.measurement().0),
            host_data: Bytes(report.host_data().0),
            id_key_digest: Bytes(report.id_key_digest().0),
            author_key_digest: Bytes(report.author_key_digest().0),
            report_id: Bytes(report.report_id()),
            report_id_ma: cut(bytes, 0x160),
            reported_tcb: WireTcb::of(report, TcbField::Reported),
            cpuid_fam_id: family,
            cpuid_mod_id: model,
            cpuid_step: step,
            chip_id: Bytes(report.chip_id().0),
            committed_tcb: WireTcb::of(report, TcbField::Committed),
            current: report.current_version(),
            committed: report.committed_version(),
            launch_tcb: WireTcb::of(report, TcbField::Launch),
            launch_mit_vector: launch,
            current_mit_vector: current,
            signature: WireSignature {
                r: cut(bytes, SIGNED),
                s: cut(bytes, SIGNED + 72),
            },
        }
    }

    fn to_bytes(&self) -> Result<[u8; REPORT_SIZE], serde_json::Error> {
        let mut bytes = [0; REPORT_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0x000, &self.version.to_le_bytes());
        put(0x004, &self.guest_svn.to_le_bytes());
        put(0x008, &self.policy.to_le_bytes());
        put(0x010, &self.family_id.0);
        put(0x020, &self.image_id.0);
        put(0x030, &self.vmpl.to_le_bytes());
        put(0x034, &self.sig_algo.to_le_bytes());
        put(0x038, &self.current_tcb.raw().to_le_bytes());
        put(0x040, &self.plat_info.to_le_bytes());
        put(0x048, &self.key_info.to_le_bytes());
        put(0x050, &self.report_data.0);
        put(0x090, &self.measurement.0);
        put(0x0c0, &self.host_data.0);
        put(0x0e0, &self.id_key_digest.0);
        put(0x110, &self.author_key_digest.0);
        put(0x140, &self.report_id.0);
        put(0x160, &self.report_id_ma.0);
        put(0x180, &self.reported_tcb.raw().to_le_bytes());
        put(0x188, &self.cpuid()?);
        put(0x1a0, &self.chip_id.0);
        put(0x1e0, &self.committed_tcb.raw().to_le_bytes());
        put(
            0x1e8,
            &[self.current.build, self.current.minor, self.current.major],
        );
        put(
            0x1ec,
            &[self.committed.build, self.committed.minor, self.committed.major],
        );
        put(0x1f0, &self.launch_tcb.raw().to_le_bytes());
        for (at, vector) in [0x1f8, 0x200].into_iter().zip(self.mitigation_vectors()?) {
            put(at, &vector.to_le_bytes());
        }
        put(SIGNED, &self.signature.r.0);
        put(SIGNED + 72, &self.signature.s.0);
        Ok(bytes)
    }

    fn cpuid(&self) -> Result<[u8; 3], serde_json::Error> {
        match (
            self.version >= 3,
            self.cpuid_fam_id,
            self.cpuid_mod_id,
            self.cpuid_step,
        ) {
            (true, Some(family), Some(model), Some(step)) => Ok([family, model, step]),
            (false, None, None, None) => Ok([0; 3]),
            _ => Err(serde_json::Error::custom(
                "the CPUID fields don't belong to the report's version",
            )),
        }
    }

    fn mitigation_vectors(&self) -> Result<[u64; 2], serde_json::Error> {
        match (self.version >= 5, self.launch_mit_vector, self.current_mit_vector) {
            (true, Some(launch), Some(current)) => Ok([launch, current]),
            (false, None, None) => Ok([0; 2]),
            _ => Err(serde_json::Error::custom(
                "the mitigation vectors don't belong to the report's version",
            )),
        }
    }
}

/// `N` bytes of a report at `at`; callers stay inside.
fn cut<const N: usize>(bytes: &[u8; REPORT_SIZE], at: usize) -> Bytes<N> {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    Bytes(out)
}
