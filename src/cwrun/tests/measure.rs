//! `cwrun measure` as a program: its digests are those that an independent implementation computes from the same files, and nothing
//! that goes into a guest can change without a change here.
//!
//! Needs the guest files (`make guest`) and `sev-snp-measure`, which `tests/testbed/setup` installs.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const GUEST_FILES: [&str; 4] = ["vmlinux", "bzImage", "initrd", "stage0"];
/// VMSA variants, and whether x87 and SSE state is in the page.
const VARIANTS: [(&str, bool); 2] = [("linux-6.11", true), ("amd-snp-host-v12", false)];
/// CPU models, and their names in the other implementation.
const CPUS: [(&str, &str); 3] = [
    ("milan", "EPYC-Milan"),
    ("genoa", "EPYC-Genoa"),
    ("turin", "EPYC-Turin"),
];

fn guest_dir() -> PathBuf {
    let given = std::env::var_os("CWRUN_GUEST_DIR").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"));
    assert!(
        dir.join("bzImage").exists(),
        "{} has no guest files: run make guest",
        dir.display()
    );
    dir.canonicalize().expect("it exists")
}

/// The Python of the virtual environment that `tests/testbed/setup` makes.
fn python() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let home = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    let cache = var("CWRUN_BUILD_CACHE").or_else(|| home().map(|home| home.join("cwrun-build")));
    cache
        .expect("HOME is set")
        .join("sev-snp-measure-0.0.13/bin/python")
}

fn cwrun(guest: &Path, cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cwrun"))
        .args(args)
        .env("CWRUN_GUEST_DIR", guest)
        .env("CWRUN_CACHE_DIR", cache)
        .env("CWRUN_CONFIG", "/dev/null")
        .output()
        .expect("cwrun runs")
}

/// Standard output of a command that must succeed, as JSON.
#[track_caller]
fn measured(guest: &Path, cache: &Path, args: &[&str]) -> Value {
    let output = cwrun(guest, cache, &[&["measure", "--json"], args].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(number)
}

/// stage0's pages by its program headers, read here once more (System V ABI), with the page of hashes as `docs/stage0.md` has it.
fn pages(stage0: &[u8], hashes: &[u8]) -> Vec<(u64, Value)> {
    let (table, count) = (number::<8>(stage0, 32) as usize, number::<2>(stage0, 56) as usize);
    let mut pages = Vec::new();
    for header in (0..count).map(|index| table + 56 * index) {
        let kind = match number::<4>(stage0, header) {
            1 | 0x6063_7701 => "normal",
            0x6063_7702 => "secrets",
            0x6063_7703 => "cpuid",
            0x6063_7704 => "zero",
            _ => continue,
        };
        let offset = number::<8>(stage0, header + 8) as usize;
        let (gpa, in_file) = (number::<8>(stage0, header + 24), number::<8>(stage0, header + 32));
        let mut bytes = match number::<4>(stage0, header) {
            0x6063_7701 => hashes.to_vec(),
            _ => stage0[offset..offset + in_file as usize].to_vec(),
        };
        let size = number::<8>(stage0, header + 40).next_multiple_of(4096) as usize;
        bytes.resize(size, 0);
        for (index, page) in bytes.chunks(4096).enumerate() {
            let gpa = gpa + 4096 * index as u64;
            pages.push((gpa, json!({"kind": kind, "gpa": gpa, "bytes": hex(page)})));
        }
    }
    pages.sort_by_key(|(gpa, _)| *gpa);
    pages
}

fn hash_page(guest: &Path, cmdline: &str) -> Vec<u8> {
    let mut page = b"CWHASHES\x01\0\0\0\0\0\0\0".to_vec();
    let files = ["bzImage", "initrd"].map(|name| fs::read(guest.join(name)).expect("a guest file"));
    for contents in [&files[0][..], &files[1], cmdline.as_bytes()] {
        page.extend(Sha256::digest(contents));
        page.extend((contents.len() as u64).to_le_bytes());
    }
    page.resize(4096, 0);
    page
}

/// The launch digest that the independent implementation computes.
fn ask(request: &Value) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tee/tests/sev_snp_measure.py");
    let mut child = Command::new(python())
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tests/testbed/setup has installed sev-snp-measure");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin
        .write_all(request.to_string().as_bytes())
        .expect("Python reads");
    drop(stdin);
    let output = child.wait_with_output().expect("Python ends");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("Python writes JSON");
    answer["digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn digests_of_the_installed_files_equal_those_of_sev_snp_measure() {
    let (guest, cache) = (guest_dir(), tempfile::tempdir().unwrap());
    let stage0 = fs::read(guest.join("stage0")).unwrap();
    let mut seen = BTreeSet::new();
    for vcpus in [1, 2, 3, 8, 64] {
        let variants = VARIANTS.map(|(name, _)| name).join(",");
        let count = vcpus.to_string();
        let told = measured(&guest, cache.path(), &["--vcpus", &count, "--variant", &variants]);
        let hashes = hash_page(&guest, told["boot"]["cmdline_text"].as_str().unwrap());
        let pages = pages(&stage0, &hashes);
        let tables = pages.iter().find(|(_, page)| page["kind"] == "normal").unwrap().0;
        let pages: Vec<_> = pages.into_iter().map(|(_, page)| page).collect();
        let launches = told["launches"].as_array().unwrap();
        assert_eq!(launches.len(), CPUS.len() * VARIANTS.len());
        for launch in launches {
            let cpu = CPUS.iter().find(|(name, _)| launch["cpu"] == *name).unwrap().1;
            let fpu = VARIANTS
                .iter()
                .find(|(name, _)| launch["variant"] == *name)
                .unwrap()
                .1;
            let expected = ask(&json!({
                "pages": pages, "vcpus": vcpus, "cpu": cpu, "sev_features": 1, "fpu": fpu,
                "entry": number::<8>(&stage0, 24), "page_tables": tables,
            }));
            assert_eq!(launch["launch_digest"], expected.as_str(), "{launch}");
            seen.insert(expected);
        }
    }
    assert_eq!(seen.len(), 30, "every launch has a digest of its own");
}

/// A directory with the guest files, of which `changed` is other than it is.
fn with_changed(changed: &str, change: impl Fn(&mut Vec<u8>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in GUEST_FILES {
        let (from, to) = (guest_dir().join(name), dir.path().join(name));
        if name == changed {
            let mut bytes = fs::read(from).unwrap();
            change(&mut bytes);
            fs::write(to, bytes).unwrap();
        } else {
            symlink(from, to).unwrap();
        }
    }
    dir
}

fn digest(guest: &Path) -> String {
    let cache = tempfile::tempdir().unwrap();
    let told = measured(guest, cache.path(), &["--vcpus", "1", "--cpu", "milan"]);
    told["launches"][0]["launch_digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_changed_bit_of_any_guest_file_changes_the_digest() {
    let usual = digest(&guest_dir());
    assert_eq!(
        digest(with_changed("vmlinux", |bytes| bytes.clear()).path()),
        usual
    );
    let mut seen = BTreeSet::from([usual]);
    for (name, places) in [
        // stage0's code begins on its first page, behind the headers.
        ("stage0", [0x1800, 0x2345]),
        ("bzImage", [0, 5_000_001]),
        ("initrd", [3, 2_000_003]),
    ] {
        for (place, bit) in places.into_iter().zip([0, 7]) {
            let changed = with_changed(name, |bytes| bytes[place] ^= 1 << bit);
            assert!(
                seen.insert(digest(changed.path())),
                "bit {bit} of {place} of {name}"
            );
        }
        let longer = with_changed(name, |bytes| bytes.push(0));
        // What is behind stage0's last segment is never loaded.
        assert_eq!(seen.insert(digest(longer.path())), name != "stage0", "{name}");
    }
}

/// A bundle that asks for a TEE.
fn bundle(change: impl FnOnce(&mut Value, &Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::write(rootfs.join("bin/sh"), "a program").unwrap();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh"], "env": ["A=1"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        "annotations": {"io.cwrun.tee": "snp"}
    });
    change(&mut config, &rootfs);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[track_caller]
fn subject(bundle: &TempDir, cache: &TempDir) -> Value {
    let path = bundle.path().to_str().unwrap();
    measured(&guest_dir(), cache.path(), &["--cpu", "milan", path])["workload"].clone()
}

#[test]
fn a_change_of_the_bundle_changes_host_data() {
    let cache = tempfile::tempdir().unwrap();
    let usual = bundle(|_, _| ());
    let host_data = |bundle: &TempDir| {
        let told = subject(bundle, &cache);
        assert_eq!(told["lasting"], true, "{told}");
        told["host_data"].as_str().unwrap().to_owned()
    };
    let first = host_data(&usual);
    assert_eq!(host_data(&usual), first, "the cache keeps keys and salts");
    let mut seen = BTreeSet::from([first]);
    type Change = fn(&mut Value, &Path);
    let changes: [(&str, Change); 7] = [
        ("arguments", |config, _| {
            config["process"]["args"] = json!(["/bin/sh", "-x"])
        }),
        ("a variable", |config, _| {
            config["process"]["env"] = json!(["A=2"])
        }),
        ("the user", |config, _| {
            config["process"]["user"]["uid"] = 1.into()
        }),
        ("a mount", |config, _| {
            config["mounts"] = json!([{"destination": "/t", "type": "tmpfs", "source": "tmpfs"}]);
        }),
        ("exec", |config, _| {
            config["annotations"]["io.cwrun.tee.exec"] = "allow".into()
        }),
        ("the TEE", |config, _| {
            config["annotations"]["io.cwrun.tee"] = "sim".into()
        }),
        ("a bit of a file", |_, rootfs| {
            fs::write(rootfs.join("bin/sh"), "a prograo").unwrap()
        }),
    ];
    for (what, change) in changes {
        assert!(seen.insert(host_data(&bundle(change))), "{what}");
    }
}

#[test]
fn a_bundle_tells_its_own_number_of_vcpus_and_a_policy_that_can_be_read() {
    let cache = tempfile::tempdir().unwrap();
    let bundle = bundle(|config, _| {
        config["annotations"]["krun.cpus"] = "3".into();
        config["annotations"]["krun.ram_mib"] = "512".into();
    });
    let path = bundle.path().to_str().unwrap();
    let told = measured(&guest_dir(), cache.path(), &["--cpu", "genoa", path]);
    let launches = told["launches"].as_array().unwrap();
    assert_eq!(launches.len(), 1);
    assert_eq!(launches[0]["vcpus"], 3);
    assert_eq!(launches[0]["measured_bytes"], (6 + 3) * 4096);
    let output = cwrun(
        &guest_dir(),
        cache.path(),
        &["measure", "--cpu", "genoa", "--policy", path],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let policy: tee::appraise::AppraisalPolicy = toml::from_str(&text).expect("a policy");
    let digests: Vec<_> = policy.launch_digests.iter().map(ToString::to_string).collect();
    assert_eq!(launches[0]["launch_digest"], digests[0].as_str());
    let host_data: Vec<_> = policy.host_data.iter().map(ToString::to_string).collect();
    assert_eq!(told["workload"]["host_data"], host_data[0].as_str());
    assert!(policy.allow_smt && !policy.allow_debug);
}

#[test]
fn what_nothing_would_measure_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| {
        let output = cwrun(&guest_dir(), cache.path(), &[&["measure"], args].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let plain = bundle(|config, _| config["annotations"]["io.cwrun.tee"] = "none".into());
    let error = refused(&[plain.path().to_str().unwrap()]);
    assert!(error.contains("it asks for no TEE"), "{error}");
    let error = refused(&["oci:/does/not/exist"]);
    assert_eq!(error.matches("oci:/does/not/exist").count(), 1, "{error}");
    let output = cwrun(cache.path(), cache.path(), &["measure"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no guest kernel"), "{error}");
}
