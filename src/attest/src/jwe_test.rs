use super::*;
use proptest::prelude::*;
use serde_json::json;

const TEXT: &[u8] = b"sixty-four bytes of volume key, or whatever else somebody keeps.";

/// Encrypts as RFC 7516 §5.1 says, with anything else in the header.
fn seal(to: &PublicKey, text: &[u8], header: impl FnOnce(&mut Value)) -> Value {
    let ephemeral = SecretKey::try_generate().unwrap();
    let point = ephemeral.public_key().to_sec1_point(false);
    let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point.as_bytes()[range]);
    let mut said = json!({
        "alg": "ECDH-ES+A256KW", "enc": "A256GCM",
        "epk": {"kty": "EC", "crv": "P-256", "x": coordinate(1..33), "y": coordinate(33..65)},
    });
    header(&mut said);
    let party = |name: &str| URL_SAFE_NO_PAD.decode(said[name].as_str().unwrap_or("")).unwrap();
    let shared = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), to.as_affine());
    let key = concat_kdf(
        shared.raw_secret_bytes(),
        "ECDH-ES+A256KW",
        &party("apu"),
        &party("apv"),
        32,
    );
    let content_key = [0x5a; 32];
    let mut wrapped = [0; 40];
    KwAes256::new_from_slice(&key)
        .unwrap()
        .wrap_key(&content_key, &mut wrapped)
        .unwrap();
    let protected = URL_SAFE_NO_PAD.encode(said.to_string());
    let mut sealed = text.to_vec();
    let tag = Aes256Gcm::new(&content_key.into())
        .encrypt_inout_detached(
            &Nonce::from([3; 12]),
            protected.as_bytes(),
            sealed.as_mut_slice().into(),
        )
        .unwrap();
    json!({
        "protected": protected,
        "encrypted_key": URL_SAFE_NO_PAD.encode(wrapped),
        "iv": URL_SAFE_NO_PAD.encode([3; 12]),
        "ciphertext": URL_SAFE_NO_PAD.encode(sealed),
        "tag": URL_SAFE_NO_PAD.encode(tag),
    })
}

fn open(key: &GuestKey, jwe: &Value) -> Result<Vec<u8>, Error> {
    key.open(jwe.to_string().as_bytes()).map(|text| text.to_vec())
}

#[test]
fn the_key_derivation_gives_the_result_of_rfc_7518_appendix_c() {
    let shared = [
        158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163, 218,
        128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
    ];
    let key = concat_kdf(&shared, "A128GCM", b"Alice", b"Bob", 16);
    assert_eq!(URL_SAFE_NO_PAD.encode(&*key), "VqqN6vgjbSBcIijNcacQGg");
}

#[test]
fn what_was_encrypted_to_the_key_opens() {
    let key = GuestKey::generate().unwrap();
    let jwe = seal(&key.0.public_key(), TEXT, |_| ());
    assert_eq!(open(&key, &jwe).unwrap(), TEXT);
    let named = seal(&key.0.public_key(), b"", |header| {
        header["apu"] = json!("QWxpY2U");
        header["apv"] = json!("Qm9i");
        header["crit"] = Value::Null;
    });
    assert_eq!(open(&key, &named).unwrap(), b"");
}

#[test]
fn what_the_broker_encrypts_to_the_key_opens() {
    let key = GuestKey::generate().unwrap();
    let (x, y) = key.coordinates();
    let public = broker::protocol::TeePublicKey::EC {
        crv: CURVE.into(),
        alg: ALGORITHM.into(),
        x,
        y,
    };
    let theirs = broker::jwe::EncryptionKey::parse(&public).unwrap();
    let jwe = serde_json::to_vec(&theirs.encrypt(TEXT).unwrap()).unwrap();
    assert_eq!(*key.open(&jwe).unwrap(), TEXT);
}

#[test]
fn another_key_opens_nothing() {
    let (key, other) = (GuestKey::generate().unwrap(), GuestKey::generate().unwrap());
    let jwe = seal(&key.0.public_key(), TEXT, |_| ());
    assert_eq!(open(&other, &jwe), Err(Error::Unauthentic));
}

#[test]
fn other_algorithms_and_extensions_are_refused() {
    let key = GuestKey::generate().unwrap();
    let changes: [fn(&mut Value); 8] = [
        |header| header["alg"] = json!("ECDH-ES"),
        |header| header["alg"] = json!("dir"),
        |header| header["enc"] = json!("A128GCM"),
        |header| header["epk"]["crv"] = json!("P-521"),
        |header| header["epk"]["kty"] = json!("OKP"),
        |header| header["crit"] = json!(["exp"]),
        |header| header["zip"] = json!("DEF"),
        |header| drop(header.as_object_mut().unwrap().remove("epk")),
    ];
    for change in changes {
        let jwe = seal(&key.0.public_key(), TEXT, change);
        assert_eq!(open(&key, &jwe), Err(Error::Algorithm), "{jwe}");
    }
}

#[test]
fn points_that_are_not_on_the_curve_are_refused() {
    let key = GuestKey::generate().unwrap();
    for (x, y) in [([0; 32], [0; 32]), ([1; 32], [1; 32]), ([0xff; 32], [0xff; 32])] {
        let jwe = seal(&key.0.public_key(), TEXT, |header| {
            header["epk"]["x"] = json!(URL_SAFE_NO_PAD.encode(x));
            header["epk"]["y"] = json!(URL_SAFE_NO_PAD.encode(y));
        });
        assert_eq!(open(&key, &jwe), Err(Error::Point));
    }
    let short = seal(&key.0.public_key(), TEXT, |header| {
        header["epk"]["x"] = json!("AQ")
    });
    assert_eq!(open(&key, &short), Err(Error::Point));
}

#[test]
fn every_changed_bit_of_every_part_keeps_it_closed() {
    let key = GuestKey::generate().unwrap();
    let jwe = seal(&key.0.public_key(), b"key", |_| ());
    for part in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
        let bytes = URL_SAFE_NO_PAD.decode(jwe[part].as_str().unwrap()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut jwe = jwe.clone();
            jwe[part] = json!(URL_SAFE_NO_PAD.encode(changed));
            assert!(open(&key, &jwe).is_err(), "{part}, bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let key = GuestKey::generate().unwrap();
        prop_assert!(key.open(&bytes).is_err());
    }

    #[test]
    fn changed_texts_do_not_open_to_anything_else(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let key = GuestKey::generate().unwrap();
        let text = seal(&key.0.public_key(), TEXT, |_| ()).to_string().into_bytes();
        let mut changed = text.clone();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        if shorten {
            changed.truncate(cut.index(changed.len()));
        }
        // What is not part of the JWE (white space, say) may change.
        if let Ok(opened) = key.open(&changed) {
            prop_assert_eq!(&*opened, TEXT);
        }
    }
}
