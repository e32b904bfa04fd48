//! From create to delete, as the OCI runtime specification and engines want it (runtime.md#lifecycle).

use e2e::cwrun::wait_for_end;
use e2e::process::{code, eventually, wait};
use e2e::{Bundle, Cwrun, Run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Announces itself, then does nothing until a signal comes: `on` is a list of traps.
fn waiting(on: &str) -> Bundle {
    Bundle::script(&format!("{on}\necho ready\nwhile :; do sleep 1 & wait $!; done"))
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn exit_codes_arrive() {
    let cwrun = Cwrun::new();
    for code in [0, 7, 255] {
        let done = cwrun
            .run(
                "codes",
                &Bundle::script(&format!("echo out; echo err >&2; exit {code}")),
            )
            .finish()
            .expect(code);
        assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        cwrun.expect_clean();
    }
    // A signal from within: the first process of a PID namespace is immune to all but the kernel's own.
    let limited = Bundle::script("while :; do :; done")
        .with(|config| config["process"]["rlimits"] = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]));
    cwrun.run("limited", &limited).finish().expect(128 + 9);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_life_in_single_steps() {
    let cwrun = Cwrun::new();
    let bundle = waiting("trap 'echo terminated; exit 0' TERM").annotation("org.example.key", "value");
    let container = cwrun.create("steps", &bundle);

    let state = cwrun.state("steps").expect("it was created");
    assert!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    assert_eq!(state["id"], "steps");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], container.pid);
    assert_eq!(
        state["bundle"].as_str().map(Path::new),
        bundle.path().canonicalize().ok().as_deref()
    );
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(container.output(), "", "nothing runs before start");

    assert!(
        cwrun
            .refused(["create", "--bundle", &bundle.path().to_string_lossy(), "steps"])
            .contains("already exists")
    );
    assert!(
        cwrun.refused(["delete", "steps"]).contains("created"),
        "only a stopped container can be deleted"
    );
    assert_eq!(cwrun.status("steps"), "created", "refusals change nothing");

    cwrun.ok(["start", "steps"]);
    container.expect_output("ready");
    assert_eq!(cwrun.status("steps"), "running");
    assert!(cwrun.refused(["start", "steps"]).contains("running"));
    assert!(cwrun.refused(["delete", "steps"]).contains("running"));
    assert_list(&cwrun, "steps", "running", container.pid);

    cwrun.ok(["kill", "steps", "TERM"]);
    assert_eq!(
        cwrun.wait(&container),
        0,
        "the workload traps SIGTERM and exits with 0"
    );
    assert!(
        container.output().ends_with("terminated\n"),
        "{:?}",
        container.output()
    );
    assert_eq!(container.errors(), "");

    let state = cwrun.state("steps").expect("it was not deleted");
    assert_eq!(state["status"], "stopped");
    assert!(state.get("pid").is_none_or(|pid| *pid == 0), "{state}");
    assert_list(&cwrun, "steps", "stopped", 0);
    assert!(cwrun.refused(["start", "steps"]).contains("stopped"));
    assert!(cwrun.refused(["kill", "steps", "TERM"]).contains("stopped"));
    cwrun.ok(["kill", "--all", "steps", "KILL"]);

    cwrun.ok(["delete", "steps"]);
    cwrun.expect_clean();
    assert!(cwrun.refused(["delete", "steps"]).contains("does not exist"));
    cwrun.ok(["delete", "--force", "steps"]);
    cwrun.ok(["delete", "--force", "steps"]);
    assert!(cwrun.refused(["state", "steps"]).contains("does not exist"));
    assert_eq!(cwrun.ok(["list", "--quiet"]), "");
}

fn assert_list(cwrun: &Cwrun, id: &str, status: &str, pid: i32) {
    assert_eq!(cwrun.ok(["list", "--quiet"]), format!("{id}\n"));
    let table = cwrun.ok(["list"]);
    let row: Vec<_> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(row[..3], [id, &pid.to_string(), status], "{table}");
    let list: Value = serde_json::from_str(&cwrun.ok(["list", "--format", "json"])).expect("JSON");
    assert_eq!(
        (list[0]["id"].as_str(), list[0]["status"].as_str()),
        (Some(id), Some(status))
    );
    assert_eq!(list[0]["pid"], pid);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn signals_reach_the_workload_by_every_way() {
    let cwrun = Cwrun::new();
    let names = ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "CONT", "WINCH"];
    let traps: String = names
        .iter()
        .map(|name| format!("trap 'echo {name}' {name}\n"))
        .collect();
    let container = cwrun.create("signals", &waiting(&format!("{traps}trap 'exit 5' TERM")));
    cwrun.ok(["start", "signals"]);
    container.expect_output("ready");

    for (how, name) in [
        ("USR1", "USR1"),
        ("SIGUSR2", "USR2"),
        ("1", "HUP"),
        ("sigalrm", "ALRM"),
        ("CONT", "CONT"),
    ] {
        cwrun.ok(["kill", "signals", how]);
        container.expect_output(&format!("{name}\n"));
    }
    // What the VMM process gets, as from an engine that knows only its number, is the workload's too.
    let vmm = Pid::from_raw(container.pid).expect("its number");
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::WINCH, "WINCH"),
    ] {
        kill_process(vmm, signal).expect("the VMM runs");
        container.expect_output(&format!("{name}\n"));
    }
    for unknown in ["NOPE", "0", "65", "SIG9"] {
        assert!(cwrun.refused(["kill", "signals", unknown]).contains(unknown));
    }
    assert_eq!(cwrun.status("signals"), "running");
    // The default is TERM.
    cwrun.ok(["kill", "signals"]);
    assert_eq!(cwrun.wait(&container), 5);
    cwrun.ok(["delete", "signals"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn kill_ends_what_does_not_listen() {
    let cwrun = Cwrun::new();
    let container = cwrun.create("deaf", &waiting("trap '' TERM INT HUP"));
    cwrun.ok(["start", "deaf"]);
    container.expect_output("ready");
    cwrun.ok(["kill", "deaf", "TERM"]);
    cwrun.ok(["kill", "deaf", "KILL"]);
    assert_eq!(cwrun.wait(&container), 128 + 9);
    assert_eq!(cwrun.status("deaf"), "stopped");
    cwrun.ok(["delete", "deaf"]);

    // One that has not been started can be killed as well.
    let container = cwrun.create("unstarted", &waiting(""));
    cwrun.ok(["kill", "unstarted", "KILL"]);
    assert_eq!(cwrun.wait(&container), 128 + 9);
    assert_eq!(container.output(), "");
    cwrun.ok(["delete", "unstarted"]);

    // --force needs no other command.
    let container = cwrun.create("forced", &waiting(""));
    cwrun.ok(["start", "forced"]);
    container.expect_output("ready");
    cwrun.ok(["delete", "--force", "forced"]);
    assert_eq!(wait_for_end(container.pid, Duration::from_secs(30)), 128 + 9);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_vmm_that_does_not_answer_holds_nobody_up() {
    let cwrun = Cwrun::new();
    let container = cwrun.create("deaf", &waiting("trap 'exit 5' TERM"));
    cwrun.ok(["start", "deaf"]);
    container.expect_output("ready");
    let vmm = Pid::from_raw(container.pid).unwrap();
    kill_process(vmm, Signal::STOP).unwrap();
    // An engine's `stop` would not get as far as SIGKILL if this waited, or failed.
    cwrun.ok(["kill", "deaf", "TERM"]);
    // What was asked for comes when it goes on.
    kill_process(vmm, Signal::CONT).unwrap();
    assert_eq!(cwrun.wait(&container), 5);
    cwrun.ok(["delete", "deaf"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn all_processes_can_be_signalled() {
    let cwrun = Cwrun::new();
    let child =
        "sh -c 'trap \"echo child; exit\" USR1; echo child ready; while :; do sleep 1 & wait $!; done' &";
    let container = cwrun.create(
        "all",
        &waiting(&format!("trap 'echo parent' USR1; trap 'exit 0' TERM\n{child}")),
    );
    cwrun.ok(["start", "all"]);
    container.expect_output("child ready");
    eventually("the parent is ready", 30, || {
        container
            .output()
            .lines()
            .any(|line| line == "ready")
            .then_some(())
    });
    cwrun.ok(["kill", "--all", "all", "USR1"]);
    container.expect_output("child\n");
    container.expect_output("parent\n");
    cwrun.ok(["kill", "all", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "all"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_in_front_forwards_signals() {
    let cwrun = Cwrun::new();
    let bundle = waiting("trap 'echo bye; exit 3' TERM");
    let mut command = cwrun.run("front", &bundle).command();
    let output = cwrun.path("front.out");
    command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&output).unwrap());
    let mut child = command.spawn().unwrap();
    eventually("ready", 30, || {
        fs::read_to_string(&output)
            .unwrap()
            .contains("ready")
            .then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = wait(&mut child, Duration::from_secs(30), "run");
    assert_eq!(
        (code(status), fs::read_to_string(&output).unwrap().as_str()),
        (3, "ready\nbye\n")
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_detached_and_run_with_keep() {
    let cwrun = Cwrun::new();
    let bundle = waiting("trap 'exit 0' TERM");
    let pid_file = cwrun.path("detached.pid");
    let run = cwrun
        .run("detached", &bundle)
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file);
    let mut container = cwrun.detached("detached", run.command(), Stdio::null());
    container.pid = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(cwrun.status("detached"), "running");
    container.expect_output("ready");
    cwrun.ok(["kill", "detached", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "detached"]);
    cwrun.expect_clean();

    cwrun
        .run("kept", &Bundle::script("exit 9"))
        .arg("--keep")
        .finish()
        .expect(9);
    assert_eq!(cwrun.status("kept"), "stopped");
    cwrun.ok(["delete", "kept"]);
}

/// A hook that writes what it gets on standard input, and where it is in the container's life, to a file.
fn hook(bundle: &Bundle, cwrun: &Cwrun, name: &str, exit: i32) -> Value {
    let script = bundle.join(&format!("{name}.sh"));
    let body = format!(
        "#!/bin/sh\ncat >{out}\necho \"$GREETING $1\" >{out}.env\nls -d /proc/self/ns/net -l | sed 's/.*-> //' >{out}.net\nexit {exit}\n",
        out = cwrun.path(name).display()
    );
    fs::write(&script, body).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    json!([{"path": script, "args": [name, "argument"], "env": ["GREETING=hello", "PATH=/usr/bin:/bin"], "timeout": 60}])
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn hooks_run_where_and_when_they_should() {
    let cwrun = Cwrun::new();
    let names = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let mut bundle = waiting("trap 'exit 0' TERM").annotation("org.example.key", "value");
    for name in names {
        let entry = hook(&bundle, &cwrun, name, 0);
        bundle = bundle.with(|config| config["hooks"][name] = entry);
    }
    let seen = |name: &str| {
        fs::read_to_string(cwrun.path(name))
            .ok()
            .map(|text| serde_json::from_str::<Value>(&text).unwrap())
    };
    let container = cwrun.create("hooked", &bundle);
    for name in ["prestart", "createRuntime", "createContainer"] {
        let state = seen(name).unwrap_or_else(|| panic!("{name} has not run when create returns"));
        assert_eq!(
            (state["id"].as_str(), state["status"].as_str()),
            (Some("hooked"), Some("created")),
            "{name}"
        );
        // As seen from where the hook runs: the VMM is the first process of its namespace.
        let pid = if name == "createContainer" {
            1
        } else {
            container.pid
        };
        assert_eq!(state["pid"], pid, "{name}");
        assert_eq!(state["annotations"]["org.example.key"], "value", "{name}");
        assert_eq!(
            fs::read_to_string(cwrun.path(&format!("{name}.env"))).unwrap(),
            "hello argument\n"
        );
    }
    let net = |name: &str| {
        fs::read_to_string(cwrun.path(&format!("{name}.net")))
            .unwrap()
            .trim()
            .to_owned()
    };
    let own = fs::read_link("/proc/self/ns/net")
        .unwrap()
        .to_string_lossy()
        .into_owned();
    assert_eq!(
        net("createRuntime"),
        own,
        "createRuntime runs in the runtime's namespaces"
    );
    let vmm = fs::read_link(format!("/proc/{}/ns/net", container.pid)).unwrap();
    assert_eq!(
        net("createContainer"),
        vmm.to_string_lossy(),
        "createContainer runs in the container's namespaces"
    );
    assert!(seen("poststart").is_none() && seen("poststop").is_none());

    cwrun.ok(["start", "hooked"]);
    assert_eq!(
        seen("poststart").expect("poststart runs before start returns")["status"],
        "running"
    );
    assert!(seen("poststop").is_none());
    container.expect_output("ready");
    cwrun.ok(["kill", "hooked", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "hooked"]);
    let state = seen("poststop").expect("poststop runs before delete returns");
    assert_eq!(
        (state["id"].as_str(), state["status"].as_str()),
        (Some("hooked"), Some("stopped"))
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn failing_hooks_stop_a_creation_and_nothing_else() {
    let cwrun = Cwrun::new();
    for name in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::script("echo must not run");
        let entry = hook(&bundle, &cwrun, name, 4);
        let bundle = bundle.with(|config| config["hooks"][name] = entry);
        let done = cwrun.run("hooked", &bundle).finish().expect(1);
        assert_eq!(done.text(), "");
        assert!(
            done.stderr.contains(&format!("{name}.sh")) && done.stderr.contains("status 4"),
            "{}",
            done.stderr
        );
        cwrun.expect_clean();
    }
    let mut bundle = Bundle::script("echo ran");
    for name in ["poststart", "poststop"] {
        let entry = hook(&bundle, &cwrun, name, 4);
        bundle = bundle.with(|config| config["hooks"][name] = entry);
    }
    let log = cwrun.path("log");
    let done = cwrun.run("hooked", &bundle).arg("--log").arg(&log).finish().ok();
    assert_eq!(
        (done.text().as_str(), done.stderr.as_str()),
        ("ran\n", ""),
        "the container's streams are its own"
    );
    let log = fs::read_to_string(log).unwrap();
    for name in ["poststart", "poststop"] {
        let line = log
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("{name} in {log}"));
        assert!(
            line.contains("level=warning") && line.contains("status 4"),
            "{line}"
        );
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn several_containers_at_once() {
    let cwrun = Cwrun::new();
    let bundle = waiting("trap 'exit 0' TERM").annotation("krun.ram_mib", "256");
    let ids = ["one", "two", "three"];
    let containers = ids.map(|id| cwrun.create(id, &bundle));
    assert_eq!(cwrun.ok(["list", "--quiet"]), "one\nthree\ntwo\n");
    ids.iter().for_each(|id| drop(cwrun.ok(["start", id])));
    containers
        .iter()
        .for_each(|container| container.expect_output("ready"));
    cwrun.ok(["delete", "--force", "two"]);
    assert_eq!(cwrun.status("one"), "running");
    for container in [&containers[0], &containers[2]] {
        cwrun.ok(["kill", &container.id, "TERM"]);
        assert_eq!(cwrun.wait(container), 0);
        cwrun.ok(["delete", &container.id]);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn phases_are_visible() {
    let cwrun = Cwrun::with_own_cache();
    let bundle = Bundle::busybox(["true"]);
    let log = cwrun.path("log");
    let run = |id: &str| {
        let log = log.to_string_lossy().into_owned();
        cwrun
            .run(id, &bundle)
            .args(["--debug", "--log-format", "json", "--log", &log])
            .finish()
            .ok();
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line}: {e}")));
        lines
            .filter(|line| line.get("phase").is_some())
            .collect::<Vec<_>>()
    };
    for id in ["cold", "warm"] {
        let phases = run(id);
        let unmeasured: Vec<_> = phases.iter().filter(|line| !line["ms"].is_number()).collect();
        assert!(
            unmeasured.is_empty(),
            "phases without milliseconds: {unmeasured:?}"
        );
        for name in ["convert", "vmm", "kernel", "init", "start"] {
            let phase = phases
                .iter()
                .find(|line| line["phase"] == name)
                .unwrap_or_else(|| panic!("{name} in {phases:?}"));
            assert!(
                phase["ms"]
                    .as_f64()
                    .is_some_and(|ms| (0.0..60_000.0).contains(&ms)),
                "{phase}"
            );
        }
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn commands_about_the_runtime_itself() {
    let cwrun = Cwrun::new();
    let version = cwrun.ok(["--version"]);
    assert!(
        version.starts_with("cwrun version ") && version.contains("\nspec: 1."),
        "{version}"
    );

    let features: Value = serde_json::from_str(&cwrun.ok(["features"])).unwrap();
    assert!(
        features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(),
        "{features}"
    );
    assert!(
        features["linux"]["namespaces"]
            .as_array()
            .is_some_and(|names| names.len() >= 5),
        "{features}"
    );

    let check: Value = serde_json::from_str(&cwrun.ok(["check", "--json"])).unwrap();
    assert_eq!(check["ok"], true, "{check}");
    assert!(cwrun.ok(["check"]).contains("kvm"));

    let dir = cwrun.path("spec");
    fs::create_dir(&dir).unwrap();
    cwrun.command(["spec"]).dir(&dir).finish().ok();
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(
        cwrun
            .command(["spec"])
            .dir(&dir)
            .finish()
            .stderr
            .contains("config.json"),
        "it is not overwritten"
    );

    // What `spec` writes runs, given a root file system and no terminal.
    let bundle = Bundle::busybox(["true"]).with(|bundle| {
        let root = bundle["root"]["path"].clone();
        *bundle = config.clone();
        bundle["root"]["path"] = root;
        bundle["process"]["terminal"] = false.into();
        bundle["process"]["args"] = json!(["hostname"]);
    });
    assert_eq!(cwrun.run("spec", &bundle).finish().ok().text(), "cwrun\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_vmm_is_confined() {
    let cwrun = Cwrun::new();
    let container = cwrun.create("confined", &waiting("trap 'exit 0' TERM"));
    cwrun.ok(["start", "confined"]);
    container.expect_output("ready");
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", container.pid)).unwrap();
    let status = read("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} in {status}"))
            .trim()
            .to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    let mounts = read("mountinfo");
    let mounts: Vec<_> = mounts.lines().collect();
    assert!(
        matches!(mounts[..], [root, proc]
            if root.contains(" / ro,") && proc.contains(" /proc ro,") && proc.ends_with(",subset=pid")),
        "an empty root with the processes of its own namespace, and nothing else: {mounts:#?}"
    );
    let in_root = |path: &str| {
        let entries = fs::read_dir(format!("/proc/{}/root/{path}", container.pid)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(in_root(""), ["proc"]);
    assert_eq!(in_root("proc"), ["1", "self", "thread-self"]);
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&container.pid.to_string()), of("self"), "{namespace}");
    }
    let links = fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap();
    let open: Vec<_> = links
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    assert!(
        open.iter()
            .any(|path| path.ends_with("dev/kvm") || path.to_string_lossy().contains("kvm-vm")),
        "{open:?}"
    );
    cwrun.ok(["kill", "confined", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "confined"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn descriptors_of_the_caller_stay_out_of_the_vmm() {
    let cwrun = Cwrun::new();
    let secret = cwrun.path("secret");
    fs::write(&secret, "not for the VMM").unwrap();
    let bundle = waiting("trap 'exit 0' TERM");
    let script = format!("exec 7<{} 8<&7; exec \"$@\"", secret.display());
    let pid_file = cwrun.path("leaky.pid");
    let inner = cwrun
        .run("leaky", &bundle)
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file)
        .command();
    let outer = Run::new("bash")
        .arg("-c")
        .arg(script)
        .arg("bash")
        .arg(inner.get_program())
        .args(inner.get_args());
    let outer = inner.get_envs().fold(outer, |run, (name, value)| {
        run.env(&name.to_string_lossy(), value.unwrap_or_default())
    });
    let mut container = cwrun.detached("leaky", outer.command(), Stdio::null());
    container.pid = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let links = fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap();
    let open: Vec<_> = links
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    assert!(!open.contains(&secret), "{open:?}");
    cwrun.ok(["delete", "--force", "leaky"]);
}
