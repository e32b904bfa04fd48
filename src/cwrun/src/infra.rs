//! The infra container of a pod: it holds the namespaces that the pod's containers join, and no VM.
//!
//! ```text
//!   engine's pod                       on the host
//!   ├─ infra container: pause    ──►   this process: the pod's namespaces, control socket, signals
//!   ├─ container                 ──►   VMM, in these namespaces
//!   └─ container                 ──►   VMM, in these namespaces
//! ```
//!
//! An engine's pause program does nothing but wait for the signal to end. A guest that boots to do nothing would cost each pod the
//! memory and the time of a container, so here a process of cwrun's own waits, confined as a VMM is: nothing of the infra image is
//! ever run. It is made only where the engine says that the container is a pod's infra container *and* nothing more is asked for than
//! a program that is known to wait. Whatever else there is to run, is run in a VM.

use crate::bundle::{Bundle, annotations};
use crate::channel::Channel;
use crate::launch::{self, FromVmm, VmmEnd};
use crate::machine::sandbox;
use crate::signal_fd;
use crate::state::{Status, StatusFile};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;
use workload::Environment;
use workload::protocol::{FailureKind, Outcome, Request};

/// What a program's arguments are if it does nothing but wait for the signal to end, by its file name: Kubernetes' and CRI-O's program,
/// OpenShift's, and podman's.
const PAUSE: [(&str, &[&str]); 3] = [("pause", &[]), ("pod", &[]), ("catatonit", &["-P"])];
/// Infra containers of podman have no annotation of their own, but this one program, at the root of an image that podman makes itself.
const PODMAN_PAUSE: [&str; 2] = ["/catatonit", "-P"];

/// How long a client may take to say what it wants.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// Everything that the process needs, opened before it is confined.
pub struct Infra {
    /// Names of host and domain, for the namespaces.
    pub environment: Environment,
    /// `process.oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// Control socket, listening.
    pub control: UnixListener,
    /// Where the status is told.
    pub status: StatusFile,
}

/// Whether the bundle is that of an infra container which only waits.
pub fn is_infra(bundle: &Bundle) -> bool {
    let Some(process) = bundle.spec.process() else {
        return false;
    };
    let args = process.args().as_deref().unwrap_or_default();
    let says = |(key, value): (&str, &str)| bundle.annotation(key) == Some(value);
    let waits = match annotations::SANDBOX.into_iter().any(says) {
        true => only_waits(args),
        false => says(annotations::PODMAN) && args == PODMAN_PAUSE,
    };
    let hooks = bundle.spec.hooks().as_ref();
    let runs_hooks = hooks.is_some_and(|hooks| {
        hooks
            .start_container()
            .as_ref()
            .is_some_and(|list| !list.is_empty())
    });
    waits && !runs_hooks && !process.terminal().unwrap_or(false)
}

fn only_waits(args: &[String]) -> bool {
    let Some((program, rest)) = args.split_first() else {
        return false;
    };
    let name = Path::new(program).file_name();
    PAUSE
        .iter()
        .any(|(known, options)| name.is_some_and(|name| name == *known) && rest == *options)
}

/// Holds the namespaces until it is told to end. Returns the process's exit status.
pub fn run(infra: Infra, mut channel: VmmEnd) -> u8 {
    let prepare = || -> Result<OwnedFd> {
        // First of its PID namespace, if that is new, it would have to wait for orphans of others.
        signal_fd::ignore_children();
        let signals = signal_fd::block()?;
        sandbox::enter().context("seccomp")?;
        Ok(signals)
    };
    let signals = match prepare() {
        Ok(signals) => signals,
        Err(error) => return launch::fail(&mut channel, &error),
    };
    infra.status.set(Status::Created);
    let committed = channel.send(&FromVmm::Ready).and_then(|()| channel.receive());
    if !matches!(committed, Ok(Some(_))) {
        return 1;
    }
    drop(channel);
    match wait(&infra, &signals) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            1
        }
    }
}

/// Until a signal says that it is over.
fn wait(infra: &Infra, signals: &OwnedFd) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&infra.control, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let [signalled, asked] = fds.map(|fd| !fd.revents().is_empty());
        if signalled && ends(signal_fd::next(signals)?) {
            return Ok(());
        }
        if asked && serve(infra) {
            return Ok(());
        }
    }
}

/// Pause programs end at these signals and pass over all others, as the first of a PID namespace does.
fn ends(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGINT)
}

/// Answers one client. Returns whether it asked for the end.
fn serve(infra: &Infra) -> bool {
    let Ok((stream, _)) = infra.control.accept() else {
        return false;
    };
    let deadline = Some(CLIENT_DEADLINE);
    if stream
        .set_read_timeout(deadline)
        .and_then(|()| stream.set_write_timeout(deadline))
        .is_err()
    {
        return false;
    }
    let mut client = Channel::<Outcome, Request>::new(stream);
    let Ok(Some(request)) = client.receive() else {
        return false;
    };
    let (outcome, over) = match request {
        Request::Start => {
            infra.status.set(Status::Running);
            (Outcome::Done, false)
        }
        Request::Signal { signal, .. } => (Outcome::Done, ends(signal)),
        // Nothing runs that would have to be stopped.
        Request::Freeze { frozen } => {
            infra
                .status
                .set(if frozen { Status::Paused } else { Status::Running });
            (Outcome::Done, false)
        }
        Request::Processes => {
            let pids = vec![rustix::process::getpid().as_raw_pid()];
            (Outcome::Processes { pids }, false)
        }
        Request::Usage => {
            let (tasks, oom_kills) = (1, 0);
            (Outcome::Usage { tasks, oom_kills }, false)
        }
        _ => {
            let message =
                "an infra container holds the namespaces of its pod and has no virtual machine".to_owned();
            let kind = FailureKind::Other;
            (Outcome::Failed { kind, message }, false)
        }
    };
    // A client that did not wait has its own reasons.
    let _ = client.send(&outcome);
    over
}

#[cfg(test)]
mod tests {
    use super::only_waits;

    #[test]
    fn only_programs_that_wait_are_replaced() {
        let waits = |args: &[&str]| only_waits(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        for args in [
            &["/pause"][..],
            &["pause"],
            &["/usr/bin/pod"],
            &["/catatonit", "-P"],
        ] {
            assert!(waits(args), "{args:?}");
        }
        for args in [
            &[][..],
            &[""],
            &["/"],
            &["/pause", "-v"],
            &["/catatonit"],
            &["/catatonit", "-P", "--", "sh"],
            &["/pause.sh"],
        ] {
            assert!(!waits(args), "{args:?}");
        }
    }
}
