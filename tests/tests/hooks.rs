//! Hooks that run in the guest, before the container's process does. (Those on the host are in `lifecycle`.)

use e2e::{Bundle, Cwrun};
use serde_json::{Value, json};

const ID: &str = "c";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A hook that runs this script in the container.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [PATH, "OWN=value"]})
}

fn hooked(script: &str, hooks: &[Value]) -> Bundle {
    Bundle::script(script)
        .annotation("org.example.key", "value")
        .with(|config| config["hooks"]["startContainer"] = hooks.into())
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn they_run_in_the_container_when_it_is_started() {
    let cwrun = Cwrun::new();
    let first = hook("cat >/state; echo $OWN $TERM $(hostname) $$ >/first; echo nowhere; echo seen >&2");
    let second = hook("test -e /first && id -u >/second");
    let bundle = hooked("cat /state; echo; cat /first /second; echo $$", &[first, second])
        .with(|config| config["linux"]["resources"] = json!({"pids": {"limit": 30}}));
    let container = cwrun.create(ID, &bundle);
    // One more process finds that nothing has run yet.
    let early = cwrun.command(["exec", ID, "ls", "/state"]).finish();
    assert_ne!(early.code, 0);
    cwrun.ok(["start", ID]);
    assert_eq!(cwrun.wait(&container), 0);
    let output = container.output();
    let (state, rest) = output.split_once('\n').expect("the state is a line");
    let state: Value = serde_json::from_str(state).expect("the state is JSON");
    assert_eq!(
        (&state["id"], &state["status"], &state["pid"]),
        (&json!(ID), &json!("created"), &json!(1))
    );
    assert_eq!(state["bundle"], json!(bundle.path().canonicalize().unwrap()));
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(state["ociVersion"].is_string());
    let lines: Vec<_> = rest.lines().collect();
    // Its own environment alone, the container's host name, a number in its PID namespace, its user, and then the first process.
    assert!(
        lines[0].starts_with("value guest ") && lines[0] != "value guest 1",
        "{lines:?}"
    );
    assert_eq!(lines[1..], ["0", "1"]);
    assert_eq!(container.errors(), "seen\n");
    cwrun.ok(["delete", ID]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn one_that_fails_is_the_end_of_the_start() {
    let cwrun = Cwrun::new();
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = 1.into();
    let missing = json!({"path": "/bin/nothing"});
    for (hook, expected) in [
        (
            hook("exit 7"),
            "hooks.startContainer[1]: /bin/sh: exited with status 7",
        ),
        (
            slow,
            "hooks.startContainer[1]: /bin/sh: did not end within its timeout of 1 s",
        ),
        (
            missing,
            "hooks.startContainer[1]: /bin/nothing: No such file or directory",
        ),
    ] {
        let bundle = hooked("echo ran", &[json!({"path": "/bin/true"}), hook]);
        let container = cwrun.create(ID, &bundle);
        let message = cwrun.refused(["start", ID]);
        assert!(
            message.contains(expected) && message.lines().count() == 1,
            "{message}"
        );
        assert_eq!(cwrun.wait(&container), 1);
        assert_eq!(
            (cwrun.status(ID).as_str(), container.output().as_str()),
            ("stopped", "")
        );
        cwrun.ok(["delete", ID]);
    }
    let done = cwrun.run(ID, &hooked("echo ran", &[hook("exit 7")])).finish();
    assert_eq!((done.code, done.text().as_str()), (1, ""));
    assert!(done.stderr.contains("exited with status 7"), "{}", done.stderr);
}
