//! The real thing: init under our kernel in our microVM, on disks of our making. Needs a KVM that works, `target/guest`
//! (`make guest`) and `target/rootfs/busybox` (`tests/testbed/rootfs`). In the testbed:
//! `cargo test -p init --test guest -- --ignored`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vmm::{Access, Config, Disk, Running, Vm, Vsock};
use workload::protocol::{
    CONTROL, Decoder, FailureKind, GUEST_CID, Keys, Outcome, Request, Setup, Status, ToGuest, ToHost, encode,
    stdio,
};
use workload::{
    Blob, Crypt, Environment, Filesystem, Hex, Layer, Mount, MountFlag, Process, RootFs, Scratch, User,
    Verity, VolumeKey, Workload,
};

const MIB: u64 = 1 << 20;
/// An emulated machine under load is slow.
const PATIENCE: Duration = Duration::from_secs(120);

fn built(name: &str) -> File {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest")).join(name);
    File::open(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make guest`", path.display()))
}

/// A root file system of busybox, plus what `edit` does to it.
fn rootfs(edit: impl FnOnce(&Path)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/rootfs/busybox/.");
    let copied = Command::new("cp")
        .args(["-a", from])
        .arg(directory.path())
        .status()
        .unwrap();
    assert!(copied.success(), "run `tests/testbed/rootfs`");
    edit(directory.path());
    directory
}

/// A converted layer.
struct Image {
    file: File,
    layer: Layer,
    key: VolumeKey,
}

fn convert(rootfs: &Path) -> Image {
    let file = tempfile::tempfile().unwrap();
    let unlock = disk::Unlock::generate().unwrap();
    let layout = disk::build(rootfs, &file, &unlock, &disk::Options::default())
        .unwrap()
        .layout;
    let layer = Layer {
        crypt: Crypt {
            offset: layout.payload_offset,
            length: layout.payload_bytes,
            sector_size: layout.sector_size,
        },
        verity: Verity {
            data_blocks: layout.data_blocks,
            hash_start_block: layout.hash_tree_offset / 4096,
            salt: Hex(layout.salt),
            root_hash: Hex(layout.root_hash),
        },
    };
    let key = VolumeKey::from_bytes(*unlock.volume_key().as_bytes());
    Image { file, layer, key }
}

/// A machine to be.
struct Machine {
    images: Vec<Image>,
    scratch: Option<File>,
    memory_mib: u64,
    workload: Workload,
}

impl Machine {
    fn new(images: Vec<Image>, script: &str) -> Self {
        let mut end = 0;
        let on_disk = |image: &Image| {
            let mut layer = image.layer.clone();
            layer.crypt.offset += end;
            end += image.file.metadata().unwrap().len();
            layer
        };
        let workload = workload(script, images.iter().map(on_disk).collect());
        Self {
            images,
            scratch: None,
            memory_mib: 192,
            workload,
        }
    }

    fn boot(self) -> Guest {
        let (sender, streams) = channel();
        let connect = move |port| {
            let (ours, theirs) = UnixStream::pair().ok()?;
            sender.send((port, theirs)).ok()?;
            Some(ours)
        };
        let disk = |files: Vec<&File>, access, serial: &str| Disk {
            files: files.iter().map(|file| file.try_clone().unwrap()).collect(),
            access,
            serial: serial.into(),
        };
        let layers = self.images.iter().map(|image| &image.file).collect();
        let mut disks = vec![disk(layers, Access::ReadOnly, "layers")];
        disks.extend(
            self.scratch
                .iter()
                .map(|file| disk(vec![file], Access::Scratch, "scratch")),
        );
        let config = Config {
            kvm: File::options().read(true).write(true).open("/dev/kvm").unwrap(),
            kernel: built("vmlinux"),
            initrd: built("initrd"),
            cmdline: String::new(),
            memory_mib: self.memory_mib,
            vcpus: 2,
            disks,
            nics: vec![],
            vsock: Vsock {
                guest_cid: GUEST_CID,
                connect: Box::new(connect),
            },
            console: None,
        };
        let running = Vm::new(config).unwrap().start().unwrap();
        let (port, control) = streams
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{}", running.console_tail()));
        assert_eq!(port, CONTROL);
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Guest {
            running,
            streams,
            control,
            decoder: Decoder::default(),
            ids: 0,
        };
        let hello = guest.hear();
        assert!(
            matches!(&hello, ToHost::Hello { kernel, .. } if kernel.ends_with("-cwrun")),
            "{hello:?}"
        );
        guest.tell(Request::Setup(Box::new(Setup {
            workload: Blob(self.workload.to_bytes()),
            environment: Environment::default(),
            keys: Keys::Layers {
                keys: self.images.into_iter().map(|image| image.key).collect(),
            },
            unix_time_ns: std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
            debug: true,
        })));
        guest
    }

    /// Boots, starts and waits: standard output, standard error and status.
    fn run(self) -> (String, String, Status) {
        let mut guest = self.boot();
        guest.ready();
        let [_, output, error] = guest.stdio();
        guest.start();
        let error = std::thread::spawn(move || read(error));
        let output = read(output);
        let error = error.join().unwrap();
        eprintln!("{output}{error}{}", guest.running.console_tail());
        (output, error, guest.exited())
    }
}

/// A guest that runs.
struct Guest {
    running: Running,
    streams: Receiver<(u32, UnixStream)>,
    control: UnixStream,
    decoder: Decoder<ToHost>,
    ids: u32,
}

impl Guest {
    fn hear(&mut self) -> ToHost {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes) {
                Ok(count) if count > 0 => self.decoder.push(&bytes[..count]),
                end => panic!(
                    "{end:?}; {:?}; {}",
                    self.running.try_exit(),
                    self.running.console_tail()
                ),
            }
        }
    }

    fn tell(&mut self, request: Request) {
        self.ids += 1;
        self.control
            .write_all(
                &encode(&ToGuest {
                    id: self.ids,
                    request,
                })
                .unwrap(),
            )
            .unwrap();
    }

    fn outcome(&mut self) -> Outcome {
        match self.hear() {
            ToHost::Reply { id, outcome } if id == self.ids => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn ready(&mut self) {
        match self.outcome() {
            Outcome::Ready { phases } => eprintln!("{phases:?}"),
            other => panic!("{other:?}; {}", self.running.console_tail()),
        }
    }

    fn start(&mut self) {
        self.tell(Request::Start);
        assert_eq!(self.outcome(), Outcome::Done);
    }

    fn stdio(&mut self) -> [UnixStream; 3] {
        [0, 1, 2].map(|stream| {
            let (port, socket) = self.streams.recv_timeout(PATIENCE).unwrap();
            assert_eq!(port, stdio(0, stream));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    fn exited(mut self) -> Status {
        match self.hear() {
            ToHost::Exited { process: 0, status } => status,
            other => panic!("{other:?}"),
        }
    }

    fn failed(mut self) -> (FailureKind, String) {
        match self.outcome() {
            Outcome::Failed { kind, message } => (kind, message),
            other => panic!("{other:?}"),
        }
    }
}

fn read(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        text.extend(format!("<{error}>").bytes());
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn mount(destination: &str, filesystem: Filesystem, flags: &[MountFlag], options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        filesystem,
        flags: flags.iter().copied().collect(),
        options: options.iter().map(|&option| option.into()).collect(),
    }
}

fn workload(script: &str, layers: Vec<Layer>) -> Workload {
    use MountFlag::{Nodev, Noexec, Nosuid, Ro};
    Workload {
        version: Workload::VERSION,
        root: RootFs::Layers { layers },
        scratch: Scratch::Ram { bytes: 64 * MIB },
        readonly_root: false,
        process: Process {
            args: ["sh", "-c", script].map(String::from).into(),
            env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
            cwd: "/".into(),
            user: User::default(),
            terminal: false,
            capabilities: None,
            rlimits: Vec::new(),
            no_new_privileges: false,
            oom_score_adj: None,
            seccomp: None,
            scheduler: None,
            io_priority: None,
            personality: None,
        },
        mounts: vec![
            mount("/proc", Filesystem::Proc, &[], &[]),
            mount("/dev", Filesystem::Tmpfs, &[Nosuid], &["mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                Filesystem::Devpts,
                &[Nosuid, Noexec],
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount(
                "/dev/shm",
                Filesystem::Tmpfs,
                &[Nosuid, Noexec, Nodev],
                &["mode=1777", "size=64m"],
            ),
            mount("/dev/mqueue", Filesystem::Mqueue, &[Nosuid, Noexec, Nodev], &[]),
            mount("/sys", Filesystem::Sysfs, &[Nosuid, Noexec, Nodev, Ro], &[]),
            mount(
                "/sys/fs/cgroup",
                Filesystem::Cgroup2,
                &[Nosuid, Noexec, Nodev, Ro],
                &[],
            ),
        ],
        masked_paths: vec!["/proc/keys".into(), "/sys/firmware".into()],
        readonly_paths: vec!["/proc/sys".into()],
        sysctl: [("net.ipv4.ping_group_range".to_owned(), "0 0".to_owned())].into(),
        devices: Vec::new(),
        start_hooks: Vec::new(),
        root_propagation: None,
    }
}

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
    let script = "for i in $(seq 160); do cat /pattern || exit 1; done >/big
        dd if=/big bs=1M 2>/dev/null | sha256sum; for i in $(seq 160); do cat /pattern; done | sha256sum; rm /big";
    let mut machine = Machine::new(vec![convert(root.path())], script);
    machine.memory_mib = 128;
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
