//! More processes in a running container.

use e2e::cwrun::{Container, wait_for_end};
use e2e::process::{eventually, wait};
use e2e::{Bundle, Cwrun, Finished, host, pattern, rounds};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

const ID: &str = "c";

/// A container that does nothing, until it is told to end.
fn idle(cwrun: &Cwrun) -> Container {
    let container = cwrun.create(ID, &Bundle::idle());
    cwrun.ok(["start", ID]);
    container
}

fn exec(cwrun: &Cwrun, args: &[&str]) -> Finished {
    cwrun.command(["exec"].iter().chain(args)).finish()
}

fn sh(cwrun: &Cwrun, script: &str) -> Finished {
    exec(cwrun, &[ID, "sh", "-c", script])
}

fn processes(cwrun: &Cwrun) -> Vec<i32> {
    let text = cwrun.ok(["ps", "--format", "json", ID]);
    serde_json::from_str(&text).expect("JSON")
}

/// Nothing is left but the first process and its sleep, which is not there at every moment.
#[track_caller]
fn expect_idle(cwrun: &Cwrun) {
    eventually("the first process and its sleep alone", 30, || {
        (processes(cwrun).len() == 2).then_some(())
    });
}

fn end(cwrun: &Cwrun) {
    cwrun.ok(["delete", "--force", ID]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn streams_and_status_are_its_own() {
    let cwrun = Cwrun::new();
    let container = idle(&cwrun);
    let ran = sh(&cwrun, "echo out; echo err >&2; exit 7");
    assert_eq!(
        (ran.code, ran.text().as_str(), ran.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(sh(&cwrun, "kill -TERM $$").code, 128 + 15);
    let bytes = pattern::bytes(3_000_000);
    let copied = cwrun.command(["exec", ID, "cat"]).stdin(bytes.clone()).finish();
    assert_eq!(copied.code, 0, "{}", copied.stderr);
    assert!(copied.stdout == bytes);
    assert_eq!(
        container.output(),
        "",
        "nothing of it shows in the container's own output"
    );
    // It shares namespaces, root and control group with the first process.
    let inside = sh(
        &cwrun,
        "for ns in mnt pid ipc uts cgroup net; do [ $(readlink /proc/self/ns/$ns) = $(readlink /proc/1/ns/$ns) ] || echo $ns; done; cat /proc/self/cgroup; hostname",
    );
    assert_eq!(inside.ok().text(), "0::/\nguest\n");
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_command_line_changes_the_containers_own_process() {
    let cwrun = Cwrun::new();
    let _container = idle(&cwrun);
    let script = "pwd; id -u; id -g; echo $MORE $TERM; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status";
    let ran = exec(
        &cwrun,
        &[
            "--cwd",
            "/tmp",
            "--user",
            "7:8",
            "--env",
            "MORE=x",
            "--no-new-privs",
            "--cap",
            "CAP_SYS_TIME",
            ID,
            "sh",
            "-c",
            script,
        ],
    );
    let text = ran.ok().text();
    assert!(text.starts_with("/tmp\n7\n8\nx xterm\n"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    // A process that is not root has the capabilities only if they are ambient, as with crun.
    let root = exec(
        &cwrun,
        &["--cap", "CAP_SYS_TIME", ID, "grep", "CapEff", "/proc/self/status"],
    );
    let mask = u64::from_str_radix(root.ok().text().trim().rsplit('\t').next().unwrap(), 16).unwrap();
    assert_ne!(mask & 1 << 25, 0, "{mask:x}");

    let file = cwrun.path("process.json");
    let process = json!({"args": ["sh", "-c", "echo $A; ulimit -n; umask; exit 3"], "cwd": "/", "env": ["A=b", "PATH=/bin"],
        "user": {"uid": 0, "gid": 0, "umask": 0o27}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]});
    fs::write(&file, process.to_string()).unwrap();
    let ran = exec(&cwrun, &["--process", file.to_str().unwrap(), ID]);
    assert_eq!(
        (ran.code, ran.text().as_str()),
        (3, "b\n77\n0027\n"),
        "{}",
        ran.stderr
    );
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_cannot_run_is_a_sentence() {
    let cwrun = Cwrun::new();
    let container = idle(&cwrun);
    let missing = exec(&cwrun, &[ID, "no-such-program"]);
    assert_eq!(missing.code, 127);
    assert!(
        missing
            .stderr
            .contains("executable file `no-such-program` not found in $PATH"),
        "{}",
        missing.stderr
    );
    let directory = exec(&cwrun, &[ID, "/tmp"]);
    assert_eq!(directory.code, 126, "{}", directory.stderr);
    for (args, part) in [
        (&[ID][..], "no program given"),
        (&["--user", "nobody", ID, "id"], "--user \"nobody\""),
        (&["--cap", "CAP_NONSENSE", ID, "id"], "--cap CAP_NONSENSE"),
        (&["--process", "/does/not/exist", ID], "--process /does/not/exist"),
        (&["--cwd", "/does/not/exist", ID, "id"], "/does/not/exist"),
        (&["--preserve-fds", "2", ID, "id"], "--preserve-fds 2"),
        (&["--detach", "--tty", ID, "id"], "--console-socket"),
        (&["other", "id"], "does not exist"),
    ] {
        let refused = exec(&cwrun, args);
        assert!(
            refused.code != 0 && refused.stderr.contains(part),
            "{args:?}: {} {}",
            refused.code,
            refused.stderr
        );
    }
    expect_idle(&cwrun);
    cwrun.ok(["kill", ID, "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    let stopped = sh(&cwrun, "true");
    assert!(stopped.stderr.contains("is stopped"), "{}", stopped.stderr);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_detached_process_has_a_stand_in() {
    let cwrun = Cwrun::new();
    let container = idle(&cwrun);
    let pid_file = cwrun.path("exec.pid");
    let start = |script: &str| {
        let args = [
            "exec",
            "--detach",
            "--pid-file",
            pid_file.to_str().unwrap(),
            ID,
            "sh",
            "-c",
            script,
        ];
        let made = cwrun.detached("exec", cwrun.command(args).command(), Stdio::null());
        let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        (made, pid)
    };
    // Its output goes on after the command, its stand-in exits with its status.
    let (made, pid) = start("echo begun; sleep 1; echo done; exit 5");
    made.expect_output("begun");
    assert_eq!(wait_for_end(pid, Duration::from_secs(30)), 5);
    assert_eq!(made.output(), "begun\ndone\n");
    // Signals reach it through the stand-in.
    let (made, pid) =
        start("trap 'echo caught; exit 6' USR1; echo ready; while :; do sleep 1 & wait $!; done");
    made.expect_output("ready");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::USR1).unwrap();
    assert_eq!(wait_for_end(pid, Duration::from_secs(30)), 6);
    // Without a stand-in there is no process.
    let (made, pid) = start("echo ready; exec sleep 1000");
    made.expect_output("ready");
    let runs = || sh(&cwrun, "ps -o args").ok().text().contains("sleep 1000");
    assert!(runs());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(wait_for_end(pid, Duration::from_secs(30)), 128 + 9);
    eventually("the process is gone", 30, || (!runs()).then_some(()));
    // And none without a container.
    let (made, pid) = start("echo ready; exec sleep 1000");
    made.expect_output("ready");
    cwrun.ok(["kill", ID, "KILL"]);
    assert_eq!(wait_for_end(pid, Duration::from_secs(30)), 128 + 9);
    assert_eq!(cwrun.wait(&container), 128 + 9);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn it_ends_with_its_process_whoever_holds_its_output() {
    let cwrun = Cwrun::new();
    let container = idle(&cwrun);
    let all = "head -c 300000 /dev/zero; echo done; exit 4";
    let done = sh(&cwrun, &format!("sleep 1000 & {all}")).expect(4);
    assert_eq!(done.stdout.len(), 300_000 + 5);
    assert!(done.stdout.ends_with(b"done\n"));
    // Also when that never falls silent.
    let done = sh(&cwrun, &format!("(trap '' PIPE; while :; do echo; done) & {all}")).expect(4);
    assert!(String::from_utf8_lossy(&done.stdout).contains("done"));
    // Engines are told what is over in the words that they know.
    cwrun.ok(["kill", ID, "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    for (all, expected) in [(true, 0), (false, 1)] {
        let mut args = vec!["kill", ID, "TERM"];
        args.extend(all.then_some("--all"));
        let late = cwrun.command(args).finish().expect(expected);
        assert_eq!(
            late.stderr.contains("container not running"),
            !all,
            "{}",
            late.stderr
        );
    }
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn many_at_once_do_not_get_mixed_up() {
    let cwrun = Cwrun::new();
    let _container = idle(&cwrun);
    let (total, at_once) = (rounds(60, 500), rounds(20, 50));
    let before = host::processes();
    for batch in (0..total).collect::<Vec<_>>().chunks(at_once) {
        let running: Vec<_> = batch
            .iter()
            .map(|number| {
                let script = format!("echo out {number}; echo err {number} >&2; exit {}", number % 100);
                let file = |kind: &str| cwrun.path(&format!("{number}.{kind}"));
                let mut command = cwrun.command(["exec", ID, "sh", "-c", &script]).command();
                let create = |kind: &str| fs::File::create(file(kind)).unwrap();
                command
                    .stdin(Stdio::null())
                    .stdout(create("out"))
                    .stderr(create("err"));
                (*number, command.spawn().unwrap())
            })
            .collect();
        for (number, mut child) in running {
            let status = wait(&mut child, Duration::from_secs(120), "exec");
            let read = |kind: &str| fs::read_to_string(cwrun.path(&format!("{number}.{kind}"))).unwrap();
            assert_eq!(
                status.code(),
                Some((number % 100) as i32),
                "{number}: {}",
                read("err")
            );
            assert_eq!(
                (read("out"), read("err")),
                (format!("out {number}\n"), format!("err {number}\n"))
            );
        }
    }
    expect_idle(&cwrun);
    assert_eq!(host::processes(), before, "nor on the host");
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_paused_container_stands_still() {
    let cwrun = Cwrun::new();
    let container = cwrun.create(
        ID,
        &Bundle::script("i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done"),
    );
    assert!(cwrun.refused(["pause", ID]).contains("is created"));
    cwrun.ok(["start", ID]);
    container.expect_output("3\n");
    cwrun.ok(["pause", ID]);
    assert_eq!(cwrun.status(ID), "paused");
    let then = container.output();
    std::thread::sleep(Duration::from_secs(2));
    // What was on its way may still have come.
    let later = container.output();
    assert!(later.len() < then.len() + 20, "{then} {later}");
    assert!(cwrun.refused(["pause", ID]).contains("is paused"));
    assert!(sh(&cwrun, "true").stderr.contains("is paused"));
    cwrun.ok(["resume", ID]);
    assert_eq!(cwrun.status(ID), "running");
    eventually("it goes on", 30, || {
        (container.output().len() > later.len() + 20).then_some(())
    });
    cwrun.ok(["pause", ID]);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_containers_filter_of_system_calls_holds_for_it_too() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().with(|config| {
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    });
    cwrun.create(ID, &bundle);
    cwrun.ok(["start", ID]);
    let refused = exec(&cwrun, &[ID, "mkdir", "/new"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("Not supported") || refused.stderr.contains("not supported"),
        "{}",
        refused.stderr
    );
    let file = cwrun.path("process.json");
    fs::write(
        &file,
        json!({"args": ["/bin/mkdir", "/new"], "cwd": "/", "user": {"uid": 0, "gid": 0}}).to_string(),
    )
    .unwrap();
    assert_ne!(exec(&cwrun, &["--process", file.to_str().unwrap(), ID]).code, 0);
    end(&cwrun);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn it_begins_in_the_cgroup_that_is_asked_for_and_waits_for_a_paused_container() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().with(|config| {
        let mounts = config["mounts"].as_array_mut().expect("a list");
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "rw"]}));
    });
    let _container = cwrun.create(ID, &bundle);
    cwrun.ok(["start", ID]);
    let place = ["cat", "/proc/self/cgroup"];
    let placed = |options: &[&str]| exec(&cwrun, &[options, &[ID], &place].concat());
    assert_eq!(sh(&cwrun, "mkdir -p /sys/fs/cgroup/sub/deep").code, 0);
    for (options, wanted) in [
        (&[][..], "0::/\n"),
        (&["--cgroup", "/"], "0::/\n"),
        (&["--cgroup", "sub"], "0::/sub\n"),
        (&["--cgroup", "/sub/deep"], "0::/sub/deep\n"),
    ] {
        assert_eq!(placed(options).ok().text(), wanted, "{options:?}");
    }
    for path in ["..", "sub/../..", "none", "cpu:none"] {
        let refused = placed(&["--cgroup", path]);
        assert!(
            refused.code != 0 && refused.stderr.contains(path),
            "{}",
            refused.stderr
        );
    }

    cwrun.ok(["pause", ID]);
    let refused = exec(&cwrun, &[ID, "true"]);
    assert!(
        refused.code != 0 && refused.stderr.contains("paused"),
        "{}",
        refused.stderr
    );
    let mut waiting = cwrun
        .command(["exec", "--ignore-paused", ID, "sh", "-c", "exit 5"])
        .command()
        .stdin(Stdio::null())
        .spawn()
        .expect("cwrun");
    // Time enough to have asked.
    std::thread::sleep(Duration::from_secs(3));
    assert!(waiting.try_wait().unwrap().is_none(), "it does not wait");
    cwrun.ok(["resume", ID]);
    assert_eq!(
        wait(
            &mut waiting,
            Duration::from_secs(60),
            "the process of a resumed container"
        )
        .code(),
        Some(5)
    );
    end(&cwrun);
}
