//! Wrong input of every command, chosen at random: a sentence and a status other than 0, never a panic, never a process that hangs, and
//! nothing left behind. `CWRUN_SEED` repeats a run. What reading a configuration alone can get wrong is tried thousands of times in
//! `bundle::mutation`; here are the ones that get past it.

use e2e::cwrun::Container;
use e2e::pattern::Choices;
use e2e::{Bundle, Cwrun, Finished, rounds};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// What no program answers on purpose: a panic, an abort, a segmentation fault.
const CRASHES: [i32; 4] = [101, 128 + 6, 128 + 11, 128 + 7];

/// Whatever it did, it did it on purpose and said why.
#[track_caller]
fn is_sane(done: &Finished, what: &str) {
    let crashed = CRASHES.contains(&done.code) || done.stderr.contains("panicked");
    assert!(!crashed, "{what}: {} {}", done.code, done.stderr);
    if done.code != 0 {
        // An incomplete command is answered with how to complete it.
        let said = ["cwrun: ", "error: "]
            .iter()
            .any(|start| done.stderr.starts_with(start))
            || done.stderr.contains("Usage: cwrun");
        assert!(
            said && done.stderr.len() > 12,
            "{what}: {} {:?}",
            done.code,
            done.stderr
        );
    }
}

#[track_caller]
fn is_refused(done: &Finished, what: &str) {
    is_sane(done, what);
    assert_ne!(done.code, 0, "{what}");
}

/// Something that does not belong where it comes to.
fn nonsense(choices: &mut Choices) -> Value {
    let number = choices.next_number();
    match choices.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(number),
        5 => json!(number as i64),
        6 => json!(choices.below(1 << 16)),
        7 => json!(""),
        8 => json!("../../../etc/passwd"),
        9 => json!("/proc/self/ns/uts"),
        10 => json!("nul \u{0} in it"),
        11 => json!("new\nline \u{1b}[31m"),
        12 => json!("x".repeat(5000)),
        13 => json!([]),
        14 => json!({}),
        _ => json!([[{}], "/", 1]),
    }
}

/// Changes one place, chosen on the way down.
fn spoil(value: &mut Value, choices: &mut Choices, depth: usize) {
    let deeper = depth < 2 || choices.below(4) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let keys: Vec<_> = fields.keys().cloned().collect();
            let key = choices.one_of(&keys);
            if depth > 0 && choices.below(6) == 0 {
                fields.remove(key);
            } else if let Some(inner) = fields.get_mut(key) {
                spoil(inner, choices, depth + 1);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let index = choices.below(items.len() as u64) as usize;
            match choices.below(8) {
                0 => drop(items.remove(index)),
                1 => items.push(items[index].clone()),
                _ => spoil(&mut items[index], choices, depth + 1),
            }
        }
        value => *value = nonsense(choices),
    }
}

/// Ordinary, with some of everything that is not.
fn ordinary() -> Bundle {
    Bundle::busybox(["true"])
        .annotation("krun.ram_mib", "128")
        .with(|config| {
            let hook = json!([{"path": "/bin/true", "args": ["true"], "timeout": 10}]);
            config["hooks"] = json!({"createRuntime": hook, "createContainer": hook, "poststop": hook});
            config["linux"]["cgroupsPath"] = "/e2e/wrong".into();
            config["linux"]["resources"] = json!({
                "memory": {"limit": 256 << 20}, "cpu": {"quota": 100_000, "period": 100_000, "shares": 512},
                "unified": {"pids.max": "500"}
            });
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
        })
}

/// Groups above a container's own are made where they are missing, and stay, as with crun: another container may be about to use them.
fn remove_parents(config: &Value) {
    let group = config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    let top = Path::new("/sys/fs/cgroup");
    let group = top.join(group.trim_start_matches('/'));
    for parent in group.ancestors().skip(1) {
        if parent == top || parent == top.join("e2e") {
            break;
        }
        // One that has something in it is not removed.
        let _ = fs::remove_dir(parent);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn configurations() {
    let cwrun = Cwrun::new();
    let mut choices = Choices::new();
    let mut created = 0;
    let count = rounds(30, 1000);
    for round in 0..count {
        // The first is as it should be.
        let changes = if round == 0 { 0 } else { 1 + choices.below(2) };
        let bundle = ordinary().with(|config| (0..changes).for_each(|_| spoil(config, &mut choices, 0)));
        let dir = bundle.path().to_string_lossy().into_owned();
        let container = cwrun.path("output");
        let mut command = cwrun.command(["create", "--bundle", &dir, "wrong"]).command();
        // A file, since a container that could be created holds on to it.
        let file = fs::File::create(&container).unwrap();
        command
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let status = e2e::process::wait(
            &mut command.spawn().unwrap(),
            e2e::process::DEADLINE,
            &bundle.config.to_string(),
        );
        let (code, said) = (
            e2e::process::code(status),
            fs::read_to_string(&container).unwrap(),
        );
        let what = format!("{}: {code} {said}", bundle.config);
        assert!(!CRASHES.contains(&code) && !said.contains("panicked"), "{what}");
        assert!(round > 0 || code == 0, "{what}");
        if code == 0 {
            created += 1;
            cwrun.ok(["delete", "--force", "wrong"]);
        } else {
            assert!(said.contains("cwrun: "), "{what}");
        }
        remove_parents(&bundle.config);
        cwrun.expect_clean();
    }
    eprintln!("{created} of {count} could be created");
}

/// A container for commands that need one.
fn idle(cwrun: &Cwrun) -> Container {
    let container = cwrun.create("idle", &Bundle::script("echo ready; while :; do sleep 100; done"));
    cwrun.ok(["start", "idle"]);
    container.expect_output("ready");
    container
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn processes() {
    let cwrun = Cwrun::new();
    let mut choices = Choices::new();
    let _container = idle(&cwrun);
    let file = cwrun.path("process.json");
    let path = file.to_string_lossy().into_owned();
    for _ in 0..rounds(60, 2000) {
        let mut process = ordinary().config["process"].take();
        process["noNewPrivileges"] = true.into();
        (0..=choices.below(2)).for_each(|_| spoil(&mut process, &mut choices, 0));
        let mut text = process.to_string().into_bytes();
        if choices.below(4) == 0 {
            let at = choices.below(text.len() as u64) as usize;
            text[at] = choices.next_number() as u8;
        }
        fs::write(&file, &text).unwrap();
        let done = cwrun.command(["exec", "--process", &path, "idle"]).finish();
        is_sane(&done, &String::from_utf8_lossy(&text));
    }
    for (what, path) in [
        ("missing", "/no/such/file"),
        ("a directory", "/"),
        ("a device", "/dev/null"),
    ] {
        is_refused(&cwrun.command(["exec", "--process", path, "idle"]).finish(), what);
    }
    assert_eq!(cwrun.ok(["exec", "idle", "echo", "unharmed"]), "unharmed\n");
    cwrun.ok(["delete", "--force", "idle"]);
}

/// Text as a person or a broken program may pass it.
fn text(choices: &mut Choices) -> String {
    let parts = [
        "",
        "a",
        "..",
        "/",
        "-",
        "--",
        "=",
        " ",
        "\n",
        "\u{1b}[2J",
        "ü",
        "%s%n",
        "SIG",
        "KILL",
        "9",
        "99999999999999999999",
        "0x10",
        "idle",
        "-1",
        "~",
        "$(reboot)",
        "\u{feff}",
    ];
    (0..=choices.below(3)).map(|_| *choices.one_of(&parts)).collect()
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn ids_signals_and_options() {
    let cwrun = Cwrun::new();
    let mut choices = Choices::new();
    let _container = idle(&cwrun);
    let commands = [
        "state", "start", "kill", "delete", "ps", "pause", "resume", "exec",
    ];
    for _ in 0..rounds(100, 3000) {
        let (command, id) = (choices.one_of(&commands), text(&mut choices));
        if id == "idle" {
            continue;
        }
        is_refused(
            &cwrun.command([*command, "--", &id]).finish(),
            &format!("{command} {id:?}"),
        );
        let signal = text(&mut choices);
        if !["9", "KILL", "SIGKILL"].contains(&signal.as_str()) {
            is_refused(
                &cwrun.command(["kill", "--", "idle", &signal]).finish(),
                &format!("kill {signal:?}"),
            );
        }
        let option = format!("--{}", text(&mut choices));
        if option != "--" {
            is_refused(
                &cwrun.command([*command, &option, "idle", "x"]).finish(),
                &format!("{command} {option:?}"),
            );
        }
    }
    for args in [
        &[][..],
        &["no-such-command"],
        &["create"],
        &["create", "--bundle"],
        &["create", "--preserve-fds", "-1", "x"],
        &["create", "--preserve-fds", "many", "x"],
        &["create", "a", "b"],
        &["run", "--detach=perhaps", "x"],
        &["kill", "idle", "TERM", "KILL"],
        &["exec", "idle"],
        &["exec", "--user", "nobody", "idle", "id"],
        &["exec", "--user", "1:2:3", "idle", "id"],
        &["exec", "--user", "-1", "idle", "id"],
        &["exec", "--user", "4294967296", "idle", "id"],
        &["exec", "--cap", "", "idle", "id"],
        &["exec", "--cwd", "relative", "idle", "id"],
        &["exec", "--cwd", "", "idle", "id"],
        &[
            "exec",
            "--pid-file",
            "/no/such/dir/pid",
            "--detach",
            "idle",
            "true",
        ],
        &["ps", "--format", "xml", "idle"],
        &["list", "--format", "xml"],
        &["spec", "--bundle", "/no/such/dir"],
        &["disk"],
        &["disk", "inspect", "/no/such/image"],
        &["disk", "inspect", "/dev/null"],
        &["disk", "build", "/no/such/root", "/tmp/never"],
        &["disk", "cache", "prune", "--keep", "lots"],
        &["measure", "/no/such/bundle"],
        &["measure", "oci:/no/such/image"],
        &["measure", "--vcpus", "0"],
        &["measure", "--cpu", "rome"],
        &["measure", "--json", "--policy"],
        &["attest", "idle"],
        &["attest", "--nonce", "short", "idle"],
        &["attest", "--nonce", "0123456789abcdef", "idle"],
        &["attest", "--nonce", "0123456789abcdef", "nobody"],
        &["verify", "/dev/null"],
        &["verify", "--policy", "/no/such/policy", "/dev/null"],
        &["--root", "/dev/null", "state", "idle"],
        &["--root", "/dev/null", "create", "x"],
        &["--log", "/no/such/dir/log", "state", "idle"],
        &["--log-format", "xml", "list"],
        &["--cgroup-manager", "other", "list"],
    ] {
        is_refused(&cwrun.command(args).finish(), &format!("{args:?}"));
    }
    assert_eq!(cwrun.status("idle"), "running");
    cwrun.ok(["delete", "--force", "idle"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn sockets_that_are_not_there() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]).with(|config| config["process"]["terminal"] = true.into());
    let dir = bundle.path().to_string_lossy().into_owned();
    let path = |name: &str| cwrun.path(name).to_string_lossy().into_owned();
    fs::write(path("file"), "").unwrap();
    // One whose listener has gone.
    drop(UnixListener::bind(path("gone")).unwrap());
    let sockets = [
        path("missing"),
        path("file"),
        path("gone"),
        "/".into(),
        String::new(),
        "/tmp/".to_owned() + &"s".repeat(200),
    ];
    for socket in &sockets {
        let done = cwrun
            .command(["create", "--bundle", &dir, "--console-socket", socket, "wrong"])
            .finish();
        is_refused(&done, &format!("create with {socket:?}"));
        cwrun.expect_clean();
    }
    is_refused(
        &cwrun.command(["create", "--bundle", &dir, "wrong"]).finish(),
        "create without a socket",
    );
    let _container = idle(&cwrun);
    for socket in &sockets {
        let exec = [
            "exec",
            "--tty",
            "--detach",
            "--console-socket",
            socket,
            "idle",
            "true",
        ];
        is_refused(&cwrun.command(exec).finish(), &format!("exec with {socket:?}"));
    }
    // A container whose own control socket is gone can't be asked, but it can be deleted.
    fs::remove_file(cwrun.root().join("idle/control.sock")).unwrap();
    for args in [
        &["kill", "idle", "TERM"][..],
        &["exec", "idle", "true"],
        &["ps", "idle"],
        &["pause", "idle"],
    ] {
        is_refused(
            &cwrun.command(args).finish(),
            &format!("{args:?} without a control socket"),
        );
    }
    cwrun.ok(["delete", "--force", "idle"]);
}
