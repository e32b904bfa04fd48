//! Under the real podman and conmon: what users see must agree with what crun shows them.

use e2e::process::{eventually, own_group};
use e2e::{Cwrun, Finished, Run, bed};
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

/// Of the busybox root file system.
pub const IMAGE: &str = "localhost/e2e-busybox";

/// podman on the bed's own storage. Nothing of a container may be left when it is dropped.
pub struct Podman {
    /// Dropped last, when podman has been told to remove everything.
    pub cwrun: Cwrun,
}

impl Podman {
    pub fn new() -> Self {
        static IMPORT: Once = Once::new();
        IMPORT.call_once(|| {
            let archive = bed().busybox().with_extension("tar");
            let pack = Command::new("tar")
                .arg("-C")
                .arg(bed().busybox())
                .arg("-cf")
                .arg(&archive)
                .arg(".")
                .status();
            assert!(pack.expect("tar runs").success());
            Run::new("podman")
                .args(["import", "-q"])
                .arg(&archive)
                .arg(IMAGE)
                .finish()
                .ok();
            // What podman itself sets up once and keeps is there before the first look at the host.
            with("crun", &["run", "--rm", IMAGE, "true"])
                .deadline(120)
                .finish()
                .ok();
        });
        Self { cwrun: Cwrun::new() }
    }

    /// podman with cwrun.
    pub fn command(&self, args: &[&str]) -> Run {
        with(&bed().cwrun().to_string_lossy(), args)
    }

    /// Standard output of a command that succeeds.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.command(args).finish().ok().text()
    }

    /// `podman run --rm` of a shell script, without network.
    fn script(&self, script: &str) -> Finished {
        self.command(&["run", "--rm", "--network", "none", IMAGE, "sh", "-c", script])
            .finish()
    }

    #[track_caller]
    fn inspect(&self, name: &str) -> Value {
        let list: Value = serde_json::from_str(&self.ok(&["inspect", name])).expect("inspect prints JSON");
        list[0]["State"].clone()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let done = self.command(&["rm", "--all", "--force", "--time", "0"]).finish();
        if !std::thread::panicking() {
            done.ok();
            let left: Vec<_> = fs::read_dir("/run/cwrun")
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .collect();
            assert!(left.is_empty(), "left in the state directory: {left:?}");
        }
    }
}

fn with(runtime: &str, args: &[&str]) -> Run {
    as_installed(Run::new("podman").args(["--runtime", runtime]).args(args))
}

/// cwrun under the command finds its directories by itself, as where it is installed.
pub fn as_installed(run: Run) -> Run {
    run.env_remove("CWRUN_GUEST_DIR").env_remove("CWRUN_CACHE_DIR")
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_gives_streams_and_exit_code() {
    let podman = Podman::new();
    let done = podman.script("echo out; echo err >&2; exit 7").expect(7);
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    let done = podman
        .command(&["run", "--rm", "-i", "--network", "none", IMAGE, "sha256sum"])
        .stdin("abc")
        .finish()
        .ok();
    assert!(done.text().starts_with("ba7816bf"), "{}", done.text());
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn failures_are_told_as_with_crun() {
    let podman = Podman::new();
    for (args, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 255"], 255),
        (&["/no/such/program"], 127),
        (&["nosuchprogram"], 127),
        (&["/etc"], 126),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
    ] {
        let run = [&["run", "--rm", "--network", "none", IMAGE], args].concat();
        let (ours, theirs) = (podman.command(&run).finish(), with("crun", &run).finish());
        assert_eq!(
            (ours.code, theirs.code),
            (code, code),
            "{args:?}: {} / {}",
            ours.stderr,
            theirs.stderr
        );
        assert_eq!(
            ours.stderr.is_empty(),
            theirs.stderr.is_empty(),
            "{args:?}: {} / {}",
            ours.stderr,
            theirs.stderr
        );
    }
    let run = ["run", "--rm", "--network", "none"];
    // A field that cannot be honoured comes out as one sentence that podman passes on.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let volume = format!("{}:/shared", socket.display());
    let volume = [&run[..], &["-v", &volume, IMAGE, "true"]].concat();
    let done = podman.command(&volume).finish();
    assert!(
        done.code != 0 && done.stderr.contains("/shared"),
        "exit code {}: {}",
        done.code,
        done.stderr
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_detached_container_through_its_whole_life() {
    let podman = Podman::new();
    let script = "trap 'echo stopping; exit 0' TERM; trap 'echo usr1' USR1; echo started; echo problem >&2; while :; do sleep 1 & wait $!; done";
    let id = podman.ok(&[
        "run",
        "-d",
        "--name",
        "life",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        script,
    ]);
    let logs = |text: &str| {
        eventually(text, 30, || {
            let done = podman.command(&["logs", "life"]).finish().ok();
            (done.text().contains(text) || done.stderr.contains(text)).then_some(done)
        })
    };
    logs("started");
    let both = logs("problem");
    assert_eq!(
        (both.text().as_str(), both.stderr.as_str()),
        ("started\n", "problem\n"),
        "logs keep the streams apart"
    );
    let ps = podman.ok(&["ps", "--format", "{{.ID}} {{.Names}} {{.Status}}", "--no-trunc"]);
    let up = format!("{} life Up ", id.trim());
    assert!(ps.starts_with(&up) && ps.lines().count() == 1, "{ps}");
    let state = podman.inspect("life");
    assert_eq!(
        (state["Status"].as_str(), state["Running"].as_bool()),
        (Some("running"), Some(true))
    );
    let vmm = state["Pid"].as_u64().expect("a number");
    assert!(Path::new(&format!("/proc/{vmm}")).exists());

    podman.ok(&["kill", "-s", "USR1", "life"]);
    logs("usr1");
    podman.ok(&["stop", "--time", "60", "life"]);
    logs("stopping");
    assert_eq!(podman.ok(&["wait", "life"]).trim(), "0");
    let state = podman.inspect("life");
    assert_eq!(
        (state["Status"].as_str(), state["ExitCode"].as_i64()),
        (Some("exited"), Some(0))
    );
    assert!(
        podman
            .ok(&["ps", "--all", "--format", "{{.Status}}"])
            .starts_with("Exited (0)")
    );

    // Once more from the same container: `start` makes a new VM.
    podman.ok(&["start", "life"]);
    eventually("a second start", 30, || {
        (podman.ok(&["logs", "life"]).matches("started").count() == 2).then_some(())
    });
    podman.ok(&["kill", "life"]);
    assert_eq!(podman.ok(&["wait", "life"]).trim(), "137");
    assert_eq!(podman.inspect("life")["ExitCode"], 137);
    podman.ok(&["rm", "life"]);
    assert_eq!(podman.ok(&["ps", "--all", "--quiet"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn exit_codes_and_forced_removal() {
    let podman = Podman::new();
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "seven",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "exit 7",
    ]);
    assert_eq!(podman.ok(&["wait", "seven"]).trim(), "7");
    assert_eq!(podman.inspect("seven")["ExitCode"], 7);
    assert_eq!(podman.command(&["start", "--attach", "seven"]).finish().code, 7);
    // It ignores SIGTERM, so stop has to kill it.
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "deaf",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 1; done",
    ]);
    podman.ok(&["stop", "--time", "1", "deaf"]);
    assert_eq!(podman.inspect("deaf")["ExitCode"], 137);
    // Running, created and exited containers all go by force.
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "running",
        "--network",
        "none",
        IMAGE,
        "sleep",
        "1000",
    ]);
    podman.ok(&["create", "--name", "created", "--network", "none", IMAGE, "true"]);
    podman.ok(&[
        "rm", "--force", "--time", "0", "running", "created", "deaf", "seven",
    ]);
    assert_eq!(podman.ok(&["ps", "--all", "--quiet"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn terminals_work() {
    let podman = Podman::new();
    podman.ok(&[
        "run",
        "-d",
        "-t",
        "--name",
        "tty",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "tty; test -t 1 && exit 5",
    ]);
    assert_eq!(podman.ok(&["wait", "tty"]).trim(), "5");
    assert_eq!(podman.ok(&["logs", "tty"]), "/dev/pts/0\r\n");
    podman.ok(&["rm", "tty"]);

    // In front: what is typed arrives, what is printed comes back.
    let line = format!(
        "podman --runtime {} run --rm -it --network none {IMAGE} sh -c 'echo ready; read x; echo \"got <$x>\"; exit 9'",
        bed().cwrun().display()
    );
    let mut command = Run::new("script").args(["-qec", &line, "/dev/null"]).command();
    own_group(&mut command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut block = [0; 1024];
        while let Ok(count @ 1..) = std::io::Read::read(&mut output, &mut block) {
            let _ = sender.send(String::from_utf8_lossy(&block[..count]).into_owned());
        }
    });
    let mut text = String::new();
    let mut until = |wanted: &str| {
        eventually(wanted, 60, || {
            text.extend(seen.try_iter());
            text.contains(wanted).then_some(())
        })
    };
    until("ready");
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"typed\n").unwrap();
    until("got <typed>");
    let status = e2e::process::wait(&mut child, std::time::Duration::from_secs(30), "podman run -it");
    assert_eq!(status.code(), Some(9));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn containers_of_one_image_share_its_layers() {
    let podman = Podman::new();
    let disks = || -> Vec<Value> {
        let list = Run::new(bed().cwrun())
            .args(["disk", "cache", "list", "--json"])
            .env_remove("CWRUN_CACHE_DIR")
            .finish();
        serde_json::from_str(&list.ok().text()).expect("JSON")
    };
    let layers = || -> Vec<String> {
        let sources = disks()
            .into_iter()
            .map(|disk| disk["source"].as_str().expect("a path").to_owned());
        let mut layers: Vec<_> = sources.filter(|source| source.contains("/overlay/")).collect();
        layers.sort();
        layers
    };
    podman.script("true").ok();
    let first = layers();
    assert!(!first.is_empty(), "podman's layers are recognised");
    let again = podman
        .script("echo new >/etc/new; cat /etc/new /run/.containerenv | head -1")
        .ok();
    assert_eq!(again.text(), "new\n");
    assert_eq!(
        layers(),
        first,
        "the second container converts nothing that stays"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn exec_and_pause() {
    let podman = Podman::new();
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "busy",
        "--network",
        "none",
        IMAGE,
        "sleep",
        "1000",
    ]);
    let exec = |args: &[&str]| podman.command(&[&["exec", "-i", "busy"], args].concat());
    let done = exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])
        .finish()
        .expect(3);
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    let done = exec(&["sha256sum"]).stdin("abc").finish().ok();
    assert!(done.text().starts_with("ba7816bf"), "{}", done.text());
    assert_eq!(exec(&["no-such-program"]).finish().code, 127);
    let options = [
        "exec",
        "--user",
        "7:8",
        "--workdir",
        "/tmp",
        "--env",
        "A=b",
        "busy",
        "sh",
        "-c",
        "id -u; id -g; pwd; echo $A",
    ];
    assert_eq!(podman.ok(&options), "7\n8\n/tmp\nb\n");
    podman.ok(&["pause", "busy"]);
    assert_eq!(podman.inspect("busy")["Status"], "paused");
    podman.ok(&["unpause", "busy"]);
    assert_eq!(podman.inspect("busy")["Status"], "running");
    podman.ok(&["rm", "--force", "--time", "0", "busy"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_pod_without_network() {
    let podman = Podman::new();
    podman.ok(&["pod", "create", "--name", "pod", "--network", "none"]);
    let run = ["run", "-d", "--pod", "pod", "--name"];
    podman.ok(&[&run[..], &["one", IMAGE, "sleep", "1000"]].concat());
    let text = podman.ok(&[
        "run",
        "--rm",
        "--pod",
        "pod",
        IMAGE,
        "sh",
        "-c",
        "hostname; ls /sys/class/net",
    ]);
    assert_eq!(text, "pod\nlo\n");
    assert_eq!(podman.inspect("one")["Status"], "running");
    let infra = podman.ok(&["pod", "inspect", "--format", "{{.InfraContainerID}}", "pod"]);
    let state = Run::new(bed().cwrun())
        .args(["state", infra.trim()])
        .finish()
        .ok();
    let state: Value = serde_json::from_slice(&state.stdout).expect("state prints JSON");
    assert_eq!(state["infra"], true, "the infra container has no VM");
    podman.ok(&["pod", "stop", "--time", "1", "pod"]);
    podman.ok(&["pod", "rm", "--force", "pod"]);
    assert_eq!(podman.ok(&["ps", "--all", "--quiet"]), "");
}
