//! `kill -9` at any moment: `delete --force` leaves a clean host, and other containers never notice.

use e2e::cwrun::Container;
use e2e::pattern::Choices;
use e2e::process::{eventually, wait};
use e2e::{Bundle, Cwrun, Host, bed, host, rounds};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

const ID: &str = "victim";

/// What is going on when the kill comes.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Create,
    /// With a root file system that has to be converted first.
    ColdCreate,
    Start,
    Run,
    Delete,
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// The command that was called.
    Runtime,
    /// The container's own process, or one on its way to become it.
    Vmm,
    /// All of them at once.
    All,
}

struct Scene<'a> {
    cwrun: &'a Cwrun,
    bundle: Bundle,
    cold_root: PathBuf,
    cold: Bundle,
    /// Processes that are none of the victim's.
    others: Vec<(i32, String)>,
}

impl Scene<'_> {
    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.cwrun.command(args).command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cwrun starts")
    }

    fn call(&self, args: &[&str]) {
        let mut child = self.spawn(args);
        let status = wait(&mut child, Duration::from_secs(60), &format!("{args:?}"));
        assert!(status.success(), "{args:?}: {status}");
    }

    /// Starts what is to be interrupted. Its longest expected duration in milliseconds comes with it.
    fn begin(&self, doing: Doing, round: usize) -> (Child, u64) {
        let bundle = self.bundle.path().to_string_lossy().into_owned();
        match doing {
            Doing::Create => (self.spawn(&["create", "--bundle", &bundle, ID]), 1500),
            Doing::ColdCreate => {
                fs::write(self.cold_root.join("etc/round"), round.to_string()).expect("the bed is writable");
                (
                    self.spawn(&["create", "--bundle", &self.cold.path().to_string_lossy(), ID]),
                    500,
                )
            }
            Doing::Start => {
                self.call(&["create", "--bundle", &bundle, ID]);
                (self.spawn(&["start", ID]), 60)
            }
            Doing::Run => (self.spawn(&["run", "--bundle", &bundle, ID]), 2000),
            Doing::Delete => {
                self.call(&["create", "--bundle", &bundle, ID]);
                self.call(&["start", ID]);
                (self.spawn(&["delete", "--force", ID]), 100)
            }
        }
    }

    /// Processes of the victim, the called command apart.
    fn victims(&self, command: &Child) -> Vec<i32> {
        let victims = host::processes()
            .into_iter()
            .filter(|process| !self.others.contains(process));
        victims
            .map(|(pid, _)| pid)
            .filter(|pid| *pid != command.id() as i32)
            .collect()
    }

    fn kill(&self, command: &mut Child, target: Target) {
        let vmm = self.victims(command);
        if !matches!(target, Target::Runtime) {
            vmm.iter().for_each(|pid| kill(*pid));
        }
        if !matches!(target, Target::Vmm) || vmm.is_empty() {
            // It may have ended by itself.
            let _ = command.kill();
        }
    }
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A container that must live through all of it, and can say so.
fn bystander(cwrun: &Cwrun) -> Container {
    let script =
        "trap 'echo alive' USR1; trap 'exit 11' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let container = cwrun.create(
        "bystander",
        &Bundle::script(script).annotation("krun.ram_mib", "256"),
    );
    cwrun.ok(["start", "bystander"]);
    container.expect_output("ready");
    container
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_kill_at_any_moment_leaves_nothing_that_delete_cannot_remove() {
    let cwrun = Cwrun::new();
    let witness = bystander(&cwrun);
    let script = "while :; do sleep 1 & wait $!; done";
    let cold_root = cwrun.path("cold");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(bed().busybox())
            .arg(&cold_root)
            .status()
            .unwrap()
            .success()
    );
    let small = |bundle: Bundle| bundle.annotation("krun.ram_mib", "256");
    let scene = Scene {
        cwrun: &cwrun,
        bundle: small(Bundle::script(script)),
        cold: small(Bundle::on(&cold_root, ["sh", "-c", script])),
        cold_root,
        others: host::processes(),
    };
    let root = cwrun.root();
    let before = Host::look(&[&root, cwrun.cache()]);

    let mut choices = Choices::new();
    let all = [
        Doing::Create,
        Doing::ColdCreate,
        Doing::Start,
        Doing::Run,
        Doing::Delete,
    ];
    for round in 0..rounds(12, 200) {
        // Each kind in turn, so that even a short run has them all.
        let doing = all[round % all.len()];
        let target = *choices.one_of(&[Target::Runtime, Target::Runtime, Target::Vmm, Target::All]);
        let (mut command, longest) = scene.begin(doing, round);
        let moment = Duration::from_micros(choices.below(longest * 1000));
        std::thread::sleep(moment);
        scene.kill(&mut command, target);
        let what = format!("round {round}: {target:?} killed {moment:?} into {doing:?}");
        // Killed itself, or it notices that its VMM is gone; a `create` that was not hit may also succeed.
        wait(&mut command, Duration::from_secs(30), &what);

        let deleted = cwrun.command(["delete", "--force", ID]).finish();
        assert_eq!(deleted.code, 0, "{what}: delete --force: {}", deleted.stderr);
        before.expect_again(&[&root, cwrun.cache()], &what);
        assert_eq!(cwrun.ok(["list", "--quiet"]), "bystander\n", "{what}");

        let alive = witness.output().matches("alive").count();
        cwrun.ok(["kill", "bystander", "USR1"]);
        eventually(&format!("{what}: a sign of life"), 30, || {
            (witness.output().matches("alive").count() > alive).then_some(())
        });
        if round % 10 == 9 {
            let again = Bundle::script("exit 3").annotation("krun.ram_mib", "256");
            cwrun.run(ID, &again).finish().expect(3);
        }
    }
    cwrun.ok(["kill", "bystander", "TERM"]);
    assert_eq!(cwrun.wait(&witness), 11);
    cwrun.ok(["delete", "bystander"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn without_its_vmm_a_container_is_stopped() {
    let cwrun = Cwrun::new();
    let container = cwrun.create("orphan", &Bundle::script("echo ready; while :; do sleep 1; done"));
    cwrun.ok(["start", "orphan"]);
    container.expect_output("ready");
    kill(container.pid);
    assert_eq!(cwrun.wait(&container), 128 + 9);
    assert_eq!(cwrun.status("orphan"), "stopped");
    cwrun.ok(["delete", "orphan"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_workload_that_uses_up_its_machine_ends_alone() {
    let cwrun = Cwrun::new();
    let small = |args: &[&str]| {
        Bundle::busybox(args)
            .annotation("krun.ram_mib", "256")
            .annotation("io.cwrun.scratch", "ram")
    };
    // All memory: the guest's kernel kills it, and the machine lives to tell.
    cwrun
        .run("greedy", &small(&["tail", "/dev/zero"]))
        .finish()
        .expect(128 + 9);
    // reboot(2) ends the first process of a PID namespace with SIGHUP, reboot(2) "Behavior inside PID namespaces".
    let rebooting = small(&["reboot", "-f"]).with(|config| {
        for set in ["effective", "permitted", "bounding"] {
            let names = config["process"]["capabilities"][set].as_array_mut();
            names.expect("a set of names").push("CAP_SYS_BOOT".into());
        }
    });
    cwrun.run("rebooting", &rebooting).finish().expect(128 + 1);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn half_made_states_can_be_deleted() {
    let cwrun = Cwrun::new();
    // A directory is all that a create leaves which dies before it writes its record.
    fs::create_dir(cwrun.root().join("empty")).unwrap();
    cwrun.ok(["delete", "--force", "empty"]);
    fs::create_dir(cwrun.root().join("torn")).unwrap();
    fs::write(cwrun.root().join("torn/record.json.new"), "{\"id\": \"to").unwrap();
    assert_eq!(cwrun.ok(["list", "--quiet"]), "");
    cwrun.ok(["delete", "--force", "torn"]);
    // One that can't be read is said to be so, and goes by force.
    fs::create_dir(cwrun.root().join("broken")).unwrap();
    fs::write(cwrun.root().join("broken/record.json"), "not JSON").unwrap();
    assert!(cwrun.refused(["state", "broken"]).contains("record.json"));
    cwrun.ok(["delete", "--force", "broken"]);
}
