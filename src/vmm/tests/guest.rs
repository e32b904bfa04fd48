//! Boots real guests. Needs a KVM that works, a C compiler, and the guest kernel (`target/guest/vmlinux`, or the path in
//! `CWRUN_TEST_KERNEL`). In the testbed: `cargo test -p vmm --test guest -- --ignored`.
//!
//! The guests' init is `guest/init.c`; this side serves its ports.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::{Access, Boot, Config, Disk, Exit, MIN_MEMORY_MIB, Running, Vm, Vsock};

const MIB: usize = 1 << 20;
const BULK: usize = 100 * MIB;
/// An emulated machine under load is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every long stream carries, from position `at` (a multiple of 8) on: see `fill` in init.c.
fn pattern(at: usize, bytes: usize) -> Vec<u8> {
    let words = (at / 8) as u64..((at + bytes).div_ceil(8)) as u64;
    let mut pattern: Vec<u8> = words
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    pattern.truncate(bytes);
    pattern
}

/// The pattern for the longest stream, made once: a debug build in an emulated machine is slow.
fn whole_pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| pattern(0, BULK))
}

/// Checks the pattern up to the end of the stream and returns the length.
fn read_pattern(stream: &mut impl Read) -> usize {
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return at;
        }
        assert!(
            buffer[..count] == whole_pattern()[at..at + count],
            "wrong bytes after {at}"
        );
        at += count;
    }
}

fn write_pattern(stream: &mut impl Write, bytes: usize) {
    stream.write_all(&whole_pattern()[..bytes]).unwrap();
}

/// One guest at a time: they share a machine that is slow already.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kernel() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest/vmlinux");
    std::env::var_os("CWRUN_TEST_KERNEL").map_or(default.into(), PathBuf::from)
}

/// The initrd with the compiled init, made once.
fn initrd() -> File {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let init = directory.path().join("init");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/init.c");
        let status = Command::new("cc")
            .args(["-static", "-O2", "-Wall", "-o"])
            .arg(&init)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success(), "the guest's init does not compile");
        std::fs::write(directory.path().join("initrd"), archive(&init)).unwrap();
        directory
    });
    File::open(directory.path().join("initrd")).unwrap()
}

/// A cpio archive ("newc", Linux `Documentation/driver-api/early-userspace/buffer-format.rst`) with one executable.
fn archive(init: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, data) in [
        ("init", 0o100_755, std::fs::read(init).unwrap()),
        ("TRAILER!!!", 0, vec![]),
    ] {
        let fields = [1, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        write!(archive, "070701{header}{name}\0").unwrap();
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// A guest that runs a test, and its report.
struct Guest {
    running: Running,
    report: Receiver<String>,
    _turn: MutexGuard<'static, ()>,
}

/// What a port of the host does with a connection.
type Serve = Box<dyn FnMut(u32, UnixStream) + Send>;

fn config(test: &str, report: Sender<String>, mut serve: Serve) -> Config {
    let connect = move |port| {
        let (ours, theirs) = UnixStream::pair().ok()?;
        match port {
            1 => {
                let report = report.clone();
                let lines = BufReader::new(theirs).lines();
                std::thread::spawn(move || {
                    lines.map_while(Result::ok).try_for_each(|line| report.send(line))
                });
            }
            15 => return None,
            port => serve(port, theirs),
        }
        Some(ours)
    };
    Config {
        kvm: File::options().read(true).write(true).open("/dev/kvm").unwrap(),
        boot: boot(format!("guest.test={test}")),
        memory_mib: 256,
        vcpus: 1,
        disks: vec![],
        nics: vec![],
        volumes: vec![],
        vsock: Vsock {
            guest_cid: 3,
            connect: Box::new(connect),
        },
        console: None,
    }
}

fn boot(cmdline: String) -> Boot {
    Boot::Kernel {
        kernel: File::open(kernel()).unwrap(),
        initrd: initrd(),
        cmdline,
    }
}

fn start(test: &str, change: impl FnOnce(&mut Config), serve: Serve) -> Guest {
    let _turn = one_at_a_time();
    // Fails from the second test on, when there is a subscriber.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let (sender, report) = channel();
    let mut config = config(test, sender, serve);
    change(&mut config);
    let running = Vm::new(config).unwrap().start().unwrap();
    Guest {
        running,
        report,
        _turn,
    }
}

impl Guest {
    /// The next line of the report.
    fn line(&self) -> String {
        match self.report.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!(
                "{error}; {:?}\n{}",
                self.running.try_exit(),
                self.running.console_tail()
            ),
        }
    }

    /// The end of the VM, by polling its descriptor as an owner would.
    fn exit(&self) -> Exit {
        let fd = self.running.exit_fd();
        let timeout = Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "the VM does not end\n{}", self.running.console_tail());
        assert_eq!(self.running.try_exit(), Some(self.running.wait()));
        self.running.wait()
    }

    fn succeeds(&self) {
        assert_eq!(self.line(), "ok", "{}", self.running.console_tail());
        assert_eq!(self.exit(), Exit::Reset);
    }
}

fn nothing() -> Serve {
    Box::new(|_, _| {})
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_guest_boots_and_resets() {
    let started = Instant::now();
    let guest = start("nothing", |_| {}, nothing());
    guest.succeeds();
    println!("boot to reset: {:?}", started.elapsed());
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn every_vcpu_runs() {
    let guest = start("processors", |config| config.vcpus = 4, nothing());
    assert_eq!(guest.line(), "processors 4");
    guest.succeeds();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn memory_is_as_large_as_asked() {
    for (mib, least) in [(MIN_MEMORY_MIB, 30), (512, 470), (4096, 3900)] {
        let guest = start("memory", |config| config.memory_mib = mib, nothing());
        let line = guest.line();
        let seen: u64 = line.strip_prefix("memory ").unwrap().parse().unwrap();
        assert!((least..=mib).contains(&seen), "{seen} of {mib}");
        guest.succeeds();
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn disks_are_read_written_discarded() {
    let disk = |bytes: Vec<u8>| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    };
    let first = disk(whole_pattern()[..32 * MIB].to_vec());
    let second = disk(vec![0; 64 * MIB]);
    let third = disk(vec![1; 64 * MIB]);
    let copies = [second.try_clone().unwrap(), third.try_clone().unwrap()];
    let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let full = blocks(&copies[1]);
    let disks = vec![
        Disk {
            files: vec![first],
            access: Access::ReadOnly,
            serial: "first".into(),
        },
        Disk {
            files: vec![second],
            access: Access::ReadWrite,
            serial: "second".into(),
        },
        Disk {
            files: vec![third],
            access: Access::Scratch,
            serial: "third".into(),
        },
    ];
    let guest = start("disks", |config| config.disks = disks, nothing());
    guest.succeeds();

    let mut bytes = vec![0; 64 * MIB];
    copies[0].read_exact_at(&mut bytes, 0).unwrap();
    let mut expected = whole_pattern()[..32 * MIB].to_vec();
    expected[8 * MIB..9 * MIB].fill(0);
    expected[16 * MIB..24 * MIB].fill(0);
    expected.resize(64 * MIB, 0);
    assert!(bytes == expected, "the second disk differs");
    copies[1].read_exact_at(&mut bytes, 0).unwrap();
    assert!(
        bytes[..4 * MIB]
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == (at >> 12) as u8)
    );
    assert!(bytes[4 * MIB..32 * MIB].iter().all(|&byte| byte == 1));
    assert!(bytes[32 * MIB..].iter().all(|&byte| byte == 0));
    assert!(blocks(&copies[1]) < full * 2 / 3, "a discard gives space back");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn bulk_arrives_whole_both_ways_at_once() {
    let (sender, received) = channel();
    let serve = move |_, stream: UnixStream| {
        let mut writer = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            write_pattern(&mut writer, BULK);
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let sender = sender.clone();
        std::thread::spawn(move || sender.send(read_pattern(&mut &stream)).unwrap());
    };
    let guest = start("bulk", |_| {}, Box::new(serve));
    let started = Instant::now();
    guest.succeeds();
    println!("boot and 100 MiB each way: {:?}", started.elapsed());
    assert_eq!(received.recv().unwrap(), BULK);
}

/// Sends back what comes, and ends when the other side ends.
fn echo(stream: UnixStream) {
    std::thread::spawn(move || {
        let _ = io::copy(&mut &stream, &mut &stream);
    });
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn directions_end_apart() {
    let (sender, received) = channel();
    let serve = move |port, mut stream: UnixStream| {
        let sender = sender.clone();
        match port {
            10 => echo(stream),
            12 => {
                stream.write_all(b"hello").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                std::thread::spawn(move || sender.send((port, read_pattern(&mut stream))).unwrap());
            }
            14 => {
                std::thread::spawn(move || stream.read_exact(&mut [0; 10]).unwrap());
            }
            17 => {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(1));
                    sender.send((port, read_pattern(&mut stream))).unwrap();
                });
            }
            _ => {}
        }
    };
    let guest = start("ends", |_| {}, Box::new(serve));
    guest.succeeds();
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), (12, 300_000));
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), (17, 200_000));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn five_hundred_streams_at_once() {
    let guest = start("many", |_| {}, Box::new(|_, stream| echo(stream)));
    guest.succeeds();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_stalled_stream_holds_up_nobody_and_loses_nothing() {
    let (stalled, resume) = channel();
    let (sender, written) = channel();
    let serve = move |port, mut stream: UnixStream| match port {
        10 => echo(stream),
        13 => stalled.send(stream).unwrap(),
        16 => {
            let sender = sender.clone();
            std::thread::spawn(move || {
                write_pattern(&mut stream, 3 * MIB);
                sender.send(()).unwrap();
            });
        }
        _ => {}
    };
    let guest = start("stall", |_| {}, Box::new(serve));
    let accepted: usize = guest.line().strip_prefix("accepted ").unwrap().parse().unwrap();
    assert!(accepted >= 256 << 10, "{accepted}");
    let mut stream = resume.recv_timeout(PATIENCE).unwrap();
    let reader = std::thread::spawn(move || read_pattern(&mut stream));
    assert_eq!(guest.line(), format!("read {}", 3 * MIB));
    written.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reader.join().unwrap(), accepted);
    guest.succeeds();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn last_words_are_delivered_before_the_end() {
    let (sender, received) = channel();
    let serve = move |_, mut stream: UnixStream| {
        let sender = sender.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            sender.send(read_pattern(&mut stream)).unwrap();
        });
    };
    let guest = start("last-words", |_| {}, Box::new(serve));
    assert_eq!(guest.exit(), Exit::Reset);
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), 100_000);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_pause_stops_the_guest_and_nothing_else() {
    let guest = start("ticks", |config| config.vcpus = 2, nothing());
    assert_eq!(guest.line(), "tick 0");
    for _ in 0..3 {
        guest.running.pause();
        while guest.report.recv_timeout(Duration::from_secs(2)).is_ok() {}
        assert!(
            guest.report.recv_timeout(Duration::from_millis(500)).is_err(),
            "the guest runs while it is paused"
        );
        guest.running.resume();
        guest.line();
    }
    guest.running.pause();
    guest.running.stop();
    assert_eq!(guest.exit(), Exit::Stopped);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_guest_that_spins_is_stopped_at_once() {
    let guest = start("spin", |config| config.vcpus = 2, nothing());
    assert_eq!(guest.line(), "spinning");
    let started = Instant::now();
    guest.running.stop();
    assert_eq!(guest.exit(), Exit::Stopped);
    drop(guest);
    println!("{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_panic_ends_the_vm_and_its_words_are_kept() {
    let guest = start("panic", |_| {}, nothing());
    assert_eq!(guest.exit(), Exit::Reset);
    assert!(
        guest.running.console_tail().contains("Kernel panic"),
        "{}",
        guest.running.console_tail()
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_triple_fault_is_told_apart_from_a_reset() {
    let change = |config: &mut Config| config.boot = boot("guest.test=nothing reboot=t".into());
    let guest = start("nothing", change, nothing());
    assert_eq!(guest.exit(), Exit::TripleFault);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_probe_finds_a_kvm_that_works() {
    let _turn = one_at_a_time();
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&kvm);
    let probe = vmm::probe::probe(fd, PATIENCE).unwrap();
    println!("{probe:?}");
    assert!(probe.max_vcpus >= 4);
}
