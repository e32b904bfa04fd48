//! Conversions that can't succeed: a cache without room or not to be written, a root file system that can't be read or does not
//! stay what it is. Each is one clear sentence, leaves nothing half made, and the cache verifies afterwards.

use crate::errors::refused_bundle;
use crate::layers::{Stack, command, copy, entries};
use e2e::{Bundle, Cwrun, bed, host, pattern};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is left shows in the check of the host.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A tmpfs of `kib` KiB in place of the cache.
fn small_cache(cwrun: &Cwrun, kib: u64) -> Mounted {
    let at = cwrun.cache().to_owned();
    let data = CString::new(format!("size={kib}k,mode=700")).unwrap();
    rustix::mount::mount("small", &at, "tmpfs", MountFlags::empty(), Some(data.as_c_str())).unwrap();
    // What the VMM's mount namespace keeps of it would keep it in use.
    rustix::mount::mount_change(&at, MountPropagationFlags::PRIVATE).unwrap();
    Mounted(at)
}

/// Makes what lies at `path` read-only, or a file system of its own again.
fn set_read_only(path: &Path, read_only: bool) {
    let flag = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    rustix::mount::mount_remount(path, flag, "").unwrap();
}

/// Runs `create`, which fails with a sentence that holds all of `parts`.
#[track_caller]
fn refused(cwrun: &Cwrun, what: &str, bundle: &Bundle, parts: &[&str]) {
    let done = refused_bundle(cwrun, what, bundle, parts);
    assert_eq!(done.stderr.lines().count(), 1, "{what}: {}", done.stderr);
    assert_eq!(cwrun.ok(["list", "--quiet"]), "", "{what}");
    assert_nothing_half_made(cwrun, what);
}

/// No leftovers in the cache, and what is there is good.
#[track_caller]
fn assert_nothing_half_made(cwrun: &Cwrun, what: &str) {
    let half: Vec<_> = host::tree(cwrun.cache())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(".tmp"))
        .collect();
    assert!(half.is_empty(), "{what}: {half:?}");
    let verified = cwrun.command(["disk", "cache", "verify"]).finish().ok().text();
    assert!(
        verified.lines().all(|line| line.ends_with(": good")),
        "{what}: {verified}"
    );
}

fn on_memory(bundle: Bundle) -> Bundle {
    bundle
        .annotation("io.cwrun.scratch", "ram")
        .annotation("krun.ram_mib", "192")
}

/// A root file system of busybox and one file of this size that can't be stored in less.
fn rootfs(cwrun: &Cwrun, name: &str, bytes: usize) -> PathBuf {
    let root = cwrun.path(name);
    fs::create_dir(&root).unwrap();
    copy(&bed().busybox(), &root);
    fs::write(root.join("data"), pattern::bytes(bytes)).unwrap();
    root
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_cache_that_others_may_read() {
    let cwrun = Cwrun::with_own_cache();
    let disks = cwrun.cache().join("disks");
    fs::create_dir_all(&disks).unwrap();
    fs::set_permissions(&disks, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = Bundle::busybox(["true"]);
    refused_bundle(
        &cwrun,
        "open cache",
        &bundle,
        &[&disks.to_string_lossy(), "mode 0700"],
    );
    fs::set_permissions(&disks, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_cache_that_is_read_only() {
    let cwrun = Cwrun::with_own_cache();
    let _mount = small_cache(&cwrun, 64 << 10);
    let directory = cwrun.cache().to_string_lossy().into_owned();
    let sentence = [
        "cache directory",
        &directory,
        "must be writable",
        "cache.directory",
        "Read-only file system",
    ];
    let bundle = on_memory(Bundle::busybox(["true"]));

    // Nothing is in it yet.
    set_read_only(cwrun.cache(), true);
    refused_bundle(&cwrun, "an empty cache", &bundle, &sentence);

    // The disk is in it, and a container runs.
    set_read_only(cwrun.cache(), false);
    let running = cwrun.create("running", &on_memory(Bundle::script("echo up; sleep 1000")));
    cwrun.ok(["start", "running"]);
    running.expect_output("up");
    set_read_only(cwrun.cache(), true);
    let done = cwrun.run("refused", &bundle).finish().expect(1);
    for part in sentence {
        assert!(done.stderr.contains(part), "{part:?} is not in {}", done.stderr);
    }
    assert_eq!(cwrun.ok(["list", "--quiet"]), "running\n");
    assert_eq!(entries(&cwrun).len(), 1, "what is there can be listed");
    let done = cwrun.command(["disk", "cache", "verify"]).finish().expect(1);
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    cwrun.ok(["delete", "--force", "running"]);

    set_read_only(cwrun.cache(), false);
    assert_nothing_half_made(&cwrun, "writable again");
    cwrun.run("again", &bundle).finish().ok();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_cache_that_is_full() {
    let cwrun = Cwrun::with_own_cache();
    let mount = small_cache(&cwrun, 256);
    let disks = cwrun.cache().join("disks").to_string_lossy().into_owned();
    let bundle = on_memory(Bundle::busybox(["true"]));
    refused(
        &cwrun,
        "no room at all",
        &bundle,
        &["cannot write", &disks, "No space left on device"],
    );
    drop(mount);

    // Room for one of two disks: the one that nobody uses any more gives way.
    let _mount = small_cache(&cwrun, 16 << 10);
    let [first, second] = ["first", "second"].map(|name| rootfs(&cwrun, name, 8 << 20));
    let run = |rootfs: &Path| {
        let bundle = on_memory(Bundle::on(rootfs, ["true"]));
        let log = cwrun.path("log");
        let log_options = ["--log", &log.to_string_lossy(), "run", "--bundle"].map(str::to_owned);
        let done = cwrun
            .command(log_options)
            .arg(bundle.path())
            .arg("run")
            .finish()
            .ok();
        assert_eq!(done.stderr, "");
        fs::read_to_string(&log).unwrap()
    };
    assert!(!run(&first).contains("given up"));
    let log = run(&second);
    assert!(
        log.contains("level=warning") && log.contains("given up what nobody uses"),
        "{log}"
    );
    let left = entries(&cwrun);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["source"], second.to_string_lossy().as_ref());

    // One that is in use does not.
    let user = cwrun.create("user", &on_memory(Bundle::on(&second, ["sleep", "1000"])));
    let bundle = on_memory(Bundle::on(&first, ["true"]));
    let done = cwrun.run("refused", &bundle).finish().expect(1);
    assert!(done.stderr.contains("No space left on device"), "{}", done.stderr);
    assert_eq!(cwrun.status(&user.id), "created");
    cwrun.ok(["start", "user"]);
    cwrun.ok(["delete", "--force", "user"]);
    assert_nothing_half_made(&cwrun, "after the user");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn no_room_for_the_upper_directory() {
    let cwrun = Cwrun::with_own_cache();
    let _mount = small_cache(&cwrun, 16 << 10);
    let mut stack = Stack::new();
    stack.busybox();
    let root = stack.mount("upper");
    fs::write(root.join("large"), pattern::bytes(20 << 20)).unwrap();
    let scratch = cwrun.cache().join("scratch").to_string_lossy().into_owned();
    let bundle = on_memory(Bundle::on(&root, ["true"]));
    refused(
        &cwrun,
        "upper",
        &bundle,
        &[&scratch, "cannot write", "No space left on device"],
    );
    assert_eq!(entries(&cwrun).len(), 1, "the layer itself was converted");
    fs::remove_file(root.join("large")).unwrap();
    cwrun.run("smaller", &bundle).finish().ok();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn no_room_for_what_the_workload_writes() {
    let cwrun = Cwrun::with_own_cache();
    let _mount = small_cache(&cwrun, 40 << 10);
    // An I/O error for who asks, and the end of the writable layer; machine, workload and host live on.
    let script = "yes 'a line of data' | dd of=/large bs=1M count=100 iflag=fullblock conv=fsync 2>/tmp/error && exit 1
        cat /tmp/error; echo alive; exit 7";
    let bundle = Bundle::script(script)
        .annotation("krun.ram_mib", "192")
        .with(|config| {
            config["mounts"].as_array_mut().unwrap().push(serde_json::json!(
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}
            ));
        });
    let log = cwrun.path("log");
    let done = cwrun
        .command(["--log", &log.to_string_lossy(), "run", "--bundle"])
        .arg(bundle.path())
        .arg("writer")
        .deadline(180)
        .finish()
        .expect(7);
    assert!(
        done.text().contains("Input/output error") && done.text().ends_with("alive\n"),
        "{}{}",
        done.text(),
        done.stderr
    );
    let log = fs::read_to_string(&log).unwrap();
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("fails on the host"))
        .collect();
    assert!(
        matches!(told.as_slice(), [line] if line.contains("disk scratch") && line.contains("No space left on device")),
        "{log}"
    );
    assert_nothing_half_made(&cwrun, "after the writer");
}

/// An ext4 file system with a root file system in it, on a disk that fails wherever one of its files lies.
struct BrokenDisk {
    rootfs: PathBuf,
    _mount: Mounted,
    _mapped: Mapped,
    _loop: Loop,
}

/// A loop device.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        // What is left shows in the check of the host.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A device-mapper device.
struct Mapped(&'static str);

impl Drop for Mapped {
    fn drop(&mut self) {
        // The mount's end may still be on its way.
        let remove = ["remove", "--retry", "--noudevsync", self.0];
        let _ = Command::new("dmsetup")
            .args(remove)
            .stderr(Stdio::null())
            .status();
    }
}

impl BrokenDisk {
    /// `place` is below the root file system.
    fn new(cwrun: &Cwrun, name: &'static str, place: &str) -> Self {
        let (image, at) = (cwrun.path(&format!("{name}.img")), cwrun.path(name));
        fs::create_dir(&at).unwrap();
        File::create(&image)
            .and_then(|file| file.set_len(64 << 20))
            .unwrap();
        command(
            "mke2fs",
            &[
                "-q".as_ref(),
                "-t".as_ref(),
                "ext4".as_ref(),
                "-b".as_ref(),
                "4096".as_ref(),
                &image,
            ],
        );
        {
            command("mount", &["-o".as_ref(), "loop".as_ref(), &image, &at]);
            let _mount = Mounted(at.clone());
            fs::create_dir_all(at.join("rootfs/deep/directory")).unwrap();
            copy(&bed().busybox(), &at.join("rootfs"));
            fs::write(at.join("rootfs/deep/data"), pattern::bytes(1 << 20)).unwrap();
            rustix::fs::syncfs(File::open(&at).unwrap()).unwrap();
        }
        let blocks = output(
            "debugfs",
            &["-R", &format!("blocks /rootfs/{place}"), &image.to_string_lossy()],
        );
        let block: u64 = blocks
            .split_whitespace()
            .next()
            .expect("it has a block")
            .parse()
            .expect("a number");
        let device = Loop(
            output("losetup", &["--find", "--show", &image.to_string_lossy()])
                .trim()
                .to_owned(),
        );
        let (bad, end) = (block * 8, (64 << 20) / 512);
        let table = format!(
            "0 {bad} linear {0} 0\n{bad} 8 error\n{1} {2} linear {0} {1}\n",
            device.0,
            bad + 8,
            end - bad - 8
        );
        let mapped = map(name, &table);
        let path = format!("/dev/mapper/{name}");
        command(
            "mount",
            &["-o".as_ref(), "ro,noload".as_ref(), path.as_ref(), &at],
        );
        Self {
            rootfs: at.join("rootfs"),
            _mount: Mounted(at),
            _mapped: mapped,
            _loop: device,
        }
    }
}

/// Makes a device-mapper device and its node.
fn map(name: &'static str, table: &str) -> Mapped {
    let mut dmsetup = Command::new("dmsetup")
        .args(["create", "--noudevsync", "--noudevrules", name])
        .stdin(Stdio::piped())
        .spawn()
        .expect("dmsetup is there");
    let mut stdin = dmsetup.stdin.take().expect("it is piped");
    stdin.write_all(table.as_bytes()).unwrap();
    drop(stdin);
    assert!(dmsetup.wait().unwrap().success(), "{table}");
    command("dmsetup", &["mknodes".as_ref(), name.as_ref()]);
    Mapped(name)
}

fn output(name: &str, args: &[&str]) -> String {
    let output = Command::new(name)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(
        output.status.success(),
        "{name} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_disk_of_the_host_that_fails() {
    let cwrun = Cwrun::with_own_cache();
    for (name, place) in [("bad-file", "deep/data"), ("bad-directory", "deep/directory")] {
        let disk = BrokenDisk::new(&cwrun, name, place);
        let path = disk.rootfs.join(place).to_string_lossy().into_owned();
        let bundle = on_memory(Bundle::on(&disk.rootfs, ["true"]));
        refused(&cwrun, name, &bundle, &["cannot ", &path, "Input/output error"]);
        assert_eq!(entries(&cwrun).len(), 0);
    }
}

/// Ends a thread, whether the test goes on or has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn files_that_do_not_stay_what_they_are() {
    let cwrun = Cwrun::with_own_cache();
    // What comes before the file takes a while.
    let root = rootfs(&cwrun, "churning", 24 << 20);
    let path = root.join("zz");
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("grows", |path| {
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .unwrap()
                .write_all(&[1; 5000])
                .unwrap();
        }),
        ("shrinks", |path| {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(if length < 5000 { 16 << 20 } else { length / 2 })
                .unwrap();
        }),
        ("vanishes", |path| {
            fs::write(path, "here").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::remove_file(path).unwrap();
        }),
    ];
    for (what, change) in changes {
        let _ = fs::remove_file(&path);
        change(&path);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    change(&path);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
            let stop = Stop(&over);
            // A file that was not there when the directory was listed is not part of it. It may be the directory that is seen to change.
            let told = |stderr: &str| {
                [path.as_path(), &root.join("")].iter().any(|changed| {
                    stderr.contains(&format!(
                        "{changed:?} changed while the root file system was being read"
                    ))
                })
            };
            let bundle = on_memory(Bundle::on(&root, ["true"]));
            let refusals = (0..5)
                .filter(|_| {
                    let done = cwrun.run("churning", &bundle).finish();
                    match done.code {
                        0 => false,
                        _ => {
                            assert!(done.code == 1 && told(&done.stderr), "{what}: {}", done.stderr);
                            true
                        }
                    }
                })
                .count();
            drop(stop);
            assert!(refusals > 0, "{what}: it was never noticed");
        });
        assert_nothing_half_made(&cwrun, what);
    }
}
