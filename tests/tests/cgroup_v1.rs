//! A host with version 1 of cgroups. `tests/run` starts a machine of its own for this module (`bed.cgroups=1`).

use crate::podman_shell::same;
use e2e::{Bundle, Cwrun};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

const ID: &str = "c";
const MIB: u64 = 1 << 20;
/// The cgroup, in each hierarchy.
const PLACE: &str = "version1";

fn place(controller: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(controller).join(PLACE)
}

#[track_caller]
fn read(controller: &str, file: &str) -> String {
    let path = place(controller).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

#[track_caller]
fn number(controller: &str, file: &str) -> u64 {
    read(controller, file).parse().expect("a number")
}

/// A container that does nothing, under these limits.
fn idle(cwrun: &Cwrun, resources: &serde_json::Value) -> e2e::cwrun::Container {
    let bundle = Bundle::idle().with(|config| {
        config["linux"]["resources"] = resources.clone();
        config["linux"]["cgroupsPath"] = format!("/{PLACE}").into();
    });
    let container = cwrun.create(ID, &bundle);
    cwrun.ok(["start", ID]);
    container
}

/// The check of the host at the end of each test includes the hierarchies: nothing may be left in them.
fn end(cwrun: &Cwrun) {
    cwrun.ok(["delete", "--force", ID]);
    for controller in [
        "memory",
        "cpu,cpuacct",
        "cpuset",
        "pids",
        "freezer",
        "devices",
        "blkio",
    ] {
        assert!(!place(controller).exists(), "{controller}");
    }
}

#[test]
#[ignore = "needs KVM and version 1 of cgroups: run in the testbed"]
fn limits_are_in_the_files_of_version_1_and_update_changes_them() {
    let cwrun = Cwrun::new();
    let container = idle(
        &cwrun,
        &json!({
            "memory": {"limit": 256 * MIB, "swappiness": 10},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
            "pids": {"limit": 50}
        }),
    );
    for controller in ["memory", "cpu,cpuacct", "cpuset", "pids", "freezer"] {
        let processes = read(controller, "cgroup.procs");
        assert!(
            processes.lines().any(|pid| pid == container.pid.to_string()),
            "{controller}: {processes}"
        );
    }
    // What the VMM itself needs comes on top.
    let memory = number("memory", "memory.limit_in_bytes");
    assert!(memory > 256 * MIB && memory < 512 * MIB, "{memory}");
    let threads = number("pids", "pids.max");
    assert!(threads > 50, "{threads}");
    assert_eq!(read("memory", "memory.swappiness"), "10");
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    cwrun.ok([
        "update",
        "--cpu-share",
        "256",
        "--cpu-quota",
        "40000",
        "--pids-limit",
        "60",
        ID,
    ]);
    assert_eq!(read("cpu", "cpu.shares"), "256");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "40000");
    assert_eq!(number("pids", "pids.max"), threads + 10);
    assert_eq!(number("memory", "memory.limit_in_bytes"), memory);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM and version 1 of cgroups: run in the testbed"]
fn pause_and_events_work_and_processes_run() {
    let cwrun = Cwrun::new();
    let _container = idle(&cwrun, &json!({"memory": {"limit": 256 * MIB}}));
    let stats: serde_json::Value = serde_json::from_str(&cwrun.ok(["events", "--stats", ID])).expect("JSON");
    assert_eq!(stats["type"], "stats", "{stats}");
    assert!(
        stats["data"]["memory"]["usage"]["usage"].as_u64() > Some(MIB),
        "{stats}"
    );
    assert!(
        stats["data"]["cpu"]["usage"]["total"].as_u64() > Some(0),
        "{stats}"
    );
    assert!(stats["data"]["pids"]["current"].as_u64() > Some(0), "{stats}");
    cwrun.ok(["pause", ID]);
    let state: serde_json::Value = serde_json::from_str(&cwrun.ok(["state", ID])).expect("JSON");
    assert_eq!(state["status"], "paused");
    cwrun.ok(["resume", ID]);
    assert_eq!(cwrun.ok(["exec", ID, "echo", "hello"]), "hello\n");
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM and version 1 of cgroups: run in the testbed"]
fn what_only_version_2_has_is_refused() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().with(|config| {
        config["linux"]["resources"] = json!({"unified": {"memory.high": "100000000"}});
        config["linux"]["cgroupsPath"] = format!("/{PLACE}").into();
    });
    let bundle_path = bundle.path().to_string_lossy().into_owned();
    let message = cwrun.refused(["create", "--bundle", &bundle_path, ID]);
    assert!(message.contains("unified"), "{message}");
    assert!(!place("memory").exists());
}

/// What podman made of this name below a hierarchy.
fn of_podman(controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![Path::new("/sys/fs/cgroup").join(controller)];
    while let Some(directory) = left.pop() {
        // conmon may be removing what is left of a container.
        let below = fs::read_dir(&directory).into_iter().flatten();
        let below = below.filter_map(|entry| Some(entry.ok()?.path()));
        for path in below.filter(|path| path.is_dir()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libpod-") && !name.contains("conmon") {
                found.push(path.clone());
            }
            left.push(path);
        }
    }
    found
}

#[test]
#[ignore = "needs KVM and version 1 of cgroups: run in the testbed"]
fn podman_sees_what_it_sees_with_crun() {
    same(|podman| {
        podman.ok(
            "run --detach --name limited --network none --memory 256m --cpus 0.5 --pids-limit 50 $IMAGE sleep 1000",
        );
        for (controller, file, least) in [
            ("memory", "memory.limit_in_bytes", 256 * MIB),
            ("cpu,cpuacct", "cpu.cfs_quota_us", 50_000),
            ("pids", "pids.max", 50),
        ] {
            let limits: Vec<u64> = of_podman(controller)
                .iter()
                .filter_map(|path| fs::read_to_string(path.join(file)).ok()?.trim().parse().ok())
                .collect();
            // A VMM's own needs come on top.
            let limited = limits.iter().any(|limit| (least..2 * least).contains(limit));
            podman.note(format!("{file}: {limited}"));
        }
        podman.say("exec limited sh -c 'echo hello; exit 3'");
        podman.say("pause limited");
        podman.say("inspect --format '{{.State.Status}}' limited");
        podman.say("unpause limited");
        podman.say("stats --no-stream --format '{{.Name}}' limited");
        podman.say("stop --time 1 limited");
        podman.say("inspect --format '{{.State.Status}} {{.State.ExitCode}}' limited");
        podman.ok("rm limited");
        podman.note(format!("left: {:?}", of_podman("memory")));
    });
}
