//! What an engine may write into config.json, field by field. The good one is what podman 4.3 writes for a sealed image.

use super::super::tests::workload;
use super::*;
use crate::bundle::sizing::Sizing;
use crate::bundle::{Bundle, guest};
use crate::settings::Settings;
use serde_json::{Value, json};
use std::fs;
use workload::{Secret, SecretPlace};

fn good() -> Value {
    let bind = |to: &str| json!({"destination": to, "type": "bind", "source": "small", "options": ["bind", "rprivate"]});
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 33, "gid": 33, "umask": 18, "additionalGids": [33]},
            "args": ["/usr/sbin/nginx", "-g", "daemon off;"],
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm", "container=podman", "FOO=bar", "HOSTNAME=28f1d8b0b20c", "HOME=/"],
            "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_CHROOT"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 1_048_576}],
            "oomScoreAdj": 200,
        },
        "root": {"path": "rootfs"},
        "hostname": "28f1d8b0b20c",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            bind("/etc/hostname"), bind("/etc/hosts"), bind("/etc/resolv.conf"), bind("/run/.containerenv"),
            {"destination": "/dev/shm", "type": "bind", "source": "directory", "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rprivate", "nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "sysctl": {"net.ipv4.ping_group_range": "0 0"},
            "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/self/ns/net"}, {"type": "mount"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
            "maskedPaths": ["/proc/kcore"]
        }
    })
}

/// What becomes of this config.json over this sealed workload: the environment, or the error.
fn run(config: &Value, sealed: &Workload) -> Result<Environment, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::create_dir(dir.path().join("directory")).unwrap();
    fs::write(dir.path().join("small"), "x").unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let apply = || -> Result<Environment> {
        let bundle = Bundle::load(dir.path(), None)?;
        let sizing = Sizing::of(&bundle, &Settings::default())?;
        let (engine, mut environment, _) = guest::split(&bundle, "id", &sizing, true)?;
        let runs = super::apply(&engine, sealed, &mut environment)?;
        assert_eq!(runs, *sealed, "the owner's workload is what runs");
        Ok(environment)
    };
    apply().map_err(|error| format!("{error:#}"))
}

/// Changes a value in config.json.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Array(list) if name == "-" => list.push(value),
        parent => parent[name] = value,
    }
}

#[test]
fn what_engines_add_by_custom_changes_nothing() {
    let environment = run(&good(), &workload(&[])).unwrap();
    assert!(environment.changes.is_empty(), "{:?}", environment.changes);
    let files: Vec<_> = environment
        .files
        .iter()
        .map(|file| file.destination.as_str())
        .collect();
    assert_eq!(
        files,
        [
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/run/.containerenv"
        ]
    );
    assert_eq!(environment.hostname.as_deref(), Some("28f1d8b0b20c"));
    // And neither do limits, or what Kubernetes adds.
    let mut other = good();
    set(
        &mut other,
        "/process/capabilities",
        json!({"bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]}),
    );
    set(&mut other, "/process/noNewPrivileges", json!(true));
    set(&mut other, "/process/user/additionalGids", json!([]));
    set(
        &mut other,
        "/linux/sysctl/net.ipv4.ip_unprivileged_port_start",
        json!("0"),
    );
    set(
        &mut other,
        "/linux/sysctl/net.ipv4.ping_group_range",
        json!("0 2147483647"),
    );
    set(&mut other, "/linux/maskedPaths", json!([]));
    let log = json!({"destination": "/dev/termination-log", "type": "bind", "source": "small", "options": ["rbind"]});
    set(&mut other, "/mounts/-", log);
    assert!(run(&other, &workload(&[])).unwrap().changes.is_empty());
}

/// A place in config.json, what is put there, what the error says, and the rule that allows it, if one can.
type Case = (&'static str, Value, &'static str, Option<&'static str>);

fn cases() -> Vec<Case> {
    let mount = |kind: &str, to: &str, from: &str| json!({"destination": to, "type": kind, "source": from, "options": []});
    vec![
        (
            "/process/args",
            json!(["/usr/sbin/nginx", "-g", "daemon off;", "-c", "/x"]),
            "process.args",
            Some("args"),
        ),
        (
            "/process/args",
            json!(["/usr/sbin/nginx"]),
            "process.args",
            Some("args"),
        ),
        ("/process/cwd", json!("/"), "process.cwd", Some("cwd")),
        (
            "/process/terminal",
            json!(true),
            "process.terminal",
            Some("terminal"),
        ),
        (
            "/process/env/-",
            json!("LD_PRELOAD=/x.so"),
            "process.env: LD_PRELOAD",
            Some("env:LD_PRELOAD"),
        ),
        (
            "/process/env/-",
            json!("KUBERNETES_PORT=1"),
            "process.env: KUBERNETES_PORT",
            Some("env:KUBERNETES_*"),
        ),
        (
            "/process/env/-",
            json!("FOO=other"),
            "process.env: FOO",
            Some("env:FOO"),
        ),
        (
            "/process/env/-",
            json!("PATH=/tmp"),
            "process.env: PATH",
            Some("env:*"),
        ),
        (
            "/process/env",
            json!(["PATH=/usr/bin:/bin"]),
            "process.env: FOO is missing",
            None,
        ),
        (
            "/process/env/-",
            json!("TOKEN=guessed"),
            "process.env: TOKEN",
            None,
        ),
        ("/process/user/uid", json!(0), "process.user: 0:33", None),
        ("/process/user/gid", json!(0), "process.user: 33:0", None),
        (
            "/process/user/additionalGids",
            json!([0]),
            "process.user.additionalGids: 0",
            None,
        ),
        ("/process/user/umask", json!(0), "process.user.umask", None),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
            "process.ioPriority",
            None,
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 1}),
            "process.scheduler",
            None,
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX32"}),
            "linux.personality",
            None,
        ),
        ("/root/readonly", json!(true), "root.readonly", None),
        (
            "/mounts/-",
            mount("tmpfs", "/usr/sbin", "tmpfs"),
            "mounts: tmpfs on /usr/sbin",
            None,
        ),
        (
            "/mounts/-",
            mount("proc", "/tmp", "proc"),
            "mounts: proc on /tmp",
            None,
        ),
        (
            "/mounts/-",
            mount("bind", "/data", "directory"),
            "mounts[11]",
            None,
        ),
        (
            "/mounts/-",
            mount("bind", "/usr/sbin/nginx", "small"),
            "\"file:/usr/sbin/nginx\"",
            Some("file:/usr/sbin/nginx"),
        ),
        (
            "/linux/devices/-",
            json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}),
            "linux.devices: /dev/fuse",
            None,
        ),
        (
            "/linux/devices/-",
            json!({"path": "/etc/shadow", "type": "p"}),
            "linux.devices: /etc/shadow",
            None,
        ),
        (
            "/linux/devices/-",
            json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 5}),
            "linux.devices: /dev/null",
            None,
        ),
        (
            "/linux/sysctl/net.ipv4.ip_forward",
            json!("1"),
            "linux.sysctl: net.ipv4.ip_forward",
            None,
        ),
        (
            "/hooks",
            json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "x"]}]}),
            "hooks.startContainer",
            None,
        ),
    ]
}

#[test]
fn what_differs_is_refused_by_name_unless_a_rule_allows_it() {
    for (pointer, value, said, rule) in cases() {
        let mut config = good();
        set(&mut config, pointer, value);
        let mut sealed = workload(&[]);
        sealed.sealed.as_mut().unwrap().secrets.push(Secret {
            name: "token".to_owned(),
            place: SecretPlace::Variable {
                name: "TOKEN".to_owned(),
            },
            mac: None,
        });
        let error = run(&config, &sealed).expect_err(pointer);
        assert!(
            error.starts_with("config.json: ") && error.contains(said),
            "{said}: {error}"
        );
        // Every rule that there is but the right one.
        let wrong = [
            "args",
            "cwd",
            "terminal",
            "env:OTHER",
            "env:LD_*",
            "env:FO",
            "file:/usr/sbin/nginx/x",
        ];
        let rules = &mut sealed.sealed.as_mut().unwrap().allow;
        for rule_ in wrong
            .iter()
            .filter(|other| Some(**other) != rule && !said.contains("LD_"))
        {
            rules.insert(rule_.parse().unwrap());
        }
        run(&config, &sealed).expect_err(pointer);
        let Some(rule) = rule else {
            // Nor does allowing everything help.
            for all in ["args", "cwd", "terminal", "env:*"] {
                sealed.sealed.as_mut().unwrap().allow.insert(all.parse().unwrap());
            }
            run(&config, &sealed).expect_err(pointer);
            continue;
        };
        let environment = run(&config, &workload(&[rule])).unwrap();
        let named = !environment.changes.is_empty() || environment.files.len() == 5;
        assert!(named, "{rule}: {environment:?}");
    }
}

#[test]
fn what_a_rule_allows_is_what_the_guest_runs() {
    let mut config = good();
    set(&mut config, "/process/args", json!(["ls"]));
    set(&mut config, "/process/env/-", json!("FOO=other"));
    let sealed = workload(&["args", "env:FOO"]);
    let environment = run(&config, &sealed).unwrap();
    let mut guest = sealed.clone();
    guest.admit(&environment).unwrap();
    assert_eq!(guest.process.args, ["ls"]);
    assert_eq!(
        guest.process.env,
        ["PATH=/usr/bin:/bin", "FOO=other", "HOME=/var/www"]
    );
    // What engines set by custom is passed on only where a rule names it.
    let environment = run(&good(), &workload(&["env:HOME"])).unwrap();
    assert_eq!(environment.changes.env, ["HOME=/"]);
}

#[test]
fn a_file_of_the_hosts_can_not_be_executed() {
    let environment = run(&good(), &workload(&[])).unwrap();
    assert!(environment.files.iter().all(|file| file.mode & !FILE_MODE == 0));
}

#[test]
fn the_owner_can_not_take_more_of_the_hosts_disk_than_it_gives() {
    let mut sealed = workload(&[]);
    sealed.scratch = Scratch::Disk { bytes: 1 << 40 };
    let error = run(&good(), &sealed).unwrap_err();
    assert!(
        error.contains("io.cwrun.scratch") && error.contains("1099511627776 bytes"),
        "{error}"
    );
    let mut config = good();
    set(&mut config, "/annotations", json!({"io.cwrun.scratch": "1TiB"}));
    run(&config, &sealed).unwrap();
}

#[test]
fn a_root_that_the_owner_made_read_only_stays_so() {
    let mut sealed = workload(&[]);
    sealed.readonly_root = true;
    run(&good(), &sealed).unwrap();
    let mut config = good();
    set(&mut config, "/root/readonly", json!(true));
    run(&config, &sealed).unwrap();
}

/// The image says itself what runs, so an engine's word for it is not looked at; everything else is.
#[test]
fn beside_a_disk_of_mkcw_only_the_rest_is_compared() {
    let sealed = Workload {
        root: workload::RootFs::Mkcw {
            header: workload::Hex([0; 32]),
        },
        ..workload(&["terminal"])
    };
    let mut config = good();
    for (pointer, value) in [
        ("/process/args", json!(["/entrypoint"])),
        ("/process/env", json!(["GREETING=goodbye"])),
        ("/process/cwd", json!("/home")),
        ("/process/user", json!({"uid": 1, "gid": 2})),
    ] {
        set(&mut config, pointer, value);
    }
    let environment = run(&config, &sealed).unwrap();
    assert!(environment.changes.is_empty(), "{:?}", environment.changes);
    set(&mut config, "/process/terminal", json!(true));
    assert_eq!(run(&config, &sealed).unwrap().changes.terminal, Some(true));
    let mount = json!({"destination": "/evil", "type": "tmpfs", "source": "tmpfs"});
    set(&mut config, "/mounts/-", mount);
    let error = run(&config, &sealed).unwrap_err();
    assert!(error.contains("mounts: tmpfs on /evil"), "{error}");
}
