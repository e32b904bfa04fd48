//! Confidential containers. Without SEV-SNP they run in the simulated TEE, which goes the same way and protects nothing.
//!
//! `make test-snp` runs the same cases under SEV-SNP, where that is (`CWRUN_TEST_TEE=snp`).

use e2e::{Bundle, Cwrun, Finished, bed};
use std::fs;
use std::path::Path;

use crate::podman::{IMAGE, Podman};

const TEE: &str = "io.cwrun.tee";

/// Under which TEE these tests run.
fn kind() -> String {
    std::env::var("CWRUN_TEST_TEE").unwrap_or_else(|_| "sim".into())
}

fn confidential(script: &str) -> Bundle {
    Bundle::script(script).annotation(TEE, &kind())
}

fn run(cwrun: &Cwrun, bundle: &Bundle) -> Finished {
    cwrun.run("c", bundle).deadline(180).finish()
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_workload_runs_and_says_what_it_is_worth() {
    let cwrun = Cwrun::new();
    let script = "echo out; echo err >&2; cat /proc/cmdline; dmesg | grep -c swiotlb; exit 7";
    let done = run(&cwrun, &confidential(script)).expect(7);
    let text = done.text();
    assert!(text.starts_with("out\n"), "{text}");
    assert!(done.stderr.contains("err\n"), "{}", done.stderr);
    // The command line is the constant one: neither sizes nor devices of this container are in it.
    assert_eq!(text.matches("virtio_mmio.device=").count(), 11, "{text}");
    assert!(!text.contains("acpi=off"), "{text}");
    let warned = done.stderr.contains("protects NOTHING");
    assert_eq!(warned, kind() == "sim", "{}", done.stderr);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn several_processors_start() {
    let cwrun = Cwrun::new();
    let bundle = confidential("nproc").annotation("krun.cpus", "3");
    assert_eq!(run(&cwrun, &bundle).ok().text(), "3\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_host_has_no_process_run_unless_the_workload_lets_it() {
    let cwrun = Cwrun::new();
    let idle = || Bundle::idle().annotation(TEE, &kind());
    cwrun.create("c", &idle());
    cwrun.ok(["start", "c"]);
    let refused = cwrun.refused(["exec", "c", "true"]);
    assert!(
        refused.contains("does not let the host run more processes"),
        "{refused}"
    );
    cwrun.ok(["delete", "--force", "c"]);
    cwrun.create("d", &idle().annotation("io.cwrun.tee.exec", "allow"));
    cwrun.ok(["start", "d"]);
    cwrun.ok(["exec", "d", "true"]);
    cwrun.ok(["delete", "--force", "d"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn nothing_of_the_host_is_shared() {
    let cwrun = Cwrun::new();
    let with_volume = || {
        confidential("true").with(|config| {
            let mount = serde_json::json!({
                "destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind"]
            });
            config["mounts"].as_array_mut().expect("a list").push(mount);
        })
    };
    let done = run(&cwrun, &with_volume());
    assert_ne!(done.code, 0);
    assert!(
        done.stderr.contains("none may be shared with this guest"),
        "{}",
        done.stderr
    );
    let done = run(&cwrun, &with_volume().annotation("io.cwrun.volumes", "untrusted"));
    assert!(
        done.stderr.contains("is not possible in a TEE"),
        "{}",
        done.stderr
    );
}

/// The line of the log that says what a launch would be measured as.
fn launch_digest(cwrun: &Cwrun, guest: &Path, bundle: &Bundle) -> String {
    let mut args: Vec<&std::ffi::OsStr> = vec!["--debug".as_ref(), "run".as_ref(), "--bundle".as_ref()];
    args.extend([bundle.path().as_os_str(), "m".as_ref()]);
    let done = cwrun
        .command(args)
        .env("CWRUN_GUEST_DIR", guest)
        .deadline(180)
        .finish()
        .ok();
    let found = done.stderr.split("launch digest ").nth(1);
    let digest = found.and_then(|rest| rest.split(' ').next());
    digest.expect("the log names the digest").to_owned()
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn other_boot_files_make_another_digest() {
    let cwrun = Cwrun::new();
    let bundle = confidential("true");
    let copy = bed().scratch();
    for name in ["bzImage", "initrd", "stage0", "stage0-plain"] {
        fs::copy(bed().guest().join(name), copy.path().join(name)).expect("the bed is writable");
    }
    fs::write(copy.path().join("vmlinux"), "").expect("the bed is writable");
    let usual = launch_digest(&cwrun, copy.path(), &bundle);
    assert_eq!(launch_digest(&cwrun, &bed().guest(), &bundle), usual);
    let initrd = copy.path().join("initrd");
    let mut bytes = fs::read(&initrd).expect("it is there");
    // Zeros behind an archive mean nothing to Linux, and something to a hash.
    bytes.extend([0; 512]);
    fs::write(&initrd, bytes).expect("the bed is writable");
    assert_ne!(launch_digest(&cwrun, copy.path(), &bundle), usual);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_tee_that_is_not_there_is_refused_and_auto_goes_without() {
    if kind() == "snp" {
        return;
    }
    let cwrun = Cwrun::new();
    for bundle in [
        Bundle::script("true").annotation(TEE, "snp"),
        Bundle::script("true").annotation("krun.variant", "sev"),
        Bundle::script("true")
            .annotation("krun.variant", "sev")
            .annotation(TEE, "auto"),
    ] {
        let refused = cwrun.refused([
            "create".as_ref(),
            "--bundle".as_ref(),
            bundle.path().as_os_str(),
            "c".as_ref(),
        ]);
        assert!(
            refused.contains("SEV-SNP is demanded and can't be had here"),
            "{refused}"
        );
        assert!(refused.contains("the processor has no SEV-SNP"), "{refused}");
        assert!(cwrun.state("c").is_none(), "nothing is left of it");
    }
    let done = run(&cwrun, &Bundle::script("echo ran").annotation(TEE, "auto")).ok();
    assert_eq!(done.text(), "ran\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podman_runs_a_confidential_container() {
    let podman = Podman::new();
    let annotation = format!("{TEE}={}", kind());
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--annotation",
        &annotation,
        IMAGE,
    ];
    let args = [&args[..], &["sh", "-c", "echo hello; exit 3"]].concat();
    let done = podman.command(&args).deadline(180).finish().expect(3);
    assert_eq!(done.text(), "hello\n");
}
