//! What podman's options and commands do with cwrun and with crun: output and exit status must be the same. Where they can't be,
//! `what_looks_in_from_the_host_does_not_see_the_guest` says what happens instead. `docs/podman.md` is this in a table.

use crate::podman::{IMAGE, Podman};
use crate::podman_shell::same;
use e2e::bed;
use e2e::process::eventually;
use serde_json::Value;
use std::fs;

/// `podman run`: options, and what runs. Options that can be seen together are seen together: a start takes seconds in the test bed.
const RUNS: &[(&str, &str)] = &[
    (
        "",
        r#"sh -c 'grep -E "^(Cap|Seccomp:|NoNewPrivs)" /proc/self/status; id; pwd; umask; env | grep -v HOSTNAME | sort; ulimit -n -u -c;
            cat /proc/self/oom_score_adj; test $(hostname) = $HOSTNAME && echo host name; ls -a /;
            ls /dev | grep -v core; exit 42'"#,
    ),
    (
        "--read-only --env 'VARIABLE=value with spaces' --workdir /usr/bin --user 1000:1000 --group-add 20 --hostname my-host
            --ulimit nofile=500:600 --cap-drop all --cap-add chown --tmpfs /data:size=4m,mode=1770 --shm-size 8m
            --sysctl net.ipv4.ip_default_ttl=63 --memory 256m --volume $TEST/file:/etc/injected:ro",
        r#"sh -c 'id; pwd; umask; echo $VARIABLE; hostname; ulimit -n; grep ^Cap /proc/self/status; stat -c "%a %F" /tmp /run /data /dev/shm;
            grep " /data " /proc/mounts | cut -d " " -f 3; df -k /dev/shm | tail -n 1 | tr -s " " | cut -d " " -f 2;
            test -s /etc/resolv.conf && echo resolv; grep -c my-host /etc/hosts; test -e /run/.containerenv && echo containerenv;
            touch /new 2>/dev/null || echo read-only; cat /proc/sys/net/ipv4/ip_default_ttl; ls -d /proc/self/fd/* | wc -l; cat /etc/injected'"#,
    ),
    (
        "--entrypoint '[\"sh\", \"-c\"]' --env-file $TEST/environment --umask 0077 --security-opt no-new-privileges
            --security-opt seccomp=unconfined --security-opt label=disable --security-opt unmask=/proc/keys --device /dev/fuse
            --pids-limit 100 --cpus 1.5 --cpu-shares 512 --no-hosts --label a=b --annotation c=d --oom-score-adj 200 --ulimit core=0
            --stop-signal USR1",
        r#"'grep -E "^(Seccomp:|NoNewPrivs)" /proc/self/status; umask; echo $FROM_FILE; test -c /dev/fuse && echo fuse; touch /f; stat -c %a /f;
            cat /proc/self/oom_score_adj; ulimit -c; head -c 0 /proc/keys && echo keys'"#,
    ),
    ("--init", r#"sh -c 'echo $$; tr "\0" " " </proc/1/cmdline; exit 3'"#),
    ("--privileged", r#"grep -E "^(Cap|Seccomp:|NoNewPrivs)" /proc/self/status"#),
    ("--timeout 20", "sh -c 'echo out; exec sleep 1000'"),
    ("--user nobody", "sh -c 'id -u; echo $HOME'"),
    ("--user nobody-of-this-name", "true"),
    ("--workdir /no/such/directory", "pwd"),
    ("--tty", "sh -c 'tty; test -t 0 && test -t 2 && echo terminal; exit 5'"),
    (
        "--ipc private --uts private --pid private --cgroupns private",
        // Counted by the shell itself: of a pipe's programs, one may look before the other is there.
        r#"sh -c 'echo $$; set -- /proc/[0-9]*; echo $#; cat /proc/self/cgroup'"#,
    ),
];

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn options_of_run() {
    same(|podman| {
        for (options, command) in RUNS {
            podman.say(&format!("run --rm --network none {options} $IMAGE {command}"));
        }
    });
}

/// What a container's state is, as far as runtimes have a part in it.
const STATE: &str =
    "--format '{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.ExitCode}} {{.RestartCount}}'";

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn commands_in_the_life_of_a_container() {
    same(|podman| {
        podman.say(
            r#"create --name life --network none $IMAGE sh -c 'trap "echo bye; exit 4" TERM; trap "echo usr1" USR1; echo started;
            while :; do sleep 1 & wait $!; done'"#,
        );
        podman.say(&format!("inspect {STATE} life"));
        podman.say("start life");
        podman.wait_for_log("life", "started", 1);
        podman.say(&format!("inspect {STATE} life"));
        podman.say("exec life sh -c 'echo out; echo err >&2; exit 3'");
        podman.say("exec --user 7:8 --workdir /tmp --env A=b life sh -c 'id; pwd; echo $A'");
        podman.say("exec --privileged life grep ^CapEff /proc/self/status");
        podman.say("exec --tty life sh -c 'tty; exit 6'");
        podman.answer("exec --interactive life cat", "input\n");
        podman.say("exec life no-such-program");
        podman.say("exec life /etc/passwd");
        podman.say("exec --detach life touch /tmp/detached");
        podman.say("exec life sh -c 'until test -e /tmp/detached; do sleep 0.1; done'");
        podman.say("pause life");
        podman.say(&format!("inspect {STATE} life"));
        podman.say("exec life true");
        podman.say("unpause life");
        podman.say(&format!("inspect {STATE} life"));
        podman.say("kill --signal USR1 life");
        podman.wait_for_log("life", "usr1", 1);
        podman.say("kill --signal no-such-signal life");
        podman.say("rename life other");
        podman.say("ps --format '{{.Names}} {{.Image}}'");
        podman.say("restart --time 60 other");
        podman.wait_for_log("other", "started", 2);
        podman.say("stats --no-stream --format '{{.Name}}' other");
        podman.say("stop --time 60 other");
        podman.say("wait other");
        podman.say("logs other");
        podman.say(&format!("inspect {STATE} other"));
        podman.say("exec other true");
        podman.say("kill other");
        podman.say("rm other");
        podman.say("rm other");
    });
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn attaching_restarting_and_health_checks() {
    same(|podman| {
        podman.say(
            r#"run --detach --interactive --name reader --network none $IMAGE sh -c 'echo ready; read x; echo "got <$x>"; exit 9'"#,
        );
        podman.wait_for_log("reader", "ready", 1);
        podman.answer("attach reader", "typed\n");
        podman.say("wait reader");
        podman.answer("start --attach --interactive reader", "again\n");
        podman.say("rm reader");

        podman
            .say("run --name again --restart on-failure:1 --network none $IMAGE sh -c 'echo tried; exit 3'");
        podman.wait_for_log("again", "tried", 2);
        podman.say("wait again");
        podman.say(&format!("inspect {STATE} again"));
        podman.say("rm --force --time 0 again");

        podman.say(
            "run --detach --name healthy --network none --health-cmd 'test -e /tmp/healthy' --health-interval disable
            --health-retries 1 --health-timeout 10m $IMAGE sleep 1000",
        );
        podman.say("healthcheck run healthy");
        podman.say("inspect --format '{{.State.Health.Status}}' healthy");
        podman.say("exec healthy touch /tmp/healthy");
        podman.say("healthcheck run healthy");
        podman.say("inspect --format '{{.State.Health.Status}}' healthy");
        podman.say("stop --time 0 healthy");
        podman.say("wait healthy");
        podman.say("rm healthy");
    });
}

/// Commands that look at the container's files or processes from the host see what the host has of them.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_looks_in_from_the_host_does_not_see_the_guest() {
    let podman = Podman::new();
    podman.ok(&[
        "create",
        "--name",
        "files",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "touch /written; cat /etc/copied; sleep 1000",
    ]);
    let file = bed().busybox().with_file_name("copied");
    fs::write(&file, "from the host\n").expect("the bed is writable");
    // Before the start it becomes part of the disk.
    podman.ok(&["cp", &file.to_string_lossy(), "files:/etc/copied"]);
    podman.ok(&["start", "files"]);
    eventually("the copied file", 30, || {
        let log = podman.ok(&["logs", "files"]);
        log.contains("from the host").then_some(())
    });
    podman.ok(&["exec", "files", "test", "-e", "/written"]);

    // `ps` with the guest's processes is of the runtime; podman reads the host's.
    let top = podman.ok(&["top", "files", "args"]);
    assert!(!top.contains("sleep 1000") && top.contains("cwrun"), "{top}");
    let stats = podman.ok(&["stats", "--no-stream", "--format", "json", "files"]);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!(stats[0]["name"], "files", "of the VMM");
    // What the guest writes stays encrypted, and goes with it.
    assert!(!podman.ok(&["diff", "files"]).contains("/written"));
    podman.ok(&["commit", "-q", "files", "localhost/committed"]);
    podman.ok(&["rm", "--force", "--time", "0", "files"]);
    let list = [
        "run",
        "--rm",
        "--network",
        "none",
        "localhost/committed",
        "ls",
        "/etc/copied",
        "/written",
    ];
    let listed = podman.command(&list).finish();
    assert_eq!(listed.text(), "/etc/copied\n");
    assert!(listed.stderr.contains("/written"), "{listed:?}");
    podman.ok(&["rmi", "localhost/committed"]);
}
