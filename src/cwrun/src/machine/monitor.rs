//! The VMM's main loop: the guest's control stream, the control socket, signals.

use super::stdio::Streams;
use super::{Machine, sandbox, terminal};
use crate::channel::{Channel, Received};
use crate::failure::{self, GuestFailure};
use crate::launch::{FromVmm, VmmEnd};
use crate::logging::{phase, phase_took};
use crate::signal_fd;
use crate::state::{Status, StatusFile};
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant, SystemTime};
use vmm::{Access, Running, Vm};
use workload::Blob;
use workload::protocol::{self, FailureKind, Outcome, Request, Setup, Status as ExitStatus, ToGuest, ToHost};

/// How long a guest may take from power-on to "ready".
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long a message to the guest or a client may wait for room.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Kernel messages that go into an error.
const TAIL_LINES: usize = 12;
/// Exit status when the VM ended and the workload's own status will never be known.
const LOST: u8 = 255;

type GuestEnd = Channel<ToGuest, ToHost>;
type Client = Channel<Outcome, Request>;

/// A booted guest, ready to run its workload.
pub struct Monitor {
    vm: Running,
    guest: GuestEnd,
    streams: Streams,
    outputs_left: usize,
    drained: OwnedFd,
    terminal: Option<OwnedFd>,
    control: UnixListener,
    signals: OwnedFd,
    status: StatusFile,
    /// Clients that wait for the guest's reply to a request, and since when if it is the start.
    waiting: HashMap<u32, (Client, Option<Instant>)>,
    last_request: u32,
    started: bool,
    exited: Option<ExitStatus>,
}

impl Monitor {
    /// Boots the guest and has it prepare the workload.
    pub fn boot(machine: Machine, channel: &mut VmmEnd) -> Result<Self> {
        let signals = signal_fd::block()?;
        let terminal = machine
            .stdio
            .controlling_terminal()
            .map(|terminal| terminal.try_clone_to_owned())
            .transpose()?;
        let mut streams = machine.stdio.streams()?;
        let (host_end, guest_end) = UnixStream::pair().context("control stream")?;
        host_end.set_write_timeout(Some(SEND_DEADLINE))?;
        let mut endpoints: HashMap<u32, UnixStream> = streams
            .guest_ends
            .drain(..)
            .map(|(number, stream)| (protocol::stdio(0, number), stream))
            .collect();
        endpoints.insert(protocol::CONTROL, guest_end);
        let connect = Box::new(move |port| endpoints.remove(&port));
        let mut disks = vec![disk(machine.images, Access::ReadOnly, "root")];
        disks.extend(
            machine
                .scratch
                .map(|file| disk(vec![file], Access::Scratch, "scratch")),
        );
        let config = vmm::Config {
            kvm: machine.kvm,
            kernel: machine.kernel,
            initrd: machine.initrd,
            cmdline: if machine.debug {
                "ignore_loglevel".to_owned()
            } else {
                String::new()
            },
            memory_mib: machine.memory_mib,
            vcpus: machine.vcpus,
            disks,
            vsock: vmm::Vsock {
                guest_cid: protocol::GUEST_CID,
                connect,
            },
            console: if machine.debug {
                Some(rustix::io::dup(rustix::stdio::stderr())?.into())
            } else {
                None
            },
        };
        let vm = phase("vmm", || -> Result<Running> {
            let vm = Vm::new(config).context("the virtual machine can't be made on /dev/kvm")?;
            sandbox::enter().context("seccomp")?;
            vm.start().context("the virtual machine can't be started")
        })?;
        let (outputs_left, drained) = streams.start_outputs()?;
        let setup = Setup {
            workload: Blob(machine.workload.to_bytes()),
            environment: machine.environment,
            keys: machine.keys,
            unix_time_ns: unix_time_ns(),
            debug: machine.debug,
        };
        let mut monitor = Self {
            vm,
            guest: GuestEnd::new(host_end),
            streams,
            outputs_left,
            drained,
            terminal,
            control: machine.control,
            signals,
            status: machine.status,
            waiting: HashMap::new(),
            last_request: 0,
            started: false,
            exited: None,
        };
        monitor.handshake(setup, channel)?;
        Ok(monitor)
    }

    /// From power-on to "ready".
    fn handshake(&mut self, setup: Setup, channel: &mut VmmEnd) -> Result<()> {
        let start = Instant::now();
        let deadline = start + BOOT_DEADLINE;
        match self.next_from_guest(deadline, channel)? {
            ToHost::Hello {
                version,
                kernel,
                kernel_ms,
            } => {
                ensure!(
                    version == protocol::VERSION,
                    "the guest's init speaks protocol version {version}, this is version {}: the guest files and cwrun are of different releases",
                    protocol::VERSION
                );
                tracing::debug!("guest kernel {kernel}");
                phase_took("kernel", kernel_ms as f64);
            }
            other => bail!("the guest's first message is {other:?}, not Hello"),
        }
        let hello = Instant::now();
        self.request(Request::Setup(Box::new(setup)))?;
        match self.next_from_guest(deadline, channel)? {
            ToHost::Reply {
                outcome: Outcome::Ready { phases },
                ..
            } => {
                for (name, ms) in phases {
                    phase_took(&format!("init:{name}"), ms as f64);
                }
            }
            ToHost::Reply {
                outcome: Outcome::Failed { kind, message },
                ..
            } => return Err(GuestFailure { kind, message }.into()),
            other => bail!("the guest answers Setup with {other:?}"),
        }
        phase_took("init", hello.elapsed().as_secs_f64() * 1000.0);
        phase_took("boot", start.elapsed().as_secs_f64() * 1000.0);
        Ok(())
    }

    /// Waits for the guest's next message, while its VM runs and `create` waits too.
    fn next_from_guest(&mut self, deadline: Instant, channel: &VmmEnd) -> Result<ToHost> {
        loop {
            if let Some(message) = self.guest.buffered()? {
                return Ok(message);
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                bail!(
                    "the guest was not ready within {} s{}",
                    BOOT_DEADLINE.as_secs(),
                    self.last_words()
                );
            }
            let exit = self.vm.exit_fd();
            let mut fds = [
                PollFd::new(&self.guest, PollFlags::IN),
                PollFd::new(&exit, PollFlags::IN),
                PollFd::new(channel, PollFlags::IN),
            ];
            poll(&mut fds, Some(remaining))?;
            let [guest, exit, creator] = fds.map(|fd| !fd.revents().is_empty());
            if guest {
                match self.guest.receive_some()? {
                    Received::Message(message) => return Ok(message),
                    Received::Pending => continue,
                    Received::Closed if !exit => bail!(
                        "the guest closed its control stream before the workload started{}",
                        self.last_words()
                    ),
                    Received::Closed => {}
                }
            }
            if exit {
                let why = self
                    .vm
                    .try_exit()
                    .map_or_else(String::new, |exit| exit.to_string());
                bail!(
                    "the guest died before the workload started: {why}{}",
                    self.last_words()
                );
            }
            if creator {
                bail!("the runtime went away");
            }
        }
    }

    fn last_words(&self) -> String {
        let tail = self.vm.console_tail();
        let lines: Vec<_> = tail
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        match lines.as_slice() {
            [] => "; its kernel said nothing".to_owned(),
            lines => format!(
                "; its kernel's last messages:\n  {}",
                lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ")
            ),
        }
    }

    fn request(&mut self, request: Request) -> Result<u32> {
        self.last_request += 1;
        self.guest.send(&ToGuest {
            id: self.last_request,
            request,
        })?;
        Ok(self.last_request)
    }

    /// Tells `create` that the guest is ready, then serves until the end. Returns the process's exit status.
    pub fn serve(mut self, mut channel: VmmEnd) -> u8 {
        // Told before `create` returns, so that whoever asks after it sees a created container.
        self.status.set(Status::Created);
        let committed = channel.send(&FromVmm::Ready).and_then(|()| channel.receive());
        if !matches!(committed, Ok(Some(_))) {
            return 1;
        }
        drop(channel);
        if let Some(terminal) = &self.terminal
            && let Some((rows, columns)) = terminal::size(terminal.as_fd())
        {
            let _ = self.request(Request::Resize { rows, columns });
        }
        match self.run() {
            Ok(status) => status.exit_code(),
            Err(error) => {
                tracing::error!("{error:#}");
                eprintln!("cwrun: {error:#}");
                LOST
            }
        }
    }

    fn run(&mut self) -> Result<ExitStatus> {
        loop {
            if let (Some(status), 0) = (self.exited, self.outputs_left) {
                return Ok(status);
            }
            let exit = self.vm.exit_fd();
            let mut fds = [
                PollFd::new(
                    &self.guest,
                    if self.exited.is_none() {
                        PollFlags::IN
                    } else {
                        PollFlags::empty()
                    },
                ),
                PollFd::new(&self.drained, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(
                    &exit,
                    if self.exited.is_none() {
                        PollFlags::IN
                    } else {
                        PollFlags::empty()
                    },
                ),
            ];
            poll(&mut fds, None)?;
            let [guest, drained, signals, control, exit] = fds.map(|fd| {
                fd.revents()
                    .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            });
            if drained {
                rustix::io::read(&self.drained, &mut [0u8; 8]).context("output event")?;
                self.outputs_left = self.outputs_left.saturating_sub(1);
            }
            if guest && self.exited.is_none() {
                self.hear_guest()?;
            }
            if signals {
                self.forward_signal()?;
            }
            if control {
                self.serve_client()?;
            }
            if exit && self.exited.is_none() {
                // Its last message may have come just before the end.
                self.hear_guest()?;
                if self.exited.is_none() {
                    let why = self
                        .vm
                        .try_exit()
                        .map_or_else(String::new, |exit| exit.to_string());
                    bail!(
                        "the virtual machine ended before its workload: {why}{}",
                        self.last_words()
                    );
                }
            }
        }
    }

    fn hear_guest(&mut self) -> Result<()> {
        let mut received = self.guest.receive_some()?;
        loop {
            match received {
                Received::Message(ToHost::Exited { status }) => self.exited = Some(status),
                Received::Message(ToHost::Reply { id, outcome }) => self.reply(id, outcome),
                Received::Message(ToHost::Hello { .. }) => bail!("the guest said Hello twice"),
                Received::Pending => return Ok(()),
                Received::Closed if self.exited.is_some() => return Ok(()),
                Received::Closed => bail!("the guest closed its control stream{}", self.last_words()),
            }
            received = self
                .guest
                .buffered()?
                .map_or(Received::Pending, Received::Message);
        }
    }

    fn reply(&mut self, id: u32, outcome: Outcome) {
        // Replies to forwarded signals have no client.
        let Some((mut client, starting)) = self.waiting.remove(&id) else {
            return;
        };
        match (starting, &outcome) {
            (Some(since), Outcome::Done) => {
                self.status.set(Status::Running);
                phase_took("start", since.elapsed().as_secs_f64() * 1000.0);
            }
            // There never was a workload, so there is neither output nor an end of it to wait for.
            (Some(_), Outcome::Failed { kind, .. }) => {
                self.exited = Some(ExitStatus::Code {
                    code: failure::code_of(*kind),
                });
                self.outputs_left = 0;
            }
            _ => {}
        }
        // A client that did not wait has its own reasons.
        let _ = client.send(&outcome);
    }

    fn serve_client(&mut self) -> Result<()> {
        let Ok((stream, _)) = self.control.accept() else {
            return Ok(());
        };
        let timeouts = stream
            .set_read_timeout(Some(SEND_DEADLINE))
            .and_then(|()| stream.set_write_timeout(Some(SEND_DEADLINE)));
        timeouts.context("control socket")?;
        let mut client = Client::new(stream);
        let Ok(Some(request)) = client.receive() else {
            return Ok(());
        };
        let start = matches!(request, Request::Start);
        let refusal = match request {
            Request::Setup(_) => Some("only create sets a guest up"),
            Request::Start if self.started => Some("the container has been started already"),
            _ if self.exited.is_some() => Some("the container's process has ended"),
            _ => None,
        };
        if let Some(message) = refusal {
            let _ = client.send(&Outcome::Failed {
                kind: FailureKind::Other,
                message: message.to_owned(),
            });
            return Ok(());
        }
        if start {
            self.started = true;
            self.streams.start_inputs()?;
        }
        let starting = start.then(Instant::now);
        let id = self.request(request)?;
        self.waiting.insert(id, (client, starting));
        Ok(())
    }

    fn forward_signal(&mut self) -> Result<()> {
        let signal = signal_fd::next(&self.signals)?;
        let request = match (signal, &self.terminal) {
            // Of an orphan that this process, first of its PID namespace, inherited from a hook.
            (libc::SIGCHLD, _) => return Ok(()),
            (libc::SIGWINCH, Some(terminal)) => match terminal::size(terminal.as_fd()) {
                Some((rows, columns)) => Request::Resize { rows, columns },
                None => return Ok(()),
            },
            _ => Request::Signal { signal, all: false },
        };
        if self.exited.is_none() {
            self.request(request)?;
        }
        Ok(())
    }
}

fn disk(files: Vec<std::fs::File>, access: Access, serial: &str) -> vmm::Disk {
    vmm::Disk {
        files,
        access,
        serial: serial.to_owned(),
    }
}

fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<()> {
    let timeout = timeout.map(|t| Timespec {
        tv_sec: t.as_secs() as i64,
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll"),
    }
}

fn unix_time_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
