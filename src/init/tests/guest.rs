//! The real thing, in the testbed: `cargo test -p init --test guest -- --ignored`.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use support::{Image, MIB, Machine, convert, rootfs};
use workload::protocol::{Exec, Outcome, Request};
use workload::protocol::{FailureKind, Status};
use workload::{Scratch, Tee, TeeKind, VolumeKey};

#[test]
#[ignore = "boots guests"]
fn a_container_runs_on_an_encrypted_and_verified_root() {
    let image = convert(rootfs(|_| ()).path());
    let script = "echo out; echo err >&2; cat /proc/mounts /proc/self/cgroup; cat /sys/block/dm-*/dm/name; cat /sys/class/net/lo/flags
        ls /sys/fs/cgroup/cgroup.procs; date +%s; ls -d /sys/firmware/*; exit 7";
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let (output, error, status) = Machine::new(vec![image], script).run();
    assert_eq!(status, Status::Code { code: 7 });
    assert!(
        error.starts_with("err\n") && error.contains("/sys/firmware/*: No such file"),
        "{error}"
    );
    let expected = [
        "out\noverlay / overlay rw,",
        "\nproc /proc proc rw,",
        "\ncgroup2 /sys/fs/cgroup cgroup2 ro,",
        "\n0::/\n",
        "layer0-crypt\nlayer0\n",
        "\n0x9\n",
        "\n/sys/fs/cgroup/cgroup.procs\n",
    ];
    for part in expected {
        assert!(output.contains(part), "{part:?} not in {output}");
    }
    assert!(!output.contains("/l/0 "), "init's mounts show in {output}");
    let time = output
        .lines()
        .filter_map(|line| line.parse::<u64>().ok())
        .max()
        .unwrap();
    assert!(time.abs_diff(now) < 300, "the guest's clock says {time}");
}

#[test]
#[ignore = "boots guests"]
fn layers_stack_with_whiteouts_and_opaque_directories() {
    let base = rootfs(|root| {
        for directory in ["gone", "hidden"] {
            fs::create_dir(root.join(directory)).unwrap();
            fs::write(root.join(directory).join("old"), "old").unwrap();
        }
        fs::write(root.join("both"), "lower").unwrap();
        fs::hard_link(root.join("both"), root.join("linked")).unwrap();
    });
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let device = rustix::fs::makedev(0, 0);
    let character = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.path().join("gone"),
        character,
        rustix::fs::Mode::empty(),
        device,
    )
    .unwrap();
    fs::create_dir(top.path().join("hidden")).unwrap();
    fs::write(top.path().join("hidden/new"), "new").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(top.path().join("hidden"), "trusted.overlay.opaque", b"y", flags).unwrap();
    symlink("/run", top.path().join("var-run")).unwrap();
    let script = "ls -d /gone; ls /hidden; mv /hidden /renamed && cat /renamed/new; echo; echo more >>/both; cat /linked
        stat -c %a /; rm /both && ls /both; echo $?";
    let (output, error, _) = Machine::new(vec![convert(base.path()), convert(top.path())], script).run();
    assert_eq!(output, "new\nnew\nlowermore\n750\n1\n", "{error}");
}

#[test]
#[ignore = "boots guests"]
fn the_scratch_disk_takes_what_memory_can_not_and_shows_nothing() {
    const MARKER: &[u8] = b"this must not be seen on the host 0123456789\n";
    let scratch = tempfile::tempfile().unwrap();
    scratch.set_len(512 * MIB).unwrap();
    // More than the guest's memory, one megabyte at a time.
    let pattern = MARKER.repeat((1 << 20) / MARKER.len());
    let root = rootfs(|root| fs::write(root.join("pattern"), &pattern).unwrap());
    let script = "for i in $(seq 100); do cat /pattern || exit 1; done >/big
        dd if=/big bs=1M 2>/dev/null | sha256sum; for i in $(seq 100); do cat /pattern; done | sha256sum; rm /big";
    let mut machine = Machine::new(vec![convert(root.path())], script);
    machine.memory_mib = 80;
    machine.workload.scratch = Scratch::Disk { bytes: 400 * MIB };
    machine.scratch = Some(scratch.try_clone().unwrap());
    let (output, error, status) = machine.run();
    assert_eq!(status, Status::Code { code: 0 }, "{error}");
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[0], lines[1]);
    let mut block = vec![0; 1 << 20];
    let mut written = 0;
    for at in (0..512 * MIB).step_by(block.len()) {
        scratch.read_exact_at(&mut block, at).unwrap();
        let zeros = [0; 4096];
        for page in block.chunks(zeros.len()).filter(|page| *page != zeros) {
            written += 1;
            // The marker repeats, so the beginning of any page of plaintext has it.
            let head = &page[..3 * MARKER.len()];
            assert!(
                !head.windows(MARKER.len()).any(|window| window == MARKER),
                "plaintext near {at}"
            );
        }
    }
    assert!(written > 10_000, "{written} pages on the disk");
}

#[test]
#[ignore = "boots guests"]
fn a_flipped_byte_is_an_error_and_never_wrong_data() {
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let image = convert(rootfs(|root| fs::write(root.join("data"), &content).unwrap()).path());
    // Somewhere in the middle, where `data` lies: most of the image.
    let at = image.layer.crypt.offset + image.layer.crypt.length / 2;
    let mut byte = [0];
    image.file.read_exact_at(&mut byte, at).unwrap();
    image.file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let (output, error, _) = Machine::new(vec![image], "cat /data >/dev/null && sha256sum /data").run();
    assert_eq!(output, "", "wrong data went through");
    assert!(error.contains("Input/output error"), "{error}");
}

#[test]
#[ignore = "boots guests"]
fn set_up_failures_are_sentences() {
    let image = convert(rootfs(|_| ()).path());
    let again = |image: &Image| Image {
        file: image.file.try_clone().unwrap(),
        layer: image.layer.clone(),
        key: image.key.clone(),
    };
    let mut machine = Machine::new(vec![again(&image)], "true");
    machine.workload.process.args = vec!["foo".into()];
    let message = "executable file `foo` not found in $PATH: No such file or directory";
    assert_eq!(machine.boot().failed(), (FailureKind::NotFound, message.into()));

    let mut machine = Machine::new(vec![again(&image)], "true");
    machine.images[0].key = VolumeKey::from_bytes([7; VolumeKey::LEN]);
    let (_, message) = machine.boot().failed();
    assert!(message.starts_with("layer 0: erofs create: "), "{message}");

    let mut machine = Machine::new(vec![again(&image)], "true");
    machine.workload.scratch = Scratch::Disk { bytes: 64 * MIB };
    let (_, message) = machine.boot().failed();
    assert_eq!(message, "scratch disk /dev/vdb: No such file or directory");
}

/// A machine whose Workload is for a simulated TEE, and the Workload's hash.
fn confidential(script: &str) -> (Machine, [u8; 32]) {
    let mut machine = Machine::new(vec![convert(rootfs(|_| ()).path())], script);
    machine.workload.tee = Some(Tee {
        kind: TeeKind::Sim,
        exec: false,
    });
    let hash = machine.workload.digest().0;
    (machine, hash)
}

#[test]
#[ignore = "boots guests"]
fn a_confidential_guest_runs_the_workload_that_it_was_launched_for_and_nothing_else() {
    let (machine, hash) = confidential("exit 7");
    let mut guest = machine.boot();
    guest.attest(hash);
    guest.ready();
    guest.stdio();
    let process = confidential("exit 0").0.workload.process;
    guest.tell(Request::Exec(Box::new(Exec {
        number: 1,
        process,
        console_size: None,
        cgroup: None,
    })));
    let outcome = guest.outcome();
    assert!(
        matches!(&outcome, Outcome::Failed { message, .. } if message.contains("does not let the host run more processes")),
        "{outcome:?}"
    );
    guest.start();
    assert_eq!(guest.exited(), Status::Code { code: 7 });
}

#[test]
#[ignore = "boots guests"]
fn another_workload_than_the_one_launched_for_is_refused() {
    for bit in [0, 100, 255] {
        let (machine, mut hash) = confidential("exit 0");
        hash[bit / 8] ^= 1 << (bit % 8);
        let guest = machine.boot();
        guest.attest(hash);
        let (_, message) = guest.failed();
        assert!(
            message.contains("not the one that this guest was launched for"),
            "{message}"
        );
    }
}

#[test]
#[ignore = "boots guests"]
fn a_workload_for_snp_does_not_run_without() {
    let (mut machine, _) = confidential("exit 0");
    machine.workload.tee = Some(Tee {
        kind: TeeKind::Snp,
        exec: false,
    });
    let (_, message) = machine.boot().failed();
    assert!(message.contains("demands SEV-SNP"), "{message}");
}
