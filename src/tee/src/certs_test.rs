//! Chains: AMD's own, the simulation's, and ones that were tampered with.

use proptest::prelude::*;

use super::*;
use crate::sim;
use crate::sim::sim_test::NOW;

const MILAN: &str = include_str!("../tests/vectors/milan-vcek.pem");
const MILAN_RENTED: &str = include_str!("../tests/vectors/milan-rented-vcek.pem");
const GENOA: &str = include_str!("../tests/vectors/genoa-vcek.pem");
const TURIN: &str = include_str!("../tests/vectors/turin-vcek.pem");
const EMPTY_LIST: &[u8] = include_bytes!("../tests/vectors/sim-crl-empty.pem");
const ASK_REVOKED: &[u8] = include_bytes!("../tests/vectors/sim-crl-ask.pem");

/// 2027-01-01: AMD's certificates here are valid from 2023 to 2026 on, for seven years.
pub(crate) const THEN: UnixTime = UnixTime(1_798_761_600);

pub(crate) fn one(pem: &str) -> Certificate {
    from_pem(pem.as_bytes(), Link::Vek).unwrap().remove(0)
}

/// A VCEK alone: its ASK and ARK are the pinned ones.
pub(crate) fn vcek(pem: &str) -> Chain {
    Chain {
        vek: Some(one(pem)),
        ask: None,
        ark: None,
    }
}

fn root(roots: Roots, cpu: CpuModel) -> (Certificate, Certificate) {
    let root = roots.all().iter().find(|root| root.cpu == cpu).unwrap();
    (root.ark.clone(), root.ask.clone())
}

#[test]
fn pinned_roots_sign_themselves_and_their_signing_keys() {
    for roots in [Roots::Amd, Roots::Sim] {
        for root in roots.all() {
            let Root { ark, ask, .. } = root;
            ark.check_issuer(Link::Ark, ark).unwrap();
            ask.check_issuer(Link::Ask, ark).unwrap();
            assert!(
                ark.may_sign_certificates() && ask.may_sign_certificates(),
                "{}",
                root.name
            );
        }
    }
}

#[test]
fn pinned_roots_are_amds() {
    let expected = [
        (
            "AMD's ARK-Milan",
            "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        ),
        (
            "AMD's ARK-Genoa",
            "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        ),
        (
            "AMD's ARK-Turin",
            "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
        ),
    ];
    assert_eq!(
        pinned(Roots::Amd),
        expected.map(|(name, digest)| (name, digest.to_owned()))
    );
}

#[test]
fn real_endorsement_keys_verify() {
    let tcb = |fmc, bootloader, snp, microcode| Tcb {
        fmc,
        bootloader,
        tee: 0,
        snp,
        microcode,
    };
    let keys = [
        (MILAN, CpuModel::Milan, tcb(None, 3, 8, 115), 64),
        (MILAN_RENTED, CpuModel::Milan, tcb(None, 2, 5, 68), 64),
        (GENOA, CpuModel::Genoa, tcb(None, 7, 11, 62), 64),
        (TURIN, CpuModel::Turin, tcb(Some(0), 0, 0, 9), 8),
    ];
    for (pem, cpu, tcb, hwid) in keys {
        let key = vcek(pem).verify(Roots::Amd, THEN, &[]).unwrap();
        assert_eq!((key.cpu, key.tcb, key.kind), (cpu, tcb, SigningKey::Vcek));
        assert_eq!(key.hwid.unwrap().len(), hwid);
    }
}

#[test]
fn a_chain_may_bring_the_certificates_that_are_pinned() {
    for (pem, cpu) in [
        (MILAN, CpuModel::Milan),
        (GENOA, CpuModel::Genoa),
        (TURIN, CpuModel::Turin),
    ] {
        let (ark, ask) = root(Roots::Amd, cpu);
        let chain = Chain {
            vek: Some(one(pem)),
            ask: Some(ask),
            ark: Some(ark),
        };
        chain.verify(Roots::Amd, THEN, &[]).unwrap();
    }
}

#[test]
fn one_products_root_does_not_vouch_for_another() {
    let (genoa_ark, genoa_ask) = root(Roots::Amd, CpuModel::Genoa);
    let other_ask = Chain {
        vek: Some(one(MILAN)),
        ask: Some(genoa_ask),
        ark: None,
    };
    assert_eq!(
        other_ask.verify(Roots::Amd, THEN, &[]),
        Err(Error::Root(Roots::Amd))
    );
    let other_ark = Chain {
        vek: Some(one(MILAN)),
        ask: None,
        ark: Some(genoa_ark),
    };
    assert_eq!(
        other_ark.verify(Roots::Amd, THEN, &[]),
        Err(Error::Root(Roots::Amd))
    );
}

#[test]
fn amds_keys_and_the_simulations_never_meet() {
    for pem in [MILAN, MILAN_RENTED, GENOA, TURIN] {
        assert_eq!(
            vcek(pem).verify(Roots::Sim, THEN, &[]),
            Err(Error::Root(Roots::Sim))
        );
    }
    assert_eq!(
        sim::chain().verify(Roots::Amd, NOW, &[]),
        Err(Error::Root(Roots::Amd))
    );
    assert!(sim::chain().verify(Roots::Sim, NOW, &[]).is_ok());
}

#[test]
fn a_signing_key_of_one_root_does_not_vouch_under_another() {
    let (ark, _) = root(Roots::Amd, CpuModel::Genoa);
    let chain = Chain {
        ark: Some(ark),
        ..sim::chain()
    };
    assert_eq!(chain.verify(Roots::Sim, NOW, &[]), Err(Error::Root(Roots::Sim)));
}

#[test]
fn certificates_have_their_time() {
    let at = |years: u64| vcek(MILAN).verify(Roots::Amd, UnixTime(years * 31_556_952), &[]);
    assert_eq!(at(50), Err(Error::Time(Link::Ark)));
    assert_eq!(at(52), Err(Error::Time(Link::Vek)));
    assert!(at(55).is_ok());
    assert_eq!(at(64), Err(Error::Time(Link::Vek)));
    assert!(vcek(MILAN).verify(Roots::Amd, UnixTime(u64::MAX), &[]).is_err());
    assert!(vcek(MILAN).verify(Roots::Amd, UnixTime(0), &[]).is_err());
}

#[test]
fn a_revoked_signing_key_is_refused() {
    let list = |bytes| RevocationList::parse(bytes).unwrap();
    let (empty, revoked) = (list(EMPTY_LIST), list(ASK_REVOKED));
    assert!(
        sim::chain()
            .verify(Roots::Sim, NOW, std::slice::from_ref(&empty))
            .is_ok()
    );
    assert_eq!(
        sim::chain().verify(Roots::Sim, NOW, &[empty, revoked]),
        Err(Error::Revoked(Link::Ask))
    );
}

#[test]
fn a_list_of_another_root_or_time_is_refused() {
    let list = RevocationList::parse(EMPTY_LIST).unwrap();
    assert_eq!(
        vcek(MILAN).verify(Roots::Amd, THEN, std::slice::from_ref(&list)),
        Err(Error::Issuer(Link::Crl))
    );
    let (ark, ask) = root(Roots::Sim, CpuModel::Genoa);
    assert_eq!(list.check(&ark, &ask, UnixTime(0)), Err(Error::Time(Link::Crl)));
}

#[test]
fn a_changed_list_is_refused() {
    let der = pem_bytes(ASK_REVOKED);
    let (ark, ask) = root(Roots::Sim, CpuModel::Genoa);
    for at in (0..der.len()).step_by(5) {
        let mut bytes = der.clone();
        bytes[at] ^= 0x01;
        if let Ok(list) = RevocationList::parse(&bytes) {
            assert!(list.check(&ark, &ask, NOW).is_err(), "byte {at}");
        }
    }
}

fn pem_bytes(pem: &[u8]) -> Vec<u8> {
    let (_, document) = x509_cert::der::Document::from_pem(std::str::from_utf8(pem).unwrap()).unwrap();
    document.as_bytes().to_vec()
}

#[test]
fn a_chain_without_an_endorsement_key_is_refused() {
    assert_eq!(
        Chain::default().verify(Roots::Amd, THEN, &[]),
        Err(Error::Missing)
    );
}

#[test]
fn a_signing_key_is_no_endorsement_key() {
    let (ark, ask) = root(Roots::Amd, CpuModel::Milan);
    let chain = Chain {
        vek: Some(ask),
        ask: Some(ark),
        ark: None,
    };
    assert!(chain.verify(Roots::Amd, THEN, &[]).is_err());
}

#[test]
fn an_endorsement_key_signs_no_certificates() {
    let chain = Chain {
        ask: Some(one(MILAN)),
        ..vcek(MILAN)
    };
    assert!(chain.verify(Roots::Amd, THEN, &[]).is_err());
}

#[test]
fn changed_bits_of_an_endorsement_key_are_refused() {
    let der = one(TURIN).bytes().to_vec();
    for at in (0..der.len()).step_by(5) {
        let mut bytes = der.clone();
        bytes[at] ^= 1 << (at % 8);
        let Ok(vek) = Certificate::from_der(&bytes, Link::Vek) else {
            continue;
        };
        let chain = Chain {
            vek: Some(vek),
            ask: None,
            ark: None,
        };
        assert!(chain.verify(Roots::Amd, THEN, &[]).is_err(), "byte {at}");
    }
}

#[test]
fn large_certificates_are_not_looked_at() {
    let error = Certificate::from_der(&vec![0; MAX_CERTIFICATE + 1], Link::Ask).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the certificate of the ASK is not valid: it is larger than 8192 bytes"
    );
    assert!(RevocationList::parse(&vec![0; MAX_CRL + 1]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Certificate::from_either(&bytes, Link::Vek);
        let _ = RevocationList::parse(&bytes);
        let pem = [b"-----BEGIN CERTIFICATE-----\n".as_slice(), &bytes].concat();
        let _ = Certificate::from_either(&pem, Link::Vek);
        let _ = RevocationList::parse(&pem);
    }

    #[test]
    fn certificates_cut_and_spliced_end(at in 0usize..1300, bytes in prop::collection::vec(any::<u8>(), 0..8)) {
        let mut der = one(MILAN).bytes().to_vec();
        let at = at.min(der.len());
        der.splice(at..at, bytes);
        let _ = Certificate::from_der(&der, Link::Vek);
        der.truncate(at);
        let _ = Certificate::from_der(&der, Link::Vek);
    }
}
