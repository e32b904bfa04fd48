//! Confidential containers. Without SEV-SNP they run in the simulated TEE, which goes the same way and protects nothing.
//!
//! `make test-snp` runs the same cases under SEV-SNP, where that is (`CWRUN_TEST_TEE=snp`).

use e2e::{Bundle, Cwrun, Facts, Finished, bed};
use std::fs;
use std::path::Path;

use crate::layers::Stack;
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
    let script = "echo out; echo err >&2; cat /proc/cmdline; exit 7";
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

/// Far more is on its way to the disk and back than the kernel's first 8 MiB of bounce buffers hold.
#[test]
#[ignore = "needs KVM: run in the testbed"]
fn bounce_buffers_are_made_as_they_are_needed() {
    let cwrun = Cwrun::new();
    let script = r#"
        i=0; while [ $i -lt 6 ]; do
            { yes "a line of writer $i" | dd of=/big.$i bs=1M count=20 iflag=fullblock 2>/dev/null; } & i=$((i + 1))
        done; wait
        i=0; while [ $i -lt 6 ]; do dd if=/big.$i bs=4M iflag=direct 2>/dev/null | sha256sum >/sum.$i & i=$((i + 1)); done; wait
        i=0; while [ $i -lt 6 ]; do echo "sum$i=$(cut -c1-64 /sum.$i)"; i=$((i + 1)); done
        echo "told=$(dmesg | grep -c 'Linux version')"
        echo "complaints=$(dmesg | grep -c 'swiotlb buffer is full')"
    "#;
    let bundle = confidential(script).annotation("krun.ram_mib", "256");
    let done = cwrun.run("c", &bundle).deadline(600).finish().ok();
    let facts = Facts::of(&done.text());
    for writer in 0..6 {
        let line = format!("a line of writer {writer}\n");
        let content: Vec<u8> = line.bytes().cycle().take(20 << 20).collect();
        facts.expect(&[(&*format!("sum{writer}"), &*e2e::pattern::sha256(&content))]);
    }
    facts.expect(&[("told", "1"), ("complaints", "0")]);
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
fn host_data_of_a_container_with_an_upper_directory_is_its_own() {
    let cwrun = Cwrun::new();
    let mut stack = Stack::new();
    stack.busybox();
    let told = ["one", "two"].map(|name| {
        let merged = stack.mount(name);
        // As an engine does for a mount point.
        fs::create_dir(merged.join(name)).expect("an upper directory");
        let bundle = Bundle::on(&merged, ["true"]).annotation(TEE, &kind());
        let told = cwrun.ok(["measure".as_ref(), "--json".as_ref(), bundle.path().as_os_str()]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("measure prints JSON");
        told["workload"].clone()
    });
    for told in &told {
        assert!(
            told["notes"].to_string().contains("this container's alone"),
            "{told}"
        );
    }
    assert_ne!(told[0]["host_data"], told[1]["host_data"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn an_id_block_that_is_none_is_refused_before_anything_is_launched() {
    let cwrun = Cwrun::new();
    let bundle = confidential("true");
    let (block, auth) = (cwrun.path("block"), cwrun.path("auth"));
    fs::write(&block, [0; 96]).expect("the bed is writable");
    fs::write(&auth, [0; 4096]).expect("the bed is writable");
    let [block, auth] = [block, auth].map(|path| path.to_str().expect("a path of ours").to_owned());
    let dir = bundle.path().to_str().expect("a path of ours");
    let create = ["create", "--bundle", dir, "c"];
    let alone = cwrun.refused([&["--id-block", &block][..], &create].concat());
    assert!(alone.contains("belong together"), "{alone}");
    let both = ["--id-block", &block, "--id-auth", &auth];
    let refused = cwrun.refused([&both[..], &create].concat());
    assert!(refused.contains("the ID block has version 0"), "{refused}");
    assert!(cwrun.state("c").is_none(), "nothing is left of it");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_verifier_learns_what_runs_and_nobody_takes_a_simulation_for_amd() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::idle().annotation(TEE, &kind());
    let told = cwrun.ok(["measure".as_ref(), "--json".as_ref(), bundle.path().as_os_str()]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("measure prints JSON");
    let policy = cwrun.ok(["measure".as_ref(), "--policy".as_ref(), bundle.path().as_os_str()]);
    fs::write(cwrun.path("policy"), policy).expect("the bed is writable");
    cwrun.create("c", &bundle);
    cwrun.ok(["start", "c"]);
    let attest = |name: &str, nonce: &str| {
        let file = cwrun.path(name);
        let args = ["attest", "--nonce", nonce, "--output"].map(std::ffi::OsStr::new);
        cwrun.ok(args.into_iter().chain([file.as_os_str(), "c".as_ref()]));
    };
    let verify = |name: &str, nonce: &str, options: &[&str]| {
        let (policy, file) = (cwrun.path("policy"), cwrun.path(name));
        let args = ["verify", "--json", "--nonce", nonce, "--policy"].map(std::ffi::OsStr::new);
        let done = cwrun
            .command(args.into_iter().chain([policy.as_os_str(), file.as_os_str()]))
            .args(options)
            .finish();
        let verdict: serde_json::Value = serde_json::from_str(&done.text()).expect("verify prints JSON");
        assert_eq!(done.code == 0, verdict["verdict"] == "accepted", "{verdict}");
        verdict
    };
    let vcek = std::env::var("CWRUN_TEST_VCEK").ok();
    let own: &[&str] = match (kind().as_str(), &vcek) {
        ("sim", _) => &["--sim"],
        (_, Some(vcek)) => &["--vcek", vcek],
        (_, None) => {
            // KVM gives guests no certificates. The rest needs the chip's.
            attest("first", "a-nonce-of-somebody");
            assert_eq!(verify("first", "a-nonce-of-somebody", &[])["clause"], "format");
            cwrun.ok(["delete", "--force", "c"]);
            return;
        }
    };
    // Twice, so that one question does not use up the guest's connection.
    for (name, nonce) in [
        ("first", "a-nonce-of-somebody"),
        ("second", "another-nonce-than-that"),
    ] {
        attest(name, nonce);
        let verdict = verify(name, nonce, own);
        assert_eq!(verdict["verdict"], "accepted", "{verdict}");
        let launches = told["launches"].as_array().expect("a list");
        let digest = &verdict["report"]["launch_digest"];
        assert!(
            launches.iter().any(|launch| launch["launch_digest"] == *digest),
            "{verdict}"
        );
        assert_eq!(verdict["report"]["host_data"], told["workload"]["host_data"]);
    }
    assert_eq!(
        verify("first", "another-nonce-than-that", own)["clause"],
        "report-data"
    );
    if kind() == "sim" {
        assert_eq!(verify("first", "a-nonce-of-somebody", &[])["clause"], "root");
    }
    // What came along is the Workload that runs, byte by byte.
    let text = fs::read_to_string(cwrun.path("first")).expect("attest writes it");
    let statement: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let workload = statement["workload"].as_str().expect("text");
    fs::write(cwrun.path("workload"), workload).expect("the bed is writable");
    let (file, other) = (cwrun.path("workload"), cwrun.path("other"));
    let with_workload = |path: &Path| {
        let option = path.to_str().expect("a path of ours");
        verify(
            "first",
            "a-nonce-of-somebody",
            &[own, &["--workload", option]].concat(),
        )
    };
    assert_eq!(with_workload(&file)["verdict"], "accepted");
    let changed = workload.replacen("\"cwd\":\"/\"", "\"cwd\":\"/tmp\"", 1);
    assert_ne!(changed, workload);
    let mut changed_statement = statement.clone();
    changed_statement["workload"] = changed.into();
    fs::write(&other, changed_statement.to_string()).expect("the bed is writable");
    assert_eq!(verify("other", "a-nonce-of-somebody", own)["clause"], "host-data");
    cwrun.ok(["delete", "--force", "c"]);
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
