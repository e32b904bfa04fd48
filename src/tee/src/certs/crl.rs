//! Revocation lists of the roots: which signing keys are no longer theirs (RFC 5280 §5).

use x509_cert::crl::CertificateList;
use x509_cert::der::{self, Decode, Document};

use super::parse::{Signed, unix};
use super::{Certificate, Error, Link, MAX_CRL, UnixTime};

/// A revocation list, not verified yet.
#[derive(Debug, Clone)]
pub struct RevocationList {
    parsed: CertificateList,
    signed: Signed,
}

impl RevocationList {
    /// Reads DER or PEM.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Format {
            link: Link::Crl,
            reason,
        };
        if bytes.len() > MAX_CRL {
            return Err(wrong(format!("it is larger than {MAX_CRL} bytes")));
        }
        let der = match bytes.starts_with(b"-----BEGIN") {
            true => from_pem(bytes).map_err(|error| wrong(error.to_string()))?,
            false => bytes.to_vec(),
        };
        let parsed = CertificateList::from_der(&der).map_err(|error| wrong(error.to_string()))?;
        let signed = Signed::parse(&der).map_err(|error| wrong(error.to_string()))?;
        if parsed.signature_algorithm != parsed.tbs_cert_list.signature {
            return Err(wrong("it names two different signature algorithms".to_owned()));
        }
        Ok(Self { parsed, signed })
    }

    /// The list is `ark`'s, of this time, and `ask` is not on it.
    pub(super) fn check(&self, ark: &Certificate, ask: &Certificate, now: UnixTime) -> Result<(), Error> {
        let list = &self.parsed.tbs_cert_list;
        if list.issuer != *ark.subject() {
            return Err(Error::Issuer(Link::Crl));
        }
        if !ark.has_signed(&self.signed) {
            return Err(Error::Signature(Link::Crl));
        }
        let next = list.next_update.as_ref().map_or(UnixTime(u64::MAX), unix);
        if !(unix(&list.this_update)..=next).contains(&now) {
            return Err(Error::Time(Link::Crl));
        }
        let mut revoked = list.revoked_certificates.iter().flatten();
        match revoked.any(|entry| entry.serial_number.as_bytes() == ask.serial()) {
            true => Err(Error::Revoked(Link::Ask)),
            false => Ok(()),
        }
    }
}

fn from_pem(bytes: &[u8]) -> der::Result<Vec<u8>> {
    let text = std::str::from_utf8(bytes).map_err(|_| der::ErrorKind::Failed)?;
    let (label, document) = Document::from_pem(text)?;
    match label {
        "X509 CRL" => Ok(document.as_bytes().to_vec()),
        _ => Err(der::ErrorKind::Failed.into()),
    }
}
