//! `exec`: one more process in a running container.
//!
//! ```text
//!   caller's descriptors ◄─ pumps ─► sockets ── passed to ──► VMM ◄─ vsock ─► guest
//!            └──────── proxy ────────┘  control: signals, window sizes, exit status
//! ```
//!
//! What stands for the process on this host is the proxy: with `--detach` a child that outlives this command, else this command
//! itself. It carries the streams, forwards the signals that reach it, and exits with the process's status. If it dies, so does
//! the process, and the other way round.

use super::create::{self, Console, write_pid_file};
use crate::bundle::{self, guest};
use crate::channel::{Channel, Received};
use crate::cli::{Exec, Global};
use crate::control::{self, Client};
use crate::failure::{self, GuestFailure};
use crate::launch::{self, confine};
use crate::machine::stdio::Stdio;
use crate::machine::terminal::{self, RawMode};
use crate::signal_fd;
use crate::state::{Container, Root, Status};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process as OciProcess, Spec, User as OciUser};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::getpid;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use workload::protocol::{self, FailureKind, Outcome, Request};

/// Exit status when the container ended under the process, which the kernel of the guest then killed.
const KILLED: u8 = 128 + 9;

/// The command. Returns the exit status for the caller.
pub fn run(global: &Global, args: &Exec, inherited: &[RawFd]) -> Result<u8> {
    ensure!(
        args.preserve_fds == 0,
        "--preserve-fds {}: descriptors can't be passed into a virtual machine",
        args.preserve_fds
    );
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let status = container.status();
    let open = match status {
        Status::Created | Status::Running => true,
        // It runs when the container goes on.
        Status::Paused => args.ignore_paused,
        _ => false,
    };
    ensure!(
        open,
        "container {:?} is {status}, a process can be run only in one that is created or running",
        args.id
    );
    ensure!(
        !container.record.infra,
        "container {:?} is the infra container of a pod: it holds the pod's namespaces and runs no programs",
        args.id
    );
    let config = container.config()?;
    let oci = process(&config, args)?;
    guest::refuse_unsupported_process(&oci)?;
    let request = protocol::Exec {
        number: 0,
        process: guest::process(&oci, &config.linux().clone().unwrap_or_default())?,
        console_size: guest::console_size(&oci),
        cgroup: args.cgroup.clone(),
    };
    if args.detach {
        detached(&container, request, args, inherited)
    } else {
        attached(&container, request, args)
    }
}

/// The process as OCI has it: from a file, or the container's own with what the command line changes.
fn process(config: &Spec, args: &Exec) -> Result<OciProcess> {
    if let Some(path) = &args.process {
        let context = || format!("--process {}", path.display());
        let bytes = fs::read(path).with_context(context)?;
        let mut process = bundle::parse_process(&bytes).with_context(context)?;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    ensure!(
        !args.args.is_empty(),
        "exec: no program given, neither on the command line nor by --process"
    );
    let mut process = config
        .process()
        .clone()
        .context("config.json: process: missing")?;
    process.set_args(Some(args.args.clone()));
    process.set_terminal(Some(args.tty));
    process.set_console_size(None);
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &args.user {
        process.set_user(parse_user(user, process.user())?);
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.cap.is_empty() {
        process.set_capabilities(Some(with_capabilities(
            process.capabilities().clone(),
            &args.cap,
        )?));
    }
    Ok(process)
}

/// `UID[:GID]`.
fn parse_user(text: &str, base: &OciUser) -> Result<OciUser> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    let context = || format!("--user {text:?}: expected UID or UID:GID, in numbers");
    let mut user = base.clone();
    user.set_uid(uid.parse().with_context(context)?);
    if !gid.is_empty() {
        user.set_gid(gid.parse().with_context(context)?);
    }
    Ok(user)
}

fn with_capabilities(base: Option<LinuxCapabilities>, names: &[String]) -> Result<LinuxCapabilities> {
    let mut more = HashSet::new();
    for name in names {
        let short = name.to_ascii_uppercase();
        let capability: Capability = short
            .trim_start_matches("CAP_")
            .parse()
            .ok()
            .with_context(|| format!("--cap {name}: not the name of a capability"))?;
        more.insert(capability);
    }
    let mut sets = base.unwrap_or_default();
    let with = |set: &Option<HashSet<Capability>>| {
        Some(
            set.iter()
                .flatten()
                .copied()
                .chain(more.iter().copied())
                .collect(),
        )
    };
    sets.set_bounding(with(sets.bounding()));
    sets.set_effective(with(sets.effective()));
    sets.set_permitted(with(sets.permitted()));
    Ok(sets)
}

/// This command is the proxy.
fn attached(container: &Container, request: protocol::Exec, args: &Exec) -> Result<u8> {
    let signals = signal_fd::block()?;
    let stdio = create::stdio(
        request.process.terminal,
        args.console_socket.as_deref(),
        Console::Foreground,
    )?;
    let own_terminal = matches!(stdio, Stdio::Foreground) && rustix::termios::isatty(rustix::stdio::stdin());
    let size_of = if own_terminal {
        Some(rustix::io::dup(rustix::stdio::stdin())?)
    } else {
        stdio
            .controlling_terminal()
            .map(|fd| fd.try_clone_to_owned())
            .transpose()?
    };
    // Before anything runs that writes to it.
    let _raw = if own_terminal {
        Some(RawMode::enter()?)
    } else {
        None
    };
    let mut proxy = Proxy::start(container, request, stdio, size_of)?;
    write_pid_file(args.pid_file.as_deref(), getpid())?;
    proxy.serve(&signals)
}

/// What the proxy tells the command that made it.
#[derive(Debug, Serialize, Deserialize)]
enum FromProxy {
    /// The process runs.
    Started,
    /// It does not.
    Failed { kind: FailureKind, message: String },
}

/// A child is the proxy. Returns once the process runs.
fn detached(container: &Container, request: protocol::Exec, args: &Exec, inherited: &[RawFd]) -> Result<u8> {
    let stdio = match (request.process.terminal, args.console_socket.as_deref()) {
        (true, Some(socket)) => Stdio::Terminal(terminal::open_for(socket)?),
        (true, None) => bail!("exec --detach --tty: a process with a terminal needs --console-socket"),
        (false, _) => Stdio::Inherited,
    };
    let (ours, theirs) = UnixStream::pair().context("socket pair")?;
    let Some(child) = launch::fork()? else {
        drop(ours);
        let mut channel = Channel::<FromProxy, ()>::new(theirs);
        launch::exit(detached_proxy(container, request, stdio, inherited, &mut channel));
    };
    drop((theirs, stdio));
    let told = Channel::<(), FromProxy>::new(ours).receive();
    let started = match told {
        Ok(Some(FromProxy::Started)) => write_pid_file(args.pid_file.as_deref(), child),
        Ok(Some(FromProxy::Failed { kind, message })) => Err(GuestFailure { kind, message }.into()),
        Ok(None) => Err(anyhow::anyhow!(
            "the process's proxy ended before the process ran"
        )),
        Err(error) => Err(error),
    };
    if started.is_err() {
        launch::kill_and_reap(child);
    }
    started.map(|()| 0)
}

/// The life of the child. Returns its exit status.
fn detached_proxy(
    container: &Container,
    request: protocol::Exec,
    stdio: Stdio,
    inherited: &[RawFd],
    channel: &mut Channel<FromProxy, ()>,
) -> u8 {
    confine::close(inherited);
    let start = || -> Result<(OwnedFd, Proxy)> {
        confine::session(stdio.controlling_terminal())?;
        let signals = signal_fd::block()?;
        let terminal = stdio
            .controlling_terminal()
            .map(|fd| fd.try_clone_to_owned())
            .transpose()?;
        let proxy = Proxy::start(container, request, stdio, terminal)?;
        Ok((signals, proxy))
    };
    match start() {
        Ok((signals, mut proxy)) => {
            if channel.send(&FromProxy::Started).is_err() {
                return KILLED;
            }
            proxy.serve(&signals).unwrap_or(KILLED)
        }
        Err(error) => {
            // If the command is gone, nobody wants to know.
            let _ = channel.send(&FromProxy::Failed {
                kind: failure::kind_of(&error),
                message: format!("{error:#}"),
            });
            1
        }
    }
}

/// A process that runs.
struct Proxy {
    client: Client,
    outputs_left: usize,
    drained: OwnedFd,
    /// Whose size the process's terminal follows.
    terminal: Option<OwnedFd>,
}

impl Proxy {
    /// Has the guest run the process.
    fn start(
        container: &Container,
        mut request: protocol::Exec,
        stdio: Stdio,
        terminal: Option<OwnedFd>,
    ) -> Result<Self> {
        if let Some(size) = terminal
            .as_ref()
            .and_then(|terminal| terminal::size(terminal.as_fd()))
        {
            request.console_size = Some(size);
        }
        let mut streams = stdio.streams()?;
        let guest_ends: Vec<UnixStream> = streams.guest_ends.drain(..).map(|(_, end)| end).collect();
        let mut client = control::connect(container)?;
        let descriptors: Vec<BorrowedFd<'_>> = guest_ends.iter().map(AsFd::as_fd).collect();
        client.send_with(&Request::Exec(Box::new(request)), &descriptors)?;
        drop(guest_ends);
        match control::answer(container, &mut client)? {
            Outcome::Done => {}
            other => bail!("container {:?} answers with {other:?}", container.record.id),
        }
        let (outputs_left, drained) = streams.start_outputs()?;
        streams.start_inputs()?;
        Ok(Self {
            client,
            outputs_left,
            drained,
            terminal,
        })
    }

    /// Carries on until the process has ended and its output has been written. Its exit status.
    fn serve(&mut self, signals: &OwnedFd) -> Result<u8> {
        // The end of a short process can have come in one piece with the word that it runs.
        let told = self.client.buffered()?;
        let mut exited = Self::end(told.map_or(Received::Pending, Received::Message))?;
        loop {
            if let (Some(status), 0) = (exited, self.outputs_left) {
                return Ok(status);
            }
            let mut fds = vec![
                PollFd::new(&self.drained, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            if exited.is_none() {
                fds.push(PollFd::new(&self.client, PollFlags::IN));
            }
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                rustix::io::read(&self.drained, &mut [0u8; 8]).context("output event")?;
                self.outputs_left = self.outputs_left.saturating_sub(1);
            }
            if ready[1] {
                self.forward(signal_fd::next(signals)?);
            }
            if ready.get(2) == Some(&true) {
                exited = self.hear()?;
            }
        }
    }

    /// How the process ended, if that is what the VMM has to say.
    fn hear(&mut self) -> Result<Option<u8>> {
        Self::end(self.client.receive_some()?)
    }

    fn end(received: Received<Outcome>) -> Result<Option<u8>> {
        match received {
            Received::Message(Outcome::Exited { status }) => Ok(Some(status.exit_code())),
            Received::Message(other) => bail!("the container answers with {other:?}"),
            Received::Pending => Ok(None),
            // The VM is gone, and the process with it.
            Received::Closed => Ok(Some(KILLED)),
        }
    }

    fn forward(&mut self, signal: i32) {
        if let Some(request) = terminal::request_for(signal, self.terminal.as_ref()) {
            // The process may have ended meanwhile.
            let _ = self.client.send(&request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;
    use workload::protocol::Status as ExitStatus;

    /// As it is with a process that is over before the VMM has read of its start.
    #[test]
    fn an_end_that_comes_with_the_start_is_heard() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let status = ExitStatus::Code { code: 3 };
        let mut bytes = protocol::encode(&Outcome::Done).unwrap().to_vec();
        bytes.extend_from_slice(&protocol::encode(&Outcome::Exited { status }).unwrap());
        theirs.write_all(&bytes).unwrap();
        let mut client = Client::new(ours);
        assert_eq!(client.receive().unwrap(), Some(Outcome::Done));
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut proxy = Proxy {
            client,
            outputs_left: 0,
            drained: event(),
            terminal: None,
        };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(proxy.serve(&event()).unwrap()));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(3));
    }
}
