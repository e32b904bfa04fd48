//! Documents as `buildah mkcw` writes them, and others.

use super::*;

const REAL: &str = r#"{"created":"2026-11-22T06:18:55Z","architecture":"amd64","os":"linux","config":{"User":"nobody",
    "ExposedPorts":{"80":{}},"Env":["PATH=/bin","SPACED=two words","EMPTY="],"Entrypoint":["/bin/busybox"],
    "Cmd":["echo","hello"],"Volumes":{"/data":{}},"WorkingDir":"/home","Labels":{"a":"b"}},
    "rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{"created":"2026-11-22T06:18:55Z"}]}"#;

fn message(json: &str) -> String {
    let error = InnerConfig::parse(json.as_bytes()).expect_err("an error");
    match &error {
        Error::Inner(cause) => cause.to_string(),
        Error::Json { source, .. } => source.to_string(),
        _ => panic!("{error:?}"),
    }
}

#[test]
fn a_real_one() {
    let config = InnerConfig::parse(REAL.as_bytes()).unwrap();
    assert_eq!(config.args(), ["/bin/busybox", "echo", "hello"]);
    assert_eq!(config.env, ["PATH=/bin", "SPACED=two words", "EMPTY="]);
    assert_eq!((&*config.user, &*config.working_dir), ("nobody", "/home"));
}

#[test]
fn what_may_be_missing() {
    for json in [
        r#"{"config":{}}"#,
        r#"{"config":{"Cmd":null,"Env":null,"Entrypoint":null,"WorkingDir":""}}"#,
    ] {
        let config = InnerConfig::parse(json.as_bytes()).unwrap();
        assert!(config.args().is_empty() && config.env.is_empty() && config.user.is_empty());
        assert_eq!(config.working_dir, "/");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (json, expected) in [
        (
            r#"{"config":{"WorkingDir":"home"}}"#,
            "config.WorkingDir is \"home\" and should be an absolute path",
        ),
        (
            r#"{"config":{"Env":["A=b","C"]}}"#,
            "config.Env[1] is \"C\" and should be NAME=value",
        ),
        (
            r#"{"config":{"Env":["=b"]}}"#,
            "config.Env[0] is \"=b\" and should be NAME=value",
        ),
        (
            r#"{"config":{"Cmd":["a","b\u0000c"]}}"#,
            "config.Cmd[1] is \"b\\0c\" and should be text without a NUL",
        ),
        (
            r#"{"config":{"User":"a\nb"}}"#,
            "config.User is \"a\\nb\" and should be printable text",
        ),
    ] {
        assert_eq!(message(json), expected);
    }
    for (json, expected) in [
        ("{}", "missing field `config`"),
        (r#"{"config":{"Cmd":"sh"}}"#, "expected a sequence"),
        (r#"{"config":{"Cmd":["a"],"Cmd":["b"]}}"#, "duplicate field `Cmd`"),
        (r#"{"config":{},"config":{}}"#, "duplicate field `config`"),
        (r#"{"config":{}} x"#, "trailing characters"),
        ("", "EOF"),
    ] {
        assert!(message(json).contains(expected), "{}", message(json));
    }
    let nested = format!(r#"{{"history":{}"#, "[".repeat(100_000));
    assert!(message(&nested).contains("EOF")); // skipped without recursion
    assert!(message(&" ".repeat(MAX_INNER_CONFIG + 1)).contains("length is 1048577 bytes"));
}
