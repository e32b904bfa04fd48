//! The software TEE: reports with the layout of real ones, signed by a chain that everybody has the key of. **It protects
//! nothing.** It is there so that everything around a TEE runs on any machine; [`crate::certs::Roots::Sim`] accepts it, and
//! [`crate::certs::Roots::Amd`] never does.

use p384::NonZeroScalar;

use crate::certs::{Chain, Link, from_pem};
use crate::ecdsa::{PublicKey, Signature};
use crate::evidence::Evidence;
use crate::hex;
use crate::launch::{LaunchDigest, Policy};
use crate::report::{ChipId, HostData, KeyDigest, REPORT_SIZE, Report, ReportData, SIGNED, Tcb};

/// What a launch leaves in the software TEE: all that a report says of a guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The launch digest.
    pub measurement: LaunchDigest,
    /// What the host said at launch.
    pub host_data: HostData,
    /// The policy of the launch.
    pub policy: Policy,
    /// From the ID block: family, image, security version and the digests of the keys that signed.
    pub identity: Option<Identity>,
}

/// What an ID block adds to reports.
#[derive(Debug, Clone)]
pub struct Identity {
    /// FAMILY_ID.
    pub family_id: [u8; 16],
    /// IMAGE_ID.
    pub image_id: [u8; 16],
    /// GUEST_SVN.
    pub guest_svn: u32,
    /// Digest of the ID key.
    pub id_key: KeyDigest,
    /// Digest of the author key, if there is one.
    pub author_key: Option<KeyDigest>,
}

/// The software TEE's security versions: those that its VCEK is for.
pub const TCB: Tcb = Tcb {
    fmc: None,
    bootloader: 10,
    tee: 0,
    snp: 23,
    microcode: 84,
};

/// The software TEE's processor: CPUID family, model and stepping of a Genoa.
const CPUID: [u8; 3] = [0x19, 0x11, 0x01];

/// Firmware 1.55, build 39.
const FIRMWARE: [u8; 3] = [39, 55, 1];

const VERSION: u32 = 3;
const ECDSA_P384_SHA384: u32 = 1;

/// The software TEE's CHIP_ID.
pub fn chip_id() -> ChipId {
    let mut id = [0; 64];
    id[..9].copy_from_slice(b"cwrun-sim");
    ChipId(id)
}

impl Guest {
    /// Evidence of this guest, as its firmware would give it to VMPL 0.
    pub fn attest(&self, report_data: ReportData) -> Evidence {
        self.attest_at(report_data, 0)
    }

    /// The report of that evidence.
    pub fn report(&self, report_data: ReportData) -> [u8; REPORT_SIZE] {
        sign(self.unsigned(report_data, 0))
    }

    /// Evidence for a VMPL, which must be 0 to 3.
    fn attest_at(&self, report_data: ReportData, vmpl: u32) -> Evidence {
        let bytes = sign(self.unsigned(report_data, vmpl));
        // Every field above is one that reports have.
        Evidence {
            report: Report::parse(&bytes).expect("simulated reports are valid"),
            chain: chain(),
        }
    }

    fn unsigned(&self, report_data: ReportData, vmpl: u32) -> [u8; REPORT_SIZE] {
        let mut bytes = [0; REPORT_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0x000, &VERSION.to_le_bytes());
        put(0x008, &self.policy.bits().to_le_bytes());
        put(0x030, &vmpl.to_le_bytes());
        put(0x034, &ECDSA_P384_SHA384.to_le_bytes());
        put(0x050, &report_data.0);
        put(0x090, &self.measurement.0);
        put(0x0c0, &self.host_data.0);
        if let Some(identity) = &self.identity {
            put(0x004, &identity.guest_svn.to_le_bytes());
            put(0x010, &identity.family_id);
            put(0x020, &identity.image_id);
            put(0x048, &u32::from(identity.author_key.is_some()).to_le_bytes());
            put(0x0e0, &identity.id_key.0);
            put(0x110, &identity.author_key.map_or([0; 48], |digest| digest.0));
        }
        for at in [0x038, 0x180, 0x1e0, 0x1f0] {
            put(at, &TCB.to_raw().to_le_bytes());
        }
        put(0x188, &CPUID);
        put(0x1a0, &chip_id().0);
        put(0x1e8, &FIRMWARE);
        put(0x1ec, &FIRMWARE);
        bytes
    }
}

/// Signs the signed part of a report.
fn sign(mut bytes: [u8; REPORT_SIZE]) -> [u8; REPORT_SIZE] {
    let signature = Signature::sign(&key(), &bytes[..SIGNED]);
    bytes[SIGNED..].copy_from_slice(&signature.to_bytes());
    bytes
}

/// The key that signs; everybody has it.
fn key() -> NonZeroScalar {
    let bytes: [u8; 48] =
        hex::parse(include_str!("../sim/vcek.scalar").trim_end()).expect("the simulation's key is valid");
    NonZeroScalar::try_from(&bytes[..]).expect("the simulation's key is valid")
}

/// The chain of the software TEE.
pub fn chain() -> Chain {
    let one = |pem: &str, link| {
        let certificates = from_pem(pem.as_bytes(), link).expect("the simulation's certificates are valid");
        certificates.into_iter().next()
    };
    Chain {
        vek: one(include_str!("../sim/vcek.pem"), Link::Vek),
        ask: one(include_str!("../sim/ask.pem"), Link::Ask),
        ark: one(include_str!("../sim/ark.pem"), Link::Ark),
    }
}

/// The public half of the key that signs.
pub fn public_key() -> PublicKey {
    PublicKey::of(&key())
}

#[cfg(test)]
#[path = "sim_test.rs"]
pub(crate) mod sim_test;
