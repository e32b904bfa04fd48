use super::sizing::Sizing;
use super::*;
use crate::settings::Settings;
use serde_json::{Value, json};

/// A configuration that is accepted, to be changed by each test.
pub(super) fn good() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["/bin/true"], "cwd": "/", "env": ["A=b"]},
        "root": {"path": "rootfs"},
        "hostname": "h",
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/self/ns/net"}]}
    })
}

/// A configuration that is accepted and has nearly every field that can be honoured.
pub(super) fn full() -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let hook = json!([{"path": "/bin/true", "args": ["true", "x"], "env": ["A=b"], "timeout": 5}]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "consoleSize": {"height": 25, "width": 80},
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "umask": 18},
            "args": ["/bin/sh", "-c", "true"],
            "cwd": "/tmp",
            "env": ["A=b", "PATH=/bin"],
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": capabilities, "ambient": capabilities
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
            "noNewPrivileges": true,
            "oomScoreAdj": 100,
            "apparmorProfile": "profile",
            "selinuxLabel": "label"
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h",
        "domainname": "example.org",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m", "rprivate"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "config.json", "options": ["rbind", "ro"]}
        ],
        "hooks": {"prestart": hook, "createRuntime": hook, "createContainer": hook, "poststart": hook, "poststop": hook},
        "annotations": {"org.example.key": "value", "krun.cpus": "2", "io.cwrun.scratch": "1GiB"},
        "linux": {
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}, {"type": "user"},
                {"type": "network", "path": "/proc/self/ns/net"}
            ],
            "uidMappings": map,
            "gidMappings": map,
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
            "cgroupsPath": "/some/group",
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
                "memory": {"limit": 268_435_456, "swap": 536_870_912, "reservation": 134_217_728},
                "cpu": {"shares": 1024, "quota": 200_000, "period": 100_000, "cpus": "0-1", "mems": "0"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 2_097_152}],
                "unified": {"memory.high": "max"}
            },
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{
                    "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]
                }]
            },
            "rootfsPropagation": "rslave",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "mountLabel": "label"
        }
    })
}

pub(super) struct TestBundle(tempfile::TempDir);

impl TestBundle {
    pub(super) fn new(config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        let bundle = Self(dir);
        bundle.write(config.to_string().as_bytes());
        bundle
    }

    pub(super) fn write(&self, config: &[u8]) {
        fs::write(self.0.path().join("config.json"), config).unwrap();
    }

    pub(super) fn load(&self) -> Result<Bundle> {
        Bundle::load(self.0.path(), None)
    }

    /// All that `create` does with a configuration before it touches anything.
    pub(super) fn split(&self) -> Result<(host::HostSpec, workload::Workload, workload::Environment)> {
        let bundle = self.load()?;
        let sizing = Sizing::of(&bundle, &Settings::default())?;
        let host = host::split(&bundle, &sizing)?;
        let (workload, environment, _) = guest::split(&bundle, "c1", &sizing, false)?;
        Ok((host, workload, environment))
    }
}

/// The error that a configuration gives, from whichever step finds it.
pub(super) fn error_of(config: &Value) -> String {
    match TestBundle::new(config).split() {
        Ok(_) => panic!("accepted: {config}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The error that a changed configuration gives.
pub(super) fn error(change: impl FnOnce(&mut Value)) -> String {
    let mut config = good();
    change(&mut config);
    error_of(&config)
}

#[test]
fn a_bundle_is_split() {
    let test = TestBundle::new(&good());
    let bundle = test.load().unwrap();
    let sizing = Sizing::of(&bundle, &Settings::default()).unwrap();
    let (workload, environment, _) = guest::split(&bundle, "c1", &sizing, false).unwrap();
    assert_eq!(workload.process.args, ["/bin/true"]);
    assert_eq!((workload.process.user.uid, workload.process.user.gid), (7, 8));
    assert_eq!(
        (environment.id.as_str(), environment.hostname.as_deref()),
        ("c1", Some("h"))
    );
    let host = host::split(&bundle, &sizing).unwrap();
    let kinds: Vec<_> = host
        .namespaces
        .iter()
        .map(|n| (n.kind, n.path.is_some()))
        .collect();
    assert_eq!(kinds, [(host::Kind::Net, true), (host::Kind::Pid, false)]);
}

#[test]
fn only_what_an_engine_calls_an_infra_container_and_only_waits_is_one() {
    let infra = |annotations: Value, args: &[&str]| {
        let mut config = good();
        config["annotations"] = annotations;
        config["process"]["args"] = json!(args);
        let test = TestBundle::new(&config);
        crate::infra::is_infra(&test.load().unwrap())
    };
    let crio = || json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
    let podman = || json!({"io.container.manager": "libpod"});
    assert!(infra(crio(), &["/pause"]));
    assert!(infra(
        json!({"io.kubernetes.cri.container-type": "sandbox"}),
        &["/pause"]
    ));
    assert!(infra(podman(), &["/catatonit", "-P"]));
    for (annotations, args) in [
        (json!({}), &["/pause"][..]),
        (
            json!({"io.kubernetes.cri-o.ContainerType": "container"}),
            &["/pause"],
        ),
        (crio(), &["/pause", "--and-more"]),
        (crio(), &["sh", "/pause"]),
        (podman(), &["/pause"]),
        (podman(), &["/usr/bin/catatonit", "-P"]),
    ] {
        assert!(!infra(annotations.clone(), args), "{annotations} {args:?}");
    }
}

#[test]
fn an_infra_container_that_asks_for_more_than_waiting_is_a_container() {
    let more: [fn(&mut Value); 2] = [
        |c| c["process"]["terminal"] = true.into(),
        |c| c["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]}),
    ];
    for change in more {
        let mut config = good();
        config["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
        config["process"]["args"] = json!(["/pause"]);
        let infra = |config: &Value| crate::infra::is_infra(&TestBundle::new(config).load().unwrap());
        assert!(infra(&config));
        change(&mut config);
        assert!(!infra(&config), "{config}");
    }
}

#[test]
fn limits_of_an_infra_container_are_its_own() {
    let mut config = good();
    config["linux"]["resources"] =
        json!({"memory": {"limit": 4_194_304}, "pids": {"limit": 5}, "devices": [{"allow": false}]});
    let test = TestBundle::new(&config);
    let resources = host::split_without_vm(&test.load().unwrap())
        .unwrap()
        .resources
        .unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(4 << 20));
    assert_eq!(resources.pids().unwrap().limit(), 5);
    assert!(resources.devices().is_none());
}

#[test]
fn errors_name_the_field() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 27] = [
        (|c| c["ociVersion"] = json!("2.0.0"), "ociVersion: \"2.0.0\""),
        (
            |c| drop(c.as_object_mut().unwrap().remove("root")),
            "root: missing",
        ),
        (|c| c["root"]["path"] = json!("nowhere"), "root.path:"),
        (
            |c| drop(c.as_object_mut().unwrap().remove("process")),
            "process: missing",
        ),
        (
            |c| c["process"]["args"] = json!([]),
            "process.args: missing or empty",
        ),
        (
            |c| c["process"]["args"] = json!("sh"),
            "process.args: invalid type",
        ),
        (
            |c| c["process"]["args"] = json!(["a", 1]),
            "process.args[1]: invalid type",
        ),
        (
            |c| c["process"]["cwd"] = json!("tmp"),
            "process.cwd: \"tmp\" is not an absolute path",
        ),
        (|c| c["process"]["env"] = json!(["A=\u{0}"]), "NUL"),
        (
            |c| c["process"]["user"]["uid"] = json!(-1),
            "process.user.uid: invalid value",
        ),
        (
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOPE", "soft": 1, "hard": 1}]),
            "process.rlimits[0]",
        ),
        (
            |c| c["process"]["execCPUAffinity"] = json!({"initial": "0"}),
            "process.execCPUAffinity: not supported",
        ),
        (
            |c| c["hooks"] = json!({"startContainer": [{"path": "/x"}, {"path": "x"}]}),
            "hooks.startContainer[1]: path: \"x\" is not an absolute path",
        ),
        (
            |c| c["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["X"]}),
            "linux.personality.flags: not supported",
        ),
        (
            |c| c["linux"]["devices"] = json!([{"path": "/my/ptmx", "type": "c", "major": 5, "minor": 2}]),
            "linux.devices[0]: /my/ptmx (5:2)",
        ),
        (
            |c| c["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}]),
            "linux.namespaces: pid is listed twice",
        ),
        (
            |c| c["linux"]["namespaces"] = json!([{"type": "user"}]),
            "linux.uidMappings and linux.gidMappings: missing",
        ),
        (
            |c| c["linux"]["resources"] = json!({"memory": {"limit": 1048576}}),
            "linux.resources.memory.limit: 1 MiB is too little",
        ),
        (
            |c| c["annotations"] = json!({"io.cwrun.scratch": "much"}),
            "io.cwrun.scratch: \"much\"",
        ),
        (
            |c| c["annotations"] = json!({"krun.cpus": "0"}),
            "krun.cpus: 0 is not between",
        ),
        (
            |c| c["annotations"] = json!({"io.cwrun.scratsh": "1GiB"}),
            "annotation io.cwrun.scratsh: unknown",
        ),
        (
            |c| c["annotations"] = json!({"run.oci.handler": "wasm"}),
            "annotation run.oci.handler: \"wasm\"",
        ),
        (
            |c| c["linux"]["resources"] = json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
            "linux.resources.rdma: not supported",
        ),
        (
            |c| c["linux"]["resources"] = json!({"unified": {"memory.max": "lots"}}),
            "linux.resources.unified: memory.max: \"lots\"",
        ),
        (
            |c| c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"}),
            "linux.memoryPolicy: not supported",
        ),
        (
            |c| c["vm"] = json!({"kernel": {"path": "/vmlinuz"}}),
            "vm: not supported",
        ),
        (
            |c| c["linux"]["netDevices"] = json!({"eth0": {"name": "eth1"}}),
            "linux.netDevices: not supported",
        ),
    ];
    for (change, expected) in cases {
        let message = error(change);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

/// The guest's half of a bundle that was changed.
fn guest_of(change: impl FnOnce(&mut Value)) -> (workload::Workload, workload::Environment) {
    let mut config = good();
    change(&mut config);
    let test = TestBundle::new(&config);
    let bundle = test.load().unwrap();
    let sizing = Sizing::of(&bundle, &Settings::default()).unwrap();
    let (workload, environment, _) = guest::split(&bundle, "c1", &sizing, false).unwrap();
    (workload, environment)
}

#[test]
fn hooks_of_the_start_are_the_guests() {
    let (workload, _) = guest_of(|c| {
        c["process"]["env"] = json!(["OF=process"]);
        c["hooks"] = json!({"startContainer": [{"path": "/a", "args": ["a", "b"], "env": ["C=d"], "timeout": 5},
            {"path": "/b"}, {"path": "/c", "env": []}]});
    });
    let hook = |path: &str, args: &[&str], env: &[&str], timeout| workload::Hook {
        path: path.into(),
        args: args.iter().map(|&text| text.into()).collect(),
        env: env.iter().map(|&text| text.into()).collect(),
        timeout,
    };
    assert_eq!(
        workload.start_hooks,
        [
            hook("/a", &["a", "b"], &["C=d"], Some(5)),
            hook("/b", &[], &["OF=process"], None),
            hook("/c", &[], &[], None),
        ]
    );
}

#[test]
fn clocks_are_ahead_in_a_time_namespace_of_the_containers_own() {
    let own = |c: &mut Value, offsets: Value| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] = offsets;
    };
    let (workload, _) = guest_of(|c| {
        own(
            c,
            json!({"boottime": {"secs": -5, "nanosecs": 7}, "monotonic": {}}),
        )
    });
    let offset = |seconds, nanoseconds| workload::TimeOffset { seconds, nanoseconds };
    let offsets = [
        (workload::Clock::Monotonic, offset(0, 0)),
        (workload::Clock::Boottime, offset(-5, 7)),
    ];
    assert_eq!(workload.time_offsets, offsets.into());
    for (offsets, wanted) in [
        (json!({"realtime": {"secs": 1}}), "\"realtime\" is no clock"),
        (
            json!({"monotonic": {"nanosecs": 1_000_000_000}}),
            "linux.timeOffsets.monotonic: 1000000000",
        ),
    ] {
        let mut config = full();
        own(&mut config, offsets);
        let error = error_of(&config);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn what_is_for_others_changes_nothing() {
    let (plain, _) = guest_of(|_| {});
    let (workload, _) = guest_of(|c| {
        c["process"]["apparmorProfile"] = json!("x");
        c["process"]["selinuxLabel"] = json!("a:b:c");
        c["process"]["commandLine"] = json!("x");
        c["process"]["user"]["username"] = json!("x");
        c["linux"]["rootfsPropagation"] = json!("rslave");
        c["linux"]["mountLabel"] = json!("a:b:c");
        // Without a new user namespace there is nothing to map, for crun too.
        c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        c["linux"]["resources"] = json!({"memory": {"useHierarchy": true, "checkBeforeUpdate": true}});
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid");
    });
    assert_eq!(workload, plain);
}

#[test]
fn limits_that_the_guest_keeps_are_not_its_identity() {
    let (plain, _) = guest_of(|_| {});
    let (workload, environment) = guest_of(|c| {
        c["linux"]["resources"] = json!({"pids": {"limit": 50}, "memory": {"limit": 256 << 20}});
    });
    assert_eq!(workload, plain);
    // Its memory is its limit.
    assert_eq!(
        (environment.limits.tasks, environment.limits.memory),
        (Some(50), None)
    );
    for unlimited in [0, -1] {
        let (_, environment) = guest_of(|c| c["linux"]["resources"] = json!({"pids": {"limit": unlimited}}));
        assert_eq!(environment.limits.tasks, None);
    }
}

#[test]
fn where_the_vmm_is_confined_and_how_is_passed_on() {
    let mut config = good();
    let resources = json!({"cpu": {"shares": 5, "burst": 6, "idle": 1, "mems": "0", "realtimeRuntime": 7, "realtimePeriod": 8},
        "blockIO": {"weight": 9}, "hugepageLimits": [{"pageSize": "2MB", "limit": 10}]});
    config["linux"]["resources"] = resources.clone();
    config["linux"]["cgroupsPath"] = json!("/a/b");
    let test = TestBundle::new(&config);
    let bundle = test.load().unwrap();
    let sizing = Sizing::of(&bundle, &Settings::default()).unwrap();
    let host = host::split(&bundle, &sizing).unwrap();
    assert_eq!(host.cgroup_path.as_deref(), Some(Path::new("/a/b")));
    assert_eq!(serde_json::to_value(host.resources).unwrap(), resources);
}

/// The limits of the VMM's cgroup for a bundle with these.
fn resources(resources: Value) -> Result<oci_spec::runtime::LinuxResources> {
    let mut config = good();
    config["linux"]["resources"] = resources;
    let test = TestBundle::new(&config);
    let bundle = test.load()?;
    let sizing = Sizing::of(&bundle, &Settings::default())?;
    Ok(host::split(&bundle, &sizing)?.resources.unwrap())
}

#[test]
fn the_vmm_has_its_memory_on_top_of_the_limits() {
    const HEADROOM: i64 = 64 << 20;
    let limits = json!({"memory": {"limit": 256 << 20, "swap": 384 << 20, "reservation": 128 << 20}, "devices": [{"allow": false}]});
    let adjusted = resources(limits).unwrap();
    let memory = adjusted.memory().unwrap();
    assert_eq!(memory.limit(), Some((256 << 20) + HEADROOM));
    assert_eq!(
        memory.swap(),
        Some((384 << 20) + HEADROOM),
        "128 MiB of swap space stay"
    );
    assert_eq!(memory.reservation(), Some((128 << 20) + HEADROOM));
    assert!(adjusted.devices().is_none());

    let unlimited = resources(json!({"memory": {"limit": 256 << 20, "swap": -1, "reservation": 0}})).unwrap();
    let memory = unlimited.memory().unwrap();
    assert_eq!((memory.swap(), memory.reservation()), (Some(-1), None));

    let unified = json!({"memory.max": "268435456", "memory.high": "128M", "memory.low": "max", "memory.min": "0", "memory.swap.max": "7", "cpu.weight": "50"});
    let adjusted = resources(json!({"unified": unified})).unwrap();
    let file = |name: &str| adjusted.unified().as_ref().unwrap()[name].clone();
    assert_eq!(file("memory.max"), ((256 << 20) + HEADROOM).to_string());
    assert_eq!(file("memory.high"), ((128 << 20) + HEADROOM).to_string());
    assert_eq!([file("memory.low"), file("memory.min")], ["max", "0"]);
    assert_eq!([file("memory.swap.max"), file("cpu.weight")], ["7", "50"]);
}

#[test]
fn a_limit_on_processes_leaves_room_for_the_vmm() {
    let limit = |limit: i64| {
        let resources = resources(json!({"pids": {"limit": limit}})).unwrap();
        resources.pids().unwrap().limit()
    };
    assert!((34..100).contains(&limit(1)), "{}", limit(1));
    assert_eq!([limit(-1), limit(i64::MAX)], [-1, i64::MAX]);
    // What crun takes for "none given".
    assert!(resources(json!({"pids": {"limit": 0}})).unwrap().pids().is_none());
}

#[test]
fn broken_json_says_where() {
    for bytes in [&b"{"[..], b"", b"[]", b"{\"ociVersion\": \"1.0.0\"} x", b"\xff"] {
        assert!(parse(bytes).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = parse(&bytes);
    }
}
