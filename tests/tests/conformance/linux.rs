//! config-linux.md: namespaces and cgroups of the VMM.

use super::life::{CGROUP, NEW, life};
use super::{Holder, fails, namespace};
use e2e::{Bundle, Cwrun};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;

/// Kinds that can be joined, by the names of config.json and of /proc.
const KINDS: [(&str, &str); 5] = [
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("pid", "pid"),
];

/// Namespaces of a created container's VMM, of the ones in the bundle or, where that names none, of this process.
fn namespaces_of(id: &str, namespaces: serde_json::Value) -> BTreeMap<&'static str, String> {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("true").with(|config| config["linux"]["namespaces"] = namespaces);
    let container = cwrun.create(id, &bundle);
    let pid = container.pid.to_string();
    let seen = KINDS.map(|(_, kind)| (kind, namespace(&pid, kind))).into();
    cwrun.ok(["delete", "--force", id]);
    seen
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_process_is_in_the_namespaces_of_the_paths() {
    let holder = Holder::new(&[
        "--net",
        "--ipc",
        "--uts",
        "--cgroup",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    // With --fork, unshare's child is the one inside.
    let children = format!("/proc/{0}/task/{0}/children", holder.pid());
    let inside = fs::read_to_string(children).unwrap().trim().to_owned();
    let paths = KINDS.map(|(typ, kind)| json!({"type": typ, "path": format!("/proc/{inside}/ns/{kind}")}));
    let seen = namespaces_of("joined", json!(paths));
    for (_, kind) in KINDS {
        assert_eq!(seen[kind], namespace(&inside, kind), "{kind}");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_path_to_a_namespace_of_another_type_is_an_error() {
    let cwrun = Cwrun::new();
    for (index, (typ, _)) in KINDS.iter().enumerate() {
        let other = format!("/proc/self/ns/{}", KINDS[(index + 1) % KINDS.len()].1);
        let namespace = json!([{"type": typ, "path": other}]);
        let bundle = Bundle::script("true").with(|config| config["linux"]["namespaces"] = namespace);
        let dir = bundle.path().to_string_lossy().into_owned();
        fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about(&other);
        cwrun.expect_clean();
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_namespace_without_a_path_is_new() {
    for kind in NEW {
        let (vmm, own) = &life().namespaces[kind];
        assert_ne!(vmm, own, "{kind}");
    }
    assert_ne!(life().namespaces["mnt"].0, life().namespaces["mnt"].1);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_namespace_that_is_not_listed_is_inherited() {
    let seen = namespaces_of("inherited", json!([]));
    for (_, kind) in KINDS {
        assert_eq!(seen[kind], namespace("self", kind), "{kind}");
    }
    assert_eq!(life().namespaces["user"].0, life().namespaces["user"].1);
}

/// The root of the container is nobody on the host.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_user_namespace_maps_ids() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("exit 7").with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    });
    let container = cwrun.create("mapped", &bundle);
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", container.pid)).unwrap();
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(read("uid_map")), ["0", "100000", "65536"]);
    assert_eq!(words(read("gid_map")), ["0", "200000", "65536"]);
    let status = read("status");
    assert!(
        status.contains("\nUid:\t100000\t") && status.contains("\nGid:\t200000\t"),
        "{status}"
    );
    cwrun.ok(["start", "mapped"]);
    assert_eq!(cwrun.wait(&container), 7);
    cwrun.ok(["delete", "mapped"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn an_absolute_cgroups_path_is_relative_to_the_mount_point() {
    assert_eq!(life().cgroup, format!("0::{CGROUP}"));
}

/// One container after the other, and both in the same place.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_same_cgroups_path_is_the_same_place() {
    let cwrun = Cwrun::new();
    for path in ["/e2e/same", "e2e/same"] {
        let seen = ["first", "second"].map(|id| {
            let bundle = Bundle::script("true").with(|config| config["linux"]["cgroupsPath"] = path.into());
            let container = cwrun.create(id, &bundle);
            let group = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
            cwrun.ok(["delete", "--force", id]);
            group
        });
        assert_eq!(seen[0], seen[1], "{path}");
    }
}

/// What is in it was there before: it is neither put under the container's limits nor ended with it.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_cgroup_that_has_processes_is_an_error() {
    let cwrun = Cwrun::new();
    let group = "/sys/fs/cgroup/e2e/taken";
    fs::create_dir_all(group).unwrap();
    let mut holder = Holder::new(&["--net"]);
    fs::write(format!("{group}/cgroup.procs"), holder.pid()).unwrap();
    for path in ["/e2e/taken", "/e2e", "/"] {
        let bundle = Bundle::script("true").with(|config| config["linux"]["cgroupsPath"] = path.into());
        let dir = bundle.path().to_string_lossy().into_owned();
        fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about("linux.cgroupsPath");
    }
    assert!(holder.0.try_wait().unwrap().is_none(), "it still runs");
    drop(holder);
    fs::remove_dir(group).unwrap();
}
