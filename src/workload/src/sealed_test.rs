use super::*;
use crate::document::tests::sample;
use crate::{Blob, Device, InjectedFile, RootFs, Tee, TeeKind, Volume};
use proptest::prelude::*;

fn sealed() -> Workload {
    Workload {
        tee: Some(Tee {
            kind: TeeKind::Snp,
            exec: false,
        }),
        sealed: Some(Sealed {
            id: "nginx-1".into(),
            allow: [
                "args",
                "env:LANG",
                "env:KUBERNETES_*",
                "file:/etc/nginx/site.conf",
            ]
            .map(|rule| rule.parse().unwrap())
            .into(),
            secrets: vec![
                Secret {
                    name: "tls.key".into(),
                    place: SecretPlace::File {
                        path: "/run/secrets/tls.key".into(),
                        mode: 0o400,
                        uid: 33,
                        gid: 33,
                    },
                    mac: Some(Secret::mac_of(&DISK_KEY, "tls.key", b"a private key")),
                },
                Secret {
                    name: "token".into(),
                    place: SecretPlace::Variable { name: "TOKEN".into() },
                    mac: None,
                },
            ],
        }),
        ..sample()
    }
}

const DISK_KEY: [u8; 64] = [7; 64];

fn of(workload: &mut Workload) -> &mut Sealed {
    workload.sealed.as_mut().unwrap()
}

fn file(destination: &str) -> InjectedFile {
    InjectedFile {
        destination: destination.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        readonly: false,
        content: Blob(b"x".to_vec()),
    }
}

fn changing(changes: Changes) -> Environment {
    Environment {
        changes,
        ..Environment::default()
    }
}

#[test]
fn being_sealed_is_part_of_the_identity_and_has_one_form() {
    let workload = sealed();
    let bytes = workload.to_bytes();
    assert_eq!(Workload::from_bytes(&bytes).unwrap(), workload);
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.contains(
            r#""sealed":{"allow":["args","env:KUBERNETES_*","env:LANG","file:/etc/nginx/site.conf"],"id":"nginx-1","secrets":[{"mac":"f77bece2937614cd26fc5224fdcdf5216b8e3f9cfc847ebcdf44dcde88498346","name":"tls.key","place":{"gid":33,"kind":"file","mode":256,"path":"/run/secrets/tls.key","uid":33}},{"name":"token","place":{"kind":"variable","name":"TOKEN"}}]}"#
        ),
        "{text}"
    );
    let reordered = text.replace(r#""args","env:KUBERNETES_*""#, r#""env:KUBERNETES_*","args""#);
    assert!(matches!(
        Workload::from_bytes(reordered.as_bytes()),
        Err(Error::NotCanonical)
    ));
    let mut other = workload.clone();
    of(&mut other).allow.insert(Allow::Terminal);
    assert_ne!(other.digest(), workload.digest());
    // One that is not sealed does not say so.
    assert!(!String::from_utf8(sample().to_bytes()).unwrap().contains("sealed"));
}

/// The field at fault, and how to spoil it.
type Spoiled = (&'static str, fn(&mut Workload));

#[test]
fn what_no_sealed_workload_has_is_refused() {
    fn place(workload: &mut Workload, index: usize, place: SecretPlace) {
        of(workload).secrets[index].place = place;
    }
    fn file(path: &str, mode: u32) -> SecretPlace {
        let path = path.into();
        SecretPlace::File {
            path,
            mode,
            uid: 0,
            gid: 0,
        }
    }
    fn variable(name: &str) -> SecretPlace {
        SecretPlace::Variable { name: name.into() }
    }
    let cases: [Spoiled; 20] = [
        ("tee", |w| w.tee = None),
        ("sealed.allow", |w| {
            // Its rules are about arguments and variables.
            w.root = RootFs::Mkcw { header: Hex([0; 32]) }
        }),
        ("devices", |w| {
            w.devices.push(Device {
                path: "/dev/sda".into(),
                kind: DeviceKind::Disk { number: 0 },
                mode: 0o600,
                uid: 0,
                gid: 0,
            })
        }),
        ("sealed.id", |w| of(w).id = String::new()),
        ("sealed.id", |w| of(w).id = "x".repeat(65)),
        ("sealed.id", |w| of(w).id = "../admin".into()),
        ("sealed.id", |w| of(w).id = ".hidden".into()),
        ("sealed.allow", |w| {
            of(w).allow = (0..257).map(|n| Allow::Env(format!("V{n}"))).collect()
        }),
        ("sealed.secrets", |w| {
            let secret = of(w).secrets[0].clone();
            of(w).secrets = vec![secret; 65];
        }),
        ("sealed.secrets", |w| of(w).secrets[0].name = "a/b".into()),
        ("sealed.secrets", |w| place(w, 0, file("run/key", 0o400))),
        ("sealed.secrets", |w| place(w, 0, file("/run/../key", 0o400))),
        ("sealed.secrets", |w| place(w, 0, file("/run//key", 0o400))),
        ("sealed.secrets", |w| place(w, 0, file("/run/key", 0o4755))),
        ("sealed.secrets", |w| place(w, 0, file("/etc/hosts", 0o400))),
        ("sealed.secrets", |w| {
            place(w, 0, file("/etc/nginx/site.conf", 0o400))
        }),
        ("sealed.secrets", |w| place(w, 1, variable("A=B"))),
        ("sealed.secrets", |w| place(w, 1, variable("1A"))),
        ("sealed.secrets", |w| place(w, 1, variable("PATH"))),
        ("sealed.secrets", |w| place(w, 0, variable("TOKEN"))),
    ];
    for (expected, spoil) in cases {
        let mut workload = sealed();
        spoil(&mut workload);
        match Workload::from_bytes(&workload.to_bytes()) {
            Err(Error::Field { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn a_rule_is_exactly_what_it_says() {
    for text in [
        "args",
        "cwd",
        "terminal",
        "env:*",
        "env:A",
        "env:_a1",
        "env:A_*",
        "file:/a",
        "file:/a/b:c",
    ] {
        let rule: Allow = text.parse().unwrap();
        assert_eq!(rule.to_string(), text);
    }
    for text in [
        "",
        "Args",
        "args:",
        "env",
        "env:",
        "env:1",
        "env:A-B",
        "env:A*B",
        "env:**",
        "file:",
        "file:a",
        "file:/",
        "file:/a/",
        "file:/a/../b",
        "file:/./a",
        "volume:/a",
        "exec",
        "hostname",
    ] {
        let error = text.parse::<Allow>().unwrap_err();
        assert!(error.to_string().contains("is no rule"), "{error}");
    }
}

#[test]
fn what_is_allowed_is_what_runs() {
    let mut workload = sealed();
    let environment = Environment {
        files: CUSTOMARY_FILES
            .map(file)
            .into_iter()
            .chain([file("/etc/nginx/site.conf")])
            .collect(),
        ..changing(Changes {
            args: Some(vec!["ls".into(), "/".into()]),
            env: vec!["LANG=C".into(), "KUBERNETES_PORT=1".into(), "LANG=D=E".into()],
            ..Changes::default()
        })
    };
    workload.admit(&environment).unwrap();
    assert_eq!(workload.process.args, ["ls", "/"]);
    assert_eq!(
        workload.process.env,
        ["PATH=/bin", "LANG=D=E", "KUBERNETES_PORT=1"]
    );
    let mut unchanged = sealed();
    unchanged.admit(&Environment::default()).unwrap();
    assert_eq!(unchanged, sealed());
}

#[test]
fn a_terminal_brings_its_name_along() {
    let mut workload = sealed();
    of(&mut workload).allow.insert(Allow::Terminal);
    let terminal = |terminal| {
        changing(Changes {
            terminal: Some(terminal),
            ..Changes::default()
        })
    };
    let mut without = workload.clone();
    without.admit(&terminal(false)).unwrap();
    assert_eq!(without, workload);
    workload.admit(&terminal(true)).unwrap();
    assert!(workload.process.terminal);
    assert_eq!(workload.process.env, ["PATH=/bin", "TERM=xterm"]);
}

#[test]
fn a_variable_that_is_there_is_changed_in_its_place() {
    let mut workload = sealed();
    of(&mut workload).allow.insert("env:*".parse().unwrap());
    let env = vec!["PATH=/opt".into(), "B=1".into()];
    workload
        .admit(&changing(Changes {
            env,
            ..Changes::default()
        }))
        .unwrap();
    assert_eq!(workload.process.env, ["PATH=/opt", "B=1"]);
}

#[test]
fn what_is_not_allowed_is_an_error_that_names_it() {
    let env = |variable: &str| {
        changing(Changes {
            env: vec![variable.into()],
            ..Changes::default()
        })
    };
    let args = |args: &[&str]| {
        changing(Changes {
            args: Some(args.iter().map(|&arg| arg.into()).collect()),
            ..Changes::default()
        })
    };
    let files = |file| Environment {
        files: vec![file],
        ..Environment::default()
    };
    let cases = [
        (env("LD_PRELOAD=/x"), "no rule \"env:LD_PRELOAD\""),
        (env("LANGUAGE=C"), "no rule \"env:LANGUAGE\""),
        (env("TOKEN=guessed"), "TOKEN, which is a secret's"),
        (env("=x"), "without a name"),
        (env("LANG"), "without a name or a value"),
        (env("LANG=a\0b"), "NUL byte"),
        (args(&[]), "names no program"),
        (args(&[""]), "names no program"),
        (
            changing(Changes {
                cwd: Some("/tmp".into()),
                ..Changes::default()
            }),
            "no rule \"cwd\"",
        ),
        (
            changing(Changes {
                terminal: Some(true),
                ..Changes::default()
            }),
            "no rule \"terminal\"",
        ),
        (files(file("/etc/passwd")), "no rule \"file:/etc/passwd\""),
        (
            files(file("/etc/../etc/hosts")),
            "no rule \"file:/etc/../etc/hosts\"",
        ),
        (
            files(InjectedFile {
                mode: 0o4755,
                ..file("/etc/hosts")
            }),
            "executable file \"/etc/hosts\"",
        ),
        (
            Environment {
                volumes: vec![Volume {
                    name: "data".into(),
                    tag: Volume::tag(0),
                    destination: "/data".into(),
                    after: 0,
                    flags: BTreeSet::new(),
                    propagation: vec![],
                }],
                ..Environment::default()
            },
            "shares the directory \"/data\"",
        ),
    ];
    for (environment, said) in cases {
        let error = sealed().admit(&environment).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn one_that_is_not_sealed_has_nothing_to_change() {
    let changes = Changes {
        args: Some(vec!["ls".into()]),
        ..Changes::default()
    };
    assert_eq!(sample().admit(&changing(changes)), Err(NotAdmitted::NotSealed));
    let environment = Environment {
        files: vec![file("/etc/passwd")],
        ..Environment::default()
    };
    assert_eq!(sample().admit(&environment), Ok(()));
}

proptest! {
    #[test]
    fn no_text_is_two_rules(text in "(args|env:|file:|cwd)?[a-zA-Z0-9_*:/.]{0,12}") {
        if let Ok(rule) = text.parse::<Allow>() {
            prop_assert_eq!(rule.to_string(), text);
        }
    }

    #[test]
    fn a_sealed_workload_that_was_altered_is_another_or_none(position in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = sealed().to_bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= 1_u8 << bit;
        if let Ok(other) = Workload::from_bytes(&bytes) {
            prop_assert_ne!(other, sealed());
        }
    }
}

/// By Python: `hmac.new(bytes([7]*64), b"cwrun secret 1\0tls.key\0a private key", "sha256").hexdigest()`.
const MAC: &str = "f77bece2937614cd26fc5224fdcdf5216b8e3f9cfc847ebcdf44dcde88498346";

#[test]
fn a_secret_is_the_owners_or_none() {
    let mut workload = sealed();
    let [key, token] = &of(&mut workload).secrets[..] else {
        panic!("two secrets");
    };
    assert_eq!(key.mac.unwrap().to_string(), MAC);
    assert!(key.admits(&DISK_KEY, b"a private key"));
    for (disk_key, value) in [
        (DISK_KEY, &b"another key"[..]),
        (DISK_KEY, b""),
        ([8; 64], b"a private key"),
    ] {
        assert!(!key.admits(&disk_key, value));
    }
    let elsewhere = Secret {
        name: "tls.kez".into(),
        ..key.clone()
    };
    assert!(!elsewhere.admits(&DISK_KEY, b"a private key"));
    assert!(token.admits(&DISK_KEY, b"anything"), "sealed without a value");
}
