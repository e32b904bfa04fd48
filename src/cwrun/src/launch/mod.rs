//! From the runtime's process to a confined VMM process.
//!
//! ```text
//!   create (P)                 intermediate (I)              VMM (C)
//!     fork ───────────────────►│ wait
//!     cgroup: enter I          │
//!     Go ─────────────────────►│ enter user namespace
//!     write maps ◄── MapUsers ─│
//!     Go ─────────────────────►│ enter the others
//!                              │ fork ──────────────────────►│ wait
//!     record C ◄── Forked ─────│ exit                        │
//!     createRuntime hooks                                    │
//!     Go ───────────────────────────────────────────────────►│ createContainer hooks
//!                                                            │ interfaces to taps
//!                                                            │ empty root, threads for volumes, no capabilities
//!                                                            │ boot the guest
//!     pid file, ◄──────────────────────────────── Ready ─────│
//!     Go ───────────────────────────────────────────────────►│ serve until the workload ends
//! ```
//!
//! I exists because a PID namespace holds only children of the process that enters it. P is a child subreaper, so C
//! becomes P's child when I exits, and the engine's when P does. Whoever dies closes the channel, and everybody else
//! then ends: a killed `create` leaves no process.

pub mod confine;
pub mod hooks;
mod namespaces;
pub mod volumes;

use crate::broker;
use crate::bundle::host::HostSpec;
use crate::bundle::mounts::Source;
use crate::channel::Channel;
use crate::failure::{self, GuestFailure};
use crate::infra::{self, Infra};
use crate::logging::phase;
use crate::machine::{self, Machine};
use crate::network::{self, Namespace};
use crate::state::{Container, ProcessId, Status};
use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use volumes::Tree;
use workload::Environment;
use workload::protocol::FailureKind;

/// From I or C to P.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromVmm {
    /// I is in a new user namespace and waits for its maps.
    MapUsers,
    /// C has this number.
    Forked(i32),
    /// C has booted the guest and waits.
    Ready,
    /// It can't be done. The sender ends.
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// One sentence.
        message: String,
    },
}

/// From P to I or C: go on with the next step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Go;

/// C's end of the channel.
pub type VmmEnd = Channel<FromVmm, Go>;
type CreatorEnd = Channel<Go, FromVmm>;

/// What the container's process does once it is in its namespaces.
pub enum Role {
    /// It is a VMM.
    Vmm(Box<Machine>),
    /// It holds the namespaces for others.
    Infra(Box<Infra>),
}

impl Role {
    /// Prepares and confines this process. `outside` is the network namespace of the runtime, `early` are the volumes that had to be taken
    /// before this process was in its namespaces.
    fn confine(self, host: &HostSpec, outside: Namespace, early: Option<Vec<Tree>>) -> Result<Confined> {
        let own_pids = rustix::process::getpid() == Pid::INIT;
        match self {
            Self::Vmm(mut machine) => {
                let Machine {
                    passt,
                    environment,
                    vhost_net,
                    ..
                } = &mut *machine;
                let network = phase("network", || {
                    network::connect(host, outside, passt.as_ref(), *vhost_net, environment)
                })?;
                machine.nics = network.nics;
                machine.environment.interfaces = network.interfaces;
                machine.watch = network.watch;
                let score = machine.workload.process.oom_score_adj;
                let volumes = phase("confine", || {
                    let trees = early.map_or_else(|| volumes::detach(&machine.volumes), Ok)?;
                    confine::process(score, own_pids, trees, || {
                        machine::volumes::serve(&machine.volumes)
                    })
                })?;
                Ok(Confined::Vmm(machine, volumes))
            }
            Self::Infra(infra) => {
                phase("confine", || {
                    confine::process(infra.oom_score_adj, own_pids, Vec::new(), || Ok(()))
                })?;
                Ok(Confined::Infra(infra))
            }
        }
    }

    /// Directories of the host that are to be shared.
    fn volumes(&self) -> &[Source] {
        match self {
            Self::Vmm(machine) => &machine.volumes,
            Self::Infra(_) => &[],
        }
    }

    /// Starts what has to be in the container's cgroup and in the namespaces of the runtime.
    fn start_outside(&mut self) -> Result<()> {
        if let Self::Vmm(machine) = self
            && let Some(upstream) = &machine.broker
        {
            machine.line = Some(broker::proxy::start(upstream)?);
        }
        Ok(())
    }

    fn terminal(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Vmm(machine) => machine.stdio.controlling_terminal(),
            Self::Infra(_) => None,
        }
    }

    fn environment(&mut self) -> &mut Environment {
        match self {
            Self::Vmm(machine) => &mut machine.environment,
            Self::Infra(infra) => &mut infra.environment,
        }
    }
}

/// The same, after that.
enum Confined {
    Vmm(Box<Machine>, Vec<vmm::Volume>),
    Infra(Box<Infra>),
}

impl Confined {
    fn run(self, channel: VmmEnd) -> u8 {
        match self {
            Self::Vmm(machine, volumes) => machine::run(*machine, volumes, channel),
            Self::Infra(infra) => infra::run(*infra, channel),
        }
    }
}

/// Makes the container's process: a VMM, and boots the guest in it, or what stands in its place. On success the container is
/// *created* and its record names the process. On failure no process is left; the caller removes the rest.
pub fn launch(container: &mut Container, host: &HostSpec, role: Role, inherited: &[RawFd]) -> Result<Pid> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("child subreaper")?;
    let (ours, theirs) = UnixStream::pair().context("socket pair")?;
    let outside = Namespace::current()?;
    let Some(intermediate) = fork()? else {
        drop(ours);
        exit(intermediate(
            container,
            host,
            outside,
            role,
            VmmEnd::new(theirs),
            inherited,
        ))
    };
    drop((theirs, role));
    let mut channel = CreatorEnd::new(ours);
    let result = attend(container, host, &mut channel, intermediate);
    if result.is_err() {
        kill_and_reap(intermediate);
        if let Some(vmm) = container.record.vmm.and_then(|vmm| Pid::from_raw(vmm.pid)) {
            kill_and_reap(vmm);
        }
    }
    result
}

/// P's side.
fn attend(
    container: &mut Container,
    host: &HostSpec,
    channel: &mut CreatorEnd,
    intermediate: Pid,
) -> Result<Pid> {
    if let Some(cgroup) = &container.record.cgroup {
        phase("cgroup", || {
            cgroup.enter(intermediate.as_raw_pid(), host.resources.as_ref())
        })?;
    }
    channel.send(&Go)?;
    let vmm = loop {
        match next(channel, intermediate)? {
            FromVmm::MapUsers => {
                namespaces::write_maps(intermediate, host)?;
                channel.send(&Go)?;
            }
            FromVmm::Forked(pid) => break Pid::from_raw(pid).context("process number 0")?,
            other => bail!("unexpected message {other:?}"),
        }
    };
    rustix::process::waitpid(Some(intermediate), WaitOptions::empty())
        .context("waiting for the intermediate process")?;
    container.record.vmm = Some(ProcessId::of(vmm.as_raw_pid())?);
    container.save()?;
    // The environment exists, which is what "created" says to hooks (runtime-spec runtime.md#lifecycle, step 2).
    let state = container.oci_state(Status::Created);
    hooks::run_all("createRuntime", &host.hooks.create_runtime, &state)?;
    channel.send(&Go)?;
    match next(channel, vmm)? {
        FromVmm::Ready => {}
        other => bail!("unexpected message {other:?}"),
    }
    channel.send(&Go)?;
    Ok(vmm)
}

/// The next message of `sender`, a child of ours.
fn next(channel: &mut CreatorEnd, sender: Pid) -> Result<FromVmm> {
    match channel.receive()? {
        Some(FromVmm::Failed {
            kind: FailureKind::Other,
            message,
        }) => Err(anyhow!(message)),
        Some(FromVmm::Failed { kind, message }) => Err(GuestFailure { kind, message }.into()),
        Some(message) => Ok(message),
        None => bail!(
            "the VMM process {} before the guest was ready",
            last_moments(sender)
        ),
    }
}

/// I's side, and from the second fork on C's.
fn intermediate(
    container: &Container,
    host: &HostSpec,
    outside: Namespace,
    mut role: Role,
    mut channel: VmmEnd,
    inherited: &[RawFd],
) -> u8 {
    let prepared = (|| -> Result<_> {
        await_go(&mut channel)?;
        confine::close(inherited);
        role.start_outside()?;
        let early = volumes::detach_early(host, role.volumes())?;
        namespaces::enter(host, || {
            channel.send(&FromVmm::MapUsers)?;
            await_go(&mut channel)
        })?;
        Ok(early)
    })();
    let early = match prepared {
        Ok(early) => early,
        Err(error) => return fail(&mut channel, &error),
    };
    let announced = match fork() {
        Ok(None) => return vmm(container, host, outside, role, early, channel),
        Ok(Some(pid)) => channel.send(&FromVmm::Forked(pid.as_raw_pid())),
        Err(error) => Err(error),
    };
    announced.map_or_else(|error| fail(&mut channel, &error), |()| 0)
}

/// C's side.
fn vmm(
    container: &Container,
    host: &HostSpec,
    outside: Namespace,
    mut role: Role,
    early: Option<Vec<Tree>>,
    mut channel: VmmEnd,
) -> u8 {
    let confined = (|| -> Result<_> {
        await_go(&mut channel)?;
        confine::session(role.terminal())?;
        namespaces::name(host, role.environment())?;
        let mut state = container.oci_state(Status::Created);
        // As seen in the container's namespaces, where these hooks run (runtime-spec config.md#createcontainer-hooks).
        state["pid"] = rustix::process::getpid().as_raw_pid().into();
        hooks::run_all("createContainer", &host.hooks.create_container, &state)?;
        role.confine(host, outside, early)
    })();
    match confined {
        Ok(confined) => confined.run(channel),
        Err(error) => fail(&mut channel, &error),
    }
}

fn await_go(channel: &mut VmmEnd) -> Result<()> {
    channel.receive()?.map(|Go| ()).context("the runtime went away")
}

/// Tells P why this process ends, and gives its exit status. If P is gone, nobody wants to know.
pub fn fail(channel: &mut VmmEnd, error: &anyhow::Error) -> u8 {
    let _ = channel.send(&FromVmm::Failed {
        kind: failure::kind_of(error),
        message: format!("{error:#}"),
    });
    1
}

/// Forks: the child's number in the parent, `None` in the child, which has to leave through [`exit`].
pub fn fork() -> Result<Option<Pid>> {
    // SAFETY: at this point this program has one thread (workers of the disk conversion have been joined), so the
    // child's copy of the heap is consistent and it may run ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Ends a child made by [`fork`].
pub fn exit(status: u8) -> ! {
    // SAFETY: `_exit` has no preconditions. Exit handlers are the parent's to run, and other threads may still run.
    unsafe { libc::_exit(i32::from(status)) }
}

/// How a child of ours ended that has just closed its channel.
fn last_moments(child: Pid) -> String {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
        },
        _ => "ended".to_owned(),
    }
}

/// Ends a child of ours for good. Does nothing for a process that is not our child any more, whose number may by now be
/// somebody else's.
pub fn kill_and_reap(pid: Pid) {
    if let Ok(None) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
        // Both can fail only for a process that is not our child, which was just ruled out.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}
