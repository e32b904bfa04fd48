use super::*;
use proptest::prelude::*;

#[test]
fn report_data_is_what_the_broker_expects_of_trustees_clients() {
    let key = GuestKey::generate().unwrap();
    let public = PublicKey::of(&key);
    for nonce in [
        "wKhuyJPfvDZuA9FFkAAMNyx7H2UfTh1h0kGpyBRcHLo=",
        "\"quo\\ted\u{1}\n\u{7f}ü/",
    ] {
        let message = attestation(nonce, &public, "{}").unwrap();
        let theirs: broker::protocol::Attestation = serde_json::from_str(&message).unwrap();
        assert_eq!(theirs.runtime_data.nonce, nonce);
        let expected = theirs
            .runtime_data
            .report_data(&theirs.tee_evidence.additional_evidence);
        assert_eq!(report_data(nonce, &public).unwrap(), expected[0]);
    }
}

#[test]
fn messages_are_those_of_the_protocol() {
    let request = serde_json::to_string(&Request::of(Tee::Sim)).unwrap();
    assert_eq!(request, r#"{"version":"0.4.0","tee":"sample","extra-params":""}"#);
    let key = GuestKey::generate().unwrap();
    let message = attestation("n", &PublicKey::of(&key), r#"{"attestation_report":1}"#).unwrap();
    let (x, y) = key.coordinates();
    assert_eq!(
        message,
        format!(
            "{{\"init-data\":null,\"runtime-data\":{{\"nonce\":\"n\",\"tee-pubkey\":{{\"alg\":\"ECDH-ES+A256KW\",\"crv\":\"P-256\",\
             \"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}}},\"tee-evidence\":{{\"additional_evidence\":\"\",\"primary_evidence\":\
             {{\"attestation_report\":1}}}}}}"
        )
    );
}

#[test]
fn a_challenge_has_a_nonce_and_the_sessions_cookie() {
    let parse = |body: &str, cookies: &[&str]| {
        Challenge::parse(body.as_bytes(), cookies.iter().copied())
            .map(|challenge| (challenge.nonce, challenge.cookie))
    };
    let cookies = [
        "other=1; Path=/",
        "kbs-session-id-2=3",
        "kbs-session-id=ab-12; Path=/; HttpOnly",
    ];
    let expected = ("bm9uY2U=".to_owned(), "kbs-session-id=ab-12".to_owned());
    let body = r#"{"nonce":"bm9uY2U=","extra-params":""}"#;
    assert_eq!(parse(body, &cookies), Ok(expected));
    assert_eq!(parse(body, &cookies[..2]), Err("it has no session cookie"));
    assert_eq!(parse("{}", &cookies), Err("it has no nonce"));
    assert_eq!(parse(r#"{"nonce":""}"#, &cookies), Err("its nonce is not one"));
    let long = format!(r#"{{"nonce":"{}"}}"#, "n".repeat(1025));
    assert_eq!(parse(&long, &cookies), Err("its nonce is not one"));
    for wrong in ["kbs-session-id=a b", "kbs-session-id=a,b", "kbs-session-id=\""] {
        assert_eq!(parse(body, &[wrong]), Err("its session cookie is not one"));
    }
}

#[test]
fn resources_have_three_names() {
    let resource = Resource::new("nginx-1", "secret", "tls.key").unwrap();
    assert_eq!(resource.target(), "/kbs/v0/resource/nginx-1/secret/tls.key");
    assert_eq!(Resource::of_target(&resource.target()), Some(resource));
    for target in [
        "/kbs/v0/resource/a/b",
        "/kbs/v0/resource/a/b/c/d",
        "/kbs/v0/resource/a/b/c?d",
        "/kbs/v0/resource/a/../c",
        "/kbs/v0/resource/a//c",
        "/kbs/v0/resource/a/b/%63",
        "/kbs/v0/key/a",
        "/admin/v0/workloads/a",
    ] {
        assert_eq!(Resource::of_target(target), None, "{target}");
    }
}

#[test]
fn a_brokers_words_are_shown_in_one_line_and_cut_short() {
    let said = ErrorInformation::parse(
        br#"{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"host-data:\u001b[31m\r\nother"}"#,
    );
    assert_eq!(said.kind, "PolicyDeny");
    assert_eq!(said.detail, "host-data: [31m  other");
    assert_eq!(ErrorInformation::parse(b"<html>"), ErrorInformation::default());
    let long = shown(&"x".repeat(1000));
    assert_eq!(long.chars().count(), MAX_SHOWN + 1);
}

proptest! {
    #[test]
    fn any_answer_is_an_error_or_a_challenge_that_can_be_sent_back(body in "\\PC{0,80}", cookie in "(kbs-session-id=)?\\PC{0,80}") {
        if let Ok(challenge) = Challenge::parse(body.as_bytes(), std::iter::once(&*cookie)) {
            prop_assert!(is_cookie(&challenge.cookie));
        }
        let said = ErrorInformation::parse(body.as_bytes());
        prop_assert!(!said.detail.chars().any(char::is_control));
    }
}
