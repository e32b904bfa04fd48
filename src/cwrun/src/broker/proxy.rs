//! The proxy's process. It is started by the process between the creating one and the VMM, in the container's cgroup and in the host's
//! namespaces: that is where the broker can be reached from. It executes this program anew, so that it has nothing of the container's in its
//! memory and none of its descriptors.
//!
//! ```text
//!   standard input   the broker's place, as JSON
//!   standard output  the line to the VMM, which ends with it
//! ```
//!
//! Nothing waits for it. It ends as soon as nobody has the other end of the line, whatever it is doing then.

use super::confine;
use super::forward::Forwarder;
use super::line::{Line, ProxyEnd};
use super::upstream::Upstream;
use crate::launch;
use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The command that runs it.
pub const COMMAND: &str = "broker-proxy";
/// This program, whatever its name is now.
const PROGRAM: &str = "/proc/self/exe";
/// Longest description of a broker, in bytes.
const MAX_UPSTREAM: u64 = 8 << 20;
/// Streams of a guest that are served at once.
const MAX_STREAMS: usize = 8;
/// How long a guest may take to say something.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the proxy in this process's cgroup and namespaces. Returns the VMM's end of the line.
#[allow(
    clippy::zombie_processes,
    reason = "it outlives this process, and its next parent waits for it"
)]
pub fn start(upstream: &Upstream) -> Result<Line> {
    let (line, end) = Line::pair()?;
    let mut input = File::from(
        rustix::fs::memfd_create("broker", MemfdFlags::CLOEXEC).context("the key broker's description")?,
    );
    serde_json::to_writer(&mut input, upstream)?;
    input.flush()?;
    input.seek(SeekFrom::Start(0))?;
    Command::new(PROGRAM)
        .arg0("cwrun")
        .arg(COMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(input)
        .stdout(end.into_descriptor())
        .stderr(Stdio::null())
        .spawn()
        .context("the proxy to the key broker")?;
    Ok(line)
}

/// Is the proxy. Does not return while there is a VMM.
pub fn run() -> Result<()> {
    let by_hand = "broker-proxy is started by cwrun itself and can't be run by hand";
    let end = ProxyEnd::from_descriptor(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
    let mut text = String::new();
    let input = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    input
        .take(MAX_UPSTREAM)
        .read_to_string(&mut text)
        .context(by_hand)?;
    let upstream: Upstream = serde_json::from_str(&text).context(by_hand)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    drop((null, text));
    let forwarder = Forwarder::new(&upstream)?;
    // The caller's signals are not for it.
    rustix::process::setsid().context("new session")?;
    confine::enter()?;
    serve(&end, Arc::new(forwarder))?;
    launch::exit(0)
}

fn serve(end: &ProxyEnd, forwarder: Arc<Forwarder>) -> Result<()> {
    let serving = Arc::new(AtomicUsize::new(0));
    while let Some(stream) = end.accept()? {
        if serving.fetch_add(1, Ordering::Relaxed) >= MAX_STREAMS {
            // Closed at once: who waits would only wait longer.
            serving.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (forwarder, serving) = (Arc::clone(&forwarder), Arc::clone(&serving));
        let work = move || {
            // A guest that breaks the protocol has ended its stream by that.
            let _ = converse(&forwarder, stream);
            serving.fetch_sub(1, Ordering::Relaxed);
        };
        thread::Builder::new().spawn(work).context("a thread")?;
    }
    Ok(())
}

/// Serves one stream of the guest's to its end.
fn converse(forwarder: &Forwarder, stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    forwarder.serve(stream)
}
