//! The threads that serve volumes: all that keeps privileges once the VMM is confined, and has nothing else to use them on.
//!
//! They are made while the process still has its capabilities. Each keeps those that root of the guest needs for its files, enters a
//! filter of its own, and waits for its device.

use super::{landlock, sandbox};
use crate::bundle::mounts::Source;
use crate::launch::confine;
use crate::launch::volumes::{DESCRIPTORS, place};
use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;
use std::path::Path;
use std::sync::mpsc;
use vmm::{Thread, Work};
use volume::{Limits, Server};
use workload::Volume;

/// Descriptors of the VMM that are not volumes'.
const OTHER_DESCRIPTORS: u64 = 512;
/// Most inodes, and most open files, of a volume at a time. A guest keeps no inode that nobody uses.
const MOST: usize = 1 << 16;
/// Most descriptors that are asked for, the usual `fs.nr_open`.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// To do with any file what its owner may: the guest decides which of its users may do what.
const READ: CapabilitySet = CapabilitySet::DAC_OVERRIDE;
/// To give files to their owners, with the modes and capabilities that these want.
const WRITE: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);

/// Makes a thread and a server for each of the volumes, which are in their places.
pub fn serve(sources: &[Source]) -> Result<Vec<vmm::Volume>> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    // What is made in a volume has the mode that the guest says.
    rustix::process::umask(Mode::empty());
    let each = raise_limit().saturating_sub(OTHER_DESCRIPTORS) / sources.len() as u64 / 2;
    let most = usize::try_from(each).unwrap_or(MOST).clamp(64, MOST);
    let limits = Limits {
        inodes: most,
        opened: most,
    };
    let volume = |(number, source): (usize, &Source)| {
        let context = || format!("sharing {}", source.path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(place(number), flags, Mode::empty()).with_context(context)?;
        let mut server = Server::new(root, Path::new(DESCRIPTORS), limits).with_context(context)?;
        server.keep_numbers_below(&source.name()).with_context(context)?;
        Ok(vmm::Volume {
            tag: Volume::tag(number),
            server,
            thread: thread(number, source.readonly).with_context(context)?,
        })
    };
    sources.iter().enumerate().map(volume).collect()
}

/// As many descriptors as there may be. Returns how many that is.
fn raise_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(MOST_DESCRIPTORS);
    let most = [hard.max(MOST_DESCRIPTORS), hard].into_iter().find(|most| {
        let limit = Rlimit {
            current: Some(*most),
            maximum: Some(*most),
        };
        setrlimit(Resource::Nofile, limit).is_ok()
    });
    most.or(now.current).unwrap_or(hard)
}

/// A thread that waits for its work with what privileges it takes.
fn thread(number: usize, readonly: bool) -> Result<Thread> {
    let (work, receiver) = mpsc::channel::<Work>();
    let (ready, wait) = mpsc::channel();
    let handle = std::thread::Builder::new()
        .name(format!("volume{number}"))
        .spawn(move || {
            let confined = confine(number, readonly);
            let failed = confined.is_err();
            // The creator waits.
            let _ = ready.send(confined);
            if let (false, Ok(work)) = (failed, receiver.recv()) {
                work();
            }
        })?;
    wait.recv()
        .unwrap_or_else(|_| Err(anyhow!("its thread has ended")))?;
    Ok(Thread { work, handle })
}

fn confine(number: usize, readonly: bool) -> Result<()> {
    crate::signal_fd::mask()?;
    confine::keep_capabilities(if readonly { READ } else { READ | WRITE }).context("capabilities")?;
    // Its process has disks open to read. Through a descriptor of it, a thread that may do anything with files could open one to write.
    landlock::restrict_to(&place(number)).context("landlock")?;
    sandbox::enter_for_volumes().context("seccomp")
}
