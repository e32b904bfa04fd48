use super::*;

pub(crate) fn sample() -> Workload {
    Workload {
        version: Workload::VERSION,
        root: RootFs::Layers {
            layers: vec![Layer {
                crypt: Crypt {
                    offset: 1 << 20,
                    length: 100 * 4096,
                    sector_size: 4096,
                },
                verity: Verity {
                    data_blocks: 90,
                    hash_start_block: 91,
                    salt: Hex([1; 32]),
                    root_hash: Hex([2; 32]),
                },
            }],
        },
        scratch: Scratch::Disk { bytes: 1 << 30 },
        readonly_root: false,
        process: Process {
            args: vec!["sh".into(), "-c".into(), "exit 7".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            user: User::default(),
            terminal: false,
            capabilities: Some(Capabilities::default()),
            rlimits: vec![],
            no_new_privileges: true,
            oom_score_adj: None,
            seccomp: None,
            scheduler: None,
            io_priority: None,
            personality: None,
        },
        mounts: vec![Mount {
            destination: "/proc".into(),
            filesystem: Filesystem::Proc,
            flags: [MountFlag::Nosuid, MountFlag::Nodev].into(),
            options: vec![],
        }],
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec![],
        sysctl: BTreeMap::new(),
        time_offsets: BTreeMap::new(),
        devices: vec![],
        start_hooks: vec![],
        root_propagation: None,
        tee: None,
        sealed: None,
    }
}

fn device(path: &str) -> Device {
    Device {
        path: path.into(),
        kind: DeviceKind::Character { major: 1, minor: 3 },
        mode: 0o640,
        uid: 1,
        gid: 2,
    }
}

fn hook(path: &str) -> Hook {
    Hook {
        path: path.into(),
        args: vec!["hook".into()],
        env: vec!["A=b".into()],
        timeout: Some(3),
    }
}

fn layers(workload: &mut Workload) -> &mut Vec<Layer> {
    match &mut workload.root {
        RootFs::Layers { layers } => layers,
        RootFs::Mkcw { .. } => panic!("no layers"),
    }
}

#[test]
fn the_canonical_form_is_sorted_compact_and_stable() {
    let bytes = sample().to_bytes();
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.starts_with("{\"masked_paths\":"), "{text}");
    assert!(text.ends_with("\"version\":1}"), "{text}");
    assert_eq!(Workload::from_bytes(&bytes).unwrap(), sample());
    // A golden digest: a change here changes every container's identity and needs a new version.
    assert_eq!(
        sample().digest().to_string(),
        "7ea0dff1396f66c7827d0bef185c0a9762e2b8c3c2628e9aa257501aeee08bea"
    );
}

#[test]
fn bytes_that_are_not_canonical_are_refused() {
    let mut spaced = sample().to_bytes();
    spaced.push(b' ');
    assert!(matches!(Workload::from_bytes(&spaced), Err(Error::NotCanonical)));
    let unknown = String::from_utf8(sample().to_bytes())
        .unwrap()
        .replacen('{', "{\"a\":1,", 1);
    assert!(matches!(
        Workload::from_bytes(unknown.as_bytes()),
        Err(Error::Shape(_))
    ));
}

/// A case of `fields_no_honest_host_writes_are_refused`: the field at fault, and how to spoil it.
type Spoiled = (&'static str, fn(&mut Workload));

#[test]
fn fields_no_honest_host_writes_are_refused() {
    let cases: [Spoiled; 14] = [
        ("root.layers", |w| layers(w).clear()),
        ("root.layers.crypt.sector_size", |w| {
            layers(w)[0].crypt.sector_size = 4095
        }),
        ("root.layers.crypt", |w| layers(w)[0].crypt.offset = 512),
        ("root.layers.crypt", |w| {
            layers(w)[0].crypt.offset = u64::MAX - 4095
        }),
        ("root.layers.verity", |w| layers(w)[0].verity.data_blocks = 92),
        ("root.layers.verity", |w| {
            layers(w)[0].verity.hash_start_block = 100
        }),
        ("process.args", |w| w.process.args.clear()),
        ("process.cwd", |w| w.process.cwd = "tmp".into()),
        ("strings", |w| w.process.env.push("A=\0".into())),
        ("devices", |w| w.devices.push(device("dev/x"))),
        ("devices", |w| {
            w.devices.push(Device {
                mode: 0o20_666,
                ..device("/dev/x")
            })
        }),
        ("start_hooks", |w| w.start_hooks.push(hook("bin/x"))),
        ("start_hooks", |w| {
            w.root = RootFs::Mkcw { header: Hex([0; 32]) };
            w.start_hooks.push(hook("/bin/x"));
        }),
        ("strings", |w| {
            let env = vec!["A=\0".into()];
            w.start_hooks.push(Hook {
                env,
                ..hook("/bin/x")
            });
        }),
    ];
    for (expected, spoil) in cases {
        let mut workload = sample();
        spoil(&mut workload);
        match Workload::from_bytes(&workload.to_bytes()) {
            Err(Error::Field { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn what_few_containers_have_is_part_of_the_identity() {
    let changes: [fn(&mut Workload); 5] = [
        |w| w.devices.push(device("/dev/x")),
        |w| w.start_hooks.push(hook("/bin/x")),
        |w| w.process.personality = Some(Personality::Linux32),
        |w| {
            w.process.io_priority = Some(IoPriority {
                class: IoPriorityClass::BestEffort,
                priority: 3,
            })
        },
        |w| {
            w.process.scheduler = Some(Scheduler {
                policy: SchedulerPolicy::RoundRobin,
                nice: 0,
                priority: 1,
                flags: 1,
                runtime: 0,
                deadline: 0,
                period: 0,
            })
        },
    ];
    for change in changes {
        let mut workload = sample();
        change(&mut workload);
        assert_eq!(Workload::from_bytes(&workload.to_bytes()).unwrap(), workload);
        assert_ne!(workload.digest(), sample().digest());
    }
}

#[test]
fn a_layer_of_one_block_needs_no_hash_tree() {
    let mut workload = sample();
    let layer = &mut layers(&mut workload)[0];
    layer.crypt.length = 2 * 4096;
    (layer.verity.data_blocks, layer.verity.hash_start_block) = (1, 2);
    assert!(Workload::from_bytes(&workload.to_bytes()).is_ok());
    layers(&mut workload)[0].verity.hash_start_block = 3;
    assert!(Workload::from_bytes(&workload.to_bytes()).is_err());
}

#[test]
fn a_filter_is_whole_instructions_and_not_too_many() {
    let with = |bytes: usize| {
        let mut workload = sample();
        workload.process.seccomp = Some(Seccomp {
            program: Blob(vec![0; bytes]),
            flags: [SeccompFlag::Log, SeccompFlag::SpecAllow].into(),
        });
        workload
    };
    for bytes in [8, 8 * 4096] {
        let workload = with(bytes);
        assert_eq!(Workload::from_bytes(&workload.to_bytes()).unwrap(), workload);
        assert_ne!(workload.digest(), sample().digest());
    }
    let text = String::from_utf8(with(8).to_bytes()).unwrap();
    assert!(
        text.contains(r#""seccomp":{"flags":["log","spec-allow"],"program":"AAAAAAAAAAA="}"#),
        "{text}"
    );
    for bytes in [0, 7, 12, 8 * 4097] {
        let error = Workload::from_bytes(&with(bytes).to_bytes()).unwrap_err();
        assert!(error.to_string().contains("process.seccomp.program"), "{error}");
    }
}
