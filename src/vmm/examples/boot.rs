//! Boots a kernel and an initrd, with the kernel's log on standard error and vsock port 1 on standard output.
//!
//! `boot KERNEL INITRD [--memory MIB] [--vcpus N] [--disk FILE | --read-only FILE]… [--cmdline WORDS]`
//!
//! Set `RUST_LOG=debug` for the durations of the phases.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Instant;

use vmm::{Access, Boot, Config, Disk, Exit, Vm, Vsock};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_max_level(level())
        .with_writer(io::stderr)
        .init();
    let (config, output) = config()?;
    let started = Instant::now();
    let vm = Vm::new(config)?;
    let made = started.elapsed();
    let running = vm.start()?;
    eprintln!("made in {made:?}, started after {:?}", started.elapsed());
    let exit = running.wait();
    let elapsed = started.elapsed();
    // The endpoints get what is left before the VM goes.
    for thread in output.try_iter() {
        let _ = thread.join();
    }
    drop(running);
    eprintln!("{exit} after {elapsed:?}");
    std::process::exit(if exit == Exit::Reset { 0 } else { 1 });
}

fn level() -> tracing::Level {
    std::env::var("RUST_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(tracing::Level::WARN)
}

type Output = std::sync::mpsc::Receiver<JoinHandle<io::Result<u64>>>;

fn config() -> Result<(Config, Output), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("{what} is missing"));
    let (kernel, initrd) = (File::open(next("KERNEL")?)?, File::open(next("INITRD")?)?);
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut config = Config {
        kvm: File::options().read(true).write(true).open("/dev/kvm")?,
        boot: Boot::Kernel {
            kernel,
            initrd,
            cmdline: String::new(),
        },
        memory_mib: 256,
        vcpus: 1,
        disks: vec![],
        nics: vec![],
        volumes: vec![],
        vsock: Vsock {
            guest_cid: 3,
            connect: Box::new(move |port| {
                let (ours, mut theirs) = UnixStream::pair().ok().filter(|_| port == 1)?;
                let thread = std::thread::spawn(move || io::copy(&mut theirs, &mut io::stdout()));
                sender.send(thread).ok()?;
                Some(ours)
            }),
        },
        console: Some(io::stderr().as_fd().try_clone_to_owned()?.into()),
    };
    while let Ok(option) = next("") {
        let value = next(&option)?;
        match &*option {
            "--memory" => config.memory_mib = value.parse()?,
            "--vcpus" => config.vcpus = value.parse()?,
            "--disk" => config
                .disks
                .push(disk(&value, Access::ReadWrite, config.disks.len())?),
            "--read-only" => config
                .disks
                .push(disk(&value, Access::ReadOnly, config.disks.len())?),
            "--cmdline" => {
                if let Boot::Kernel { cmdline, .. } = &mut config.boot {
                    *cmdline = value;
                }
            }
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok((config, receiver))
}

fn disk(path: &str, access: Access, index: usize) -> io::Result<Disk> {
    let file = File::options()
        .read(true)
        .write(access != Access::ReadOnly)
        .open(path)?;
    Ok(Disk {
        files: vec![file],
        access,
        serial: format!("disk{index}"),
    })
}
