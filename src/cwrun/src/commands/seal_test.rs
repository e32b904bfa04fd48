use super::*;

#[test]
fn rules_are_those_of_the_workload_and_exec() {
    assert_eq!(parse_rule("exec"), Ok(Rule::Exec));
    assert_eq!(parse_rule("args"), Ok(Rule::Change(Allow::Args)));
    assert!(parse_rule("volume:/x").unwrap_err().ends_with(", or exec"));
}

#[test]
fn a_secret_goes_to_a_variable_or_a_file() {
    let user = workload::User {
        uid: 5,
        gid: 6,
        ..workload::User::default()
    };
    let place = |text: &str| parse_secret(text).unwrap().for_user(&user).place;
    let file = |path: &str, mode, uid, gid| SecretPlace::File {
        path: path.to_owned(),
        mode,
        uid,
        gid,
    };
    assert_eq!(
        place("t=env:TOKEN"),
        SecretPlace::Variable {
            name: "TOKEN".to_owned()
        }
    );
    assert_eq!(place("t=/run/t"), file("/run/t", 0o400, 5, 6));
    assert_eq!(place("t=/run/t,mode=0444,owner=1:2"), file("/run/t", 0o444, 1, 2));
    for text in [
        "",
        "t",
        "t=",
        "t=run",
        "a/b=/x",
        "t=/x/",
        "t=/../x",
        "t=env:",
        "t=env:A B",
        "t=/x,mode=4755",
        "t=/x,mode=9",
        "t=/x,owner=1",
        "t=/x,owner=a:b",
        "t=/x,else",
    ] {
        let error = parse_secret(text).unwrap_err();
        assert!(error.contains("expected NAME=env:VARIABLE"), "{text}: {error}");
    }
    assert!(parse_secret_file("a=b").is_ok());
    assert!(
        ["a", "a=", "/=x"]
            .iter()
            .all(|text| parse_secret_file(text).is_err())
    );
}

#[test]
fn values_belong_to_secrets() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "value").unwrap();
    let secrets = [parse_secret("a=/x").unwrap()];
    let of = |name: &str| (name.to_owned(), file.path().to_owned());
    assert_eq!(values(&secrets, &[of("a")]).unwrap()["a"].as_bytes(), b"value");
    assert!(values(&secrets, &[]).unwrap().is_empty());
    assert!(values(&secrets, &[of("b")]).is_err());
    assert!(values(&secrets, &[of("a"), of("a")]).is_err());
}

#[test]
fn a_default_id_is_one_that_brokers_take() {
    let hash = [0xab; 32];
    assert_eq!(default_id("oci:/a/nginx.tar:latest", &hash), "nginx-abababababab");
    assert_eq!(default_id("docker-archive:x y!.tar", &hash), "xy-abababababab");
    assert_eq!(default_id("/", &hash), "workload-abababababab");
    let long = default_id(&format!("oci:{}", "n".repeat(200)), &hash);
    assert!(is_id(&long), "{long}");
}
