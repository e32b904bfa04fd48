//! The writable layer: how large it is, what the host can see and change of it, and what it gives back.

use e2e::cwrun::Container;
use e2e::process::eventually;
use e2e::{Bundle, Cwrun};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Writes what looks like data, `$1` MiB of it, to `$2`.
const WRITE: &str = r#"write() { yes "data in the writable layer, line after line" | dd of="$2" bs=1M count="$1" iflag=fullblock 2>/dev/null; }"#;

/// The scratch file of a running container, through the VMM's descriptor.
fn scratch_file(container: &Container) -> PathBuf {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", container.pid)).expect("the VMM runs");
    let mut nameless: Vec<PathBuf> = descriptors
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() == 0 && meta.len() > 8 * MIB)
        })
        .collect();
    assert_eq!(nameless.len(), 1, "{nameless:?}");
    nameless.remove(0)
}

fn taken(path: &PathBuf) -> u64 {
    fs::metadata(path).expect("the VMM runs").blocks() * 512
}

fn started_with(cwrun: &Cwrun, size: &str, script: &str) -> Container {
    let bundle = Bundle::script(&format!("{WRITE}; {script}"))
        .annotation("krun.ram_mib", "256")
        .annotation("io.cwrun.scratch", size);
    let container = cwrun.create("scratch", &bundle);
    cwrun.ok(["start", "scratch"]);
    container
}

fn wait_for(container: &Container, word: &str) {
    eventually(word, 120, || container.output().contains(word).then_some(()));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn deleted_files_give_their_room_back_to_the_host() {
    let cwrun = Cwrun::new();
    let container = started_with(
        &cwrun,
        "1GiB",
        "trap 'rm /big && echo removed' USR1; write 600 /big; sync; echo written; while :; do sleep 1 & wait $!; done",
    );
    wait_for(&container, "written");
    let file = scratch_file(&container);
    assert!(taken(&file) > 500 * MIB, "{} bytes", taken(&file));
    cwrun.ok(["kill", "scratch", "USR1"]);
    wait_for(&container, "removed");
    // Of what is free, 128 MiB stay free for the workload meanwhile, and 64 MiB are not worth it.
    eventually("the room is given back", 120, || {
        (taken(&file) < 220 * MIB).then_some(())
    });
    cwrun.ok(["delete", "--force", "scratch"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_the_host_changes_is_an_error_and_never_wrong_data() {
    let cwrun = Cwrun::new();
    let container = started_with(
        &cwrun,
        "4GiB",
        "trap 'cat /file >/dev/null && echo fine; echo over' USR1; write 64 /file; sync; echo 3 >/proc/sys/vm/drop_caches; echo written; while :; do sleep 1 & wait $!; done",
    );
    wait_for(&container, "written");
    let file = File::options()
        .read(true)
        .write(true)
        .open(scratch_file(&container))
        .expect("the host can do what it wants with it");
    // A byte of every block, but for the first MiBs, where the file system has its own.
    for offset in (4 * MIB..256 * MIB).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset + 17).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset + 17).unwrap();
    }
    cwrun.ok(["kill", "scratch", "USR1"]);
    wait_for(&container, "over");
    assert!(!container.output().contains("fine"), "{}", container.output());
    eventually("the error", 30, || {
        container.errors().contains("Input/output error").then_some(())
    });
    cwrun.ok(["delete", "--force", "scratch"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn its_size_is_what_was_asked_for() {
    let cwrun = Cwrun::new();
    let script = format!(
        "{WRITE}; write 100 /a && exit 1; echo full; rm /a; write 10 /b && echo room; df -m / | awk 'END {{print ($2 > 56 && $2 <= 64)}}'"
    );
    let bundle = Bundle::script(&script).annotation("io.cwrun.scratch", "64MiB");
    assert_eq!(
        cwrun.run("small", &bundle).finish().ok().text(),
        "full\nroom\n1\n"
    );
    let bundle = Bundle::script(&script).annotation("io.cwrun.scratch", "1MiB");
    let refused = cwrun.run("small", &bundle).finish();
    assert_ne!(refused.code, 0);
    assert!(
        refused
            .stderr
            .contains("io.cwrun.scratch: 1MiB is not between 4 MiB and 16 TiB"),
        "{}",
        refused.stderr
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn memory_alone_does_for_those_who_ask_for_it() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("echo kept >/file; cat /file; grep -c vdb /proc/partitions; true")
        .annotation("io.cwrun.scratch", "ram");
    assert_eq!(cwrun.run("ram", &bundle).finish().ok().text(), "kept\n0\n");
}
