use super::sizing::Sizing;
use super::*;
use crate::settings::Settings;
use serde_json::{Value, json};
use workload::Scratch;

/// A configuration that is accepted, to be changed by each test.
fn good() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["/bin/true"], "cwd": "/", "env": ["A=b"]},
        "root": {"path": "rootfs"},
        "hostname": "h",
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/self/ns/net"}]}
    })
}

struct TestBundle(tempfile::TempDir);

impl TestBundle {
    fn new(config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Self(dir)
    }

    fn load(&self) -> Result<Bundle> {
        Bundle::load(self.0.path(), None)
    }
}

/// The error that a changed configuration gives, from whichever step finds it.
fn error(change: impl FnOnce(&mut Value)) -> String {
    let mut config = good();
    change(&mut config);
    let attempt = || -> Result<()> {
        let bundle = TestBundle::new(&config).load()?;
        let sizing = Sizing::of(&bundle, &Settings::default())?;
        host::split(&bundle, &sizing)?;
        guest::split(&bundle, "c1", &sizing).map(drop)
    };
    format!("{:#}", attempt().expect_err("accepted"))
}

#[test]
fn a_bundle_is_split() {
    let test = TestBundle::new(&good());
    let bundle = test.load().unwrap();
    let sizing = Sizing::of(&bundle, &Settings::default()).unwrap();
    let (workload, environment) = guest::split(&bundle, "c1", &sizing).unwrap();
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
fn errors_name_the_field() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 20] = [
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
            |c| c["process"]["scheduler"] = json!({"policy": "SCHED_FIFO"}),
            "process.scheduler: not supported",
        ),
        (
            |c| c["hooks"] = json!({"startContainer": [{"path": "/x"}]}),
            "hooks.startContainer: not supported",
        ),
        (
            |c| c["linux"]["personality"] = json!({"domain": "LINUX32"}),
            "linux.personality: not supported",
        ),
        (
            |c| c["linux"]["devices"] = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
            "linux.devices[0]: /dev/sda (8:0)",
        ),
        (
            |c| c["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}]),
            "linux.namespaces: Pid is listed twice",
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
    ];
    for (change, expected) in cases {
        let message = error(change);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn sizes_follow_limits_and_annotations() {
    let mut config = good();
    config["linux"]["resources"] = json!({"memory": {"limit": 256 << 20, "swap": -1}, "cpu": {"quota": 50000, "period": 100000}, "devices": [{"allow": false}]});
    config["annotations"] = json!({"io.cwrun.scratch": "2GiB"});
    let bundle = TestBundle::new(&config).load().unwrap();
    let sizing = Sizing::of(&bundle, &Settings::default()).unwrap();
    assert_eq!(
        sizing,
        Sizing {
            memory_mib: 256,
            headroom: 64 << 20,
            vcpus: 1,
            scratch: Scratch::Disk { bytes: 2 << 30 }
        }
    );
    let resources = host::split(&bundle, &sizing).unwrap().resources.unwrap();
    let memory = resources.memory().unwrap();
    assert_eq!(
        (memory.limit(), memory.swap()),
        (Some((256 << 20) + (64 << 20)), Some(-1))
    );
    assert!(resources.devices().is_none());
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
