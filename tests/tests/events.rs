//! What a container uses, and when it had too little memory.

use e2e::process::{eventually, wait};
use e2e::{Bundle, Cwrun};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

const ID: &str = "c";

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn statistics_have_the_shape_of_runc() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().with(|config| {
        config["linux"]["resources"] = json!({"pids": {"limit": 77}, "memory": {"limit": 256 << 20}})
    });
    let container = cwrun.create(ID, &bundle);
    cwrun.ok(["start", ID]);
    let text = cwrun.ok(["events", "--stats", ID]);
    assert_eq!(text.lines().count(), 1, "{text}");
    let event: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(ID)));
    let data = &event["data"];
    let number = |path: &str| {
        data.pointer(path)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{path} in {text}"))
    };
    // The machine's, which has booted a kernel.
    assert!(number("/cpu/usage/total") > 50_000_000, "{text}");
    assert!(number("/memory/usage/usage") > 20 << 20, "{text}");
    assert_eq!(number("/memory/usage/limit"), (256 + 64) << 20);
    assert!(
        number("/memory/raw/anon") + number("/memory/raw/file") > 0,
        "{text}"
    );
    // The container's: a shell and the sleep that it waits for.
    assert!((1..=2).contains(&number("/pids/current")), "{text}");
    assert_eq!(number("/pids/limit"), 77);

    let message = cwrun.refused(["events", "--stats", "nobody"]);
    assert!(message.contains("does not exist"), "{message}");
    cwrun.ok(["kill", ID, "TERM"]);
    cwrun.wait(&container);
    let message = cwrun.refused(["events", "--stats", ID]);
    assert!(message.contains("is stopped"), "{message}");
    cwrun.ok(["delete", ID]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn they_are_told_until_the_end_and_want_of_memory_too() {
    let cwrun = Cwrun::new();
    let container = cwrun.create(ID, &Bundle::idle());
    cwrun.ok(["start", ID]);
    let path = cwrun.path("events");
    let told = || fs::read_to_string(&path).unwrap_or_default();
    let mut watch = cwrun
        .command(["events", "--interval", "300ms", ID])
        .command()
        .stdin(Stdio::null())
        .stdout(File::create(&path).unwrap())
        .spawn()
        .unwrap();
    eventually("two statistics", 30, || {
        (told().matches("\"stats\"").count() >= 2).then_some(())
    });
    assert!(!told().contains("oom"));
    cwrun.ok(["update", "--memory", "32m", ID]);
    cwrun
        .command([
            "exec",
            ID,
            "dd",
            "if=/dev/zero",
            "of=/dev/shm/x",
            "bs=8M",
            "count=7",
        ])
        .finish();
    let oom = json!({"type": "oom", "id": ID});
    eventually("an event of type oom", 30, || {
        let told = told();
        let mut events = told
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.any(|event| event == oom).then_some(())
    });
    cwrun.ok(["kill", ID, "TERM"]);
    cwrun.wait(&container);
    let status = wait(&mut watch, Duration::from_secs(60), "events");
    assert!(status.success(), "{status}");
    assert!(
        told()
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{}",
        told()
    );
    cwrun.ok(["delete", ID]);
}
