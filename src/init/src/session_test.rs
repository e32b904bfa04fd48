//! Whole containers on this machine's kernel: the root is a tmpfs with busybox in it, streams and control are socket
//! pairs, and all of it lives in namespaces that go away with the test. Needs root, and busybox in `PATH`.

use super::*;
use crate::container::Container;
use crate::mount::NewFs;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use workload::protocol::{Decoder, encode};
use workload::{
    Blob, Capabilities, Capability, Crypt, Environment, Filesystem, Hex, InjectedFile, Layer, Mount,
    MountFlag, Rlimit, RootFs, Scratch, User, Verity, Workload,
};

/// The host's side of one container.
struct Host {
    control: UnixStream,
    decoder: Decoder<ToHost>,
    /// Standard input, output and error; with a terminal, the one stream.
    streams: Vec<Option<UnixStream>>,
    guest: Option<JoinHandle<()>>,
    ids: u32,
}

fn pair() -> (UnixStream, OwnedFd) {
    let (host, guest) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let host = UnixStream::from(host);
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (host, guest)
}

/// A socket with a time-out is interrupted by what any other is restarted after (signal(7)).
fn read_some(stream: &mut UnixStream, bytes: &mut [u8]) -> usize {
    loop {
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            count => return count.unwrap(),
        }
    }
}

impl Host {
    /// Sets up the container that `edit` describes, from `sh -c <script>` as root.
    fn set_up(script: &str, edit: impl FnOnce(&mut Workload, &mut Environment)) -> Self {
        let (mut workload, mut environment) = (workload(script), Environment::default());
        edit(&mut workload, &mut environment);
        let (control, guest_control) = pair();
        let count = if workload.process.terminal { 1 } else { 3 };
        let (streams, sockets): (Vec<_>, Vec<_>) = (0..count).map(|_| pair()).unzip();
        let guest = thread::spawn(move || guest(&workload, &environment, guest_control, sockets));
        Self {
            control,
            decoder: Decoder::default(),
            streams: streams.into_iter().map(Some).collect(),
            guest: Some(guest),
            ids: 1,
        }
    }

    fn run(script: &str, edit: impl FnOnce(&mut Workload, &mut Environment)) -> (String, String, Status) {
        let mut host = Self::set_up(script, edit);
        host.ready();
        host.start();
        host.streams[0] = None;
        let (output, error) = (host.read(1), host.read(2));
        (output, error, host.exited())
    }

    fn hear(&mut self) -> ToHost {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            let count = read_some(&mut self.control, &mut bytes);
            assert_ne!(count, 0, "the guest hung up");
            self.decoder.push(&bytes[..count]);
        }
    }

    fn ready(&mut self) {
        let message = self.hear();
        let ready = matches!(
            &message,
            ToHost::Reply {
                id: 1,
                outcome: Outcome::Ready { .. }
            }
        );
        assert!(ready, "{message:?}");
    }

    fn ask(&mut self, request: Request) -> Outcome {
        self.ids += 1;
        let id = self.ids;
        self.control
            .write_all(&encode(&ToGuest { id, request }).unwrap())
            .unwrap();
        match self.hear() {
            ToHost::Reply {
                id: answered,
                outcome,
            } if answered == id => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self) {
        assert_eq!(self.ask(Request::Start), Outcome::Done);
    }

    fn read(&mut self, stream: usize) -> String {
        let mut text = Vec::new();
        self.streams[stream]
            .as_mut()
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        self.streams[stream] = None;
        String::from_utf8(text).unwrap()
    }

    /// Reads output until it ends with `wanted`.
    fn read_until(&mut self, stream: usize, wanted: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(wanted) {
            let mut byte = [0];
            let count = read_some(self.streams[stream].as_mut().unwrap(), &mut byte);
            assert_ne!(count, 0, "ended with {text:?}");
            text.push(char::from(byte[0]));
        }
        text
    }

    fn exited(mut self) -> Status {
        self.streams.clear();
        let status = match self.hear() {
            ToHost::Exited { process: 0, status } => status,
            other => panic!("{other:?}"),
        };
        self.guest.take().unwrap().join().unwrap();
        status
    }

    fn failed(mut self) -> (FailureKind, String) {
        match self.hear() {
            ToHost::Reply {
                outcome: Outcome::Failed { kind, message },
                ..
            } => (kind, message),
            other => panic!("{other:?}"),
        }
    }
}

/// The guest's side, as `guest::run` does it, less the disks.
fn guest(workload: &Workload, environment: &Environment, control: OwnedFd, sockets: Sockets) {
    assert!(rustix::process::getuid().is_root(), "these tests need root");
    // SAFETY: the flag makes no descriptors private to this thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (root, files) = (directory.path().join("root"), directory.path().join("files"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&files).unwrap();
    let (root, files) = (root.to_str().unwrap(), files.to_str().unwrap());
    NewFs::open("tmpfs")
        .unwrap()
        .mount(MountAttrFlags::empty())
        .unwrap()
        .attach_at(root)
        .unwrap();
    furnish(Path::new(root));
    let container = Container {
        workload,
        environment,
        root,
        files,
        cgroup: None,
    };
    let mut control = Control::new(control);
    match Process::prepare(&container) {
        Ok((process, streams)) => {
            control.reply(1, Outcome::Ready { phases: Vec::new() }).unwrap();
            // Ends with an error when a test has seen enough and hangs up.
            let mut session = Session::new(control, process, streams, sockets, None).unwrap();
            if workload.tee.is_some() {
                session.identify(Identity {
                    workload: workload.to_bytes(),
                    reports,
                });
            }
            let _ = session.run();
        }
        Err(failure) => control.reply(1, failure.into()).unwrap(),
    }
}

/// A TEE that reports nothing but the question.
fn reports(report_data: &[u8; 64]) -> crate::failure::Result<crate::evidence::Evidence> {
    Ok(crate::evidence::Evidence {
        report: report_data.to_vec(),
        certificates: vec![7],
    })
}

/// A root file system of busybox and a few odd files.
fn furnish(root: &Path) {
    for directory in [
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "image",
        "bin/directory",
    ] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    let busybox = std::env::var("PATH")
        .unwrap()
        .split(':')
        .map(|directory| Path::new(directory).join("busybox"))
        .find(|path| path.exists())
        .expect("busybox is needed in PATH");
    // Written by another process: a descriptor of our own, open for writing, could be inherited by a child that another
    // test forks at this moment, and then nobody could execute the file (ETXTBSY).
    let copied = std::process::Command::new("cp")
        .arg(busybox)
        .arg(root.join("bin/busybox"))
        .status()
        .unwrap();
    assert!(copied.success());
    for name in [
        "sh",
        "cat",
        "id",
        "ls",
        "sleep",
        "stty",
        "head",
        "sha256sum",
        "dd",
        "hostname",
        "mkdir",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("image/kept"), "from the image").unwrap();
    fs::write(root.join("bin/plain"), "no program").unwrap();
    for (name, content) in [
        ("garbage", "\0\0\0\0 not a program"),
        ("orphan", "#!/no/such/interpreter\n"),
    ] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = root.join("bin").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn mount(destination: &str, filesystem: Filesystem, flags: &[MountFlag], options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        filesystem,
        flags: flags.iter().copied().collect(),
        options: options.iter().map(|&option| option.into()).collect(),
    }
}

pub(crate) fn workload(script: &str) -> Workload {
    Workload {
        version: Workload::VERSION,
        root: RootFs::Layers {
            layers: vec![Layer {
                crypt: Crypt {
                    offset: 0,
                    length: 8192,
                    sector_size: 4096,
                },
                verity: Verity {
                    data_blocks: 1,
                    hash_start_block: 1,
                    salt: Hex([0; 32]),
                    root_hash: Hex([0; 32]),
                },
            }],
        },
        scratch: Scratch::Ram { bytes: 1 << 20 },
        readonly_root: false,
        process: workload::Process {
            args: ["sh", "-c", script].map(String::from).into(),
            env: vec!["PATH=/bin".into()],
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
            mount(
                "/dev",
                Filesystem::Tmpfs,
                &[MountFlag::Nosuid],
                &["mode=755", "size=65536k"],
            ),
            mount(
                "/dev/pts",
                Filesystem::Devpts,
                &[],
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/mqueue", Filesystem::Mqueue, &[MountFlag::Nodev], &[]),
        ],
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        sysctl: BTreeMap::new(),
        time_offsets: BTreeMap::new(),
        devices: Vec::new(),
        start_hooks: Vec::new(),
        root_propagation: None,
        tee: None,
        sealed: None,
    }
}

fn nothing(_: &mut Workload, _: &mut Environment) {}

#[test]
fn output_error_and_status_each_go_their_own_way() {
    let (output, error, status) = Host::run("echo out; echo err >&2; exit 7", nothing);
    assert_eq!(
        (&*output, &*error, status),
        ("out\n", "err\n", Status::Code { code: 7 })
    );
    let (.., status) = Host::run("sh -c 'kill -9 $$'; exit $?", nothing);
    assert_eq!(status, Status::Code { code: 137 });
}

#[test]
fn the_workload_is_the_first_process_of_a_world_of_its_own() {
    let script = "echo $$; hostname; cat /proc/sys/kernel/msgmax; echo $HOME; ls /proc/self/fd; cat /proc/self/oom_score_adj
        sleep 1000 & exec 9</dev/null; for d in null zero full random urandom tty fd stdin ptmx; do ls /dev/$d >/dev/null || echo no $d; done
        echo reopened >/dev/stdout; echo x >/dev/null";
    let (output, error, status) = Host::run(script, |workload, environment| {
        environment.hostname = Some("guest".into());
        workload.sysctl.insert("kernel.msgmax".into(), "4321".into());
        workload.process.oom_score_adj = Some(77);
    });
    // Descriptor 3 is the directory that `ls` reads.
    assert_eq!(
        (&*output, &*error),
        ("1\nguest\n4321\n/root\n0\n1\n2\n3\n77\nreopened\n", "")
    );
    assert_eq!(status, Status::Code { code: 0 });
}

#[test]
fn the_user_has_its_ids_limits_mask_and_capabilities_and_no_more() {
    let script =
        "id -u; id -g; id -G; umask; ulimit -n; cat /proc/self/status; echo $HOME; echo x >/dev/stdout";
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|name| Capability::by_name(name).unwrap())
            .collect()
    };
    let (output, error, _) = Host::run(script, |workload, _| {
        let process = &mut workload.process;
        process.user = User {
            uid: 1000,
            gid: 1001,
            additional_gids: vec![7, 8],
            umask: Some(0o27),
        };
        process.rlimits = vec![Rlimit {
            resource: "RLIMIT_NOFILE".into(),
            soft: 100,
            hard: 200,
        }];
        process.no_new_privileges = true;
        process.capabilities = Some(Capabilities {
            bounding: set(&["CAP_CHOWN", "CAP_KILL"]),
            effective: set(&["CAP_KILL"]),
            permitted: set(&["CAP_CHOWN", "CAP_KILL"]),
            inheritable: set(&["CAP_KILL"]),
            ambient: set(&["CAP_KILL"]),
        });
    });
    assert_eq!(error, "");
    assert!(
        output.starts_with("1000\n1001\n1001 7 8\n0027\n100\n"),
        "{output}"
    );
    assert!(output.ends_with("/home/me\nx\n"), "{output}");
    for line in [
        "CapInh:\t0000000000000020",
        "CapPrm:\t0000000000000020",
        "CapBnd:\t0000000000000021",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
    ] {
        assert!(output.contains(line), "{line} not in {output}");
    }
}

#[test]
fn mounts_masks_and_files_are_as_the_workload_says() {
    let script =
        "cat /tmp/kept; echo; ls /image | head -1; cat /etc/hosts; cat /proc/keys; ls /proc/fs; echo new >/x
        echo y >/proc/sys/kernel/msgmax; echo z >/etc/hosts; cat /run/deep/secret; ls -ld /tmp";
    let (output, error, _) = Host::run(script, |workload, environment| {
        workload.mounts.push(mount(
            "/image",
            Filesystem::Tmpfs,
            &[MountFlag::Ro],
            &["tmpcopyup"],
        ));
        workload
            .mounts
            .push(mount("/tmp", Filesystem::Tmpfs, &[], &["mode=1777"]));
        workload.masked_paths = vec!["/proc/keys".into(), "/proc/fs".into(), "/no/such".into()];
        workload.readonly_paths = vec!["/proc/sys".into(), "/no/such".into()];
        workload.readonly_root = true;
        workload.process.args[2] = script.replace("/tmp/kept", "/image/kept");
        let file = |destination: &str, content: &str, readonly| InjectedFile {
            destination: destination.into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            readonly,
            content: Blob(content.into()),
        };
        environment.files = vec![
            file("/etc/hosts", "127.0.0.1 x\n", true),
            file("/run/deep/secret", "s\n", false),
        ];
    });
    let expected = "from the image\nkept\n127.0.0.1 x\ns\ndrwxrwxrwt";
    assert!(output.starts_with(expected), "{output}");
    for path in ["/x", "/proc/sys/kernel/msgmax", "/etc/hosts"] {
        let line = format!("can't create {path}: Read-only file system");
        assert!(error.contains(&line), "{line} not in {error}");
    }
}

#[test]
fn programs_that_can_t_run_fail_in_the_engine_s_words() {
    let failed =
        |name: &str| Host::set_up("", |workload, _| workload.process.args = vec![name.into()]).failed();
    let not_found = "executable file `foo` not found in $PATH: No such file or directory";
    assert_eq!(failed("foo"), (FailureKind::NotFound, not_found.into()));
    for name in ["plain", "directory"] {
        let message = format!("open executable `/bin/{name}`: Permission denied");
        assert_eq!(failed(name), (FailureKind::NotExecutable, message));
    }
    let started = |name: &str| {
        let mut host = Host::set_up("", |workload, _| workload.process.args = vec![name.into()]);
        host.ready();
        host.ask(Request::Start)
    };
    let message = "exec container process `/bin/garbage`: Exec format error".into();
    assert_eq!(
        started("garbage"),
        Outcome::Failed {
            kind: FailureKind::NotExecutable,
            message
        }
    );
    let message =
        "exec container process (missing dynamic library?) `/bin/orphan`: No such file or directory".into();
    assert_eq!(
        started("orphan"),
        Outcome::Failed {
            kind: FailureKind::NotFound,
            message
        }
    );
}

#[test]
fn set_up_failures_name_the_field_and_the_path() {
    let failed = |edit: fn(&mut Workload)| Host::set_up("true", |workload, _| edit(workload)).failed().1;
    let message = failed(|w| w.mounts.push(mount("/etc/passwd/x", Filesystem::Tmpfs, &[], &[])));
    assert_eq!(
        message,
        "mount /etc/passwd/x: create /etc/passwd/x: Not a directory"
    );
    let message = failed(|w| {
        w.mounts
            .push(mount("/tmp", Filesystem::Tmpfs, &[], &["size=many"]))
    });
    assert!(
        message.starts_with("mount /tmp: tmpfs size=many: Invalid argument"),
        "{message}"
    );
    let message = failed(|w| w.mounts.push(mount("/", Filesystem::Tmpfs, &[], &[])));
    assert_eq!(message, "mount /: the root itself can't be mounted over");
    let message = failed(|w| w.process.cwd = "/etc/passwd".into());
    assert_eq!(message, "process.cwd: /etc/passwd: Not a directory");
    let message = failed(|w| drop(w.sysctl.insert("kernel.no_such".into(), "1".into())));
    assert_eq!(
        message,
        "linux.sysctl: set kernel.no_such to \"1\": No such file or directory"
    );
}

#[test]
fn a_missing_working_directory_is_made() {
    let (output, ..) = Host::run("pwd", |workload, _| {
        workload.process.cwd = "/made/on/the/way".into()
    });
    assert_eq!(output, "/made/on/the/way\n");
}

#[test]
fn signals_reach_the_workload_and_a_trap_can_answer() {
    let mut host = Host::set_up(
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
        nothing,
    );
    host.ready();
    host.start();
    host.read_until(1, "up\n");
    // No handler, first process of its namespace: nothing happens.
    let send = |signal, all| Request::Signal {
        process: 0,
        signal,
        all,
    };
    assert_eq!(host.ask(send(libc::SIGUSR1, false)), Outcome::Done);
    assert!(matches!(host.ask(send(65, false)), Outcome::Failed { .. }));
    assert_eq!(host.ask(send(libc::SIGTERM, false)), Outcome::Done);
    assert_eq!(host.read(1), "bye\n");
    assert_eq!(host.exited(), Status::Code { code: 3 });
}

#[test]
fn sigkill_ends_a_container_that_was_never_started() {
    let mut host = Host::set_up("true", nothing);
    host.ready();
    assert_eq!(
        host.ask(Request::Signal {
            process: 0,
            signal: libc::SIGKILL,
            all: false
        }),
        Outcome::Done
    );
    assert_eq!(host.exited(), Status::Signal { signal: 9 });
}

#[test]
fn a_hundred_megabytes_each_way_at_once() {
    const CHUNK: usize = 1 << 20;
    // A background job of a shell has /dev/null as its input, unless told otherwise.
    let script = "exec 3<&0; sha256sum <&3 & dd if=/dev/zero bs=1M count=100 >&2 2>/dev/null; wait";
    let mut host = Host::set_up(script, nothing);
    host.ready();
    host.start();
    let mut stdin = host.streams[0].take().unwrap();
    let writer = thread::spawn(move || {
        let block = vec![0; CHUNK];
        (0..100).for_each(|_| stdin.write_all(&block).unwrap());
    });
    let mut stderr = host.streams[2].take().unwrap();
    let reader = thread::spawn(move || {
        let mut block = vec![0; CHUNK];
        std::iter::from_fn(|| Some(stderr.read(&mut block).unwrap()).filter(|n| *n > 0)).sum::<usize>()
    });
    let sum = host.read(1);
    writer.join().unwrap();
    assert_eq!(reader.join().unwrap(), 100 * CHUNK);
    assert_eq!(
        sum,
        "20492a4d0d84f8beb1767f6616229f85d44c2827b64bdbfb260ee12fa1109e0e  -\n"
    );
    assert_eq!(host.exited(), Status::Code { code: 0 });
}

#[test]
fn output_that_nobody_reads_holds_up_the_end_and_is_not_lost() {
    let mut host = Host::set_up("dd if=/dev/zero bs=1k count=300 2>/dev/null", nothing);
    host.ready();
    host.start();
    host.control
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(
        host.control.read(&mut [0]).is_err(),
        "Exited came before the output was read"
    );
    host.control
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(host.read(1).len(), 300 << 10);
    assert_eq!(host.exited(), Status::Code { code: 0 });
}

#[test]
fn a_reader_that_goes_away_is_a_broken_pipe_to_the_workload() {
    let mut host = Host::set_up("trap 'exit 5' PIPE; while echo y; do :; done; exit 5", nothing);
    host.ready();
    host.start();
    host.read_until(1, "y\n");
    host.streams[1] = None;
    assert_eq!(host.exited(), Status::Code { code: 5 });
}

#[test]
fn a_terminal_is_a_terminal_with_the_engine_s_size() {
    let script = "stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; echo c >/dev/console; echo t >/dev/tty; ls -l /dev/console | head -c 1
        trap 'stty size; exit 4' WINCH; echo .; while :; do sleep 0.05; done";
    let mut host = Host::set_up(script, |workload, environment| {
        workload.process.terminal = true;
        environment.console_size = Some((33, 99));
    });
    host.ready();
    host.start();
    let text = host.read_until(0, ".\r\n");
    assert_eq!(text, "33 99\r\ntty\r\nc\r\nt\r\nc.\r\n");
    assert_eq!(
        host.ask(Request::Resize {
            process: 0,
            rows: 11,
            columns: 22
        }),
        Outcome::Done
    );
    assert_eq!(host.read(0), "11 22\r\n");
    assert_eq!(host.exited(), Status::Code { code: 4 });
}

#[test]
fn a_terminal_echoes_and_interrupts() {
    let mut host = Host::set_up(
        "trap 'echo int; exit 6' INT; echo .; while :; do sleep 0.05; done",
        |workload, _| {
            workload.process.terminal = true;
        },
    );
    host.ready();
    host.start();
    host.read_until(0, ".\r\n");
    host.streams[0].as_mut().unwrap().write_all(&[3]).unwrap();
    assert_eq!(host.read(0), "^Cint\r\n");
    assert_eq!(host.exited(), Status::Code { code: 6 });
}

#[test]
fn a_second_start_and_a_resize_without_terminal_are_refused() {
    let mut host = Host::set_up("sleep 60", nothing);
    host.ready();
    host.start();
    assert!(matches!(host.ask(Request::Start), Outcome::Failed { .. }));
    assert!(matches!(
        host.ask(Request::Resize {
            process: 0,
            rows: 1,
            columns: 1
        }),
        Outcome::Failed { .. }
    ));
    assert_eq!(
        host.ask(Request::Signal {
            process: 0,
            signal: libc::SIGKILL,
            all: false
        }),
        Outcome::Done
    );
    assert_eq!(host.exited(), Status::Signal { signal: 9 });
}

#[test]
fn a_verifier_gets_a_report_for_the_hash_of_its_nonce_and_the_workload() {
    let tee = workload::Tee {
        kind: workload::TeeKind::Sim,
        exec: false,
    };
    let mut bytes = Vec::new();
    let mut host = Host::set_up("read -r line", |workload, _| {
        workload.tee = Some(tee);
        bytes = workload.to_bytes();
    });
    host.ready();
    host.start();
    let nonce: workload::Nonce = "0123456789abcdef".parse().unwrap();
    let expected = Outcome::Evidence {
        report: Blob(nonce.report_data().to_vec()),
        certificates: Blob(vec![7]),
        workload: Blob(bytes),
    };
    for _ in 0..2 {
        let nonce = nonce.clone();
        assert_eq!(host.ask(Request::Attest { nonce }), expected);
    }
    host.streams[0] = None;
    host.exited();
}

#[test]
fn a_container_without_a_tee_has_nobody_to_vouch_for_it() {
    let mut host = Host::set_up("read -r line", |_, _| {});
    host.ready();
    host.start();
    let nonce = "0123456789abcdef".parse().unwrap();
    let Outcome::Failed { kind, message } = host.ask(Request::Attest { nonce }) else {
        panic!("there is no evidence")
    };
    assert_eq!(kind, FailureKind::Other);
    assert!(message.contains("not confidential"), "{message}");
    host.streams[0] = None;
    host.exited();
}
