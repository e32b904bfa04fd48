//! The image's bytes and size.

use std::path::Path;
use std::process::Command;

use stage0::abi::{PAGE, segment};

use crate::image::{Elf, build, built};

#[test]
fn two_builds_in_two_directories_are_the_same_bytes() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("another/place/deeper/src");
    std::fs::create_dir_all(&copy).unwrap();
    let status = Command::new("cp")
        .args(["-a", env!("CARGO_MANIFEST_DIR")])
        .arg(&copy)
        .status()
        .unwrap();
    assert!(status.success());
    // The package inherits from the workspace.
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    std::fs::copy(top, copy.join("../Cargo.toml")).unwrap();
    // A user's settings must not matter.
    std::fs::create_dir_all(copy.join(".cargo")).unwrap();
    let settings = "[profile.release]\nlto = 'off'\ncodegen-units = 16\nopt-level = 3\n[build]\nrustflags = ['-Cdebug-assertions']\n";
    std::fs::write(copy.join(".cargo/config.toml"), settings).unwrap();
    let second = build(&copy.join("stage0"), "second");
    for name in ["stage0", "stage0-plain"] {
        let [one, two] = [built(), &second].map(|directory| std::fs::read(directory.join(name)).unwrap());
        assert!(one == two, "{name} differs");
    }
}

#[test]
fn the_launch_measures_little() {
    let image = Elf::confidential();
    let measured: usize = [segment::LOAD, segment::HASHES]
        .map(|kind| image.segment(kind).contents.len())
        .iter()
        .sum();
    let with_vmsa = measured + PAGE as usize;
    println!("{measured} bytes of NORMAL pages, {with_vmsa} with the VMSA of one vCPU");
    assert!(with_vmsa <= 32 << 10);
}

#[test]
fn program_headers_name_whole_pages_without_gaps() {
    let image = Elf::confidential();
    let mut next = image.extent().0;
    for segment in &image.segments {
        assert_eq!(
            (segment.gpa, segment.contents.len() as u64 % PAGE),
            (next, 0),
            "{:#x}",
            segment.kind
        );
        next += segment.contents.len() as u64;
    }
    assert!(image.extent().1 <= 2 << 20);
    for kind in [segment::HASHES, segment::SECRETS, segment::CPUID] {
        assert_eq!(image.segment(kind).contents, vec![0; PAGE as usize]);
    }
    let code = image.segment(segment::LOAD);
    assert!((code.gpa..code.gpa + code.contents.len() as u64).contains(&image.entry));
}

#[test]
fn the_measured_image_has_nothing_of_the_plain_one() {
    let plain = std::fs::read(built().join("stage0-plain")).unwrap();
    // mov edx, PLAIN_TERMINATION_PORT; and CPUID.
    let port = [0xba, 0xd0, 0xc0, 0, 0];
    let has = |bytes: &[u8], needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let short = [0x66, 0xba, 0xd0, 0xc0];
    assert!(has(&plain, &port) || has(&plain, &short));
    let code = &Elf::confidential().segment(segment::LOAD).contents;
    assert!(!has(code, &port) && !has(code, &short) && !has(code, &[0x0f, 0xa2]));
}
