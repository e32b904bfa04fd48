//! Under the real containerd and its shim for runc, by `ctr`: what users see must agree with what crun shows them.

use e2e::process::eventually;
use e2e::{Cwrun, Finished, Run, bed};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

const IMAGE: &str = "localhost/e2e-busybox:latest";
/// containerd's own name space, which is also the cgroup above its containers'.
const NAMESPACE: &str = "e2e";
/// Where the shim has the runtime keep the state of containers.
const STATE: &str = "/run/containerd/runc/e2e";

/// A containerd of the test's own with one image. Nothing of a container may be left when it is dropped.
struct Containerd {
    daemon: Child,
    socket: PathBuf,
    // Dropped last, when the daemon has gone.
    cwrun: Cwrun,
}

impl Containerd {
    fn start() -> Self {
        let cwrun = Cwrun::new();
        let [configuration, socket, log] =
            ["containerd.toml", "c.sock", "containerd.log"].map(|name| cwrun.path(name));
        // The file that we tell administrators to use is read with it.
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\nimports = [{:?}]\n[grpc]\naddress = {:?}\n",
            cwrun.path("daemon"),
            cwrun.path("run"),
            contrib("containerd/config-v2.toml"),
            socket
        );
        fs::write(&configuration, text).expect("the bed is writable");
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(&configuration)
            .env("CWRUN_CACHE_DIR", cwrun.cache())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("the bed is writable"))
            .spawn()
            .expect("containerd runs");
        let containerd = Self {
            daemon,
            socket,
            cwrun,
        };
        eventually("containerd answers", 60, || {
            (containerd.ctr(&["version"]).finish().code == 0).then_some(())
        });
        containerd.ok(&["images", "import", &image().to_string_lossy()]);
        containerd
    }

    fn ctr(&self, args: &[&str]) -> Run {
        Run::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", NAMESPACE])
            .args(args)
            .deadline(120)
    }

    /// The same for a shell.
    fn words(&self) -> String {
        format!("ctr --address {} --namespace {NAMESPACE}", self.socket.display())
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.ctr(args).finish().ok().text()
    }

    /// `ctr run` of a container with this runtime.
    fn run_with(&self, runtime: &Path, options: &[&str], id: &str, args: &[&str]) -> Finished {
        self.ctr(&["run", "--runc-binary", &runtime.to_string_lossy()])
            .args(options)
            .args([IMAGE, id])
            .args(args)
            .finish()
    }

    fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Finished {
        self.run_with(&bed().cwrun(), options, id, args)
    }

    /// What `ctr task ls` says of a container: RUNNING and the like.
    fn status(&self, id: &str) -> Option<String> {
        let list = self.ok(&["task", "ls"]);
        let mut rows = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&id))?;
        row.last().map(|status| (*status).to_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for task in self.ctr(&["task", "ls", "-q"]).finish().text().lines() {
                self.ctr(&["task", "rm", "--force", task]).finish();
            }
            eprintln!(
                "{}",
                fs::read_to_string(self.cwrun.path("containerd.log")).unwrap_or_default()
            );
        }
        // It is our child, and has not been waited for.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if !std::thread::panicking() {
            let left: Vec<_> = fs::read_dir(STATE)
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .collect();
            assert!(left.is_empty(), "left in the state directory: {left:?}");
        }
    }
}

fn contrib(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../contrib")
        .join(file)
}

/// An archive as `docker save` makes them, with one layer.
fn image() -> PathBuf {
    static PACK: Once = Once::new();
    let archive = bed().busybox().with_file_name("image.tar");
    PACK.call_once(|| {
        let scratch = bed().scratch();
        let pack = |archive: &Path, from: &Path, names: &[&str]| {
            Run::new("tar").arg("-C").arg(from).arg("-cf").arg(archive).args(names).finish().ok();
        };
        let layer = scratch.path().join("layer.tar");
        pack(&layer, &bed().busybox(), &["."]);
        let sum = Run::new("sha256sum").arg(&layer).finish().ok().text();
        let digest = sum.split_whitespace().next().expect("sha256sum prints a digest");
        let configuration = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "IMAGE=its own"], "Cmd": ["sh", "-c", "echo default"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}, "history": [{}]
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        for (name, value) in [("config.json", configuration), ("manifest.json", manifest)] {
            fs::write(scratch.path().join(name), value.to_string()).expect("the bed is writable");
        }
        pack(&archive, scratch.path(), &["manifest.json", "config.json", "layer.tar"]);
    });
    archive
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_agrees_with_crun() {
    let containerd = Containerd::start();
    let crun = Path::new("/usr/bin/crun");
    // What the shim makes once and keeps is there before the next look at the host.
    let script = "echo out; echo err >&2; id; pwd; hostname; echo $IMAGE $VARIABLE; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; \
        ulimit -n; touch /new 2>/dev/null || echo read-only; exit 7";
    let options = [
        "--rm",
        "--read-only",
        "--cwd",
        "/usr/bin",
        "--env",
        "VARIABLE=value with spaces",
        "--cap-drop",
        "CAP_CHOWN",
        "--seccomp",
        "--memory-limit",
        "268435456",
        "--cpus",
        "1.5",
    ];
    let args = ["sh", "-c", script];
    let ours = containerd.run(&options, "one", &args).expect(7);
    let theirs = containerd.run_with(crun, &options, "one", &args).expect(7);
    assert_eq!((ours.text(), &ours.stderr), (theirs.text(), &theirs.stderr));

    // ctr never tells of an end that comes before the container runs, whatever the runtime: the input ends when it does.
    let input = |runtime: &Path| {
        let (ctr, runtime) = (containerd.words(), runtime.display());
        let line = format!(
            "(echo abc; until {ctr} task ls | grep -q '^stdin .*RUNNING'; do sleep 0.5; done; sleep 1) |
                {ctr} run --rm --runc-binary {runtime} {IMAGE} stdin sha256sum"
        );
        Run::new("sh").args(["-c", &line]).finish().ok().text()
    };
    assert_eq!(input(&bed().cwrun()), input(crun));

    assert_eq!(containerd.run(&["--rm"], "default", &[]).ok().text(), "default\n");
    for args in [
        &["/no/such/program"][..],
        &["/etc/passwd"],
        &["sh", "-c", "kill -9 $$"],
    ] {
        let ours = containerd.run(&["--rm"], "fails", args);
        let theirs = containerd.run_with(crun, &["--rm"], "fails", args);
        assert_eq!(
            ours.code, theirs.code,
            "{args:?}: {} / {}",
            ours.stderr, theirs.stderr
        );
        assert_eq!(
            ours.stderr.contains("OCI runtime create failed"),
            theirs.stderr.contains("OCI runtime create failed"),
            "{args:?}: {} / {}",
            ours.stderr,
            theirs.stderr
        );
    }
    // A field that can't be honoured comes out as a sentence that ctr passes on.
    let socket = containerd.socket.display();
    let mount = format!("type=bind,src={socket},dst=/shared/socket,options=bind:ro");
    let refused = containerd.run(&["--rm", "--mount", &mount], "refused", &["true"]);
    assert!(
        refused.code != 0 && refused.stderr.contains("/shared/socket"),
        "{}",
        refused.stderr
    );
    assert_eq!(containerd.ok(&["containers", "ls", "-q"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_detached_container_through_its_whole_life() {
    let containerd = Containerd::start();
    let script = "trap 'exit 3' TERM; trap 'echo seen >/tmp/usr1' USR1; mkdir -p /tmp; while :; do sleep 1 & wait $!; done";
    containerd.run(&["--detach"], "life", &["sh", "-c", script]).ok();
    assert_eq!(containerd.status("life").as_deref(), Some("RUNNING"));

    let exec = |id: &str, args: &[&str]| {
        containerd
            .ctr(&["task", "exec", "--exec-id", id, "life"])
            .args(args)
            .finish()
    };
    let done = exec("e1", &["sh", "-c", "echo out; echo err >&2; exit 5"]).expect(5);
    assert_eq!(done.text(), "out\n");
    assert!(done.stderr.contains("err\n"), "{}", done.stderr);
    assert_ne!(exec("e2", &["/no/such/program"]).code, 0);
    let line = format!(
        "stty rows 33 cols 44; {} task exec --tty --exec-id e3 life \
            sh -c 'tty; until test \"$(stty size)\" = \"33 44\"; do sleep 0.1; done; echo resized; exit 6'",
        containerd.words()
    );
    let terminal = Run::new("script")
        .args(["-qec", &line, "/dev/null"])
        .finish()
        .expect(6);
    assert!(
        terminal.text().contains("/dev/pts/0") && terminal.text().contains("resized"),
        "{}",
        terminal.text()
    );
    containerd.ok(&[
        "task",
        "exec",
        "--detach",
        "--exec-id",
        "sleeper",
        "life",
        "sleep",
        "1000",
    ]);
    // The shell, its sleep (or the moment between two) and the other.
    let processes = containerd.ok(&["task", "ps", "life"]);
    assert!(matches!(processes.lines().skip(1).count(), 2 | 3), "{processes}");
    containerd.ok(&[
        "task",
        "kill",
        "--exec-id",
        "sleeper",
        "--signal",
        "SIGKILL",
        "life",
    ]);
    let mut look = 0;
    eventually("its end", 30, || {
        look += 1;
        let seen = exec(&format!("look-{look}"), &["ps", "-o", "args"]).ok().text();
        (!seen.contains("sleep 1000")).then_some(())
    });

    containerd.ok(&["task", "pause", "life"]);
    assert_eq!(containerd.status("life").as_deref(), Some("PAUSED"));
    containerd.ok(&["task", "resume", "life"]);
    assert_eq!(containerd.status("life").as_deref(), Some("RUNNING"));
    // Of the VMM's cgroup, which the shim reads by itself.
    let metrics: Value =
        serde_json::from_str(&containerd.ok(&["task", "metrics", "--format", "json", "life"])).expect("JSON");
    for number in ["/cpu/usage_usec", "/memory/usage", "/pids/current"] {
        let number = metrics.pointer(number).and_then(Value::as_u64);
        assert!(number.is_some_and(|number| number > 0), "{metrics}");
    }

    let running = containerd.ctr(&["task", "rm", "life"]).finish();
    assert_ne!(running.code, 0, "a running task can't be removed");
    containerd.ok(&["task", "kill", "--signal", "SIGUSR1", "life"]);
    eventually("the signal in the container", 20, || {
        (exec("look", &["cat", "/tmp/usr1"]).text() == "seen\n").then_some(())
    });
    containerd.ok(&["task", "kill", "--signal", "SIGTERM", "life"]);
    eventually("its end", 20, || {
        (containerd.status("life").as_deref() == Some("STOPPED")).then_some(())
    });
    let removed = containerd.ctr(&["task", "rm", "life"]).finish().ok();
    assert!(removed.stderr.contains("code 3"), "{}", removed.stderr);

    // Once more from the same container, with what it had written.
    containerd.ok(&["task", "start", "--detach", "life"]);
    assert_eq!(containerd.status("life").as_deref(), Some("RUNNING"));
    containerd.ok(&["task", "kill", "--all", "--signal", "SIGKILL", "life"]);
    eventually("its end", 20, || {
        (containerd.status("life").as_deref() == Some("STOPPED")).then_some(())
    });
    let removed = containerd.ctr(&["task", "rm", "life"]).finish().ok();
    assert!(removed.stderr.contains("code 137"), "{}", removed.stderr);
    containerd.ok(&["containers", "rm", "life"]);
    assert_eq!(containerd.ok(&["containers", "ls", "-q"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_container_with_a_terminal() {
    let containerd = Containerd::start();
    let script = "tty; read line; echo \"got <$line>\"; exit 9";
    let ctr = containerd.ctr(&["run", "--rm", "--tty", "--runc-binary"]);
    let ctr = ctr.arg(bed().cwrun()).args([IMAGE, "tty", "sh", "-c"]).command();
    // What is typed too early would be lost in the change to raw mode, so it comes again and again.
    let line = format!("while sleep 1; do echo typed; done | script -qec '{ctr:?} \"$SCRIPT\"' /dev/null");
    let done = Run::new("bash")
        .args(["-c", &line])
        .env("SCRIPT", script)
        .finish();
    assert!(
        done.text().contains("got <typed>"),
        "{}{}",
        done.text(),
        done.stderr
    );
    assert_eq!(done.code, 9);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn force_removes_from_any_state() {
    let containerd = Containerd::start();
    containerd.run(&["--detach"], "running", &["sleep", "1000"]).ok();
    containerd
        .run(&["--detach"], "paused", &["sh", "-c", "trap '' TERM; sleep 1000"])
        .ok();
    containerd.ok(&["task", "pause", "paused"]);
    for id in ["running", "paused"] {
        containerd.ok(&["task", "rm", "--force", id]);
        containerd.ok(&["containers", "rm", id]);
    }
    assert_eq!(containerd.ok(&["task", "ls", "-q"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn layers_of_the_overlayfs_snapshotter_are_shared() {
    let containerd = Containerd::start();
    let sources = || -> Vec<String> {
        let list = containerd.cwrun.ok(["disk", "cache", "list", "--json"]);
        let disks: Vec<Value> = serde_json::from_str(&list).expect("JSON");
        let sources = disks
            .iter()
            .map(|disk| disk["source"].as_str().expect("a path").to_owned());
        let own = containerd.cwrun.path("daemon").to_string_lossy().into_owned();
        sources.filter(|source| source.starts_with(&own)).collect()
    };
    containerd.run(&["--rm"], "first", &["true"]).ok();
    let first = sources();
    assert!(
        matches!(&first[..], [layer] if layer.contains("snapshotter.v1.overlayfs/snapshots/")),
        "{first:?}"
    );
    let again = containerd.run(
        &["--rm"],
        "second",
        &["sh", "-c", "echo new >/etc/new; cat /etc/new"],
    );
    assert_eq!(again.ok().text(), "new\n");
    assert_eq!(
        sources(),
        first,
        "the second container converts nothing that stays"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_configuration_of_contrib_is_read() {
    let containerd = Containerd::start();
    let configuration = containerd.cwrun.path("containerd.toml");
    let dump = Run::new("containerd")
        .arg("--config")
        .arg(configuration)
        .args(["config", "dump"])
        .finish()
        .ok();
    assert!(
        dump.text().contains("BinaryName = \"/usr/local/bin/cwrun\""),
        "{}",
        dump.text()
    );
    let plugins = containerd.ok(&["plugins", "ls"]);
    let cri = plugins
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("cri"));
    assert!(
        cri.is_some_and(|line| line.trim_end().ends_with("ok")),
        "{plugins}"
    );
}

/// As containerd's CRI plugin marks them, which itself needs more than this bed has.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_pod() {
    let containerd = Containerd::start();
    let kind = |value: &str| format!("io.kubernetes.cri.container-type={value}");
    containerd
        .run(
            &["--detach", "--annotation", &kind("sandbox")],
            "sandbox",
            &["/pause"],
        )
        .ok();
    assert_eq!(containerd.status("sandbox").as_deref(), Some("RUNNING"));
    let list = containerd.ok(&["task", "ls"]);
    let mut rows = list.lines().map(|line| line.split_whitespace());
    let pid = rows.find_map(|mut row| (row.next() == Some("sandbox")).then(|| row.next())?);
    let pid = pid.expect("the sandbox has a process");
    let namespaces = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
    let joined = namespaces.map(|(kind, file)| format!("{kind}:/proc/{pid}/ns/{file}"));
    let container = kind("container");
    let mut options = vec!["--annotation", &container];
    options.extend(joined.iter().flat_map(|namespace| ["--with-ns", namespace]));
    containerd
        .run(&[&options[..], &["--detach"]].concat(), "one", &["sleep", "1000"])
        .ok();
    let script = "hostname; ls /sys/class/net; exit 5";
    let two = containerd
        .run(&[&options[..], &["--rm"]].concat(), "two", &["sh", "-c", script])
        .expect(5);
    assert!(two.text().ends_with("\nlo\n"), "{}", two.text());
    assert_eq!(containerd.status("one").as_deref(), Some("RUNNING"));
    containerd.ok(&["task", "kill", "--signal", "SIGTERM", "sandbox"]);
    eventually("its end", 20, || {
        (containerd.status("sandbox").as_deref() == Some("STOPPED")).then_some(())
    });
    containerd.ok(&["task", "rm", "sandbox"]);
    containerd.ok(&["task", "rm", "--force", "one"]);
    for id in ["one", "sandbox"] {
        containerd.ok(&["containers", "rm", id]);
    }
}
