//! Root file systems as engines make them: overlays of layers, converted once and stacked in the guest.

use e2e::pattern::Choices;
use e2e::process::wait;
use e2e::tree::{self, Maker};
use e2e::{Bundle, Cwrun, bed, rounds};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The program that lists trees, on the host and in the guest.
const LIST_TREE: &str = env!("CARGO_BIN_EXE_list-tree");

/// Layers on a file system of their own, with all that an engine's store has, the lowest first, and overlays of them.
pub struct Stack {
    dir: tempfile::TempDir,
    /// The directories of layers made so far.
    pub layers: Vec<PathBuf>,
    mounted: Vec<PathBuf>,
}

impl Stack {
    pub fn new() -> Self {
        let dir = bed().scratch();
        let (image, store) = (dir.path().join("image"), dir.path().join("store"));
        // The bed's tmpfs may lack attributes of users.
        fs::File::create(&image)
            .and_then(|file| file.set_len(512 << 20))
            .expect("the bed is writable");
        fs::create_dir(&store).expect("the bed is writable");
        command("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), &image]);
        command("mount", &["-o".as_ref(), "loop".as_ref(), &image, &store]);
        Self {
            dir,
            layers: Vec::new(),
            mounted: vec![store],
        }
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("store").join(name);
        fs::create_dir(&path).expect("the bed is writable");
        path
    }

    /// A new layer above the others, empty.
    pub fn layer(&mut self) -> PathBuf {
        let path = self.directory(&format!("layer{}", self.layers.len()));
        self.layers.push(path.clone());
        path
    }

    /// A layer with busybox.
    pub fn busybox(&mut self) {
        let layer = self.layer();
        copy(&bed().busybox(), &layer);
    }

    /// Mounts the overlay of these layers; where it is.
    fn mount_of(&mut self, name: &str, layers: &[PathBuf], options: &str) -> PathBuf {
        let [upper, work, merged] =
            ["upper", "work", "merged"].map(|kind| self.directory(&format!("{name}-{kind}")));
        let lower: Vec<String> = layers
            .iter()
            .rev()
            .map(|layer| layer.display().to_string())
            .collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={}{options}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let data = CString::new(data).expect("no NUL");
        rustix::mount::mount(
            "overlay",
            &merged,
            "overlay",
            MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .expect("an overlay mount");
        self.mounted.push(merged.clone());
        merged
    }

    /// Mounts the overlay of all layers; where it is.
    pub fn mount(&mut self, name: &str) -> PathBuf {
        self.mount_of(name, &self.layers.clone(), "")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            // What is left shows in the check of the host.
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
        }
    }
}

/// Copies what is in a directory into another.
pub fn copy(from: &Path, to: &Path) {
    command("cp", &["-a".as_ref(), &from.join("."), to]);
}

/// Runs a program that succeeds.
pub fn command(name: &str, args: &[&Path]) {
    let status = Command::new(name)
        .args(args)
        .status()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(status.success(), "{name} {args:?}");
}

/// What `disk cache list` shows.
pub fn entries(cwrun: &Cwrun) -> Vec<Value> {
    let list: Value = serde_json::from_str(&cwrun.ok(["disk", "cache", "list", "--json"])).expect("JSON");
    list.as_array().expect("an array").clone()
}

/// What the guest shows of `/t` in this root file system.
fn seen_by_guest(cwrun: &Cwrun, rootfs: &Path, program: &[String]) -> String {
    let args = program.iter().map(String::as_str).chain(["/t"]);
    let bundle = Bundle::on(rootfs, args).with(|config| {
        // Trusted attributes are for those who may administrate.
        let all = serde_json::json!(["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = all.clone();
        }
    });
    cwrun.run("lister", &bundle).finish().ok().text()
}

fn assert_same(host: &str, guest: &str) {
    let differences: Vec<String> = host
        .lines()
        .filter(|line| !guest.lines().any(|other| other == *line))
        .map(|line| format!("- {line}"))
        .chain(
            guest
                .lines()
                .filter(|line| !host.lines().any(|other| other == *line))
                .map(|line| format!("+ {line}")),
        )
        .collect();
    assert!(
        differences.is_empty(),
        "{} entries on the host, {} in the guest:\n{}",
        host.lines().count(),
        guest.lines().count(),
        differences
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn stacked_layers_look_the_same_in_the_guest() {
    let cwrun = Cwrun::with_own_cache();
    let mut choices = Choices::new();
    for round in 0..rounds(2, 25) {
        let mut stack = Stack::new();
        let lowest = stack.layer();
        let program = tree::carry(Path::new(LIST_TREE), &lowest.join("list"), "/list");
        fs::create_dir(lowest.join("t")).unwrap();
        Maker::lowest(&mut choices).fill(&lowest.join("t"));
        for _ in 0..1 + choices.below(4) {
            let layer = stack.layer();
            fs::create_dir(layer.join("t")).unwrap();
            Maker::layer(&mut choices).fill(&layer.join("t"));
        }
        let merged = stack.mount("overlay");
        change_through(&merged.join("t"), &mut choices);
        fs::write(merged.join("t/last"), "in the upper directory").unwrap();
        let host = tree::list(Path::new(LIST_TREE), &merged.join("t"));
        assert!(host.contains("\n./last "), "round {round}: {host}");
        assert_same(&host, &seen_by_guest(&cwrun, &merged, &program));
        assert_eq!(
            entries(&cwrun).len(),
            stack.layers.len(),
            "a disk for each layer, none for the upper one"
        );
        cwrun.ok(["disk", "cache", "prune"]);
    }
}

/// Changes made through the mount, which leave marks of their own in the upper directory.
fn change_through(merged: &Path, choices: &mut Choices) {
    let names: Vec<_> = fs::read_dir(merged)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for path in names {
        let meta = path.symlink_metadata().unwrap();
        match choices.below(5) {
            0 if meta.is_dir() => fs::remove_dir_all(&path).unwrap(),
            0 => fs::remove_file(&path).unwrap(),
            1 if meta.is_dir() => {
                fs::remove_dir_all(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            2 if meta.is_file() => fs::write(&path, "changed").unwrap(),
            3 if meta.is_dir() => fs::write(path.join("new"), "new").unwrap(),
            _ => {}
        }
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_plain_directory_looks_the_same_in_the_guest() {
    let cwrun = Cwrun::with_own_cache();
    let mut choices = Choices::new();
    for _ in 0..rounds(1, 10) {
        let mut stack = Stack::new();
        let root = stack.layer();
        let program = tree::carry(Path::new(LIST_TREE), &root.join("list"), "/list");
        fs::create_dir(root.join("t")).unwrap();
        Maker::plain(&mut choices).fill(&root.join("t"));
        let host = tree::list(Path::new(LIST_TREE), &root.join("t"));
        assert_same(&host, &seen_by_guest(&cwrun, &root, &program));
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn images_that_share_layers_convert_them_once() {
    let cwrun = Cwrun::with_own_cache();
    let mut stack = Stack::new();
    stack.busybox();
    let first = stack.layer();
    fs::write(first.join("which"), "first").unwrap();
    let second = stack.layer();
    fs::write(second.join("which"), "second").unwrap();
    let base = stack.layers[0].clone();
    let one = stack.mount_of("one", &[base.clone(), first], "");
    let two = stack.mount_of("two", &[base, second], "");
    let which = |rootfs: &Path| {
        let bundle = Bundle::on(rootfs, ["cat", "/which"]);
        cwrun.run("which", &bundle).finish().ok().text()
    };
    assert_eq!(which(&one), "first");
    assert_eq!(entries(&cwrun).len(), 2);
    assert_eq!(which(&two), "second");
    assert_eq!(entries(&cwrun).len(), 3, "the base was there already");
    assert_eq!(which(&one), "first");
    assert_eq!(entries(&cwrun).len(), 3);

    // The upper directory is this container's own.
    fs::write(one.join("which"), "mine").unwrap();
    assert_eq!(which(&one), "mine");
    assert_eq!(which(&two), "second");
    assert_eq!(entries(&cwrun).len(), 3);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn many_creates_at_once_convert_a_new_image_once() {
    let count = rounds(4, 10);
    let cwrun = Cwrun::with_own_cache();
    let mut stack = Stack::new();
    stack.busybox();
    let big = stack.layer();
    fs::write(big.join("big"), e2e::pattern::bytes(8 << 20)).unwrap();
    let mounts: Vec<_> = (0..count)
        .map(|number| stack.mount(&format!("c{number}")))
        .collect();
    let containers: Vec<_> = mounts
        .iter()
        .enumerate()
        .map(|(number, rootfs)| {
            let bundle = Bundle::on(rootfs, ["true"])
                .annotation("krun.ram_mib", "192")
                .annotation("krun.cpus", "1");
            (cwrun.run(&format!("c{number}"), &bundle).spawn(), bundle)
        })
        .collect();
    for (mut running, _bundle) in containers {
        let status = wait(&mut running, Duration::from_secs(180), "cwrun run");
        assert!(status.success(), "{status}");
    }
    assert_eq!(entries(&cwrun).len(), 2);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_cannot_be_stacked_is_converted_as_it_shows() {
    let cwrun = Cwrun::with_own_cache();
    let mut stack = Stack::new();
    stack.busybox();
    fs::create_dir(stack.layers[0].join("old")).unwrap();
    fs::write(stack.layers[0].join("old/file"), "followed").unwrap();
    // A renamed directory leaves a redirect behind, which names a place in the layers below.
    let renamed = stack.mount_of("renamed", &stack.layers.clone(), ",redirect_dir=on");
    fs::rename(renamed.join("old"), renamed.join("new")).unwrap();
    let bundle = Bundle::on(&renamed, ["cat", "/new/file"]);
    assert_eq!(cwrun.run("redirect", &bundle).finish().ok().text(), "followed");
    // A mode changed without a copy of the data.
    let changed = stack.mount_of("changed", &stack.layers.clone(), ",metacopy=on,redirect_dir=on");
    std::os::unix::fs::chown(changed.join("old/file"), Some(7), Some(8)).unwrap();
    let bundle = Bundle::on(
        &changed,
        ["sh", "-c", "cat /old/file; stat -c ' %u:%g' /old/file"],
    );
    assert_eq!(
        cwrun.run("metacopy", &bundle).finish().ok().text(),
        "followed 7:8\n"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_store_that_was_filled_anew_is_another_layer() {
    let cwrun = Cwrun::with_own_cache();
    let mut stack = Stack::new();
    stack.busybox();
    let layer = stack.layer();
    fs::write(layer.join("which"), "before").unwrap();
    let run = |rootfs: &Path| {
        let bundle = Bundle::on(rootfs, ["cat", "/which"]);
        cwrun.run("which", &bundle).finish().ok().text()
    };
    let before = stack.mount("before");
    assert_eq!(run(&before), "before");
    rustix::mount::unmount(&before, UnmountFlags::empty()).unwrap();
    fs::remove_dir_all(&layer).unwrap();
    fs::create_dir(&layer).unwrap();
    fs::write(layer.join("which"), "after!").unwrap();
    let after = stack.mount("after");
    assert_eq!(run(&after), "after!");

    // A file deep in a store that somebody edits by hand is found when it is looked for.
    cwrun.ok(["disk", "cache", "verify"]);
    rustix::mount::unmount(&after, UnmountFlags::empty()).unwrap();
    fs::write(layer.join("which"), "edited").unwrap();
    let message = cwrun.refused(["disk", "cache", "verify"]);
    assert!(
        message.contains("1 disks in the cache were not good"),
        "{message}"
    );
    let edited = stack.mount("edited");
    assert_eq!(run(&edited), "edited");
}
