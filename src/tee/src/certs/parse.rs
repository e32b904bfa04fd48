//! Certificates: parsed once, with the exact bytes that are signed kept beside.

use rsa::pkcs1::{DecodeRsaPublicKey, RsaPssParamsOwned};
use rsa::pss;
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256, Sha384};
use x509_cert::der::asn1::{BitStringRef, Ia5StringRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{self, Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::time::Time;

use super::{EndorsementKey, Error, Link, UnixTime};
use crate::ecdsa::PublicKey;
use crate::report::{SigningKey, Tcb};
use crate::vmsa::CpuModel;

/// The largest certificate, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 8 << 10;

/// The largest revocation list, in bytes of DER.
pub const MAX_CRL: usize = 1 << 20;

/// Length of AMD's RSA keys in bytes.
const RSA_SIZE: usize = 512;

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const MGF1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");

/// AMD's arc 1.3.6.1.4.1.3704.1 (AMD 57230, table 8).
mod amd {
    use super::ObjectIdentifier;
    pub const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
    pub const BL_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
    pub const TEE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
    pub const SNP_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
    pub const UCODE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
    pub const FMC_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
    pub const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
}

/// What is signed, by which algorithm, and the signature: the frame of certificates and revocation lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    /// The bytes that the signature covers.
    tbs: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// Splits DER whose signature is RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt, as all of AMD's are.
    pub(super) fn parse(bytes: &[u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(bytes)?;
        let (tbs, algorithm, signature) = reader.sequence(|reader| {
            Ok::<_, der::Error>((
                reader.tlv_bytes()?,
                reader.tlv_bytes()?,
                BitStringRef::decode(reader)?,
            ))
        })?;
        reader.finish()?;
        if !is_pss_sha384(algorithm)? {
            return Err(der::Error::from(der::ErrorKind::OidUnknown { oid: RSASSA_PSS }));
        }
        let signature = signature.as_bytes().unwrap_or_default().to_vec();
        Ok(Self {
            tbs: tbs.to_vec(),
            signature,
        })
    }

    /// Whether an RSA key of AMD's size signed it.
    fn is_by(&self, key: &rsa::PublicKey) -> bool {
        let Ok(signature) = pss::Signature::try_from(self.signature.as_slice()) else {
            return false;
        };
        pss::VerifyingKey::<Sha384>::new(key.clone())
            .verify(&self.tbs, &signature)
            .is_ok()
    }
}

fn is_pss_sha384(algorithm: &[u8]) -> der::Result<bool> {
    let algorithm = x509_cert::spki::AlgorithmIdentifierRef::from_der(algorithm)?;
    let Some(parameters) = algorithm.parameters else {
        return Ok(false);
    };
    let parameters: RsaPssParamsOwned = parameters.decode_as()?;
    let mgf_hash = parameters.mask_gen.parameters.as_ref().map(|hash| hash.oid);
    Ok(algorithm.oid == RSASSA_PSS
        && parameters.hash.oid == SHA384
        && parameters.mask_gen.oid == MGF1
        && mgf_hash == Some(SHA384)
        && parameters.salt_len == 48)
}

/// A certificate of a chain to a report.
#[derive(Debug, Clone)]
pub struct Certificate {
    bytes: Vec<u8>,
    parsed: x509_cert::Certificate,
    signed: Signed,
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Certificate {}

/// The certificates of a PEM file, at least one.
pub fn from_pem(text: &[u8], link: Link) -> Result<Vec<Certificate>, Error> {
    let wrong = |reason: String| Error::Format { link, reason };
    if text.len() > 16 * MAX_CERTIFICATE {
        return Err(wrong("it is too large".to_owned()));
    }
    let parsed = x509_cert::Certificate::load_pem_chain(text).map_err(|error| wrong(error.to_string()))?;
    if parsed.is_empty() {
        return Err(wrong("there is none".to_owned()));
    }
    let reread = |certificate: &x509_cert::Certificate| {
        let bytes = certificate.to_der().map_err(|error| wrong(error.to_string()))?;
        Certificate::from_der(&bytes, link)
    };
    parsed.iter().map(reread).collect()
}

impl Certificate {
    /// Reads DER. `link` is for messages only.
    pub fn from_der(bytes: &[u8], link: Link) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Format { link, reason };
        if bytes.len() > MAX_CERTIFICATE {
            return Err(wrong(format!("it is larger than {MAX_CERTIFICATE} bytes")));
        }
        let parsed = x509_cert::Certificate::from_der(bytes).map_err(|error| wrong(error.to_string()))?;
        let signed = Signed::parse(bytes).map_err(|error| wrong(error.to_string()))?;
        if parsed.signature_algorithm() != parsed.tbs_certificate().signature() {
            return Err(wrong("it names two different signature algorithms".to_owned()));
        }
        let certificate = Self {
            bytes: bytes.to_vec(),
            parsed,
            signed,
        };
        match certificate.unknown_critical_extension() {
            None => Ok(certificate),
            Some(oid) => Err(wrong(format!("extension {oid} is critical and not known"))),
        }
    }

    /// Reads DER, or the first certificate of a PEM file: evidence has either.
    pub fn from_either(bytes: &[u8], link: Link) -> Result<Self, Error> {
        match bytes.starts_with(b"-----BEGIN") {
            // `from_pem` returns one or more.
            true => Ok(from_pem(bytes, link)?.remove(0)),
            false => Self::from_der(bytes, link),
        }
    }

    /// As DER.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the DER, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        struct Hex([u8; 32]);
        impl std::fmt::Display for Hex {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                crate::hex::write(f, &self.0)
            }
        }
        Hex(Sha256::digest(&self.bytes).into()).to_string()
    }

    pub(super) fn serial(&self) -> &[u8] {
        self.parsed.tbs_certificate().serial_number().as_bytes()
    }

    pub(super) fn subject(&self) -> &x509_cert::name::Name {
        self.parsed.tbs_certificate().subject()
    }

    /// Whether it says that `issuer` issued it, which proves nothing yet.
    pub(super) fn names_issuer(&self, issuer: &Self) -> bool {
        self.parsed.tbs_certificate().issuer() == issuer.subject()
    }

    pub(super) fn check_issuer(&self, link: Link, issuer: &Self) -> Result<(), Error> {
        if !self.names_issuer(issuer) {
            return Err(Error::Issuer(link));
        }
        match issuer.has_signed(&self.signed) {
            true => Ok(()),
            false => Err(Error::Signature(link)),
        }
    }

    pub(super) fn has_signed(&self, signed: &Signed) -> bool {
        self.rsa_key().is_some_and(|key| signed.is_by(&key))
    }

    pub(super) fn check_time(&self, link: Link, now: UnixTime) -> Result<(), Error> {
        let validity = self.parsed.tbs_certificate().validity();
        match (unix(&validity.not_before)..=unix(&validity.not_after)).contains(&now) {
            true => Ok(()),
            false => Err(Error::Time(link)),
        }
    }

    /// Whether basic constraints and key usage let it issue certificates.
    pub(super) fn may_sign_certificates(&self) -> bool {
        let tbs = self.parsed.tbs_certificate();
        let constraints = tbs.get_extension::<BasicConstraints>();
        let usage = tbs.get_extension::<KeyUsage>();
        matches!(constraints, Ok(Some((_, constraints))) if constraints.ca)
            && matches!(usage, Ok(Some((_, usage))) if usage.key_cert_sign())
    }

    fn rsa_key(&self) -> Option<rsa::PublicKey> {
        let info = self.parsed.tbs_certificate().subject_public_key_info();
        if info.algorithm.oid != RSA_ENCRYPTION {
            return None;
        }
        let key = rsa::PublicKey::from_pkcs1_der(info.subject_public_key.as_bytes()?).ok()?;
        (key.size() == RSA_SIZE).then_some(key)
    }

    fn p384_key(&self) -> Option<PublicKey> {
        let info = self.parsed.tbs_certificate().subject_public_key_info();
        let curve = info
            .algorithm
            .parameters
            .as_ref()?
            .decode_as::<ObjectIdentifier>()
            .ok()?;
        if info.algorithm.oid != EC_PUBLIC_KEY || curve != P384 {
            return None;
        }
        PublicKey::from_sec1(info.subject_public_key.as_bytes()?).ok()
    }

    fn unknown_critical_extension(&self) -> Option<ObjectIdentifier> {
        let known = [
            BasicConstraints::OID,
            KeyUsage::OID,
            SubjectKeyIdentifier::OID,
            AuthorityKeyIdentifier::OID,
        ];
        let extensions = self.parsed.tbs_certificate().extensions()?;
        let unknown = |extension: &&x509_cert::ext::Extension| {
            extension.critical && !known.contains(&extension.extn_id)
        };
        extensions.iter().find(unknown).map(|extension| extension.extn_id)
    }

    /// The bytes of an extension that is there exactly once.
    fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.parsed.tbs_certificate().extensions()?;
        let mut found = extensions.iter().filter(|extension| extension.extn_id == oid);
        match (found.next(), found.next()) {
            (Some(extension), None) => Some(extension.extn_value.as_bytes()),
            _ => None,
        }
    }

    fn spl(&self, oid: ObjectIdentifier, name: &'static str) -> Result<u8, Error> {
        let bytes = self.extension(oid).ok_or(Error::Extension(name))?;
        u8::from_der(bytes).map_err(|_| Error::Extension(name))
    }

    /// What the certificate of a VCEK or VLEK says, for a processor of the root's generation.
    pub(super) fn endorsement_key(&self, cpu: CpuModel) -> Result<EndorsementKey, Error> {
        let key = self.p384_key().ok_or(Error::Extension("public key"))?;
        if self.product().ok_or(Error::Extension("product name"))? != cpu {
            return Err(Error::Extension("product name"));
        }
        let fmc = match cpu {
            CpuModel::Milan | CpuModel::Genoa => None,
            CpuModel::Turin => Some(self.spl(amd::FMC_SPL, "FMC SPL")?),
        };
        let tcb = Tcb {
            fmc,
            bootloader: self.spl(amd::BL_SPL, "boot loader SPL")?,
            tee: self.spl(amd::TEE_SPL, "TEE SPL")?,
            snp: self.spl(amd::SNP_SPL, "SNP SPL")?,
            microcode: self.spl(amd::UCODE_SPL, "microcode SPL")?,
        };
        let (kind, hwid) = match self.common_name().as_deref() {
            Some("SEV-VCEK") => (SigningKey::Vcek, Some(self.hwid(cpu)?)),
            Some("SEV-VLEK") => (SigningKey::Vlek, None),
            _ => return Err(Error::Extension("subject")),
        };
        Ok(EndorsementKey {
            key,
            kind,
            cpu,
            tcb,
            hwid,
        })
    }

    /// Whether its subject is that of a VLEK.
    pub(crate) fn is_vlek(&self) -> bool {
        self.common_name().as_deref() == Some("SEV-VLEK")
    }

    fn hwid(&self, cpu: CpuModel) -> Result<Vec<u8>, Error> {
        let length = match cpu {
            CpuModel::Milan | CpuModel::Genoa => 64,
            CpuModel::Turin => 8,
        };
        let bytes = self.extension(amd::HWID).ok_or(Error::Extension("hardware id"))?;
        match bytes.len() == length {
            true => Ok(bytes.to_vec()),
            false => Err(Error::Extension("hardware id")),
        }
    }

    /// "Milan-B0" and the like.
    fn product(&self) -> Option<CpuModel> {
        let name = Ia5StringRef::from_der(self.extension(amd::PRODUCT_NAME)?).ok()?;
        match name.as_str().split('-').next()? {
            "Milan" => Some(CpuModel::Milan),
            "Genoa" | "Bergamo" | "Siena" => Some(CpuModel::Genoa),
            "Turin" => Some(CpuModel::Turin),
            _ => None,
        }
    }

    fn common_name(&self) -> Option<String> {
        let name = self.subject().common_name().ok()??;
        Some(name.value().into_owned())
    }
}

/// A time as evidence is judged by it; ASN.1 has none before 1970.
pub(super) fn unix(time: &Time) -> UnixTime {
    UnixTime(time.to_unix_duration().as_secs())
}
