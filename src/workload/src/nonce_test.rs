use super::*;
use crate::Hex;

#[test]
fn a_nonce_is_visible_text_of_some_length() {
    for good in ["0123456789abcdef", &"~".repeat(256), "!\"#$%&'()*+,-./:"] {
        assert_eq!(Nonce::parse(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        "0123456789abcde",
        &"x".repeat(257),
        "0123456789 abcdef",
        "0123456789abcdef\n",
        "0123456789abcdeé",
    ] {
        assert_eq!(Nonce::parse(bad), Err(NotANonce), "{bad:?}");
        assert!(serde_json::from_value::<Nonce>(bad.into()).is_err());
    }
}

#[test]
fn report_data_is_the_documented_hash() {
    // printf 'cwrun attest 1\0%s' 0123456789abcdef | sha512sum
    let expected = "0a93df158924cc7da67659774adbbfce8b3e17b275ba4f6edc058a6d5646e7358d5dcd85cc26230e5c0abf58cddf422265045d6e04c1230f455acfec736f50d8";
    let nonce = Nonce::parse("0123456789abcdef").unwrap();
    assert_eq!(Hex(nonce.report_data()).to_string(), expected);
}
