//! A guest of the real kind for tests and benchmarks: init under our kernel in our microVM, on disks of our making. Needs a KVM that
//! works, `target/guest` (`make guest`) and `target/rootfs/busybox` (`tests/testbed/rootfs`).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vmm::{Access, Boot, Config, Disk, Running, Vm, Vsock};
use workload::protocol::{
    CONTROL, Decoder, EVIDENCE, FailureKind, GUEST_CID, Keys, Outcome, REPORT, Request, Setup, Status,
    ToGuest, ToHost, encode, stdio,
};
use workload::{
    Blob, Crypt, Environment, Filesystem, Hex, Layer, Mount, MountFlag, Process, RootFs, Scratch, User,
    Verity, VolumeKey, Workload,
};

pub const MIB: u64 = 1 << 20;
/// An emulated machine under load is slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

fn built(name: &str) -> File {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest")).join(name);
    File::open(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make guest`", path.display()))
}

/// A root file system of busybox, plus what `edit` does to it.
pub fn rootfs(edit: impl FnOnce(&Path)) -> tempfile::TempDir {
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
pub struct Image {
    pub file: File,
    pub layer: Layer,
    pub key: VolumeKey,
}

pub fn convert(rootfs: &Path) -> Image {
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
pub struct Machine {
    pub images: Vec<Image>,
    pub scratch: Option<File>,
    /// Disks that no runtime would offer, after the scratch disk: for who wants to look at a disk and nothing else.
    pub raw: Vec<(File, Access)>,
    pub memory_mib: u64,
    pub workload: Workload,
}

impl Machine {
    pub fn new(images: Vec<Image>, script: &str) -> Self {
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
            raw: Vec::new(),
            memory_mib: 192,
            workload,
        }
    }

    pub fn boot(self) -> Guest {
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
        disks.extend(
            self.raw
                .iter()
                .map(|(file, access)| disk(vec![file], *access, "raw")),
        );
        let config = Config {
            kvm: File::options().read(true).write(true).open("/dev/kvm").unwrap(),
            boot: Boot::Kernel {
                kernel: built("vmlinux"),
                initrd: built("initrd"),
                cmdline: String::new(),
            },
            memory_mib: self.memory_mib,
            vcpus: 2,
            disks,
            nics: vec![],
            volumes: Vec::new(),
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
    pub fn run(self) -> (String, String, Status) {
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
pub struct Guest {
    pub running: Running,
    streams: Receiver<(u32, UnixStream)>,
    control: UnixStream,
    decoder: Decoder<ToHost>,
    ids: u32,
}

impl Guest {
    pub fn hear(&mut self) -> ToHost {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes) {
                Ok(count) if count > 0 => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                end => panic!(
                    "{end:?}; {:?}; {}",
                    self.running.try_exit(),
                    self.running.console_tail()
                ),
            }
        }
    }

    pub fn tell(&mut self, request: Request) {
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

    pub fn outcome(&mut self) -> Outcome {
        match self.hear() {
            ToHost::Reply { id, outcome } if id == self.ids => outcome,
            other => panic!("{other:?}"),
        }
    }

    pub fn ready(&mut self) {
        match self.outcome() {
            Outcome::Ready { phases } => eprintln!("{phases:?}"),
            other => panic!("{other:?}; {}", self.running.console_tail()),
        }
    }

    pub fn start(&mut self) {
        self.tell(Request::Start);
        assert_eq!(self.outcome(), Outcome::Done);
    }

    pub fn stdio(&mut self) -> [UnixStream; 3] {
        [0, 1, 2].map(|stream| {
            let (port, socket) = self.streams.recv_timeout(PATIENCE).unwrap();
            assert_eq!(port, stdio(0, stream));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// Answers the guest's question as a TEE that was launched with this host data.
    pub fn attest(&self, host_data: [u8; 32]) {
        let (port, mut stream) = self.streams.recv_timeout(PATIENCE).unwrap();
        assert_eq!(port, EVIDENCE);
        let mut nonce = [0; 64];
        stream.read_exact(&mut nonce).unwrap();
        let mut report = vec![0; REPORT];
        report[0x50..0x90].copy_from_slice(&nonce);
        report[0xc0..0xe0].copy_from_slice(&host_data);
        stream.write_all(&report).unwrap();
    }

    pub fn exited(mut self) -> Status {
        match self.hear() {
            ToHost::Exited { process: 0, status } => status,
            other => panic!("{other:?}"),
        }
    }

    pub fn failed(mut self) -> (FailureKind, String) {
        match self.outcome() {
            Outcome::Failed { kind, message } => (kind, message),
            other => panic!("{other:?}"),
        }
    }
}

pub fn read(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        text.extend(format!("<{error}>").bytes());
    }
    String::from_utf8_lossy(&text).into_owned()
}

pub fn mount(destination: &str, filesystem: Filesystem, flags: &[MountFlag], options: &[&str]) -> Mount {
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
        time_offsets: [].into(),
        devices: Vec::new(),
        start_hooks: Vec::new(),
        root_propagation: None,
        tee: None,
        sealed: None,
    }
}
