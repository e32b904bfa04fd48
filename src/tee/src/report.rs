//! Attestation reports (AMD 56860 §7.3, table 23): what the firmware says of a guest, and signs.
//!
//! ```text
//!   0x000 VERSION   0x004 GUEST_SVN  0x008 POLICY      0x010 FAMILY_ID   0x020 IMAGE_ID
//!   0x030 VMPL      0x034 algorithm  0x038 CURRENT_TCB 0x040 PLATFORM_INFO  0x048 key info
//!   0x050 REPORT_DATA          0x090 MEASUREMENT       0x0c0 HOST_DATA
//!   0x0e0 ID_KEY_DIGEST        0x110 AUTHOR_KEY_DIGEST 0x140 REPORT_ID   0x160 REPORT_ID_MA
//!   0x180 REPORTED_TCB  0x188 CPUID family, model, stepping (from version 3)  0x1a0 CHIP_ID
//!   0x1e0 COMMITTED_TCB 0x1e8 versions 0x1f0 LAUNCH_TCB 0x1f8 mitigation vectors (from version 5)
//!   0x2a0 SIGNATURE over 0x000 to 0x29f                0x4a0
//! ```
//!
//! Parsing believes nothing: every reserved byte is zero, or the report is refused. A signature is verified by
//! [`crate::appraise`], over the bytes that came.

use std::fmt;

use sha2::{Digest as _, Sha384};

use crate::ecdsa::{self, Signature};
use crate::hex::hex_bytes;
use crate::launch::{LaunchDigest, Policy, PolicyError};
use crate::vmsa::CpuModel;

/// Length of a report in bytes.
pub const REPORT_SIZE: usize = 0x4a0;

/// How many of them are signed.
pub const SIGNED: usize = 0x2a0;

/// VMPL of a report that the host asked for itself.
pub const VMPL_HOST: u32 = u32::MAX;

hex_bytes! {
    /// HOST_DATA: what the host said at launch. cwrun says the SHA-256 of the Workload.
    HostData, 32
}

hex_bytes! {
    /// REPORT_DATA: what the guest asked to have in its report.
    ReportData, 64
}

hex_bytes! {
    /// CHIP_ID: which processor it was; zeros where the host hides it.
    ChipId, 64
}

hex_bytes! {
    /// SHA-384 of a public key in the firmware's layout; zeros where there is none.
    KeyDigest, 48
}

impl KeyDigest {
    /// Of this key.
    pub fn of(key: &ecdsa::PublicKey) -> Self {
        Self(Sha384::digest(key.to_bytes()).into())
    }
}

/// Why bytes are no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another length.
    #[error("a report has {REPORT_SIZE} bytes, not {0}")]
    Length(usize),
    /// A version that is not known.
    #[error("report version {0} is not known (2 to 5 are)")]
    Version(u32),
    /// Bytes that the version keeps zero.
    #[error("reserved bytes at {0:#x} are not zero")]
    Reserved(usize),
    /// A field with a value that the specification does not have.
    #[error("{field} is {value:#x}, which means nothing")]
    Field {
        /// As the specification calls it.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A policy that can't be.
    #[error("POLICY is not valid: {0}")]
    Policy(#[from] PolicyError),
    /// CPUID fields of no processor known to have SEV-SNP.
    #[error("CPUID family {family:#x}, model {model:#x} is no processor known here")]
    Processor {
        /// Combined family.
        family: u8,
        /// Combined model.
        model: u8,
    },
    /// No signature.
    #[error("SIGNATURE is not valid: {0}")]
    Signature(#[from] ecdsa::Error),
}

/// Which key signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningKey {
    /// Versioned Chip Endorsement Key: this chip's, at this TCB.
    Vcek,
    /// Versioned Loaded Endorsement Key: a cloud provider's, at this TCB.
    Vlek,
    /// None: the report is not signed.
    None,
}

impl SigningKey {
    /// For a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
            Self::None => "key that is none",
        }
    }
}

/// Security versions of a platform's firmware (AMD 56860 §2.2, tables 3 and 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tcb {
    /// FMC firmware: from Turin.
    pub fmc: Option<u8>,
    /// The security processor's boot loader.
    pub bootloader: u8,
    /// The security processor's operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// The oldest microcode of all cores.
    pub microcode: u8,
}

impl Tcb {
    /// Nothing is new enough to be of this.
    pub(crate) const NONE: Self = Self {
        fmc: None,
        bootloader: 0,
        tee: 0,
        snp: 0,
        microcode: 0,
    };

    /// The versions that a TCB_VERSION field has on this processor; `None` if reserved bytes are not zero.
    pub fn from_raw(raw: u64, cpu: CpuModel) -> Option<Self> {
        let b = raw.to_le_bytes();
        let (tcb, reserved) = match cpu {
            CpuModel::Milan | CpuModel::Genoa => (
                Self {
                    fmc: None,
                    bootloader: b[0],
                    tee: b[1],
                    snp: b[6],
                    microcode: b[7],
                },
                &b[2..6],
            ),
            CpuModel::Turin => (
                Self {
                    fmc: Some(b[0]),
                    bootloader: b[1],
                    tee: b[2],
                    snp: b[3],
                    microcode: b[7],
                },
                &b[4..7],
            ),
        };
        reserved.iter().all(|byte| *byte == 0).then_some(tcb)
    }

    /// As a TCB_VERSION field has them: with FMC as Turin does, without as Milan and Genoa do.
    pub fn to_raw(self) -> u64 {
        u64::from_le_bytes(match self.fmc {
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
        })
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        let Self {
            bootloader,
            tee,
            snp,
            microcode,
            ..
        } = self;
        write!(
            f,
            "bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}"
        )
    }
}

/// Firmware version of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FirmwareVersion {
    pub major: u8,
    pub minor: u8,
    pub build: u8,
}

/// A report, every field of which has a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    bytes: Box<[u8; REPORT_SIZE]>,
    version: u32,
    policy: Policy,
    signing_key: SigningKey,
    cpu: Option<CpuModel>,
    signature: Signature,
}

impl Report {
    /// Reads the bytes that the firmware gave the guest.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; REPORT_SIZE] = bytes.try_into().map_err(|_| Error::Length(bytes.len()))?;
        let raw = Raw(bytes);
        let version = raw.u32(0x000);
        if !(2..=5).contains(&version) {
            return Err(Error::Version(version));
        }
        raw.check_reserved(version)?;
        Ok(Self {
            bytes: Box::new(*bytes),
            version,
            policy: Policy::from_bits(raw.u64(0x008))?,
            signing_key: raw.check_fields()?,
            cpu: if version >= 3 { Some(raw.cpu()?) } else { None },
            signature: Signature::parse(&raw.array(SIGNED))?,
        })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8; REPORT_SIZE] {
        &self.bytes
    }

    /// The bytes that the signature covers.
    pub fn signed(&self) -> &[u8] {
        &self.bytes[..SIGNED]
    }

    /// The signature, not verified.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Version of the layout.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The owner's security version of the image, from the ID block.
    pub fn guest_svn(&self) -> u32 {
        self.raw().u32(0x004)
    }

    /// The policy that the guest was launched with.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// FAMILY_ID of the ID block.
    pub fn family_id(&self) -> [u8; 16] {
        self.raw().array(0x010)
    }

    /// IMAGE_ID of the ID block.
    pub fn image_id(&self) -> [u8; 16] {
        self.raw().array(0x020)
    }

    /// The privilege level that asked, 0 to 3, or [`VMPL_HOST`].
    pub fn vmpl(&self) -> u32 {
        self.raw().u32(0x030)
    }

    /// PLATFORM_INFO: see [`PlatformBit`].
    pub fn platform_info(&self) -> u64 {
        self.raw().u64(0x040)
    }

    /// Which key signed.
    pub fn signing_key(&self) -> SigningKey {
        self.signing_key
    }

    /// What the guest asked for.
    pub fn report_data(&self) -> ReportData {
        ReportData(self.raw().array(0x050))
    }

    /// The launch digest.
    pub fn measurement(&self) -> LaunchDigest {
        LaunchDigest(self.raw().array(0x090))
    }

    /// What the host said at launch.
    pub fn host_data(&self) -> HostData {
        HostData(self.raw().array(0x0c0))
    }

    /// Digest of the key that signed the ID block.
    pub fn id_key_digest(&self) -> KeyDigest {
        KeyDigest(self.raw().array(0x0e0))
    }

    /// Digest of the key that signed the ID key.
    pub fn author_key_digest(&self) -> KeyDigest {
        KeyDigest(self.raw().array(0x110))
    }

    /// The guest's name, as long as it runs.
    pub fn report_id(&self) -> [u8; 32] {
        self.raw().array(0x140)
    }

    /// The processor generation that the report itself names: from version 3.
    pub fn cpu(&self) -> Option<CpuModel> {
        self.cpu
    }

    /// CPUID family, model and stepping: from version 3.
    pub fn cpuid(&self) -> Option<[u8; 3]> {
        self.cpu.map(|_| self.raw().array(0x188))
    }

    /// Which chip; zeros where the host hides it.
    pub fn chip_id(&self) -> ChipId {
        ChipId(self.raw().array(0x1a0))
    }

    /// One of the four TCB versions, undecoded: a report of version 2 does not say which layout it has.
    pub fn tcb(&self, which: TcbField) -> u64 {
        self.raw().u64(which.offset())
    }

    /// The firmware that runs.
    pub fn current_version(&self) -> FirmwareVersion {
        self.raw().firmware(0x1e8)
    }

    /// The firmware that the platform can't go back behind.
    pub fn committed_version(&self) -> FirmwareVersion {
        self.raw().firmware(0x1ec)
    }

    /// LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR: mitigations at launch and now, from version 5.
    pub fn mitigation_vectors(&self) -> Option<[u64; 2]> {
        (self.version >= 5).then(|| [self.raw().u64(0x1f8), self.raw().u64(0x200)])
    }

    fn raw(&self) -> Raw<'_> {
        Raw(&self.bytes)
    }
}

/// The TCB versions of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcbField {
    /// What runs.
    Current,
    /// What the signing key was derived from.
    Reported,
    /// What the platform can't go back behind.
    Committed,
    /// What ran when the guest was launched.
    Launch,
}

impl TcbField {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Current, Self::Reported, Self::Committed, Self::Launch];

    /// As the specification calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "CURRENT_TCB",
            Self::Reported => "REPORTED_TCB",
            Self::Committed => "COMMITTED_TCB",
            Self::Launch => "LAUNCH_TCB",
        }
    }

    fn offset(self) -> usize {
        match self {
            Self::Current => 0x038,
            Self::Reported => 0x180,
            Self::Committed => 0x1e0,
            Self::Launch => 0x1f0,
        }
    }
}

/// A bit of PLATFORM_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlatformBit {
    /// SMT is on.
    Smt,
    /// All memory is encrypted, whatever a guest asks.
    Tsme,
    /// Memory has ECC.
    Ecc,
    /// Running Average Power Limit is off.
    RaplDisabled,
    /// The host does not see the ciphertext of guests' DRAM.
    CiphertextHiding,
    /// No two addresses alias one memory cell (BadRAM), checked since the last reset.
    AliasCheckComplete,
    /// Devices' writes through the IOMMU can't reach guests' private memory: IOMMU_WRITE_SAFE, seen on Turin.
    IommuWriteSafe,
    /// SEV-TIO is on.
    Tio,
}

impl PlatformBit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Smt,
        Self::Tsme,
        Self::Ecc,
        Self::RaplDisabled,
        Self::CiphertextHiding,
        Self::AliasCheckComplete,
        Self::IommuWriteSafe,
        Self::Tio,
    ];

    /// Its place in PLATFORM_INFO.
    pub fn mask(self) -> u64 {
        match self {
            Self::Smt => 1,
            Self::Tsme => 1 << 1,
            Self::Ecc => 1 << 2,
            Self::RaplDisabled => 1 << 3,
            Self::CiphertextHiding => 1 << 4,
            Self::AliasCheckComplete => 1 << 5,
            Self::IommuWriteSafe => 1 << 6,
            Self::Tio => 1 << 7,
        }
    }

    /// The name that policies have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smt => "smt",
            Self::Tsme => "tsme",
            Self::Ecc => "ecc",
            Self::RaplDisabled => "rapl-disabled",
            Self::CiphertextHiding => "ciphertext-hiding",
            Self::AliasCheckComplete => "alias-check-complete",
            Self::IommuWriteSafe => "iommu-write-safe",
            Self::Tio => "tio",
        }
    }
}

/// Fields by offset; every offset used is a constant inside a report.
struct Raw<'a>(&'a [u8; REPORT_SIZE]);

impl Raw<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn firmware(&self, at: usize) -> FirmwareVersion {
        let [build, minor, major] = self.array(at);
        FirmwareVersion { major, minor, build }
    }

    fn check_reserved(&self, version: u32) -> Result<(), Error> {
        let cpuid = if version >= 3 { 0x18b } else { 0x188 };
        let vectors = if version >= 5 { 0x208 } else { 0x1f8 };
        for range in [
            0x04c..0x050,
            cpuid..0x1a0,
            0x1eb..0x1ec,
            0x1ef..0x1f0,
            vectors..SIGNED,
        ] {
            if self.0[range.clone()].iter().any(|byte| *byte != 0) {
                return Err(Error::Reserved(range.start));
            }
        }
        Ok(())
    }

    fn check_fields(&self) -> Result<SigningKey, Error> {
        const ECDSA_P384_SHA384: u32 = 1;
        let refuse = |field, value: u64| Err(Error::Field { field, value });
        let (vmpl, algorithm, key_info) = (self.u32(0x030), self.u32(0x034), self.u32(0x048));
        if vmpl > 3 && vmpl != VMPL_HOST {
            return refuse("VMPL", vmpl.into());
        }
        if algorithm != ECDSA_P384_SHA384 {
            return refuse("SIGNATURE_ALGO", algorithm.into());
        }
        let known = PlatformBit::ALL.iter().fold(0, |known, bit| known | bit.mask());
        if self.u64(0x040) & !known != 0 {
            return refuse("PLATFORM_INFO", self.u64(0x040));
        }
        // AUTHOR_KEY_EN, MASK_CHIP_KEY, SIGNING_KEY.
        match (key_info >> 5, key_info >> 2 & 7) {
            (0, 0) => Ok(SigningKey::Vcek),
            (0, 1) => Ok(SigningKey::Vlek),
            (0, 7) => Ok(SigningKey::None),
            _ => refuse("SIGNING_KEY", key_info.into()),
        }
    }

    fn cpu(&self) -> Result<CpuModel, Error> {
        let [family, model] = self.array(0x188);
        cpu_model(family, model).ok_or(Error::Processor { family, model })
    }
}

/// The generation of a processor with this CPUID family and model (AMD 57230 §1.3; Bergamo and Siena are Genoa's).
pub fn cpu_model(family: u8, model: u8) -> Option<CpuModel> {
    match (family, model) {
        (0x19, 0x00..=0x0f) => Some(CpuModel::Milan),
        (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(CpuModel::Genoa),
        (0x1a, 0x00..=0x1f) => Some(CpuModel::Turin),
        _ => None,
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
pub(crate) mod report_test;
