//! Pods as engines of Kubernetes make them: a sandbox that holds namespaces and containers that join them by path.

use crate::network::Namespace;
use e2e::cwrun::Container;
use e2e::{Bundle, Cwrun};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// A bundle as CRI-O writes that of a sandbox. There is no such program in its root file system.
fn sandbox(bundle: Bundle) -> Bundle {
    bundle
        .annotation("io.kubernetes.cri-o.ContainerType", "sandbox")
        .annotation("io.kubernetes.cri-o.SandboxID", "pod")
        .with(|config| {
            config["process"]["args"] = json!(["/pause"]);
            config["process"]["user"] = json!({"uid": 65535, "gid": 65535});
            config["process"]["oomScoreAdj"] = (-998).into();
            config["hostname"] = "pod".into();
            config["linux"]["resources"] =
                json!({"cpu": {"shares": 2}, "devices": [{"allow": false, "access": "rwm"}]});
        })
}

/// A bundle as CRI-O writes that of a container whose sandbox is this process.
fn member(pid: i32, script: &str) -> Bundle {
    Bundle::script(script)
        .annotation("io.kubernetes.cri-o.ContainerType", "container")
        .annotation("io.kubernetes.cri-o.SandboxID", "pod")
        .with(|config| {
            config.as_object_mut().expect("an object").remove("hostname");
            for namespace in config["linux"]["namespaces"].as_array_mut().expect("a list") {
                let file = match namespace["type"].as_str() {
                    Some("network") => "net",
                    Some("ipc") => "ipc",
                    Some("uts") => "uts",
                    _ => continue,
                };
                namespace["path"] = namespace_of(pid, file).to_string_lossy().into();
            }
        })
}

fn namespace_of(pid: i32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/{file}"))
}

/// A sandbox that runs, without network.
fn start_sandbox(cwrun: &Cwrun, bundle: Bundle) -> Container {
    let container = cwrun.create("pod", &sandbox(bundle));
    assert_eq!(cwrun.status("pod"), "created");
    cwrun.ok(["start", "pod"]);
    assert_eq!(cwrun.status("pod"), "running");
    container
}

#[track_caller]
fn end(cwrun: &Cwrun, container: &Container) {
    cwrun.ok(["kill", &container.id, "TERM"]);
    assert_eq!(cwrun.wait(container), 0);
    assert_eq!(cwrun.status(&container.id), "stopped");
    cwrun.ok(["delete", &container.id]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn two_containers_join_the_namespaces_of_a_sandbox() {
    let cwrun = Cwrun::new();
    let pod = start_sandbox(&cwrun, Bundle::idle());
    let script = format!("hostname; ls /sys/class/net | tr '\\n' ' '; echo ready; {IDLE}");
    let members = ["one", "two"].map(|id| {
        let container = cwrun.create(id, &member(pod.pid, &script));
        cwrun.ok(["start", id]);
        container
    });
    for container in &members {
        container.expect_output("pod\nlo ready\n");
        for file in ["net", "ipc", "uts"] {
            assert_eq!(
                fs::read_link(namespace_of(container.pid, file)).expect("it runs"),
                fs::read_link(namespace_of(pod.pid, file)).expect("it runs"),
                "{file}"
            );
        }
    }
    for id in ["pod", "one", "two"] {
        assert_eq!(cwrun.status(id), "running", "{id}");
    }
    // They do without it: what they joined is theirs too.
    end(&cwrun, &pod);
    for container in &members {
        end(&cwrun, container);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_sandbox_has_no_vm_and_runs_nothing() {
    let cwrun = Cwrun::new();
    let pod = start_sandbox(&cwrun, Bundle::idle());
    assert_eq!(cwrun.state("pod").expect("it exists")["infra"], true);
    let files = fs::read_dir(format!("/proc/{}/fd", pod.pid)).expect("it runs");
    let kvm = files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().contains("kvm")));
    assert!(!kvm, "a sandbox has no virtual machine");
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid)).expect("it runs");
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let entries = fs::read_dir(format!("/proc/{}/root", pod.pid)).expect("it runs");
    let files = entries.flatten().map(|entry| entry.file_name());
    // A VMM's root may have a `proc` of its own PID namespace.
    let files: Vec<_> = files.filter(|name| name != "proc").collect();
    assert!(files.is_empty(), "in its root: {files:?}");
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", pod.pid)).expect("it runs");
    assert_eq!(score.trim(), "-998");

    let message = cwrun.refused(["exec", "pod", "true"]);
    assert!(message.contains("infra container"), "{message}");
    let message = cwrun.refused(["update", "--memory", "1G", "pod"]);
    assert!(message.contains("infra container"), "{message}");
    let pids: Value = serde_json::from_str(&cwrun.ok(["ps", "--format", "json", "pod"])).expect("JSON");
    assert_eq!(pids, json!([1]));
    cwrun.ok(["pause", "pod"]);
    assert_eq!(cwrun.status("pod"), "paused");
    cwrun.ok(["resume", "pod"]);
    cwrun.ok(["kill", "pod", "USR1"]);
    assert_eq!(cwrun.status("pod"), "running");
    end(&cwrun, &pod);

    // Killed, and without ever having been started.
    let pod = cwrun.create("pod", &sandbox(Bundle::idle()));
    cwrun.ok(["delete", "--force", "pod"]);
    assert_eq!(cwrun.wait(&pod), 128 + 9);
    // Without the engine's word for it, the program is looked for and is not there.
    let bundle = sandbox(Bundle::idle()).annotation("io.kubernetes.cri-o.ContainerType", "container");
    let made = cwrun
        .command(["create", "--bundle"])
        .arg(bundle.path())
        .arg("pod")
        .finish();
    assert!(
        made.code != 0 && made.stderr.contains("/pause"),
        "{}",
        made.stderr
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_addresses_of_a_pod_are_those_of_one_container() {
    let namespace = Namespace::new("pod");
    let cwrun = Cwrun::new();
    let pod = start_sandbox(&cwrun, namespace.bundle(""));
    let script = format!("ip -o -4 address show eth0; echo ready; {IDLE}");
    let one = cwrun.create_with("one", &member(pod.pid, &script), &[], Stdio::null());
    cwrun.ok(["start", "one"]);
    one.expect_output("inet 10.99.0.2/24");
    let bundle = member(pod.pid, "true");
    let second = cwrun
        .command(["create", "--bundle"])
        .arg(bundle.path())
        .arg("two")
        .finish();
    assert!(
        second.code != 0 && second.stderr.contains("two can't share its addresses"),
        "{}",
        second.stderr
    );
    assert!(cwrun.state("two").is_none());
    end(&cwrun, &one);
    // The place is free again.
    let two = cwrun.create("two", &member(pod.pid, &script));
    cwrun.ok(["start", "two"]);
    two.expect_output("inet 10.99.0.2/24");
    end(&cwrun, &two);
    end(&cwrun, &pod);
}
