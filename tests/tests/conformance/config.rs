//! config.md: what becomes of root, mounts, process and annotations in the guest.

use super::fails;
use super::life::life;
use e2e::{Bundle, Cwrun, Facts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

/// Every limit there is, with values that are nobody's default.
const LIMITS: [(&str, &str, u64, u64); 16] = [
    ("RLIMIT_CPU", "Max cpu time", 1001, 1002),
    ("RLIMIT_FSIZE", "Max file size", 1 << 40, 1 << 41),
    ("RLIMIT_DATA", "Max data size", 1 << 42, 1 << 43),
    ("RLIMIT_STACK", "Max stack size", 9 << 20, 10 << 20),
    ("RLIMIT_CORE", "Max core file size", 4096, 8192),
    ("RLIMIT_RSS", "Max resident set", 1 << 44, 1 << 45),
    ("RLIMIT_NPROC", "Max processes", 901, 902),
    ("RLIMIT_NOFILE", "Max open files", 501, 502),
    ("RLIMIT_MEMLOCK", "Max locked memory", 65_536, 131_072),
    ("RLIMIT_AS", "Max address space", 1 << 46, u64::MAX),
    ("RLIMIT_LOCKS", "Max file locks", 11, 12),
    ("RLIMIT_SIGPENDING", "Max pending signals", 21, 22),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size", 31_000, 32_000),
    ("RLIMIT_NICE", "Max nice priority", 3, 4),
    ("RLIMIT_RTPRIO", "Max realtime priority", 5, 6),
    ("RLIMIT_RTTIME", "Max realtime timeout", 7_000_000, 8_000_000),
];

type Words = &'static [&'static str];

/// Options that a runtime MUST implement, in the order of config.md#linux-mount-options, and what mountinfo shows then: words that must be
/// there, and words that must not. The options before the last are there for the last to have something to change.
const OPTIONS: [(&str, Words, Words, Words); 37] = [
    ("async", &["sync", "async"], &["rw"], &["sync"]),
    ("atime", &["noatime", "atime"], &["relatime"], &["noatime"]),
    (
        "defaults",
        &["defaults"],
        &["rw", "relatime"],
        &["nosuid", "nodev", "noexec"],
    ),
    ("dev", &["nodev", "dev"], &["rw"], &["nodev"]),
    (
        "diratime",
        &["nodiratime", "diratime"],
        &["relatime"],
        &["nodiratime"],
    ),
    ("dirsync", &["dirsync"], &["dirsync"], &[]),
    ("exec", &["noexec", "exec"], &["rw"], &["noexec"]),
    ("iversion", &["iversion"], &["rw"], &[]),
    ("lazytime", &["lazytime"], &["lazytime"], &[]),
    ("loud", &["loud"], &["rw"], &[]),
    ("noatime", &["noatime"], &["noatime"], &["relatime"]),
    ("nodev", &["nodev"], &["nodev"], &[]),
    ("nodiratime", &["nodiratime"], &["nodiratime"], &[]),
    ("noexec", &["noexec"], &["noexec"], &[]),
    ("noiversion", &["noiversion"], &["rw"], &[]),
    ("nolazytime", &["lazytime", "nolazytime"], &["rw"], &["lazytime"]),
    ("norelatime", &["norelatime"], &["rw"], &["noatime"]),
    (
        "nostrictatime",
        &["strictatime", "nostrictatime"],
        &["relatime"],
        &[],
    ),
    ("nosuid", &["nosuid"], &["nosuid"], &[]),
    ("private", &["shared", "private"], &["rw"], &["shared:"]),
    ("relatime", &["relatime"], &["relatime"], &[]),
    (
        "remount",
        &["remount", "ro", "noexec"],
        &["ro", "noexec"],
        &["nosuid"],
    ),
    ("ro", &["ro"], &["ro"], &[]),
    ("rprivate", &["rshared", "rprivate"], &["rw"], &["shared:"]),
    ("rshared", &["rshared"], &["shared:"], &[]),
    ("rslave", &["rslave"], &["rw"], &["shared:"]),
    ("runbindable", &["runbindable"], &["unbindable"], &[]),
    ("rw", &["ro", "rw"], &["rw"], &["ro"]),
    ("shared", &["shared"], &["shared:"], &[]),
    ("silent", &["silent"], &["rw"], &[]),
    ("slave", &["slave"], &["rw"], &["shared:"]),
    ("strictatime", &["strictatime"], &["rw"], &["relatime", "noatime"]),
    ("suid", &["nosuid", "suid"], &["rw"], &["nosuid"]),
    ("sync", &["sync"], &["sync"], &[]),
    ("unbindable", &["unbindable"], &["unbindable"], &[]),
    ("bind", &["bind", "ro"], &["ro"], &[]),
    ("rbind", &["rbind", "ro"], &["ro"], &[]),
];

/// What a container said of itself, what stood in the log of its creation, and files of its cgroup.
struct Guest {
    facts: Facts,
    log: String,
    cgroup: BTreeMap<&'static str, String>,
}

fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(visit)
}

/// Mounts with each option at `/options/NAME`.
fn with_options(bundle: &Bundle) -> Vec<Value> {
    fs::write(bundle.join("file"), "bound\n").expect("the bundle is writable");
    let mut mounts = Vec::new();
    for (name, options, _, _) in OPTIONS {
        let destination = format!("/options/{name}");
        if name.ends_with("bind") {
            mounts.push(
                json!({"destination": destination, "type": "none", "source": "file", "options": options}),
            );
            continue;
        }
        if name == "remount" {
            mounts.push(json!({"destination": destination, "type": "tmpfs", "options": ["nosuid"]}));
        }
        mounts.push(
            json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    mounts
}

fn visit() -> Guest {
    let cwrun = Cwrun::new();
    let script = r#"
        for at in /options/*; do echo "option-${at##*/}=$(awk -v at=$at '$5 == at { line = $0 } END { print line }' /proc/self/mountinfo)"; done
        sed -n 's/^\(Max [a-z ]*[a-z]\)  */\1=/p' /proc/self/limits
        [ -d /order/below ] && echo below=visible
        [ -e /hidden/below ] || echo hidden=yes
        echo relative=$(awk '$5 == "/relative/place" { print "there" }' /proc/self/mountinfo)
        echo uptime=$(cut -d. -f1 /proc/uptime)
        echo root=$(awk '$5 == "/" { print $7 }' /proc/self/mountinfo)
        echo source=$(awk '$2 == "/named" { print $1 }' /proc/mounts)
        echo again=$(awk '$2 == "/again" { print $4 }' /proc/mounts)
        echo readonly=$(touch /new 2>/dev/null || echo yes)
        echo oom=$(cat /proc/self/oom_score_adj)
        echo bounding=$(sed -n 's/CapBnd:[[:space:]]*//p' /proc/self/status)
        for node in null zero full random urandom tty fuse; do echo "device-$node=$(stat -c '%F %t:%T' /dev/$node)"; done
        for link in fd stdin stdout stderr; do echo "link-$link=$(readlink /dev/$link)"; done
        echo ptmx=$(readlink /dev/ptmx)
    "#;
    let bundle = Bundle::script(script);
    let options = with_options(&bundle);
    let bundle = bundle.with(|config| {
        let mounts = config["mounts"].as_array_mut().expect("a list");
        mounts.extend(options);
        for at in [
            "/order",
            "/order/below",
            "/hidden/below",
            "/hidden",
            "relative/place",
        ] {
            mounts.push(json!({"destination": at, "type": "tmpfs", "source": "tmpfs"}));
        }
        mounts.push(json!({"destination": "/named", "type": "tmpfs", "source": "dummy"}));
        mounts.push(json!({"destination": "/again", "type": "tmpfs", "options": ["nosuid", "size=1m"]}));
        mounts.push(json!({"destination": "/again", "options": ["remount", "bind", "noexec", "size=2m"]}));
        config["root"]["readonly"] = true.into();
        config["process"]["oomScoreAdj"] = 321.into();
        config["process"]["rlimits"] = LIMITS
            .map(|(name, _, soft, hard)| json!({"type": name, "soft": soft, "hard": hard}))
            .into();
        config["process"]["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_FROM_THE_FUTURE"]});
        config["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        config["linux"]["rootfsPropagation"] = "rshared".into();
        config["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 2_000_000, "nanosecs": 5}, "boottime": {"secs": 1_000_000}});
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "time"}));
        config["linux"]["cgroupsPath"] = "/e2e/guest".into();
        config["linux"]["resources"] = json!({"unified": {"pids.max": "777", "cgroup.max.depth": "7"}});
    });
    let log = cwrun.path("log");
    let container = cwrun.create_with(
        "guest",
        &bundle,
        &["--log", &log.to_string_lossy()],
        std::process::Stdio::null(),
    );
    let file = |name: &'static str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/e2e/guest/{name}")).unwrap_or_default();
        (name, text.trim().to_owned())
    };
    let cgroup = ["pids.max", "cgroup.max.depth", "cgroup.procs"].map(file).into();
    cwrun.ok(["start", "guest"]);
    assert_eq!(cwrun.wait(&container), 0, "{}", container.errors());
    let log = fs::read_to_string(log).expect("a warning is in it");
    let facts = Facts::of(&container.output());
    cwrun.ok(["delete", "guest"]);
    Guest { facts, log, cgroup }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_remount_with_bind_changes_the_flags_alone() {
    let options = guest().facts.get("again").to_owned();
    // Options of the file system that the kernel adds by itself (`inode64`) follow.
    assert!(options.starts_with("rw,noexec,relatime,size=1024k"), "{options}");
}

// config.md#root

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_root_that_is_readonly_is_read_only() {
    guest().facts.expect(&[("readonly", "yes")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_root_is_writable_unless_it_is_said_to_be_readonly() {
    life().facts.expect(&[("root-write", "yes")]);
}

// config.md#mounts

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn mounts_are_made_in_the_listed_order() {
    guest().facts.expect(&[("below", "visible"), ("hidden", "yes")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_relative_destination_is_relative_to_the_root() {
    guest().facts.expect(&[("relative", "there")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_source_of_a_mount_is_shown() {
    guest().facts.expect(&[("source", "dummy")]);
}

#[track_caller]
fn option(name: &str) {
    let (_, _, present, absent) = OPTIONS
        .iter()
        .find(|(known, ..)| *known == name)
        .expect("it is in the table");
    let line = guest().facts.get(&format!("option-{name}"));
    // mountinfo's own fields: attributes of the mount, propagation, and after the source those of the file system.
    let words: Vec<_> = line.split([' ', ',']).collect();
    // A peer group has a number: `shared:7`.
    let has = |word: &&str| words.contains(word) || word.ends_with(':') && line.contains(*word);
    assert!(
        present.iter().all(has) && !absent.iter().any(has),
        "{present:?}, not {absent:?}: {line}"
    );
}

/// A test for each option, named after it.
macro_rules! option_tests {
    ($($name:ident: $option:literal),* $(,)?) => {
        $(
            #[test]
            #[ignore = "needs KVM: run in the testbed"]
            fn $name() {
                option($option);
            }
        )*

        #[test]
        #[ignore = "needs KVM: run in the testbed"]
        fn every_mount_option_has_a_test() {
            let tested = [$($option),*];
            assert!(OPTIONS.iter().all(|(name, ..)| tested.contains(name)));
            assert_eq!(tested.len(), OPTIONS.len());
        }
    };
}

option_tests! {
    mount_option_async: "async",
    mount_option_atime: "atime",
    mount_option_bind: "bind",
    mount_option_defaults: "defaults",
    mount_option_dev: "dev",
    mount_option_diratime: "diratime",
    mount_option_dirsync: "dirsync",
    mount_option_exec: "exec",
    mount_option_iversion: "iversion",
    mount_option_lazytime: "lazytime",
    mount_option_loud: "loud",
    mount_option_noatime: "noatime",
    mount_option_nodev: "nodev",
    mount_option_nodiratime: "nodiratime",
    mount_option_noexec: "noexec",
    mount_option_noiversion: "noiversion",
    mount_option_nolazytime: "nolazytime",
    mount_option_norelatime: "norelatime",
    mount_option_nostrictatime: "nostrictatime",
    mount_option_nosuid: "nosuid",
    mount_option_private: "private",
    mount_option_rbind: "rbind",
    mount_option_relatime: "relatime",
    mount_option_remount: "remount",
    mount_option_ro: "ro",
    mount_option_rprivate: "rprivate",
    mount_option_rshared: "rshared",
    mount_option_rslave: "rslave",
    mount_option_runbindable: "runbindable",
    mount_option_rw: "rw",
    mount_option_shared: "shared",
    mount_option_silent: "silent",
    mount_option_slave: "slave",
    mount_option_strictatime: "strictatime",
    mount_option_suid: "suid",
    mount_option_sync: "sync",
    mount_option_unbindable: "unbindable",
}

// config.md#process

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_console_size_is_ignored_without_a_terminal() {
    life().facts.expect(&[("terminal", "no"), ("console", "no")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn soft_and_hard_limits_match() {
    let facts = &guest().facts;
    for (name, line, soft, hard) in LIMITS {
        let value = |limit: u64| {
            if limit == u64::MAX {
                "unlimited".to_owned()
            } else {
                limit.to_string()
            }
        };
        let shown: Vec<_> = facts.get(line).split_whitespace().take(2).collect();
        assert_eq!(shown, [value(soft), value(hard)], "{name}");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_capability_that_cant_be_granted_is_logged_as_a_warning() {
    let guest = guest();
    let warned = |line: &str| line.contains("level=warning") && line.contains("CAP_FROM_THE_FUTURE");
    assert!(guest.log.lines().any(warned), "{}", guest.log);
    guest.facts.expect(&[("bounding", "0000000000000020")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_oom_score_is_set() {
    guest().facts.expect(&[("oom", "321")]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn an_oom_score_that_is_not_set_is_not_changed() {
    let life = life();
    life.facts.expect(&[("oom", "0")]);
    assert_eq!(
        life.oom_scores.0, life.oom_scores.1,
        "that of the VMM is the runtime's"
    );
}

// config.md#annotations, #extensibility

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn unknown_annotations_and_properties_are_ignored() {
    let life = life();
    assert_eq!(
        life.created["annotations"]["org.opencontainers.unknown"],
        "ignored"
    );
    assert!(life.output.contains("ready"));
}

// runtime-linux.md#dev-symbolic-links, config-linux.md#default-devices

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_links_in_dev_are_made() {
    guest().facts.expect(&[
        ("link-fd", "/proc/self/fd"),
        ("link-stdin", "/proc/self/fd/0"),
        ("link-stdout", "/proc/self/fd/1"),
        ("link-stderr", "/proc/self/fd/2"),
    ]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_default_devices_are_supplied() {
    guest().facts.expect(&[
        ("device-null", "character special file 1:3"),
        ("device-zero", "character special file 1:5"),
        ("device-full", "character special file 1:7"),
        ("device-random", "character special file 1:8"),
        ("device-urandom", "character special file 1:9"),
        ("device-tty", "character special file 5:0"),
        ("ptmx", "pts/ptmx"),
    ]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn listed_devices_are_available() {
    guest()
        .facts
        .expect(&[("device-fuse", "character special file a:e5")]);
}

// config-linux.md#rootfs-mount-propagation

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn rootfs_propagation() {
    let root = guest().facts.get("root");
    assert!(root.starts_with("shared:"), "{root}");
}

// config-linux.md#time-offset

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn time_offsets_are_set_for_the_time_namespace() {
    let uptime: u64 = guest().facts.get("uptime").parse().expect("seconds");
    assert!((1_000_000..1_010_000).contains(&uptime), "{uptime}");
}

// config-linux.md#unified

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn unified_enables_the_controllers_that_it_needs() {
    // With room for the VMM's own threads.
    let limit: u64 = guest().cgroup["pids.max"].parse().expect("a number");
    assert!((777..777 + 128).contains(&limit), "{limit}");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn unified_writes_what_the_runtime_does_not_know() {
    assert_eq!(guest().cgroup["cgroup.max.depth"], "7");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn unified_with_a_controller_that_is_not_there_is_an_error() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("true")
        .with(|config| config["linux"]["resources"] = json!({"unified": {"nosuch.max": "1"}}));
    let dir = bundle.path().to_string_lossy().into_owned();
    fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about("nosuch");
}
