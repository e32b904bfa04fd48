//! `seal` and `inspect` as their users have them: what is written, what engines make of it, and what is left of a seal that was stopped.
//!
//! The launch digests that are registered are those of the built guest files: those are needed here (`make guest`).

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What must not be found in anything that leaves this machine.
const MARKER: &str = "a sentence that is nobody's business";
const SECRET: &str = "the key of a server";

/// A directory with a root file system in `rootfs`, and the place where everything else goes.
fn place() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("rootfs");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir(root.join("bin")).unwrap();
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("bin/sh"), vec![b'#'; 300_000]).unwrap();
    fs::write(root.join("etc/marker"), MARKER).unwrap();
    fs::write(place.path().join("tls.key"), SECRET).unwrap();
    place
}

fn cwrun(place: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cwrun"));
    command
        .current_dir(place)
        .args(args)
        .env("CWRUN_CACHE_DIR", place.join("cache"))
        .env_remove("CWRUN_CONFIG");
    if std::env::var_os("CWRUN_GUEST_DIR").is_none() {
        command.env(
            "CWRUN_GUEST_DIR",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest"),
        );
    }
    command
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that fails.
#[track_caller]
fn bad(place: &Path, args: &[&str]) -> String {
    let output = cwrun(place, args).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[track_caller]
fn json_of(place: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&good(cwrun(place, args).output().unwrap())).unwrap()
}

/// Paths of everything below, from there.
fn all(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.strip_prefix(directory).unwrap().to_owned());
        }
    }
    found
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

const SEAL: [&str; 15] = [
    "seal",
    "rootfs",
    "--tee",
    "sim",
    "--secret",
    "tls.key=/run/secrets/tls.key,owner=33:34",
    "--secret-file",
    "tls.key=tls.key",
    "--allow",
    "env:LANG",
    "--vcpus",
    "1..3",
    "--broker",
    "https://broker.example.org",
    "--json",
];

fn seal(place: &Path, image: &str, record: &str) -> Value {
    let mut args = SEAL.to_vec();
    args.extend(["-o", image, "--record", record, "--", "/bin/sh", "-c", "serve"]);
    json_of(place, &args)
}

#[test]
fn an_image_holds_ciphertext_and_the_record_the_key() {
    let place = place();
    let place = place.path();
    let told = seal(place, "oci:image:v1", "record.json");
    let record_file = place.join("record.json");
    assert_eq!(
        fs::metadata(&record_file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let record: Value = serde_json::from_slice(&fs::read(record_file).unwrap()).unwrap();
    assert_eq!(record["id"], told["id"]);
    assert_eq!(record["host_data"], told["host_data"]);
    assert_eq!(record["launch_digests"], told["launch_digests"]);
    let counts: Vec<_> = record["launch_digests"].as_object().unwrap().keys().collect();
    assert_eq!(counts, ["1", "2", "3"]);
    assert_eq!(record["policy"], json!({"allow_smt": true}));
    assert_eq!(record["key"].as_str().unwrap().len(), 88, "64 bytes in base64");
    for path in all(&place.join("image")) {
        let path = place.join("image").join(path);
        if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            for text in [MARKER, SECRET, "######", record["key"].as_str().unwrap()] {
                assert!(!contains(&bytes, text), "{}: {text}", path.display());
            }
        }
    }
    // The same that is told by `inspect`, and measured by `measure`.
    let inspected = json_of(place, &["inspect", "--json", "oci:image:v1"]);
    assert_eq!(inspected["host_data"], told["host_data"]);
    assert_eq!(inspected["allow"], json!(["env:LANG"]));
    assert_eq!(inspected["broker"], "https://broker.example.org");
    let workload = &inspected["workload"];
    assert_eq!(workload["process"]["args"], json!(["/bin/sh", "-c", "serve"]));
    assert_eq!(
        workload["sealed"]["secrets"][0]["place"],
        json!({"kind": "file", "path": "/run/secrets/tls.key", "mode": 0o400, "uid": 33, "gid": 34})
    );
    let words = good(cwrun(place, &["inspect", "oci:image:v1"]).output().unwrap());
    assert!(
        words.contains("in a TEE             a SIMULATED one, which protects nothing\n"),
        "{words}"
    );
    let measured = json_of(place, &["measure", "--json", "--vcpus", "1..3", "oci:image:v1"]).to_string();
    for digest in record["launch_digests"].as_object().unwrap().values() {
        assert!(measured.contains(digest.as_str().unwrap()), "{measured}");
    }
    assert!(
        measured.contains(told["host_data"].as_str().unwrap()),
        "{measured}"
    );
}

/// Reads the only layer of an image layout.
fn layer(layout: &Path) -> Vec<u8> {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let blobs = blobs.map(|entry| entry.unwrap().path());
    let largest = blobs.max_by_key(|path| fs::metadata(path).unwrap().len());
    fs::read(largest.unwrap()).unwrap()
}

#[test]
fn the_layer_is_three_files_and_a_directory() {
    let place = place();
    let place = place.path();
    seal(place, "oci:image", "record.json");
    let listing = Command::new("tar")
        .args(["--numeric-owner", "-tvf", "-"])
        .stdin({
            fs::write(place.join("layer"), layer(&place.join("image"))).unwrap();
            File::open(place.join("layer")).unwrap()
        })
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listing.stderr), "");
    let listing = good(listing);
    let members: Vec<Vec<&str>> = listing
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let shape: Vec<_> = members
        .iter()
        .map(|m| (m[0], m[1], m[3], *m.last().unwrap()))
        .collect();
    assert_eq!(
        shape,
        [
            ("drwxr-xr-x", "0/0", "1970-01-01", ".cwrun/"),
            ("-rw-r--r--", "0/0", "1970-01-01", ".cwrun/disk.img"),
            ("-rw-r--r--", "0/0", "1970-01-01", ".cwrun/workload.json"),
            ("-rw-r--r--", "0/0", "1970-01-01", ".cwrun/broker.json"),
        ]
    );
}

#[test]
fn what_is_sealed_twice_differs_by_key_and_salt_alone() {
    let place = place();
    let place = place.path();
    let told = [
        seal(place, "oci:one", "one.json"),
        seal(place, "oci-archive:two", "two.json"),
    ];
    let [one, two] =
        ["oci:one", "oci-archive:two"].map(|image| json_of(place, &["inspect", "--json", image]));
    let without_salt = |mut workload: Value| {
        let layer = &mut workload["root"]["layers"][0]["verity"];
        assert_eq!(layer["salt"].as_str().unwrap().len(), 64);
        layer["salt"] = json!("");
        layer["root_hash"] = json!("");
        // A default one has a part of the root hash in it.
        workload["sealed"]["id"] = json!("");
        for secret in workload["sealed"]["secrets"].as_array_mut().unwrap() {
            // Under the key.
            assert_eq!(secret["mac"].as_str().unwrap().len(), 64);
            secret["mac"] = json!("");
        }
        workload
    };
    assert_ne!(one["workload"]["root"], two["workload"]["root"]);
    assert_ne!(told[0]["root_hash"], told[1]["root_hash"]);
    assert_eq!(
        without_salt(one["workload"].clone()),
        without_salt(two["workload"].clone())
    );
    let key = |name: &str| -> Value {
        let record: Value = serde_json::from_slice(&fs::read(place.join(name)).unwrap()).unwrap();
        record["key"].clone()
    };
    assert_ne!(key("one.json"), key("two.json"));
}

#[test]
fn nothing_is_written_where_something_is_wrong() {
    let place = place();
    let place = place.path();
    fs::write(place.join("there.json"), "kept").unwrap();
    let before = all(place);
    let cases: [(&[&str], &str); 10] = [
        (&["seal", "rootfs", "-o", "oci:x", "--", "sh"], "it would be lost"),
        (
            &["seal", "rootfs", "-o", "x", "--record", "r", "--", "sh"],
            "expected oci:DIR",
        ),
        (
            &["seal", "rootfs", "-o", "oci:x", "--record", "r"],
            "names no program",
        ),
        (
            &["seal", "none", "-o", "oci:x", "--record", "r", "--", "sh"],
            "none",
        ),
        (
            &["seal", "rootfs", "-o", "oci:rootfs", "--record", "r", "--", "sh"],
            "neither empty nor",
        ),
        (
            &[
                "seal",
                "rootfs",
                "-o",
                "oci:x",
                "--record",
                "there.json",
                "--",
                "sh",
            ],
            "it is there already",
        ),
        (
            &[
                "seal", "rootfs", "-o", "oci:x", "--record", "r", "--id", "a/b", "--", "sh",
            ],
            "--id \"a/b\"",
        ),
        (
            &[
                "seal",
                "rootfs",
                "-o",
                "oci:x",
                "--record",
                "r",
                "--secret-file",
                "a=tls.key",
                "--",
                "sh",
            ],
            "no --secret says",
        ),
        (
            &[
                "seal",
                "rootfs",
                "-o",
                "oci:x",
                "--register",
                "http://192.0.2.1",
                "--token-file",
                "tls.key",
                "--",
                "sh",
            ],
            "readable on the way",
        ),
        (
            &[
                "seal", "rootfs", "-o", "oci:x", "--record", "r", "--secret", "a=/x", "--secret", "b=/x",
                "--", "sh",
            ],
            "have one place for two",
        ),
    ];
    for (args, said) in cases {
        let error = bad(place, args);
        assert!(error.contains(said), "{said}: {error}");
        assert_eq!(all(place), before, "{error}");
    }
    assert_eq!(fs::read(place.join("there.json")).unwrap(), b"kept");
}

#[test]
fn a_seal_that_is_killed_leaves_nothing_or_everything() {
    let place = place();
    let place = place.path();
    // Enough to be busy for a while.
    let big = File::create(place.join("rootfs/big")).unwrap();
    std::io::copy(&mut File::open("/dev/urandom").unwrap().take(64 << 20), &mut &big).unwrap();
    // Where `inspect` unpacks.
    fs::create_dir_all(place.join("cache/scratch")).unwrap();
    let before = all(place);
    let mut killed = 0;
    for round in 0_u64..12 {
        let args = [
            "seal",
            "rootfs",
            "-o",
            "oci:image",
            "--record",
            "record.json",
            "--",
            "sh",
        ];
        let mut child = cwrun(place, &args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * 40));
        let over = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        killed += u32::from(round > 0 && over.is_none());
        let found: BTreeSet<_> = all(place).difference(&before).cloned().collect();
        let image = found.contains(Path::new("image"));
        if image {
            // The image has its name last.
            json_of(place, &["inspect", "--json", "oci:image"]);
            fs::remove_dir_all(place.join("image")).unwrap();
        }
        assert!(!image || found.contains(Path::new("record.json")), "{found:?}");
        let _ = fs::remove_file(place.join("record.json"));
        let _ = fs::remove_dir_all(place.join("image.cwrun-new"));
        assert_eq!(all(place), before, "{found:?}");
    }
    assert!(killed > 0, "each was over before it was killed, or had not begun");
}

#[test]
fn an_image_that_was_altered_is_refused() {
    let place = place();
    let place = place.path();
    seal(place, "oci:image", "record.json");
    let layout = place.join("image");
    for path in all(&layout)
        .into_iter()
        .map(|path| layout.join(path))
        .filter(|path| path.is_file())
    {
        let original = fs::read(&path).unwrap();
        for at in [original.len() / 3, original.len() / 2, original.len() - 2] {
            let mut altered = original.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            let output = cwrun(place, &["inspect", "oci:image"]).output().unwrap();
            // What is no part of the image may be altered: white space and words that no reader knows.
            let small = path.ends_with("index.json") || path.ends_with("oci-layout");
            assert!(small || !output.status.success(), "{} at {at}", path.display());
            assert_ne!(output.status.code(), Some(101), "no panic");
            assert!(output.status.code().is_some(), "no signal");
        }
        fs::write(&path, &original[..original.len() / 2]).unwrap();
        let error = bad(place, &["inspect", "oci:image"]);
        assert!(error.contains("oci:image"), "{error}");
        fs::write(&path, original).unwrap();
    }
    good(cwrun(place, &["inspect", "oci:image"]).output().unwrap());
}

/// A runtime that keeps the configuration it is given and runs nothing.
const KEEPER: &str = "#!/bin/sh
previous= bundle=.
for word; do
    case $previous in --bundle|-b) bundle=$word;; esac
    previous=$word
done
case \" $* \" in
    *' create '*) cp \"$bundle/config.json\" KEPT; cp -r \"$(sed -n 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/p' KEPT)\" ROOT; exit 1;;
    *' --version '*) echo 'keeper 1';;
esac
";

/// Whether this is root, and a tool is installed.
fn can_use(tool: &str) -> bool {
    let usable = Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !usable || !rustix::process::geteuid().is_root() {
        eprintln!("{tool} is not installed, or this is not root: nothing to see");
        return false;
    }
    true
}

/// What skopeo and buildah make of an image: the same workload, whether its layer is compressed on the way or a tool writes it anew.
#[test]
fn skopeo_and_buildah_carry_the_image() {
    if !can_use("skopeo") || !can_use("buildah") {
        return;
    }
    let place = place();
    let place = place.path();
    seal(place, "oci:image:v1", "record.json");
    let sealed = json_of(place, &["inspect", "--json", "oci:image:v1"]);
    let run = |tool: &str, args: &[&str]| {
        let output = Command::new(tool).current_dir(place).args(args).output();
        good(output.unwrap())
    };
    // As a push to a registry does.
    run(
        "skopeo",
        &["copy", "-q", "--dest-compress", "oci:image:v1", "dir:pushed"],
    );
    run("skopeo", &["copy", "-q", "dir:pushed", "oci:pulled:v1"]);
    assert_ne!(
        layer(&place.join("pulled")),
        layer(&place.join("image")),
        "compressed"
    );
    assert_eq!(json_of(place, &["inspect", "--json", "oci:pulled:v1"]), sealed);
    let buildah = |args: &[&str]| {
        let own = [
            "--storage-driver",
            "vfs",
            "--root",
            "storage",
            "--runroot",
            "runroot",
        ];
        run("buildah", &[&own, args].concat())
    };
    let container = buildah(&["from", "oci:pulled:v1"]);
    buildah(&[
        "commit",
        "--quiet",
        "--format",
        "oci",
        container.trim(),
        "oci:committed:v1",
    ]);
    assert_eq!(json_of(place, &["inspect", "--json", "oci:committed:v1"]), sealed);
}

/// What podman makes of an image, where it is installed and can be used: bundles with its root file system.
#[test]
fn podman_takes_the_image_and_runs_what_is_sealed() {
    if !can_use("podman") {
        return;
    }
    let place = place();
    let place = place.path();
    seal(place, "oci:image:v1", "record.json");
    seal(place, "oci-archive:archive.tar:v1", "other.json");
    let (kept, root) = (place.join("kept.json"), place.join("root"));
    let keeper = KEEPER
        .replace("KEPT", kept.to_str().unwrap())
        .replace("ROOT", root.to_str().unwrap());
    fs::write(place.join("keeper"), keeper).unwrap();
    fs::set_permissions(place.join("keeper"), PermissionsExt::from_mode(0o755)).unwrap();
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        let own = [
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            "--root",
            "storage",
        ];
        command
            .current_dir(place)
            .args(own)
            .args(["--runroot", "runroot", "--runtime"]);
        command.arg(place.join("keeper")).args(args).output().unwrap()
    };
    for image in ["oci:image:v1", "oci-archive:archive.tar:v1"] {
        good(podman(&["pull", "-q", image]));
    }
    let output = podman(&["run", "--rm", "--network", "none", "oci:image:v1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let config = fs::read(&kept).unwrap_or_else(|_| panic!("podman has not come to the runtime: {said}"));
    // The bundle as it was: with the root file system that podman has unpacked.
    let bundle = place.join("bundle");
    fs::create_dir(&bundle).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["process"]["args"], json!(["/bin/sh", "-c", "serve"]));
    config["root"]["path"] = json!(root);
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let inspected = json_of(place, &["inspect", "--json", "bundle"]);
    let sealed = json_of(place, &["inspect", "--json", "oci:image:v1"]);
    assert_eq!(inspected, sealed);
}
