//! runtime.md: state, lifecycle, errors, operations; and of config.md what is said about hooks.

use super::life::{CGROUP, HOOKS, ID, Life, STATUS, hooks, hooks_run, life};
use super::{fails, namespace};
use e2e::{Bundle, Cwrun, Facts};
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;

// runtime.md#state

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_state_has_what_is_required() {
    let life = life();
    for (status, state) in [
        ("created", &life.created),
        ("running", &life.running),
        ("stopped", &life.stopped),
    ] {
        assert!(
            state["ociVersion"]
                .as_str()
                .is_some_and(|version| version.starts_with("1.")),
            "{state}"
        );
        assert_eq!((&state["id"], &state["status"]), (&ID.into(), &status.into()));
        assert_eq!(state["bundle"].as_str(), life.bundle.to_str());
        assert_eq!(state["annotations"]["org.example.key"], "value");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_state_has_the_process_id_while_there_is_a_process() {
    let life = life();
    assert!(
        life.created["pid"].as_i64().is_some_and(|pid| pid > 1),
        "{}",
        life.created
    );
    assert_eq!(life.running["pid"], life.created["pid"]);
}

/// schema/state-schema.json and defs.json.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_state_follows_the_schema() {
    let life = life();
    let states = [&life.created, &life.running, &life.stopped].into_iter();
    for state in states.chain(life.hooks.values().map(|(state, _)| state)) {
        for field in ["ociVersion", "id", "bundle"] {
            assert!(state[field].is_string(), "{field}: {state}");
        }
        let status = state["status"].as_str().unwrap_or_default();
        assert!(
            ["creating", "created", "running", "stopped"].contains(&status),
            "{state}"
        );
        assert!(
            state
                .get("pid")
                .is_none_or(|pid| pid.as_i64().is_some_and(|pid| pid >= 0)),
            "{state}"
        );
        let annotations = state["annotations"].as_object().expect("a map");
        assert!(annotations.values().all(Value::is_string), "{state}");
    }
}

// runtime.md#lifecycle

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_environment_is_made_by_create() {
    let life = life();
    assert!(life.cgroup.ends_with(CGROUP), "{}", life.cgroup);
    assert_eq!(life.namespaces["net"].0, life.joined);
    assert_ne!(life.namespaces["pid"].0, life.namespaces["pid"].1);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_program_does_not_run_before_start() {
    assert_eq!(life().output_when_created, "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn changes_of_the_configuration_after_create_have_no_effect() {
    let life = life();
    assert!(!life.output.contains("changed"), "{}", life.output);
    assert_eq!(life.running["annotations"]["org.example.key"], "value");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn start_runs_the_program() {
    assert!(life().output.contains("ready"));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_hooks_are_invoked_by_create() {
    let expected = [
        "prestart-0",
        "prestart-1",
        "createRuntime-0",
        "createRuntime-1",
        "createContainer-0",
        "createContainer-1",
    ];
    assert_eq!(life().hooks_after["create"], expected);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststart_hooks_are_invoked_by_start() {
    assert_eq!(life().hooks_after["start"][6..], ["poststart-0", "poststart-1"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststop_hooks_are_invoked_by_delete() {
    assert_eq!(life().hooks_after["delete"][8..], ["poststop-0", "poststop-1"]);
}

/// A `create` whose hook fails, and the hooks that ran.
#[track_caller]
fn fails_at(kind: &str, before: &[&str]) {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("echo must not run");
    let failing = format!("{kind}-0");
    let hooks = hooks(&cwrun, &bundle, "unlucky", &[&failing]);
    let bundle = bundle.with(|config| config["hooks"] = hooks);
    let dir = bundle.path().to_string_lossy().into_owned();
    let said = fails(&cwrun, &["create", "--bundle", &dir, "unlucky"]);
    said.is_an_error_about("status 4");
    // The container is stopped and destroyed, and then is the turn of what comes after its end.
    let expected: Vec<_> = before
        .iter()
        .copied()
        .chain([failing.as_str(), "poststop-0", "poststop-1"])
        .collect();
    assert_eq!(hooks_run(bundle.path()), expected);
    fails(&cwrun, &["state", "unlucky"]).is_an_error_about("does not exist");
    cwrun.expect_clean();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_failing_prestart_hook_stops_and_destroys_the_container() {
    fails_at("prestart", &[]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_failing_create_runtime_hook_stops_and_destroys_the_container() {
    fails_at("createRuntime", &["prestart-0", "prestart-1"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_failing_create_container_hook_stops_and_destroys_the_container() {
    let before = ["prestart-0", "prestart-1", "createRuntime-0", "createRuntime-1"];
    fails_at("createContainer", &before);
}

/// A container whose first hooks after its start and after its end fail: its output, its log and the hooks that ran.
fn unlucky() -> &'static (String, String, Vec<String>) {
    static UNLUCKY: OnceLock<(String, String, Vec<String>)> = OnceLock::new();
    UNLUCKY.get_or_init(|| {
        let cwrun = Cwrun::new();
        let bundle = Bundle::script("echo ready");
        let hooks = hooks(&cwrun, &bundle, "unlucky", &["poststart-0", "poststop-0"]);
        let bundle = bundle.with(|config| config["hooks"] = hooks);
        let log = cwrun.path("log");
        // The hooks wait for what the program writes to this file.
        let out = cwrun.path("unlucky.out");
        let mut run = cwrun.run("unlucky", &bundle).arg("--log").arg(&log).command();
        run.stdin(std::process::Stdio::null())
            .stdout(fs::File::create(&out).unwrap());
        assert!(
            run.status().unwrap().success(),
            "a warning does not change the flow of the operation"
        );
        let read = |path| fs::read_to_string(path).unwrap();
        (read(out), read(log), hooks_run(bundle.path()))
    })
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_failing_poststart_hook_is_a_warning_and_the_others_go_on() {
    let (output, log, hooks) = unlucky();
    assert_eq!(output, "ready\n");
    let warned = |line: &str| {
        line.contains("level=warning") && line.contains("poststart[0]") && line.contains("status 4")
    };
    assert!(log.lines().any(warned), "{log}");
    assert!(hooks.contains(&"poststart-1".to_owned()), "{hooks:?}");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_failing_poststop_hook_is_a_warning_and_the_others_go_on() {
    let (_, log, hooks) = unlucky();
    let warned = |line: &str| {
        line.contains("level=warning") && line.contains("poststop[0]") && line.contains("status 4")
    };
    assert!(log.lines().any(warned), "{log}");
    assert_eq!(hooks.last().map(String::as_str), Some("poststop-1"));
}

// config.md#posix-platform-hooks

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn hooks_are_called_in_the_listed_order() {
    let life = life();
    let names = HOOKS
        .iter()
        .flat_map(|kind| [format!("{kind}-0"), format!("{kind}-1")]);
    assert_eq!(life.hooks_after["delete"], names.collect::<Vec<_>>());
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn hooks_get_the_state_on_standard_input() {
    let life = life();
    for (name, (state, _)) in &life.hooks {
        let status = match name.split('-').next() {
            Some("poststart") => "running",
            Some("poststop") => "stopped",
            _ => "created",
        };
        assert_eq!(
            (&state["id"], &state["status"]),
            (&ID.into(), &status.into()),
            "{name}"
        );
        assert_eq!(state["bundle"].as_str(), life.bundle.to_str(), "{name}");
        assert_eq!(state["annotations"]["org.example.key"], "value", "{name}");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn hooks_get_the_process_id_as_seen_where_they_run() {
    let life = life();
    for (name, (state, _)) in &life.hooks {
        match name.split('-').next() {
            Some("createContainer") => assert_eq!(state["pid"], 1, "{name}"),
            Some("poststop") => assert!(state.get("pid").is_none(), "{name}"),
            _ => assert_eq!(state["pid"], life.created["pid"], "{name}"),
        }
    }
}

fn facts_of(life: &'static Life, kind: &str) -> impl Iterator<Item = &'static Facts> {
    [0, 1]
        .map(|number| &life.hooks[&format!("{kind}-{number}")].1)
        .into_iter()
}

#[track_caller]
fn runs_in_the_runtime_namespace(kind: &str) {
    for facts in facts_of(life(), kind) {
        facts.expect(&[
            ("net", &namespace("self", "net")),
            ("mnt", &namespace("self", "mnt")),
        ]);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn prestart_hooks_run_in_the_runtime_namespace() {
    runs_in_the_runtime_namespace("prestart");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_runtime_hooks_run_in_the_runtime_namespace() {
    runs_in_the_runtime_namespace("createRuntime");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststart_hooks_run_in_the_runtime_namespace() {
    runs_in_the_runtime_namespace("poststart");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststop_hooks_run_in_the_runtime_namespace() {
    runs_in_the_runtime_namespace("poststop");
}

/// Their path, which lies on the host, was found as well.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_container_hooks_run_in_the_container_namespace() {
    let life = life();
    for facts in facts_of(life, "createContainer") {
        facts.expect(&[("net", &life.joined), ("mnt", &life.namespaces["mnt"].0)]);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_hooks_run_with_the_environment_made_and_the_root_not_yet_changed() {
    let life = life();
    for facts in facts_of(life, "prestart").chain(facts_of(life, "createRuntime")) {
        facts.expect(&[
            ("vmm-net", &life.joined),
            ("vmm-mnt", &life.namespaces["mnt"].0),
            ("old-root", "yes"),
            ("exists", "yes"),
        ]);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststart_hooks_run_after_the_program_has_begun() {
    for facts in facts_of(life(), "poststart") {
        facts.expect(&[("begun", "yes")]);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn poststop_hooks_run_after_the_container_is_deleted() {
    for facts in facts_of(life(), "poststop") {
        assert!(!facts.0.contains_key("exists"), "{facts:?}");
    }
}

// runtime.md#errors

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn an_error_leaves_the_environment_as_it_was() {
    let cwrun = Cwrun::new();
    for field in ["process", "root", "linux"] {
        let bundle = Bundle::script("true").with(|config| config[field] = 1.into());
        let dir = bundle.path().to_string_lossy().into_owned();
        fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about(field);
        cwrun.expect_clean();
    }
    // What only the guest finds.
    let bundle = Bundle::script("true").with(|config| config["linux"]["sysctl"]["no.such"] = "1".into());
    let dir = bundle.path().to_string_lossy().into_owned();
    fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about("no.such");
    cwrun.expect_clean();
}

// runtime.md#operations

#[track_caller]
fn without_an_id(command: &str) {
    let done = Cwrun::new().command([command]).finish();
    assert!(done.code != 0 && done.stderr.contains("<ID>"), "{}", done.stderr);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn state_without_an_id_is_an_error() {
    without_an_id("state");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_without_an_id_is_an_error() {
    without_an_id("create");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn start_without_an_id_is_an_error() {
    without_an_id("start");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn kill_without_an_id_is_an_error() {
    without_an_id("kill");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn delete_without_an_id_is_an_error() {
    without_an_id("delete");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn operations_on_a_container_that_does_not_exist_are_errors() {
    let cwrun = Cwrun::new();
    for command in ["state", "start", "kill", "delete"] {
        fails(&cwrun, &[command, "nobody"]).is_an_error_about("does not exist");
    }
}

/// Without the option it is the working directory, as with other runtimes.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_without_a_bundle_is_an_error() {
    let cwrun = Cwrun::new();
    let done = cwrun.command(["create", "none"]).dir(&cwrun.root()).finish();
    assert!(
        done.code != 0 && done.stderr.contains("config.json"),
        "{}",
        done.stderr
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn create_without_a_process_is_an_error() {
    let cwrun = Cwrun::new();
    let bundle =
        Bundle::script("true").with(|config| drop(config.as_object_mut().unwrap().remove("process")));
    let dir = bundle.path().to_string_lossy().into_owned();
    fails(&cwrun, &["create", "--bundle", &dir, "wrong"]).is_an_error_about("process: missing");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn start_of_what_is_not_created_is_an_error_without_effect() {
    let life = life();
    life.start_when_running.is_an_error_about("running");
    life.start_when_stopped.is_an_error_about("stopped");
    assert!(life.unchanged);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn kill_of_what_is_neither_created_nor_running_is_an_error_without_effect() {
    let life = life();
    life.kill_when_stopped.is_an_error_about("stopped");
    assert!(life.unchanged);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn kill_sends_the_signal_to_the_process() {
    let life = life();
    assert!(life.output.ends_with("terminated\n"), "{}", life.output);
    assert_eq!(life.exit_status, STATUS);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn delete_of_what_is_not_stopped_is_an_error_without_effect() {
    let life = life();
    life.delete_when_created.is_an_error_about("created");
    life.delete_when_running.is_an_error_about("running");
    assert!(life.unchanged);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn delete_deletes_what_create_made() {
    assert!(life().left.is_empty(), "{:?}", life().left);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn delete_leaves_what_others_made() {
    assert!(life().lost.is_empty(), "{:?}", life().lost);
}
