//! Containers that are led through their whole life while everything that can be seen of them is written down.

use super::{Holder, Said, fails, namespace};
use e2e::{Bundle, Cwrun, Facts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The container's ID.
pub const ID: &str = "life";
/// Kinds of hooks on the host, in the order of their turn.
pub const HOOKS: [&str; 5] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "poststart",
    "poststop",
];
/// Where its cgroup is, below one that was there before.
pub const CGROUP: &str = "/e2e/conformance/life";
/// Exit status when it is told to end.
pub const STATUS: i32 = 3;
/// Namespaces of its VMM that are new.
pub const NEW: [&str; 5] = ["pid", "ipc", "uts", "cgroup", "time"];

/// Writes down what a hook gets and what it sees. Arguments: its name, a directory, the container's state directory and output.
const HOOK: &str = r#"#!/bin/sh
exec 2>/dev/null
cat >$2/$1.state
echo $1 >>$2/order
pid=$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' $2/$1.state)
case $1 in poststart*)
    i=0
    while [ $i -lt 100 ] && ! grep -q ready $4; do sleep 0.1; i=$((i + 1)); done
    grep -q ready $4 && echo begun=yes >$2/$1.facts
esac
for kind in net mnt; do
    echo $kind=$(readlink /proc/self/ns/$kind)
    echo vmm-$kind=$(readlink /proc/$pid/ns/$kind)
done >>$2/$1.facts
[ ! -d /proc/$pid/root/etc ] || echo old-root=yes >>$2/$1.facts
[ ! -e $3 ] || echo exists=yes >>$2/$1.facts
exit ${STATUS:-0}
"#;

/// What was seen of a container from its creation to its end.
pub struct Life {
    pub bundle: PathBuf,
    pub created: Value,
    pub running: Value,
    pub stopped: Value,
    /// Its output when `create` had returned.
    pub output_when_created: String,
    pub output: String,
    pub exit_status: i32,
    /// What it said of itself.
    pub facts: Facts,
    /// Names of the hooks that had run when each command returned.
    pub hooks_after: BTreeMap<&'static str, Vec<String>>,
    /// What each hook got on standard input, and what it saw.
    pub hooks: BTreeMap<String, (Value, Facts)>,
    /// Namespaces of the VMM, and of this process, by kind.
    pub namespaces: BTreeMap<&'static str, (String, String)>,
    /// The network namespace that it was to join.
    pub joined: String,
    pub cgroup: String,
    pub oom_scores: (String, String),
    pub start_when_running: Said,
    pub start_when_stopped: Said,
    pub delete_when_created: Said,
    pub delete_when_running: Said,
    pub kill_when_stopped: Said,
    /// States before and after the refusals.
    pub unchanged: bool,
    /// What there still was after `delete` of what `create` had made.
    pub left: Vec<&'static str>,
    /// What was not there any more after `delete` of what had been there before.
    pub lost: Vec<&'static str>,
}

/// The hook script in the bundle, as entries of config.json: two for each kind, whose names end in 0 and 1.
pub fn hooks(cwrun: &Cwrun, bundle: &Bundle, id: &str, failing: &[&str]) -> Value {
    let script = bundle.join("hook.sh");
    fs::write(&script, HOOK).expect("the bundle is writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let (state, output) = (cwrun.root().join(id), cwrun.path(&format!("{id}.out")));
    let entry = |name: String| {
        let status = if failing.contains(&name.as_str()) {
            "STATUS=4"
        } else {
            "STATUS=0"
        };
        let args = json!(["hook", name, bundle.path(), state, output]);
        json!({"path": script, "args": args, "env": ["PATH=/usr/bin:/bin", status]})
    };
    let kinds = HOOKS.map(|kind| {
        (
            kind.to_owned(),
            [0, 1].map(|number| entry(format!("{kind}-{number}"))),
        )
    });
    kinds
        .into_iter()
        .map(|(kind, entries)| (kind, json!(entries)))
        .collect()
}

/// Names of the hooks that have run so far, in order.
pub fn hooks_run(bundle: &Path) -> Vec<String> {
    let text = fs::read_to_string(bundle.join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The container that most tests look at.
pub fn life() -> &'static Life {
    static LIFE: OnceLock<Life> = OnceLock::new();
    LIFE.get_or_init(live)
}

fn configure(cwrun: &Cwrun, holder: &Holder) -> Bundle {
    let script = format!(
        "trap 'echo terminated; exit {STATUS}' TERM
        touch /written && echo root-write=yes
        echo oom=$(cat /proc/self/oom_score_adj)
        [ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo terminal=no
        [ -e /dev/console ] || echo console=no
        echo ready
        while :; do sleep 1 & wait $!; done"
    );
    let bundle = Bundle::script(&script).annotation("org.example.key", "value");
    let hooks = hooks(cwrun, &bundle, ID, &[]);
    bundle.with(|config| {
        let mut namespaces = vec![
            json!({"type": "mount"}),
            json!({"type": "network", "path": holder.path("net")}),
        ];
        namespaces.extend(NEW.map(|kind| json!({"type": kind})));
        config["linux"]["namespaces"] = namespaces.into();
        config["linux"]["cgroupsPath"] = CGROUP.into();
        config["process"]["consoleSize"] = json!({"height": 11, "width": 22});
        config["hooks"] = hooks;
        config["unknownToEveryone"] = json!({"is": ["ignored"]});
        config["process"]["unknownToEveryone"] = 1.into();
        config["annotations"]["org.opencontainers.unknown"] = "ignored".into();
    })
}

fn live() -> Life {
    let cwrun = Cwrun::new();
    let group = Path::new("/sys/fs/cgroup").join(&CGROUP[1..]);
    let parent = group.parent().expect("it has a parent").to_owned();
    fs::create_dir_all(&parent).expect("cgroup2 is mounted");
    let holder = Holder::new(&["--net"]);
    let bundle = configure(&cwrun, &holder);
    let state = || cwrun.state(ID).expect("the container exists");
    let mut hooks_after = BTreeMap::new();

    let container = cwrun.create(ID, &bundle);
    let (created, output_when_created) = (state(), container.output());
    hooks_after.insert("create", hooks_run(bundle.path()));
    let delete_when_created = fails(&cwrun, &["delete", ID]);
    let mut unchanged = state() == created;
    let mut changed = bundle.config.clone();
    changed["process"]["args"] = json!(["sh", "-c", "echo changed"]);
    changed["annotations"]["org.example.key"] = "changed".into();
    fs::write(bundle.join("config.json"), changed.to_string()).expect("the bundle is writable");
    let pid = container.pid.to_string();
    let kinds = ["net", "mnt", "pid", "ipc", "uts", "cgroup", "time", "user"];
    let namespaces = kinds
        .map(|kind| (kind, (namespace(&pid, kind), namespace("self", kind))))
        .into();
    let read = |path: String| fs::read_to_string(path).expect("proc(5)").trim().to_owned();
    let cgroup = read(format!("/proc/{pid}/cgroup"));
    let oom_scores = (
        read(format!("/proc/{pid}/oom_score_adj")),
        read("/proc/self/oom_score_adj".into()),
    );

    cwrun.ok(["start", ID]);
    hooks_after.insert("start", hooks_run(bundle.path()));
    container.expect_output("ready");
    let running = state();
    let start_when_running = fails(&cwrun, &["start", ID]);
    let delete_when_running = fails(&cwrun, &["delete", ID]);
    unchanged &= state() == running && container.output().matches("ready").count() == 1;

    cwrun.ok(["kill", ID, "TERM"]);
    let exit_status = cwrun.wait(&container);
    let stopped = state();
    let start_when_stopped = fails(&cwrun, &["start", ID]);
    let kill_when_stopped = fails(&cwrun, &["kill", ID, "KILL"]);
    unchanged &= state() == stopped;
    let output = container.output();

    cwrun.ok(["delete", ID]);
    hooks_after.insert("delete", hooks_run(bundle.path()));
    let there = |found: &[(&'static str, bool)]| {
        found
            .iter()
            .filter(|(_, there)| *there)
            .map(|(name, _)| *name)
            .collect()
    };
    let left = there(&[
        ("cgroup", group.exists()),
        ("state", cwrun.root().join(ID).exists()),
        ("process", Path::new(&format!("/proc/{pid}/ns/net")).exists()),
    ]);
    let lost = there(&[
        ("cgroup above", !parent.exists()),
        ("network namespace", !holder.path("net").exists()),
        ("bundle", !bundle.join("config.json").exists()),
    ]);
    fs::remove_dir(&parent).expect("nobody is in it");
    let seen = |name: &String| {
        let read = |end: &str| fs::read_to_string(bundle.join(&format!("{name}.{end}"))).unwrap_or_default();
        let state = serde_json::from_str(&read("state")).unwrap_or_default();
        (name.clone(), (state, Facts::of(&read("facts"))))
    };
    Life {
        hooks: hooks_after["delete"].iter().map(seen).collect(),
        bundle: bundle.path().canonicalize().expect("it exists"),
        joined: namespace(&holder.pid(), "net"),
        facts: Facts::of(&output),
        created,
        running,
        stopped,
        output_when_created,
        output,
        exit_status,
        hooks_after,
        namespaces,
        cgroup,
        oom_scores,
        start_when_running,
        start_when_stopped,
        delete_when_created,
        delete_when_running,
        kill_when_stopped,
        unchanged,
        left,
        lost,
    }
}
