//! What the OCI runtime specification 1.2 demands of a runtime that reads a configuration: a test for each MUST, named after it.
//! docs/conformance.md has the list; what a running container shows is tested end to end.

use super::host::{HOOKS, NAMESPACES};
use super::tests::{TestBundle, error, error_of, full, good};
use super::*;
use serde_json::json;

/// Pointers to every place in the configuration, parents first.
pub(super) fn pointers(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut next = 0;
    while let Some(at) = found.get(next).cloned() {
        next += 1;
        match value.pointer(&at) {
            Some(Value::Object(fields)) => {
                found.extend(fields.keys().map(|key| {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    format!("{at}/{key}")
                }));
            }
            Some(Value::Array(items)) => found.extend((0..items.len()).map(|index| format!("{at}/{index}"))),
            _ => {}
        }
    }
    found
}

/// Takes out what the pointer names.
pub(super) fn remove(value: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, name) = pointer.rsplit_once('/')?;
    match value.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&name.replace("~1", "/").replace("~0", "~")),
        Value::Array(items) => {
            let index = name.parse().ok().filter(|index| *index < items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

#[test]
fn a_full_configuration_is_accepted() {
    TestBundle::new(&full()).split().unwrap();
}

// bundle.md

#[test]
fn the_configuration_is_config_json_in_the_root_of_the_bundle() {
    let bundle = TestBundle::new(&good());
    let loaded = bundle.load().unwrap();
    fs::remove_file(loaded.dir.join("config.json")).unwrap();
    let error = format!("{:#}", bundle.load().unwrap_err());
    assert!(error.contains("config.json"), "{error}");
}

// config.md

#[test]
fn oci_version_is_in_semver_form() {
    for version in [
        "1.0.0",
        "1.2.0",
        "1.0.2-dev",
        "1.1.0-rc.1+build.5",
        "1.10.20",
        "1.0.0+x",
    ] {
        let mut config = good();
        config["ociVersion"] = json!(version);
        TestBundle::new(&config).split().unwrap();
    }
    for version in [
        "",
        "1",
        "1.",
        "1.0",
        "1.0.",
        "1.0.0.0",
        "1.01.0",
        "v1.0.0",
        "1.x.0",
        "1.0.0-",
        "1.0.0-a..b",
        "1.0.0+",
        "0.9.0",
        "2.0.0",
        " 1.0.0",
        "1.0.0 ",
        "1.0.0-ü",
        "10.0.0",
    ] {
        let error = error(|config| config["ociVersion"] = json!(version));
        assert!(error.contains(&format!("ociVersion: {version:?}")), "{error}");
    }
}

/// Each property that is REQUIRED, and what the error without it says.
#[test]
fn required_properties_are_required() {
    let mut accepted = Vec::new();
    for (pointer, named) in [
        ("/ociVersion", "ociVersion"),
        ("/root", "root"),
        ("/root/path", "path"),
        ("/process", "process"),
        ("/process/args", "process.args"),
        ("/process/cwd", "cwd"),
        ("/process/user/uid", "uid"),
        ("/process/user/gid", "gid"),
        ("/process/consoleSize/height", "height"),
        ("/process/consoleSize/width", "width"),
        ("/process/rlimits/0/type", "type"),
        ("/process/rlimits/0/soft", "soft"),
        ("/process/rlimits/0/hard", "hard"),
        ("/mounts/0/destination", "destination"),
        ("/hooks/prestart/0/path", "path"),
        ("/hooks/poststop/0/path", "path"),
        ("/linux/namespaces/0/type", "type"),
        ("/linux/uidMappings/0/containerID", "containerID"),
        ("/linux/uidMappings/0/hostID", "hostID"),
        ("/linux/uidMappings/0/size", "size"),
        ("/linux/devices/0/type", "type"),
        ("/linux/devices/0/path", "path"),
        ("/linux/resources/devices/0/allow", "allow"),
        ("/linux/resources/hugepageLimits/0/pageSize", "pageSize"),
        ("/linux/resources/hugepageLimits/0/limit", "limit"),
        ("/linux/resources/blockIO/throttleReadBpsDevice/0/major", "major"),
        ("/linux/resources/blockIO/throttleReadBpsDevice/0/rate", "rate"),
        ("/linux/seccomp/defaultAction", "defaultAction"),
        ("/linux/seccomp/syscalls/0/names", "names"),
        ("/linux/seccomp/syscalls/0/action", "action"),
        ("/linux/seccomp/syscalls/0/args/0/index", "index"),
        ("/linux/seccomp/syscalls/0/args/0/value", "value"),
        ("/linux/seccomp/syscalls/0/args/0/op", "op"),
    ] {
        let mut config = full();
        assert!(remove(&mut config, pointer).is_some(), "{pointer}");
        match TestBundle::new(&config).split() {
            Ok(_) => accepted.push(pointer),
            Err(error) => assert!(format!("{error:#}").contains(named), "{pointer}: {error:#}"),
        }
    }
    assert!(accepted.is_empty(), "{accepted:?}");
}

#[test]
fn the_root_path_must_be_a_directory() {
    assert!(error(|config| config["root"]["path"] = json!("nowhere")).contains("root.path"));
    assert!(error(|config| config["root"]["path"] = json!("config.json")).contains("root.path"));
}

#[test]
fn mounts_keep_the_listed_order() {
    let mut config = good();
    let names = ["/z", "/a", "/z/below", "/a", "/m"];
    config["mounts"] = names
        .iter()
        .map(|name| json!({"destination": name, "type": "tmpfs"}))
        .collect();
    let (_, workload, _) = TestBundle::new(&config).split().unwrap();
    let placed: Vec<_> = workload
        .mounts
        .iter()
        .map(|mount| mount.destination.as_str())
        .collect();
    assert_eq!(placed, names);
}

#[test]
fn a_relative_destination_is_relative_to_the_root() {
    let mut config = good();
    config["mounts"] = json!([{"destination": "some/where", "type": "tmpfs"}]);
    let (_, workload, _) = TestBundle::new(&config).split().unwrap();
    assert_eq!(workload.mounts[0].destination, "/some/where");
}

#[test]
fn mapped_mounts_are_an_error() {
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for mount in [
        json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
        json!({"destination": "/x", "type": "tmpfs", "options": ["ridmap"]}),
        json!({"destination": "/x", "type": "tmpfs", "uidMappings": map}),
        json!({"destination": "/x", "type": "tmpfs", "gidMappings": map}),
        json!({"destination": "/x", "type": "tmpfs", "uidMappings": map, "gidMappings": map}),
    ] {
        assert!(error(|config| config["mounts"] = json!([mount])).contains("ID-mapped"));
    }
}

#[test]
fn the_working_directory_must_be_absolute() {
    assert!(error(|config| config["process"]["cwd"] = json!("tmp")).contains("process.cwd"));
    assert!(error(|config| config["process"]["cwd"] = json!("")).contains("process.cwd"));
}

#[test]
fn args_need_an_entry() {
    assert!(error(|config| config["process"]["args"] = json!([])).contains("process.args"));
}

#[test]
fn a_limit_without_a_kernel_interface_is_an_error() {
    for name in ["RLIMIT_NONE", "", "rlimit_core", "CORE"] {
        let limit = json!([{"type": name, "soft": 1, "hard": 1}]);
        assert!(error(|config| config["process"]["rlimits"] = limit).contains("process.rlimits"));
    }
}

#[test]
fn a_limit_listed_twice_is_an_error() {
    let limit = json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 1});
    let error = error(|config| config["process"]["rlimits"] = json!([limit, limit]));
    assert!(error.contains("process.rlimits"), "{error}");
}

#[test]
fn an_unknown_capability_is_left_out() {
    let mut config = good();
    config["process"]["capabilities"] =
        json!({"bounding": ["CAP_TEST", "CAP_KILL"], "effective": ["CAP_FROM_THE_FUTURE"]});
    let (_, workload, _) = TestBundle::new(&config).split().unwrap();
    let sets = workload.process.capabilities.unwrap();
    assert_eq!((sets.bounding.len(), sets.effective.len()), (1, 0));
    let process = json!({"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_TEST"]}});
    parse_process(process.to_string().as_bytes()).unwrap();
}

#[test]
fn paths_of_hooks_must_be_absolute() {
    for name in HOOKS {
        for path in ["bin/true", "", "./x"] {
            let error =
                error(|config| config["hooks"][name] = json!([{"path": "/bin/true"}, {"path": path}]));
            assert!(error.contains(&format!("hooks.{name}[1]: path")), "{error}");
        }
    }
}

#[test]
fn timeouts_of_hooks_must_be_greater_than_zero() {
    for name in HOOKS {
        for timeout in [0, -1, i64::MIN] {
            let hook = json!([{"path": "/bin/true", "timeout": timeout}]);
            let error = error(|config| config["hooks"][name] = hook);
            assert!(
                error.contains(&format!("hooks.{name}[0]: timeout: {timeout}")),
                "{error}"
            );
        }
    }
}

#[test]
fn prestart_hooks_come_before_create_runtime_hooks() {
    let mut config = good();
    let hook = |path: &str| json!([{"path": path}]);
    config["hooks"] = json!({"createRuntime": hook("/second"), "prestart": hook("/first")});
    let (host, _, _) = TestBundle::new(&config).split().unwrap();
    let paths: Vec<_> = host
        .hooks
        .create_runtime
        .iter()
        .map(|hook| hook.path().as_path())
        .collect();
    assert_eq!(paths, [Path::new("/first"), Path::new("/second")]);
}

#[test]
fn annotations_are_a_map_of_strings_with_names() {
    assert!(error(|config| config["annotations"] = json!({"": "x"})).contains("annotations: a key is empty"));
    assert!(error(|config| config["annotations"] = json!({"key": 1})).contains("annotations.key"));
    assert!(error(|config| config["annotations"] = json!(["key"])).contains("annotations"));
}

#[test]
fn unknown_annotations_are_ignored() {
    let mut config = good();
    config["annotations"] = json!({"org.example.unknown": "x", "org.opencontainers.unknown": "y"});
    TestBundle::new(&config).split().unwrap();
}

/// An unknown property in every object there is, except where keys are the configuration's own to choose.
#[test]
fn unknown_properties_are_ignored() {
    let free = [
        "/annotations",
        "/linux/sysctl",
        "/linux/resources/unified",
        "/process/capabilities",
    ];
    let config = full();
    let objects = pointers(&config)
        .into_iter()
        .filter(|at| config.pointer(at).is_some_and(Value::is_object) && !free.contains(&at.as_str()));
    let expected = TestBundle::new(&config).split().unwrap();
    let mut all = config.clone();
    for at in objects {
        let object = all.pointer_mut(&at).unwrap();
        object["unknownToEveryone"] = json!({"is": ["ignored"]});
    }
    let (host, workload, environment) = TestBundle::new(&all).split().unwrap();
    assert_eq!(format!("{host:?}"), format!("{:?}", expected.0));
    assert_eq!(workload, expected.1);
    // The injected file is the configuration itself.
    assert_eq!(
        (environment.id, environment.hostname),
        (expected.2.id, expected.2.hostname)
    );
}

/// A value of the wrong type, in every place there is.
#[test]
fn values_of_the_wrong_type_are_errors() {
    let config = full();
    for at in pointers(&config) {
        let mut changed = config.clone();
        let place = changed.pointer_mut(&at).unwrap();
        *place = match place {
            Value::Object(_) | Value::Array(_) => json!(17),
            _ => json!([[17]]),
        };
        let bundle = TestBundle::new(&changed);
        assert!(
            bundle.split().is_err(),
            "{at} is accepted as {}",
            changed.pointer(&at).unwrap()
        );
    }
}

// config-linux.md

#[test]
fn a_namespace_listed_twice_is_an_error() {
    for (typ, _) in NAMESPACES {
        let namespace = json!({"type": typ});
        let error =
            error(|config| config["linux"]["namespaces"] = json!([namespace, {"type": "pid"}, namespace]));
        assert!(
            error.contains("linux.namespaces") && error.contains("listed twice"),
            "{error}"
        );
    }
}

#[test]
fn paths_of_namespaces_must_be_absolute() {
    let error =
        error(|config| config["linux"]["namespaces"] = json!([{"type": "network", "path": "ns/net"}]));
    assert!(error.contains("linux.namespaces[0].path"), "{error}");
}

#[test]
fn a_mount_namespace_that_cant_be_joined_is_an_error() {
    let joined = json!([{"type": "mount", "path": "/proc/self/ns/mnt"}]);
    let error = error(|config| config["linux"]["namespaces"] = joined);
    assert!(
        error.contains("linux.namespaces[0]") && error.contains("/proc/self/ns/mnt"),
        "{error}"
    );
}

#[test]
fn a_new_user_namespace_needs_both_maps() {
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for field in ["uidMappings", "gidMappings"] {
        let error = error(|config| {
            config["linux"]["namespaces"] = json!([{"type": "user"}]);
            config["linux"][field] = map.clone();
        });
        assert!(
            error.contains("linux.uidMappings and linux.gidMappings"),
            "{error}"
        );
    }
}

#[test]
fn a_device_that_cant_be_there_is_an_error() {
    for device in [
        json!({"path": "/my/ptmx", "type": "c", "major": 5, "minor": 2}),
        json!({"path": "/my/console", "type": "c", "major": 5, "minor": 1}),
    ] {
        let error = error(|config| config["linux"]["devices"] = json!([device]));
        assert!(error.contains("linux.devices[0]"), "{error}");
    }
}

#[test]
fn a_cgroups_path_out_of_the_hierarchy_is_an_error() {
    for path in ["../up", "/a/../../b", "a/.."] {
        let error = error(|config| config["linux"]["cgroupsPath"] = json!(path));
        assert!(
            error.contains("linux.cgroupsPath") && error.contains(path),
            "{error}"
        );
    }
}

#[test]
fn a_unified_key_that_is_no_file_of_the_cgroup_is_an_error() {
    for name in ["../memory.max", "/etc/passwd", "a/b", "", "a\0b"] {
        let error = error(|config| config["linux"]["resources"] = json!({"unified": {name: "1"}}));
        assert!(error.contains("linux.resources.unified"), "{error}");
    }
}

#[test]
fn what_cant_be_applied_is_an_error() {
    for (pointer, value) in [
        ("/linux/intelRdt", json!({"closID": "x"})),
        ("/linux/timeOffsets", json!({"monotonic": {"secs": 1}})), // without a namespace
        ("/linux/resources/rdma", json!({"mlx5_1": {"hcaHandles": 3}})),
    ] {
        let mut config = full();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[name] = value;
        let error = error_of(&config);
        assert!(error.contains(&pointer[1..].replace('/', ".")), "{error}");
    }
}

#[test]
fn an_error_number_with_an_action_that_takes_none_is_an_error() {
    let seccomp = |seccomp: Value| error(|config| config["linux"]["seccomp"] = seccomp);
    for action in [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG",
    ] {
        let default = seccomp(json!({"defaultAction": action, "defaultErrnoRet": 1}));
        assert!(
            default.contains("linux.seccomp.defaultAction") && default.contains(action),
            "{default}"
        );
        let rule = json!({"names": ["read"], "action": action, "errnoRet": 1});
        let rule = seccomp(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}));
        assert!(
            rule.contains("linux.seccomp.syscalls[0]") && rule.contains(action),
            "{rule}"
        );
    }
}

#[test]
fn a_rule_without_a_name_is_an_error() {
    let rules = json!([{"names": [], "action": "SCMP_ACT_ALLOW"}]);
    let error = error(|config| {
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})
    });
    assert!(error.contains("linux.seccomp.syscalls[0].names"), "{error}");
}

#[test]
fn a_listener_is_an_error() {
    for (field, value) in [("listenerPath", "/run/agent"), ("listenerMetadata", "x")] {
        let mut seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        seccomp[field] = json!(value);
        let error = error(|config| config["linux"]["seccomp"] = seccomp);
        assert!(error.contains(&format!("linux.seccomp.{field}")), "{error}");
    }
    let notify = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]});
    assert!(error(|config| config["linux"]["seccomp"] = notify).contains("SCMP_ACT_NOTIFY"));
}

#[test]
fn masked_and_readonly_paths_must_be_absolute() {
    for field in ["maskedPaths", "readonlyPaths"] {
        let error = error(|config| config["linux"][field] = json!(["/proc/kcore", "proc/keys"]));
        assert!(
            error.contains(&format!("linux.{field}")) && error.contains("proc/keys"),
            "{error}"
        );
    }
}

#[test]
fn rootfs_propagation_has_four_values() {
    for value in [
        "shared",
        "slave",
        "private",
        "unbindable",
        "rshared",
        "rslave",
        "rprivate",
        "runbindable",
    ] {
        let mut config = good();
        config["linux"]["rootfsPropagation"] = json!(value);
        TestBundle::new(&config).split().unwrap();
    }
    for value in ["other", "r", "rother", "Shared"] {
        let error = error(|config| config["linux"]["rootfsPropagation"] = json!(value));
        assert!(error.contains("linux.rootfsPropagation"), "{error}");
    }
}
