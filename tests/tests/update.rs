//! Limits that change while a container runs, and those that only the guest can keep.

use e2e::cwrun::Container;
use e2e::{Bundle, Cwrun, Finished};
use serde_json::json;
use std::fs;

const ID: &str = "c";
const MIB: u64 = 1 << 20;

/// A container that does nothing, not even now and then start a process, with these limits, and with a control group that it may write to.
fn idle(cwrun: &Cwrun, resources: &serde_json::Value) -> Container {
    let bundle = Bundle::script("trap 'exit 0' TERM; sleep 100000 & wait").with(|config| {
        config["linux"]["resources"] = resources.clone();
        config["linux"]["cgroupsPath"] = "/e2e/update".into();
        for mount in config["mounts"].as_array_mut().expect("mounts are a list") {
            if mount["destination"] == "/sys/fs/cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev"]);
            }
        }
    });
    let container = cwrun.create(ID, &bundle);
    cwrun.ok(["start", ID]);
    container
}

fn sh(cwrun: &Cwrun, script: &str) -> Finished {
    cwrun.command(["exec", ID, "sh", "-c", script]).finish()
}

/// A file of the container's control group in the guest.
#[track_caller]
fn inside(cwrun: &Cwrun, file: &str) -> String {
    let text = sh(cwrun, &format!("cat /sys/fs/cgroup/{file}")).ok().text();
    text.trim().to_owned()
}

/// A file of the VMM's cgroup.
#[track_caller]
fn outside(file: &str) -> String {
    let path = format!("/sys/fs/cgroup/e2e/update/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}

fn end(cwrun: &Cwrun) {
    cwrun.ok(["delete", "--force", ID]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_number_of_processes_is_limited_in_the_guest() {
    let cwrun = Cwrun::new();
    let _container = idle(&cwrun, &json!({"pids": {"limit": 12}}));
    assert_eq!(inside(&cwrun, "pids.max"), "12");
    let threads: u64 = outside("pids.max").parse().unwrap();
    assert!(threads > 12 + 20, "{threads}");
    let many = "i=0; while [ $i -lt 30 ]; do sleep 3 & i=$((i + 1)); done; echo all";
    let refused = sh(&cwrun, many);
    assert!(refused.code != 0 && refused.text().is_empty(), "{refused:?}");
    assert!(refused.stderr.contains("fork"), "{}", refused.stderr);
    // Not even by who owns the group and can write to it.
    assert_ne!(sh(&cwrun, "echo max > /sys/fs/cgroup/pids.max").code, 0);
    assert_eq!(inside(&cwrun, "pids.max"), "12");

    cwrun.ok(["update", "--pids-limit", "100", ID]);
    assert_eq!(inside(&cwrun, "pids.max"), "100");
    assert_eq!(outside("pids.max"), (threads + 88).to_string());
    assert_eq!(sh(&cwrun, many).ok().text(), "all\n");
    cwrun.ok(["update", "--pids-limit=-1", ID]);
    assert_eq!([inside(&cwrun, "pids.max"), outside("pids.max")], ["max", "max"]);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn memory_moves_within_what_the_guest_has() {
    let cwrun = Cwrun::new();
    let _container = idle(&cwrun, &json!({"memory": {"limit": 256 * MIB}}));
    let host = outside("memory.max");
    assert_eq!(host, ((256 + 64) * MIB).to_string());
    assert_eq!(inside(&cwrun, "memory.max"), "max");

    cwrun.ok(["update", "--memory", "32m", ID]);
    assert_eq!(inside(&cwrun, "memory.max"), (32 * MIB).to_string());
    assert_eq!(outside("memory.max"), host, "a guest gives no memory back");
    let killed = sh(
        &cwrun,
        "dd if=/dev/zero of=/dev/shm/x bs=8M count=7; echo $?; rm /dev/shm/x",
    );
    assert_eq!(killed.text(), "137\n", "{}", killed.stderr);
    assert_eq!(cwrun.status(ID), "running");

    let message = cwrun.refused(["update", "--memory", "257m", ID]);
    assert!(
        message.contains("257 MiB is more than the 256 MiB that the guest was booted with"),
        "{message}"
    );
    let given = json!({"memory": {"limit": 256 * MIB}, "cpu": {"quota": 0}}).to_string();
    let finished = cwrun
        .command(["update", "--resources", "-", ID])
        .stdin(given)
        .finish()
        .ok();
    assert_eq!(finished.stderr, "");
    assert_eq!(inside(&cwrun, "memory.max"), "max");
    sh(&cwrun, "dd if=/dev/zero of=/dev/shm/x bs=8M count=7").ok();
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn processor_time_moves_on_the_host() {
    let cwrun = Cwrun::new();
    let _container = idle(
        &cwrun,
        &json!({"cpu": {"quota": 100_000, "period": 100_000, "shares": 1024}}),
    );
    cwrun.ok(["update", "--cpu-quota", "50000", ID]);
    assert_eq!(outside("cpu.max"), "50000 100000");
    // Each update is over the one before.
    cwrun.ok(["update", "--cpu-period", "200000", "--cpu-share", "2", ID]);
    assert_eq!([outside("cpu.max"), outside("cpu.weight")], ["50000 200000", "1"]);
    let file = cwrun.path("resources.json");
    fs::write(
        &file,
        json!({"cpu": {"quota": 800_000, "period": 100_000}}).to_string(),
    )
    .unwrap();
    let more = cwrun
        .command(["update", "-r", file.to_str().unwrap(), ID])
        .finish()
        .ok();
    assert!(more.stderr.contains("guest was booted with 1"), "{}", more.stderr);
    assert_eq!(outside("cpu.max"), "800000 100000");
    cwrun.ok(["pause", ID]);
    cwrun.ok(["update", "--cpu-quota=-1", "--pids-limit", "50", ID]);
    cwrun.ok(["resume", ID]);
    assert_eq!(outside("cpu.max"), "max 100000");
    assert_eq!(inside(&cwrun, "pids.max"), "50");
    // Nothing asked for is nothing done.
    cwrun.ok(["update", ID]);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_cannot_change_is_a_sentence() {
    let cwrun = Cwrun::new();
    let message = cwrun.refused(["update", "--memory", "32m", "nobody"]);
    assert!(message.contains("does not exist"), "{message}");
    let container = idle(&cwrun, &json!({}));
    let file = cwrun.path("resources.json");
    for (text, expected) in [
        ("{\"memory\": {\"limit\": \"1g\"}}", "memory.limit"),
        ("[", "resources.json"),
        (
            "{\"memory\": {\"swappiness\": 5}}",
            "linux.resources.memory.swappiness: not possible",
        ),
        (
            "{\"rdma\": {\"mlx5_1\": {\"hcaHandles\": 3}}}",
            "linux.resources.rdma: not supported",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let message = cwrun.refused(["update", "--resources", file.to_str().unwrap(), ID]);
        assert!(
            message.contains(expected) && message.lines().count() == 1,
            "{text}: {message}"
        );
    }
    let message = cwrun.refused(["update", "--resources", "/nowhere", ID]);
    assert!(message.contains("/nowhere"), "{message}");
    for command in ["checkpoint", "restore"] {
        let message = cwrun.refused([command, "--image-path", "/nowhere", "--work-path", "/nowhere", ID]);
        assert!(
            message.contains("virtual machine") && message.lines().count() == 1,
            "{message}"
        );
    }
    cwrun.ok(["kill", ID, "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    let message = cwrun.refused(["update", "--pids-limit", "5", ID]);
    assert!(message.contains("is stopped"), "{message}");
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn without_a_cgroup_the_guest_still_keeps_its_limits() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle();
    let path = bundle.path().to_str().unwrap();
    let create = cwrun.command(["--cgroup-manager", "disabled", "create", "--bundle", path, ID]);
    cwrun.detached(ID, create.command(), std::process::Stdio::null());
    cwrun.ok(["start", ID]);
    cwrun.ok(["update", "--pids-limit", "9", ID]);
    assert_eq!(inside(&cwrun, "pids.max"), "9");
    let message = cwrun.refused(["update", "--cpu-quota", "1000", ID]);
    assert!(message.contains("no cgroup of its own"), "{message}");
    let message = cwrun.refused(["events", "--stats", ID]);
    assert!(message.contains("no cgroup of its own"), "{message}");
    end(&cwrun);
}
