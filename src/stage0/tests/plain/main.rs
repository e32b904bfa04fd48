//! The hand-over on a real processor: stage0's plain image, entered as a launcher does, boots the guest's kernel on KVM.
//!
//! ```text
//! target/guest: stage0-plain, bzImage, initrd ─► machine ─► serial port ─► what the kernel says
//! ```

mod machine;

use std::path::PathBuf;

use stage0::Termination;

use machine::{End, Files, run};

const CMDLINE: &str =
    "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=k no_timer_check tsc=reliable cryptomgr.notests";
const VCPUS: u32 = 3;

/// What `make guest` has built.
fn guest_file(name: &str) -> Vec<u8> {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest"));
    let directory = std::env::var_os("CWRUN_GUEST_DIR").map_or_else(default, PathBuf::from);
    let path = directory.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run make guest", path.display()))
}

fn files() -> Files {
    Files {
        kernel: guest_file("bzImage"),
        initrd: guest_file("initrd"),
        cmdline: CMDLINE.into(),
    }
}

#[test]
#[ignore = "needs KVM"]
fn the_kernel_boots_to_its_init_with_all_vcpus() {
    let image = guest_file("stage0-plain");
    let (end, log) = run(&image, &files(), &files(), VCPUS, "Run /init as init process");
    assert_eq!(end, End::Said, "{log}");
    for expected in [
        &format!("Command line: {CMDLINE}"),
        "BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usable",
        "BIOS-e820: [mem 0x000000000009f000-0x000000000009ffff] ACPI data",
        "BIOS-e820: [mem 0x0000000000100000-",
        "ACPI: RSDP 0x000000000009F000",
        "smp: Brought up 1 node, 3 CPUs",
        "Freeing initrd memory",
    ] {
        assert!(
            log.contains(expected),
            "{expected} is not in the kernel's log:\n{log}"
        );
    }
    println!("{log}");
}

#[test]
#[ignore = "needs KVM"]
fn a_kernel_that_is_not_the_measured_one_does_not_boot() {
    let (measured, mut staged) = (files(), files());
    staged.kernel[100_000] ^= 1;
    let image = guest_file("stage0-plain");
    let (end, log) = run(&image, &measured, &staged, 1, "Linux version");
    assert_eq!((end, &*log), (End::Terminated(Some(Termination::KernelHash)), ""));
}

#[test]
#[ignore = "needs KVM"]
fn the_measured_image_does_not_run_without_snp() {
    // Its page tables have a bit that is reserved where there is no memory encryption.
    let image = guest_file("stage0");
    let (end, log) = run(&image, &files(), &files(), 1, "Linux version");
    assert_eq!((end, &*log), (End::Shutdown, ""));
}
