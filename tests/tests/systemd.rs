//! A host where systemd manages cgroups: a real one, the first process of a PID namespace, with the system bus.

use crate::podman::{IMAGE, Podman, as_installed};
use e2e::facts::Facts;
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, Run, bed};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The cgroup that its namespace shows as the root.
const GROUP: &str = "/sys/fs/cgroup/systemd";
/// Boots with the bus and nothing else, in mounts of its own.
const BOOT: &str = r#"
    set -e
    mount -t tmpfs tmpfs /run; mkdir -p /run/lock
    mount -t tmpfs tmpfs /etc/systemd/system
    cd /etc/systemd/system
    mkdir multi-user.target.wants
    ln -s /lib/systemd/system/multi-user.target default.target
    ln -s /lib/systemd/system/dbus.socket multi-user.target.wants
    for unit in systemd-udevd systemd-journald systemd-logind systemd-networkd systemd-resolved systemd-tmpfiles-setup systemd-sysctl \
        systemd-modules-load systemd-udev-trigger systemd-remount-fs systemd-random-seed ssh cron docker containerd; do
        ln -s /dev/null $unit.service
    done
    umount --lazy /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
    export container=other
    exec /lib/systemd/systemd --system --log-target=null
"#;

/// The number of containers' units that are left. conmon's ends a moment after podman.
const LEFT: &str = r#"
    units() { systemctl list-units --all --no-legend 'libpod*'; }
    left() { for i in $(seq 300); do [ -z "$(units)" ] && break; sleep 0.1; done; units | wc -l; }
"#;

/// Ends, with all that it has started, when it is dropped.
struct Systemd {
    outside: Child,
    first: String,
}

impl Systemd {
    fn boot() -> Self {
        fs::create_dir(GROUP).expect("the bed has cgroups");
        let inside = format!(
            "echo 0 >{GROUP}/cgroup.procs; exec unshare --mount --cgroup --mount-proc sh -c '{BOOT}'"
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "sh", "-c", &inside]);
        let outside = unshare
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let children = format!("/proc/{0}/task/{0}/children", outside.id());
        let first = eventually("the first process", 30, || {
            let children = fs::read_to_string(&children).ok()?;
            children.split_whitespace().next().map(str::to_owned)
        });
        let this = Self { outside, first };
        eventually("systemd and the bus", 120, || {
            let up = this.run("busctl --no-pager status org.freedesktop.systemd1 >/dev/null && systemctl is-active --quiet multi-user.target && ! systemctl list-jobs --no-legend | grep -q '[0-9]'");
            (up.finish().code == 0).then_some(())
        });
        this
    }

    /// A shell script there, with [`LEFT`]'s functions.
    fn run(&self, script: &str) -> Run {
        let script = format!("{LEFT}{script}");
        let enter = [
            "--target",
            &self.first,
            "--pid",
            "--mount",
            "--cgroup",
            "--",
            "sh",
            "-c",
            &script,
        ];
        Run::new("nsenter").args(enter).deadline(120)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // `--kill-child`: the first process ends with it, and with that all others.
        drop(self.outside.kill());
        drop(self.outside.wait());
        for _ in 0..600 {
            if Run::new("find")
                .args([GROUP, "-depth", "-type", "d", "-delete"])
                .finish()
                .code
                == 0
                && !Path::new(GROUP).exists()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(std::thread::panicking(), "{GROUP} is left");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_container_is_a_scope_with_its_limits() {
    let systemd = Systemd::boot();
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().with(|config| {
        config["linux"]["cgroupsPath"] = "system.slice:libpod:scope".into();
        config["linux"]["resources"] =
            json!({"pids": {"limit": 50}, "cpu": {"quota": 50000, "period": 100000}, "memory": {"limit": 300 << 20}});
    });
    let script = r#"
        show() { systemctl show libpod-scope.scope --property $1 --value; }
        group=/sys/fs/cgroup/system.slice/libpod-scope.scope
        $CWRUN create --pid-file $PID --bundle $BUNDLE c </dev/null >/dev/null && $CWRUN start c
        echo cgroup=$(cat /proc/$(cat $PID)/cgroup)
        echo slice=$(show Slice)
        echo state=$(show ActiveState)
        echo quota=$(show CPUQuotaPerSecUSec)
        before=$(show TasksMax) memory=$(show MemoryMax)
        echo enough=$((before > 50 && memory > 300 << 20))
        $CWRUN update --pids-limit 40 c; echo update=$?
        echo fewer=$((before - $(show TasksMax)))
        $CWRUN delete --force c; echo delete=$?
        echo left=$(left) $(ls -d $group 2>/dev/null)
    "#;
    let done = systemd
        .run(script)
        .env(
            "CWRUN",
            format!(
                "{} --systemd-cgroup --root {}",
                bed().cwrun().display(),
                cwrun.root().display()
            ),
        )
        .env("CWRUN_CACHE_DIR", cwrun.cache())
        .env("CWRUN_GUEST_DIR", bed().guest())
        .env("BUNDLE", bundle.path())
        .env("PID", cwrun.path("pid"))
        .finish()
        .ok();
    Facts::of(&done.text()).expect(&[
        ("cgroup", "0::/system.slice/libpod-scope.scope"),
        ("slice", "system.slice"),
        ("state", "active"),
        ("quota", "500ms"),
        ("enough", "1"),
        ("update", "0"),
        ("fewer", "10"),
        ("delete", "0"),
        ("left", "0"),
    ]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podman_with_its_default_manager_gets_the_same_as_with_crun() {
    // The image is made outside; what podman keeps of containers is in the namespace.
    let podman = Podman::new();
    drop(podman);
    let systemd = Systemd::boot();
    let outcome = |runtime: String| {
        let script = format!(
            "podman --cgroup-manager systemd --runtime {runtime} run --rm --network none --pids-limit 60 --memory 300m --name c {IMAGE} \
             sh -c 'cat /sys/fs/cgroup/pids.max; exit 3'; echo status $?; left"
        );
        as_installed(systemd.run(&script)).finish().ok().text()
    };
    let ours = outcome(bed().cwrun().display().to_string());
    assert_eq!(ours, "60\nstatus 3\n0\n");
    assert_eq!(ours, outcome("crun".into()));
}
