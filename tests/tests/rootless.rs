//! Under the real podman of an ordinary user, who reaches `/dev/kvm` by a group: the same as crun shows, and everything in the user's
//! own directories.

use crate::attest::{Broker, KEY, proxies, seal};
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Finished, Run, bed};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread;

const IMAGE: &str = "localhost/e2e-busybox";
/// The user's number and their group's, and that of the group that may open `/dev/kvm`.
const USER: &str = "5000";
const KVM_GROUP: &str = "5001";
/// An address of this machine that slirp4netns reaches, unlike those of loopback.
const HOST: &str = "10.98.0.1";

/// The user's podman. Nothing of a container may be left when it is dropped.
struct User {
    system_entries: usize,
    // Dropped last, when podman has been told to remove everything.
    cwrun: Cwrun,
}

impl User {
    fn new() -> Self {
        static MAKE: Once = Once::new();
        MAKE.call_once(|| {
            make_user();
            let archive = home().join("image.tar");
            Run::new("tar")
                .args(["-cf".as_ref(), archive.as_os_str(), "-C".as_ref()])
                .arg(bed().busybox())
                .arg(".")
                .finish()
                .ok();
            podman("crun", &["import", "-q", &archive.to_string_lossy(), IMAGE])
                .finish()
                .ok();
            // What podman itself sets up once and keeps is there before the first look at the host.
            podman("crun", &["run", "--rm", "--network", "none", IMAGE, "true"])
                .finish()
                .ok();
        });
        Self {
            system_entries: system_entries(),
            cwrun: Cwrun::new(),
        }
    }

    fn command(&self, args: &[&str]) -> Run {
        podman(&bed().cwrun().to_string_lossy(), args)
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.command(args).finish().ok().text()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let done = self.command(&["rm", "--all", "--force", "--time", "0"]).finish();
        if !std::thread::panicking() {
            done.ok();
            for dir in [runtime_dir().join("cwrun"), home().join(".cache/cwrun/scratch")] {
                let left: Vec<_> = fs::read_dir(&dir)
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok)
                    .collect();
                assert!(left.is_empty(), "left in {}: {left:?}", dir.display());
            }
            assert_eq!(
                system_entries(),
                self.system_entries,
                "a user's container in the system's directories"
            );
        }
    }
}

/// How much is in the directories that cwrun has on behalf of the system.
fn system_entries() -> usize {
    ["/run/cwrun", "/var/cache/cwrun"]
        .map(|dir| fs::read_dir(dir).into_iter().flatten().count())
        .iter()
        .sum()
}

fn home() -> PathBuf {
    bed().busybox().with_file_name("ann")
}

fn runtime_dir() -> PathBuf {
    Path::new("/run/user").join(USER)
}

/// Files of the machine get others mounted over them: the bed may share `/etc` and `/dev` with the host.
fn make_user() {
    let script = r#"
        set -eu
        home=$1 user=$2 kvm=$3 run=$4
        install -d -m 700 -o $user -g $user "$home" "$run"
        cover() { install -m 644 "/etc/$1" "$home.$1"; echo "$2" >>"$home.$1"; mount --bind "$home.$1" "/etc/$1"; }
        touch /etc/subuid /etc/subgid
        cover passwd "ann:x:$user:$user::$home:/bin/sh"
        cover subuid "ann:1000000:65536"
        cover subgid "ann:1000000:65536"
        node() { mknod -m "$4" "$home.$1" c 10 "$3"; mount --bind "$home.$1" "$2"; }
        node kvm /dev/kvm 232 660
        chgrp $kvm /dev/kvm
        node tun /dev/net/tun 200 666
        ip address add $5/32 dev lo
    "#;
    Run::new("sh")
        .args(["-c", script, "sh"])
        .arg(home())
        .args([USER, KVM_GROUP])
        .arg(runtime_dir())
        .arg(HOST)
        .finish()
        .ok();
}

/// podman as the user calls it, with nothing of this process's environment.
fn podman(runtime: &str, args: &[&str]) -> Run {
    let ids = [["--reuid", USER], ["--regid", USER], ["--groups", KVM_GROUP]];
    Run::new("setpriv")
        .args(ids.as_flattened())
        .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "USER=ann"])
        .arg(format!("HOME={}", home().display()))
        .arg(format!("XDG_RUNTIME_DIR={}", runtime_dir().display()))
        .args(["podman", "--runtime", runtime])
        .args(args)
        .dir(&home())
        .deadline(120)
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn run_agrees_with_crun() {
    let user = User::new();
    let script = "echo out; echo err >&2; id; pwd; echo $VARIABLE; hostname; ulimit -n; grep ^Cap /proc/self/status; ls -n /etc/group; \
        sha256sum; touch /new 2>/dev/null || echo read-only; exit 7";
    let options = [
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        "--read-only",
        "-e",
        "VARIABLE=value with spaces",
        "--hostname",
        "my-host",
        "--ulimit",
        "nofile=500:600",
        "--user",
        "1000:1000",
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    let run = |runtime: &str| podman(runtime, &options).stdin("abc").finish().expect(7);
    let (ours, theirs) = (run(&bed().cwrun().to_string_lossy()), run("crun"));
    assert_eq!((ours.text(), &ours.stderr), (theirs.text(), &theirs.stderr));

    for args in [&["/no/such/program"][..], &["/etc"], &["sh", "-c", "kill -9 $$"]] {
        let run = [&["run", "--rm", "--network", "none", IMAGE], args].concat();
        let (ours, theirs): (Finished, Finished) =
            (user.command(&run).finish(), podman("crun", &run).finish());
        assert_eq!(
            ours.code, theirs.code,
            "{args:?}: {} / {}",
            ours.stderr, theirs.stderr
        );
    }
    assert_eq!(user.ok(&["ps", "--all", "--quiet"]), "");
    let disks = home().join(".cache/cwrun/disks");
    assert!(
        fs::read_dir(&disks).is_ok_and(|disks| disks.count() > 0),
        "the user's cache is {}",
        disks.display()
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_detached_container_through_its_whole_life() {
    let user = User::new();
    let script = "trap 'echo stopping; exit 3' TERM; echo started; while :; do sleep 1 & wait $!; done";
    let options = ["run", "-d", "--name", "life", "--network", "none"];
    user.ok(&[&options[..], &[IMAGE, "sh", "-c", script]].concat());
    let logs = |text: &str| {
        eventually(text, 30, || {
            user.ok(&["logs", "life"]).contains(text).then_some(())
        });
    };
    logs("started");
    let exec = [
        "exec",
        "--user",
        "7:8",
        "life",
        "sh",
        "-c",
        "id -u; id -g; exit 4",
    ];
    assert_eq!(user.command(&exec).finish().expect(4).text(), "7\n8\n");
    user.ok(&["pause", "life"]);
    user.ok(&["unpause", "life"]);
    user.ok(&["stop", "--time", "60", "life"]);
    logs("stopping");
    assert_eq!(user.ok(&["wait", "life"]).trim(), "3");
    // Once more from the same container: `start` makes a new VM.
    user.ok(&["start", "life"]);
    eventually("a second start", 30, || {
        (user.ok(&["logs", "life"]).matches("started").count() == 2).then_some(())
    });
    user.ok(&["rm", "--force", "--time", "0", "life"]);
    assert_eq!(user.ok(&["ps", "--all", "--quiet"]), "");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn slirp4netns_connects_a_guest() {
    let user = User::new();
    let outside = TcpListener::bind((HOST, 7101)).expect("the bed has the address");
    let server = thread::spawn(move || {
        let (mut stream, _) = outside.accept().expect("the guest connects");
        stream.write_all(b"from outside\n").expect("it reads");
    });
    // The forwarding of slirp4netns itself: that of podman's rootlessport ends in the namespace's own stack, which the guest is not.
    let options = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "slirp4netns:port_handler=slirp4netns",
        "-p",
        "7102:80",
    ];
    let script = format!("nc {HOST} 7101; while :; do echo from the guest | nc -l -p 80; done");
    user.ok(&[&options[..], &[IMAGE, "sh", "-c", &script]].concat());
    eventually("what the host sends", 60, || {
        user.ok(&["logs", "web"]).contains("from outside").then_some(())
    });
    server.join().expect("it was served");
    eventually("what the guest sends", 60, || {
        let mut text = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", 7102)).ok()?;
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .ok()?;
        stream.read_to_string(&mut text).ok()?;
        (text == "from the guest\n").then_some(())
    });
    user.ok(&["rm", "--force", "--time", "0", "web"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_sealed_image_gets_its_key_and_its_secret() {
    let user = User::new();
    let broker = Broker::start(&user.cwrun.path("broker"));
    let source = Bundle::script("id -u; cat /run/key; exit 7");
    let image = seal(&user.cwrun, &broker, "sealed", &source, KEY);
    let place = home().join("sealed-image");
    let copy = ["-c", "cp -r \"$1\" \"$2\" && chown -R \"$3\" \"$2\"", "sh"];
    let copy = Run::new("sh").args(copy).arg(image).arg(&place).arg(USER);
    copy.finish().ok();
    let annotation = format!("io.cwrun.broker={}", broker.url);
    let options = ["run", "--rm", "--network", "none", "--annotation", "krun.cpus=1"];
    let name = format!("oci:{}", place.display());
    let run = [&options[..], &["--annotation", &annotation, &name]].concat();
    assert_eq!(user.command(&run).finish().expect(7).text(), format!("0\n{KEY}"));
    eventually("the proxy's end", 10, || proxies().is_empty().then_some(()));
    fs::remove_dir_all(place).expect("it was there");
}
