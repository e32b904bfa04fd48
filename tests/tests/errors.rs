//! What goes wrong is said in one clear sentence, on stderr and as JSON in `--log`, and leaves nothing behind.

use e2e::{Bundle, Cwrun, Finished, Run, bed};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A command that has failed as it should: its sentence holds all of `parts`, on stderr and in the log.
#[track_caller]
pub fn assert_refusal(what: &str, done: &Finished, log: &Path, code: i32, parts: &[&str]) {
    assert_eq!(done.code, code, "{what}: exit code; stderr: {}", done.stderr);
    assert_eq!(done.text(), "", "{what}: standard output");
    let sentence = done.stderr.trim_end();
    for part in parts {
        assert!(sentence.contains(part), "{what}: {part:?} is not in {sentence:?}");
    }
    assert!(
        sentence.starts_with("cwrun: ") && !sentence.contains("panicked"),
        "{what}: {sentence:?}"
    );
    let text = fs::read_to_string(log).unwrap_or_else(|error| panic!("{what}: no log: {error}"));
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let logged = lines
        .iter()
        .find(|line| line["level"] == "error")
        .unwrap_or_else(|| panic!("{what}: no error in {text}"));
    let message = logged["msg"].as_str().unwrap_or_default();
    assert_eq!(
        Some(message),
        sentence.strip_prefix("cwrun: "),
        "{what}: the log says something else"
    );
    assert!(logged["time"].is_string(), "{what}: {logged}");
}

/// Runs `create` and expects it to fail with this code and a sentence with these parts.
#[track_caller]
fn refuse(cwrun: &Cwrun, what: &str, create: impl FnOnce(Run) -> Run, code: i32, parts: &[&str]) {
    refused(cwrun, what, create, code, parts);
    cwrun.expect_clean();
}

/// The same, whatever else the host has to show.
#[track_caller]
fn refused(
    cwrun: &Cwrun,
    what: &str,
    create: impl FnOnce(Run) -> Run,
    code: i32,
    parts: &[&str],
) -> Finished {
    let log = cwrun.path("log");
    let _ = fs::remove_file(&log);
    let options = ["--log", &log.to_string_lossy(), "--log-format", "json", "create"].map(str::to_owned);
    let done = create(cwrun.command(options)).finish();
    assert_refusal(what, &done, &log, code, parts);
    done
}

#[track_caller]
fn refuse_bundle(cwrun: &Cwrun, what: &str, bundle: &Bundle, parts: &[&str]) {
    refused_bundle(cwrun, what, bundle, parts);
    cwrun.expect_clean();
}

/// Runs `create` on this bundle, which fails with a sentence that holds all of `parts`.
#[track_caller]
pub fn refused_bundle(cwrun: &Cwrun, what: &str, bundle: &Bundle, parts: &[&str]) -> Finished {
    refused(
        cwrun,
        what,
        |run| run.arg("--bundle").arg(bundle.path()).arg("refused"),
        1,
        parts,
    )
}

/// A bundle with one change.
fn changed(change: impl FnOnce(&mut Value)) -> Bundle {
    Bundle::busybox(["true"]).with(change)
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn configurations_that_are_broken() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]);
    for (what, text, parts) in [
        ("empty", "", &["config.json"][..]),
        ("not JSON", "{\"ociVersion\": ", &["config.json", "line 1"]),
        ("trailing", "{} {}", &["config.json"]),
        ("not an object", "[1, 2]", &["config.json"]),
        ("not UTF-8", "\u{1}\u{2}", &["config.json"]),
        ("no version", "{}", &["config.json", "ociVersion"]),
        (
            "future version",
            "{\"ociVersion\": \"2.0.0\"}",
            &["config.json", "ociVersion", "2.0.0"],
        ),
        ("deep", &"[".repeat(100_000), &["config.json"]),
    ] {
        fs::write(bundle.join("config.json"), text).unwrap();
        refuse_bundle(&cwrun, what, &bundle, parts);
    }
    fs::remove_file(bundle.join("config.json")).unwrap();
    refuse_bundle(&cwrun, "missing", &bundle, &["config.json", "No such file"]);
    fs::create_dir(bundle.join("config.json")).unwrap();
    refuse_bundle(&cwrun, "a directory", &bundle, &["config.json"]);
    refuse(
        &cwrun,
        "no bundle",
        |run| run.args(["--bundle", "/no/such/bundle", "refused"]),
        1,
        &["/no/such/bundle"],
    );
    refuse(
        &cwrun,
        "no such configuration",
        |run| {
            run.arg("--bundle")
                .arg(bundle.path())
                .args(["--config", "/no/such/config", "refused"])
        },
        1,
        &["/no/such/config"],
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn fields_that_are_missing_or_wrong() {
    let cwrun = Cwrun::new();
    type Change = fn(&mut Value);
    let remove =
        |config: &mut Value, field: &str| drop(config.as_object_mut().expect("an object").remove(field));
    for (what, change, parts) in [
        (
            "no process",
            (|c| drop(c.as_object_mut().unwrap().remove("process"))) as Change,
            &["process"][..],
        ),
        (
            "no root",
            |c| drop(c.as_object_mut().unwrap().remove("root")),
            &["root"],
        ),
        (
            "no args",
            |c| drop(c["process"].as_object_mut().unwrap().remove("args")),
            &["process.args"],
        ),
        (
            "empty args",
            |c| c["process"]["args"] = json!([]),
            &["process.args"],
        ),
        (
            "empty program",
            |c| c["process"]["args"] = json!([""]),
            &["process.args"],
        ),
        (
            "args of numbers",
            |c| c["process"]["args"] = json!([1]),
            &["process.args"],
        ),
        (
            "no cwd",
            |c| drop(c["process"].as_object_mut().unwrap().remove("cwd")),
            &["process", "cwd"],
        ),
        (
            "relative cwd",
            |c| c["process"]["cwd"] = json!("tmp"),
            &["process.cwd", "\"tmp\"", "absolute"],
        ),
        (
            "uid of text",
            |c| c["process"]["user"]["uid"] = json!("root"),
            &["process.user.uid"],
        ),
        (
            "negative uid",
            |c| c["process"]["user"]["uid"] = json!(-1),
            &["process.user.uid"],
        ),
        (
            "NUL in an argument",
            |c| c["process"]["args"] = json!(["tr\u{0}ue"]),
            &["process", "NUL"],
        ),
        (
            "unknown rlimit",
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]),
            &["rlimits"],
        ),
        (
            "rlimit twice",
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]),
            &["process.rlimits", "twice"],
        ),
        (
            "rootfs missing",
            |c| c["root"]["path"] = json!("/no/such/rootfs"),
            &["root.path", "/no/such/rootfs"],
        ),
        (
            "rootfs a file",
            |c| c["root"]["path"] = json!("config.json"),
            &["root.path", "not a directory"],
        ),
        (
            "long hostname",
            |c| c["hostname"] = json!("h".repeat(65)),
            &["name", "64"],
        ),
        (
            "mount without type",
            |c| c["mounts"] = json!([{"destination": "/data"}]),
            &["mounts[0]", "/data"],
        ),
        (
            "mount of unknown type",
            |c| c["mounts"][2] = json!({"destination": "/data", "type": "nfs"}),
            &["mounts[2]", "nfs", "/data"],
        ),
        (
            "mount without destination",
            |c| c["mounts"] = json!([{"type": "tmpfs"}]),
            &["mounts[0]", "destination"],
        ),
        (
            "bind without source",
            |c| c["mounts"] = json!([{"destination": "/d", "type": "bind"}]),
            &["mounts[0]", "source"],
        ),
        (
            "bind of nothing",
            |c| c["mounts"] = json!([{"destination": "/d", "type": "bind", "source": "/no/such"}]),
            &["mounts[0]", "/no/such"],
        ),
        (
            "bind of a directory where none may be shared",
            |c| {
                c["annotations"]["io.cwrun.volumes"] = "deny".into();
                c["mounts"] =
                    json!([{"destination": "/d", "type": "bind", "source": "/tmp", "options": ["rbind"]}])
            },
            &["mounts[0]", "/tmp", "directory", "io.cwrun.volumes"],
        ),
        (
            "bind of a device",
            |c| c["mounts"] = json!([{"destination": "/d", "type": "bind", "source": "/dev/null"}]),
            &["mounts[0]", "/dev/null", "device"],
        ),
        (
            "mapped mount",
            |c| {
                c["mounts"] = json!([{"destination": "/d", "type": "bind", "source": "/etc/passwd", "options": ["idmap"]}])
            },
            &["mounts[0]", "/d", "ID-mapped"],
        ),
        (
            "bad tmpfs option",
            |c| c["mounts"] = json!([{"destination": "/d", "type": "tmpfs", "options": ["size=all"]}]),
            &["/d"],
        ),
        (
            "scheduler that the guest's kernel refuses",
            |c| c["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 1000}),
            &["process.scheduler", "Invalid argument"],
        ),
        (
            "ioPriority",
            |c| c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            &["process.ioPriority", "not between 0 and 7"],
        ),
        (
            "personality",
            |c| c["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["X"]}),
            &["linux.personality.flags", "not supported"],
        ),
        (
            "intelRdt",
            |c| c["linux"]["intelRdt"] = json!({"closID": "x"}),
            &["linux.intelRdt", "not supported"],
        ),
        (
            "timeOffsets",
            |c| c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}}),
            &["linux.timeOffsets", "no new time namespace"],
        ),
        (
            "startContainer hook",
            |c| c["hooks"]["startContainer"] = json!([{"path": "bin/true"}]),
            &["hooks.startContainer[0]", "not an absolute path"],
        ),
        (
            "host device",
            |c| c["linux"]["devices"] = json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]),
            &["linux.devices[0]", "/dev/mem"],
        ),
        (
            "namespace twice",
            |c| c["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}]),
            &["linux.namespaces", "twice"],
        ),
        (
            "namespace missing",
            |c| c["linux"]["namespaces"] = json!([{"type": "network", "path": "/no/such/netns"}]),
            &["linux.namespaces", "/no/such/netns"],
        ),
        (
            "namespace of another kind",
            |c| c["linux"]["namespaces"] = json!([{"type": "network", "path": "/proc/self/ns/uts"}]),
            &["linux.namespaces", "/proc/self/ns/uts"],
        ),
        (
            "user namespace without map",
            |c| c["linux"]["namespaces"] = json!([{"type": "user"}]),
            &["linux.uidMappings"],
        ),
        (
            "little memory",
            |c| c["linux"]["resources"] = json!({"memory": {"limit": 4 << 20}}),
            &["linux.resources.memory.limit", "4 MiB"],
        ),
        (
            "little memory by annotation",
            |c| c["annotations"] = json!({"krun.ram_mib": "3"}),
            &["krun.ram_mib", "3 MiB"],
        ),
        (
            "memory not a number",
            |c| c["annotations"] = json!({"krun.ram_mib": "much"}),
            &["krun.ram_mib", "much"],
        ),
        (
            "no vCPU",
            |c| c["annotations"] = json!({"krun.cpus": "0"}),
            &["krun.cpus", "0"],
        ),
        (
            "scratch of no size",
            |c| c["annotations"] = json!({"io.cwrun.scratch": "big"}),
            &["io.cwrun.scratch", "big"],
        ),
        (
            "unknown sysctl",
            |c| c["linux"]["sysctl"] = json!({"no.such.sysctl": "1"}),
            &["no.such.sysctl"],
        ),
    ] {
        refuse_bundle(&cwrun, what, &changed(change), parts);
    }
    // What another operating system's runtime would read, and what nobody knows, is none of our business.
    let foreign = changed(|config| {
        config["windows"] = json!({"layerFolders": ["C:\\layers"]});
        remove(config, "hostname");
    });
    cwrun.run("foreign", &foreign).finish().ok();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn ids_that_are_taken_or_unsafe() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]);
    let long = "x".repeat(256);
    for id in [
        "../up",
        "a/b",
        "/abs",
        ".",
        "..",
        ".hidden",
        "a b",
        "a\nb",
        "a\u{1b}[31m",
        "ü",
        long.as_str(),
        "",
    ] {
        refuse(
            &cwrun,
            id,
            |run| run.arg("--bundle").arg(bundle.path()).arg("--").arg(id),
            1,
            &["container id"],
        );
        for command in ["state", "start", "kill", "delete"] {
            assert!(
                cwrun.refused([command, "--", id]).contains("container id"),
                "{command} {id:?}"
            );
        }
    }
    cwrun.create("a.b_c+d-0", &bundle);
    let again = cwrun
        .command([
            "create",
            "--bundle",
            &bundle.path().to_string_lossy(),
            "a.b_c+d-0",
        ])
        .finish()
        .expect(1);
    assert!(
        again.stderr.contains("\"a.b_c+d-0\" already exists"),
        "{}",
        again.stderr
    );
    assert_eq!(cwrun.status("a.b_c+d-0"), "created", "the first is unharmed");
    cwrun.ok(["delete", "--force", "a.b_c+d-0"]);
    for command in ["state", "start", "kill", "delete"] {
        assert!(
            cwrun
                .refused([command, "nobody"])
                .contains("\"nobody\" does not exist"),
            "{command}"
        );
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn programs_that_cannot_be_run() {
    let cwrun = Cwrun::new();
    let root = cwrun.path("rootfs");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(bed().busybox())
            .arg(&root)
            .status()
            .unwrap()
            .success()
    );
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(root.join(name), text).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("bin/plain", "#!/bin/sh\n", 0o644);
    write("bin/orphan", "#!/no/such/interpreter\n", 0o755);
    write("bin/garbage", "\x7fELF, but no more than that", 0o755);
    for (args, code, parts) in [
        (
            &["/no/such/program"][..],
            127,
            &["/no/such/program", "executable file `/no/such/program` not found"][..],
        ),
        (&["nosuchprogram"], 127, &["nosuchprogram", "not found"]),
        (&["plain"], 126, &["plain", "ermission denied"]),
        (&["/bin/plain"], 126, &["/bin/plain", "ermission denied"]),
        (&["/etc"], 126, &["/etc"]),
        (&["/bin/orphan"], 127, &["/bin/orphan"]),
        (&["/bin/garbage"], 126, &["/bin/garbage"]),
    ] {
        let bundle = Bundle::on(&root, args);
        let log = cwrun.path("log");
        let _ = fs::remove_file(&log);
        let done = cwrun
            .run("program", &bundle)
            .args(["--log", &log.to_string_lossy(), "--log-format", "json"])
            .finish();
        assert_refusal(args[0], &done, &log, code, parts);
        cwrun.expect_clean();
    }
    let in_directory =
        |cwd: &str| Bundle::busybox(["pwd"]).with(|config| config["process"]["cwd"] = cwd.into());
    refuse_bundle(
        &cwrun,
        "cwd is a file",
        &in_directory("/etc/passwd"),
        &["cwd", "/etc/passwd"],
    );
    // One that is missing is made, as crun and runc do.
    assert_eq!(
        cwrun
            .run("made", &in_directory("/no/such/dir"))
            .finish()
            .ok()
            .text(),
        "/no/such/dir\n"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn kvm_is_missing_or_forbidden() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]);
    // In a mount namespace of its own, the command sees another /dev/kvm.
    let elsewhere = |what: &str, before: &str, parts: &[&str]| {
        let log = cwrun.path("log");
        let _ = fs::remove_file(&log);
        let args = ["--log", &log.to_string_lossy(), "--log-format", "json"].map(str::to_owned);
        let inner = cwrun.run("novm", &bundle).args(args).command();
        let script = format!("{before}; exec \"$@\"");
        let outer = Run::new("unshare")
            .args(["--mount", "bash", "-c", &script, "bash"])
            .arg(inner.get_program())
            .args(inner.get_args());
        let outer = inner.get_envs().fold(outer, |run, (name, value)| {
            run.env(&name.to_string_lossy(), value.unwrap_or_default())
        });
        let done = outer.finish();
        assert_refusal(what, &done, &log, 1, parts);
        cwrun.expect_clean();
        let check = Run::new("unshare")
            .args(["--mount", "bash", "-c", &script, "bash"])
            .arg(bed().cwrun())
            .args(["check", "--json"])
            .env("CWRUN_GUEST_DIR", bed().guest())
            .finish()
            .expect(1);
        let report: Value =
            serde_json::from_slice(&check.stdout).expect("check prints JSON even when it fails");
        assert_eq!(report["ok"], false, "{what}: {report}");
        let kvm = report["checks"]
            .as_array()
            .and_then(|checks| checks.iter().find(|check| check["name"] == "kvm"))
            .expect("a line for kvm");
        assert!(kvm["ok"] == false && kvm["advice"].is_string(), "{what}: {kvm}");
    };
    elsewhere("not KVM", "mount --bind /dev/null /dev/kvm", &["/dev/kvm"]);
    elsewhere(
        "missing",
        "mkdir -p /tmp/dev && mount -t tmpfs dev /tmp/dev && cp -a /dev/null /tmp/dev/ && mount --move /tmp/dev /dev",
        &["/dev/kvm", "does not exist"],
    );
    // Root may open anything, unless the file system is mounted without devices.
    elsewhere(
        "forbidden",
        "mkdir -p /tmp/dev && mount -t tmpfs -o nodev dev /tmp/dev && cp -a /dev/kvm /dev/null /tmp/dev/ && mount --bind /tmp/dev/kvm /dev/kvm",
        &["no permission on /dev/kvm"],
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn guest_files_are_missing_or_wrong() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]);
    let dir = cwrun.path("guest");
    let with_files = |what: &str, parts: &[&str]| {
        let create = |run: Run| {
            run.env("CWRUN_GUEST_DIR", &dir)
                .arg("--bundle")
                .arg(bundle.path())
                .arg("refused")
        };
        refuse(&cwrun, what, create, 1, parts);
    };
    let real = |name: &str| fs::read(bed().guest().join(name)).unwrap();
    with_files("no directory", &["no guest kernel", &dir.to_string_lossy()]);
    fs::create_dir(&dir).unwrap();
    with_files("no kernel", &["no guest kernel", "vmlinux"]);
    fs::write(dir.join("vmlinux"), real("vmlinux")).unwrap();
    with_files("no initrd", &["initrd"]);
    fs::write(dir.join("initrd"), real("initrd")).unwrap();
    for (what, kernel) in [
        ("empty kernel", Vec::new()),
        ("kernel of text", b"not a kernel at all".repeat(1000)),
        ("half a kernel", real("vmlinux")[..1 << 20].to_vec()),
        ("a program", fs::read(bed().cwrun()).unwrap()),
    ] {
        fs::write(dir.join("vmlinux"), kernel).unwrap();
        with_files(what, &["kernel"]);
    }
    fs::write(dir.join("vmlinux"), real("vmlinux")).unwrap();
    // The kernel's own last words say what is wrong with an initrd.
    fs::write(dir.join("initrd"), b"not an archive").unwrap();
    with_files("initrd of text", &["guest", "panic"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn options_and_commands_that_cannot_be_honoured() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["true"]);
    let terminal = changed(|config| config["process"]["terminal"] = true.into());
    refuse(
        &cwrun,
        "preserve-fds",
        |run| {
            run.arg("--bundle")
                .arg(bundle.path())
                .args(["--preserve-fds", "2", "refused"])
        },
        1,
        &["--preserve-fds 2"],
    );
    refuse_bundle(
        &cwrun,
        "terminal without socket",
        &terminal,
        &["process.terminal", "--console-socket"],
    );
    refuse(
        &cwrun,
        "console socket missing",
        |run| {
            run.arg("--bundle")
                .arg(terminal.path())
                .args(["--console-socket", "/no/such.sock", "refused"])
        },
        1,
        &["--console-socket", "/no/such.sock"],
    );
    refuse(
        &cwrun,
        "pid file in no directory",
        |run| {
            run.arg("--bundle")
                .arg(bundle.path())
                .args(["--pid-file", "/no/such/dir/pid", "refused"])
        },
        1,
        &["--pid-file", "/no/such/dir/pid"],
    );
    for (args, parts) in [
        (&["nosuchcommand"][..], &["nosuchcommand"][..]),
        (&["create", "--nosuchoption", "id"], &["--nosuchoption"]),
        (&["--log-format", "xml", "list"], &["xml"]),
        (&["--cgroup-manager", "none", "list"], &["none"]),
        (&["create"], &["ID"]),
        (&["create", "--preserve-fds", "many", "id"], &["many"]),
        (&[], &["Usage"]),
    ] {
        let done = cwrun.command(args).finish();
        assert!(
            done.code != 0 && done.code < 126,
            "{args:?}: exit code {}",
            done.code
        );
        for part in parts {
            assert!(
                done.stderr.contains(part),
                "{args:?}: {part:?} is not in {:?}",
                done.stderr
            );
        }
    }
    // A log that can't be opened is an error like any other.
    let done = cwrun
        .command(["--log", "/no/such/dir/log", "list"])
        .finish()
        .expect(1);
    assert!(done.stderr.contains("--log /no/such/dir/log"), "{}", done.stderr);
    // The same with text lines.
    let log = cwrun.path("text");
    cwrun
        .command(["--log", &log.to_string_lossy(), "state", "nobody"])
        .finish()
        .expect(1);
    let text = fs::read_to_string(&log).unwrap();
    assert!(
        text.starts_with("time=\"") && text.contains("level=error") && text.contains("does not exist"),
        "{text}"
    );
}
