use super::*;
use std::collections::VecDeque;
use workload::{Crypt, Hex, Layer, Secret, Tee, Verity};

fn layers(count: usize) -> RootFs {
    let layer = Layer {
        crypt: Crypt {
            offset: 0,
            length: 4096,
            sector_size: 4096,
        },
        verity: Verity {
            data_blocks: 1,
            hash_start_block: 1,
            salt: Hex([0; 32]),
            root_hash: Hex([0; 32]),
        },
    };
    RootFs::Layers {
        layers: vec![layer; count],
    }
}

fn file() -> SecretPlace {
    SecretPlace::File {
        path: "/run/secrets/tls.key".into(),
        mode: 0o400,
        uid: 33,
        gid: 34,
    }
}

fn variable() -> SecretPlace {
    SecretPlace::Variable { name: "TOKEN".into() }
}

fn message<T>(result: Result<T>) -> String {
    result.err().expect("an error").message
}

#[test]
fn a_disks_key_is_one_volume_key_for_each_layer_in_their_order() {
    let bytes: Vec<u8> = (0..128).collect();
    let Ok(Keys::Layers { keys }) = disk_keys(&layers(2), &bytes) else {
        panic!("two keys")
    };
    assert_eq!(keys[0].as_bytes()[..], bytes[..64]);
    assert_eq!(keys[1].as_bytes()[..], bytes[64..]);
    for (count, length) in [(1, 128), (2, 64), (2, 127), (2, 129), (1, 0), (1, 63)] {
        let said = message(disk_keys(&layers(count), &vec![0; length]));
        assert_eq!(
            said,
            format!(
                "the key broker's key of the disk has {length} bytes, and the workload's {count} layers need {}",
                count * 64
            )
        );
    }
}

#[test]
fn the_key_of_a_disk_of_mkcw_is_its_passphrase() {
    let root = RootFs::Mkcw { header: Hex([0; 32]) };
    let Ok(Keys::Passphrase { passphrase }) = disk_keys(&root, b"open sesame") else {
        panic!("a passphrase")
    };
    assert_eq!(passphrase.as_bytes(), b"open sesame");
    assert!(disk_keys(&root, &[b'x'; 8192]).is_ok());
    for length in [0, 8193] {
        assert_eq!(
            message(disk_keys(&root, &vec![0; length])),
            format!("the key broker's passphrase of the disk has {length} bytes, not 1 to 8192")
        );
    }
}

#[test]
fn secrets_become_read_only_files_and_variables_behind_the_others() {
    let mut secrets = Secrets::default();
    let content = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    secrets
        .place("tls.key", &file(), content("private\0key"))
        .unwrap();
    secrets.place("token", &variable(), content("a=b")).unwrap();
    let mut files = vec![InjectedFile {
        destination: "/etc/hosts".into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        readonly: false,
        content: Blob(b"x".to_vec()),
    }];
    let mut env = vec!["PATH=/bin".to_owned()];
    secrets.give(&mut files, &mut env);
    assert_eq!(env, ["PATH=/bin", "TOKEN=a=b"]);
    assert_eq!(files.len(), 2);
    let InjectedFile {
        destination,
        mode,
        uid,
        gid,
        readonly,
        content,
    } = &files[1];
    assert_eq!(
        (&**destination, *mode, *uid, *gid),
        ("/run/secrets/tls.key", 0o400, 33, 34)
    );
    assert!(*readonly);
    assert_eq!(content.0, b"private\0key");
    wipe(&mut files, &mut env);
    assert!(files.iter().all(|file| file.content.0.is_empty()));
    assert!(env.iter().all(String::is_empty));
}

#[test]
fn a_variable_is_text() {
    for wrong in [&b"\xff\xfe"[..], b"a\0b"] {
        let said = message(Secrets::default().place("token", &variable(), Zeroizing::new(wrong.to_vec())));
        assert_eq!(
            said,
            "the secret token can't be the variable TOKEN: it is not text, or has a NUL byte"
        );
    }
}

/// A Workload that is sealed, with two secrets, and one that is not.
fn workloads() -> [Workload; 2] {
    let plain: Workload = crate::session::tests::workload("true");
    let sealed = Workload {
        root: layers(1),
        tee: Some(Tee {
            kind: TeeKind::Sim,
            exec: false,
        }),
        sealed: Some(Sealed {
            id: "nginx-1".into(),
            allow: std::collections::BTreeSet::new(),
            secrets: vec![
                Secret {
                    name: "tls.key".into(),
                    place: file(),
                    mac: None,
                },
                Secret {
                    name: "token".into(),
                    place: variable(),
                    mac: None,
                },
            ],
        }),
        ..plain.clone()
    };
    [sealed, plain]
}

fn host_keys() -> Keys {
    Keys::Layers {
        keys: vec![VolumeKey::from_bytes([1; 64])],
    }
}

#[test]
fn the_host_has_no_say_in_where_keys_come_from() {
    let [sealed, plain] = workloads();
    assert!(message(release(&sealed, host_keys())).contains("the workload is sealed, so its keys come from"));
    assert!(message(release(&plain, Keys::Broker)).contains("the workload is not sealed and names none"));
    let Released { keys, .. } = release(&plain, host_keys()).unwrap();
    assert!(matches!(keys, Keys::Layers { keys } if keys.len() == 1));
    let without = Workload { tee: None, ..sealed };
    assert!(message(release(&without, Keys::Broker)).contains("there is no TEE to prove it"));
}

/// Connections that all fail.
struct Nowhere {
    refusals: VecDeque<io::ErrorKind>,
    now: Duration,
}

impl Surroundings for Nowhere {
    type Stream = File;

    fn connect(&mut self) -> io::Result<File> {
        Err(self
            .refusals
            .pop_front()
            .unwrap_or(io::ErrorKind::ConnectionReset)
            .into())
    }

    fn evidence(&mut self, _: &[u8; 64]) -> std::result::Result<String, String> {
        Err("not asked for".into())
    }

    fn now(&mut self) -> Duration {
        self.now
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_broker_that_nobody_leads_to_is_a_sentence() {
    let [workload, _] = workloads();
    let mut nowhere = Nowhere {
        refusals: VecDeque::from([io::ErrorKind::TimedOut]),
        now: Duration::ZERO,
    };
    let sealed = workload.sealed.clone().unwrap();
    let said = message(ask(&mut nowhere, TeeKind::Sim, &workload, &sealed));
    assert!(
        said.starts_with("the key broker can't be reached: connection reset (given up after "),
        "{said}"
    );
}

#[test]
fn evidence_is_what_a_broker_reads() {
    let guest = tee::sim::Guest {
        measurement: tee::launch::LaunchDigest([5; 48]),
        host_data: tee::report::HostData([6; 32]),
        policy: tee::launch::Policy::STRICT,
        identity: None,
    };
    let expected = guest.attest(tee::report::ReportData([7; 64]));
    let said = evidence::Evidence {
        report: expected.report.bytes().to_vec(),
        certificates: Vec::new(),
    };
    assert_eq!(json(TeeKind::Sim, &said).unwrap(), expected.to_json());
    // Under SNP the certificates are those that the firmware's interface gave.
    let with = evidence::Evidence {
        certificates: expected.chain.to_table(),
        ..said
    };
    assert_eq!(json(TeeKind::Snp, &with).unwrap(), expected.to_json());
    let broken = evidence::Evidence {
        report: vec![0; 10],
        certificates: Vec::new(),
    };
    assert!(
        json(TeeKind::Snp, &broken)
            .unwrap_err()
            .contains("the report is not valid")
    );
}
