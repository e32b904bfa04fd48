use super::*;
use aes_gcm::aead::Aead as _;
use aes_gcm::aead::Payload;
use p256::SecretKey;
use proptest::prelude::*;
use rsa::PrivateKey as RsaPrivateKey;

fn ec(x: &str, y: &str) -> TeePublicKey {
    TeePublicKey::EC {
        crv: "P-256".into(),
        alg: ECDH_ES_A256KW.into(),
        x: x.into(),
        y: y.into(),
    }
}

fn public(secret: &SecretKey) -> TeePublicKey {
    let point = secret.public_key().to_sec1_point(false);
    ec(
        &URL_SAFE_NO_PAD.encode(point.x().unwrap()),
        &URL_SAFE_NO_PAD.encode(point.y().unwrap()),
    )
}

/// Opens what the broker made, through the types of the kbs-types crate. trustee's client takes as additional data what it writes of the
/// header that it has read, and not what it was sent: the two must be the same text.
fn open(jwe: &Jwe, unwrap: impl Fn(&kbs_types::Response) -> Vec<u8>) -> Option<Vec<u8>> {
    let text = serde_json::to_string(jwe).unwrap();
    let response: kbs_types::Response = serde_json::from_str(&text).unwrap();
    let content_key = unwrap(&response);
    let mut sealed = response.ciphertext.clone();
    sealed.extend(&response.tag);
    let iv: [u8; 12] = response.iv[..].try_into().unwrap();
    let aad = response.protected.generate_aad().unwrap();
    Aes256Gcm::new_from_slice(&content_key)
        .unwrap()
        .decrypt(
            &iv.into(),
            Payload {
                msg: &sealed,
                aad: &aad,
            },
        )
        .ok()
}

fn unwrap_ec(secret: &SecretKey, response: &kbs_types::Response) -> Vec<u8> {
    let epk = &response.protected.other_fields["epk"];
    let mut sec1 = vec![4];
    for coordinate in ["x", "y"] {
        sec1.extend(URL_SAFE_NO_PAD.decode(epk[coordinate].as_str().unwrap()).unwrap());
    }
    let epk = p256::PublicKey::from_sec1_bytes(&sec1).unwrap();
    let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), epk.as_affine());
    let key = concat_kdf(shared.raw_secret_bytes(), ECDH_ES_A256KW, b"", b"", 32);
    let mut content_key = vec![0; 32];
    KwAes256::new_from_slice(&key)
        .unwrap()
        .unwrap_key(&response.encrypted_key, &mut content_key)
        .unwrap();
    content_key
}

#[test]
fn the_key_derivation_gives_the_result_of_rfc_7518_appendix_c() {
    let shared: [u8; 32] = [
        158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163, 218,
        128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
    ];
    let key = concat_kdf(&shared, "A128GCM", b"Alice", b"Bob", 16);
    assert_eq!(URL_SAFE_NO_PAD.encode(&*key), "VqqN6vgjbSBcIijNcacQGg");
}

#[test]
fn the_owner_of_a_p256_key_opens_what_was_encrypted_to_it() {
    let secret = SecretKey::try_generate().unwrap();
    let jwe = EncryptionKey::parse(&public(&secret))
        .unwrap()
        .encrypt(b"volume key")
        .unwrap();
    let opened = open(&jwe, |response| {
        assert_eq!(response.protected.alg, "ECDH-ES+A256KW");
        assert_eq!(response.protected.enc, "A256GCM");
        unwrap_ec(&secret, response)
    });
    assert_eq!(opened.unwrap(), b"volume key");
}

#[test]
fn the_owner_of_an_rsa_key_opens_what_was_encrypted_to_it() {
    let secret = RsaPrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let key = TeePublicKey::RSA {
        alg: RSA_OAEP_256.into(),
        n: URL_SAFE_NO_PAD.encode(secret.n().to_be_bytes_trimmed_vartime()),
        e: URL_SAFE_NO_PAD.encode(secret.e().to_be_bytes_trimmed_vartime()),
    };
    let jwe = EncryptionKey::parse(&key)
        .unwrap()
        .encrypt(b"volume key")
        .unwrap();
    let opened = open(&jwe, |response| {
        assert_eq!(response.protected.alg, "RSA-OAEP-256");
        secret
            .decrypt(Oaep::<Sha256>::new(), &response.encrypted_key)
            .unwrap()
    });
    assert_eq!(opened.unwrap(), b"volume key");
}

#[test]
fn an_altered_header_or_ciphertext_does_not_open() {
    let secret = SecretKey::try_generate().unwrap();
    let key = EncryptionKey::parse(&public(&secret)).unwrap();
    let mut jwe = key.encrypt(b"volume key").unwrap();
    jwe.ciphertext
        .replace_range(..1, if jwe.ciphertext.starts_with('A') { "B" } else { "A" });
    assert_eq!(open(&jwe, |response| unwrap_ec(&secret, response)), None);
    let mut jwe = key.encrypt(b"volume key").unwrap();
    let header = String::from_utf8(URL_SAFE_NO_PAD.decode(&jwe.protected).unwrap()).unwrap();
    jwe.protected = URL_SAFE_NO_PAD.encode(header.replace("A256GCM", "A128GCM"));
    assert_eq!(open(&jwe, |response| unwrap_ec(&secret, response)), None);
}

#[test]
fn keys_that_are_none_are_refused() {
    let point = |x, y| EncryptionKey::parse(&ec(x, y)).unwrap_err();
    let zero = URL_SAFE_NO_PAD.encode([0; 32]);
    let one = URL_SAFE_NO_PAD.encode([1; 32]);
    for (x, y) in [
        ("", ""),
        ("!", "!"),
        (&*zero, &*zero),
        (&*one, &*one),
        ("AQ", "AQ"),
    ] {
        assert_eq!(point(x, y), Error::Point);
    }
    let rsa = |n: &[u8], e: &[u8]| parse_rsa(n, e).unwrap_err();
    let mut modulus = vec![0xff; 256];
    let wrong: [(&[u8], &[u8]); 7] = [
        (&[], &[]),
        (&[0xff; 128], &[3]),
        (&[0xff; 513], &[3]),
        (&modulus, &[0]),
        (&modulus, &[1]),
        (&modulus, &[2]),
        (&modulus, &[0xff; 9]),
    ];
    for (n, e) in wrong {
        assert_eq!(rsa(n, e), Error::Rsa);
    }
    modulus[255] = 0xfe;
    assert_eq!(rsa(&modulus, &[3]), Error::Rsa, "an even modulus");
    let wrong = EncryptionKey::parse(&TeePublicKey::RSA {
        alg: "RSA1_5".into(),
        n: String::new(),
        e: String::new(),
    });
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "tee-pubkey is for \"RSA1_5\" with RSA, and should be EC P-256 for ECDH-ES+A256KW or RSA for RSA-OAEP-256"
    );
}

proptest! {
    #[test]
    fn any_text_as_a_key_is_an_error_or_a_key_and_never_a_panic(x in "[A-Za-z0-9_-]{0,90}", y in "[A-Za-z0-9_-]{0,90}") {
        let _ = EncryptionKey::parse(&ec(&x, &y));
        let _ = EncryptionKey::parse(&TeePublicKey::RSA { alg: RSA_OAEP_256.into(), n: x, e: y });
    }

    #[test]
    fn any_numbers_as_an_rsa_key_are_an_error_or_encrypt(n in prop::collection::vec(any::<u8>(), 0..520), e in prop::collection::vec(any::<u8>(), 0..9)) {
        if let Ok(key) = parse_rsa(&n, &e) {
            let _ = EncryptionKey::Rsa(key).encrypt(b"x");
        }
    }
}
