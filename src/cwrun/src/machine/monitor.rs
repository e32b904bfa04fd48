//! The VMM's main loop: the guest's control stream, the control socket, signals.

use super::stdio::Streams;
use super::{Machine, sandbox, terminal};
use crate::channel::{Channel, Received};
use crate::failure::{self, GuestFailure};
use crate::launch::{FromVmm, VmmEnd};
use crate::logging::{phase, phase_took};
use crate::network;
use crate::signal_fd;
use crate::state::{Status, StatusFile};
use anyhow::{Context, Result, bail, ensure};
use netlink::LinkWatch;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use vmm::{Access, Running, Vm};
use workload::protocol::{
    self, Exec, FailureKind, Outcome, Request, Setup, Status as ExitStatus, ToGuest, ToHost,
};
use workload::{Blob, Device};

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
/// Sockets that wait for the guest to connect to their ports.
type Endpoints = Arc<Mutex<HashMap<u32, UnixStream>>>;

/// A client that waits for the guest's answer.
enum Waiting {
    /// To `Start`, since then.
    Start(Client, Instant),
    /// To `Exec` of the process with this number.
    Exec(Client, u32),
    /// To `Freeze`: what the container is afterwards.
    Freeze(Client, Status),
    /// To anything else.
    Other(Client),
}

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
    /// By the number of the request.
    waiting: HashMap<u32, Waiting>,
    last_request: u32,
    /// Those whose processes run, by the numbers of these.
    execs: HashMap<u32, Client>,
    last_exec: u32,
    endpoints: Endpoints,
    watch: Option<LinkWatch>,
    started: bool,
    exited: Option<ExitStatus>,
}

impl Monitor {
    /// Boots the guest and has it prepare the workload.
    pub fn boot(machine: Machine, volumes: Vec<vmm::Volume>, channel: &mut VmmEnd) -> Result<Self> {
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
        let endpoints = Arc::new(Mutex::new(endpoints));
        let connect = {
            let endpoints = Arc::clone(&endpoints);
            let (evidence, line) = (machine.start.evidence, machine.line);
            Box::new(move |port| match port {
                protocol::EVIDENCE => evidence.as_ref()?.connect(),
                protocol::BROKER => line.as_ref()?.connect(),
                // Nobody panics while holding the lock.
                _ => endpoints.lock().ok()?.remove(&port),
            })
        };
        let mut disks = vec![disk(machine.images, Access::ReadOnly, "root")];
        disks.extend(
            machine
                .scratch
                .map(|file| disk(vec![file], Access::Scratch, "scratch")),
        );
        disks.extend((0..).zip(machine.disks).map(|(number, (file, writable))| {
            let access = if writable {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            };
            disk(vec![file], access, &Device::serial(number))
        }));
        let config = vmm::Config {
            kvm: machine.kvm,
            boot: machine.start.boot,
            memory_mib: machine.memory_mib,
            vcpus: machine.vcpus,
            disks,
            nics: machine.nics,
            volumes,
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
            execs: HashMap::new(),
            last_exec: 0,
            endpoints,
            watch: machine.watch,
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
            let _ = self.request(Request::Resize {
                process: 0,
                rows,
                columns,
            });
        }
        let ended = self.run();
        self.tell_page_states();
        match ended {
            Ok(status) => status.exit_code(),
            Err(error) => {
                tracing::error!("{error:#}");
                eprintln!("cwrun: {error:#}");
                LOST
            }
        }
    }

    /// How much of a confidential guest's memory devices could see.
    fn tell_page_states(&self) {
        if let Some((pages, modelled)) = self.vm.page_states() {
            tracing::debug!(
                modelled,
                shared_kib = pages.shared_pages * 4,
                conversions = pages.conversions,
                refused = pages.refused,
                "page states of the guest"
            );
        }
    }

    fn run(&mut self) -> Result<ExitStatus> {
        loop {
            if let (Some(status), 0) = (self.exited, self.outputs_left) {
                return Ok(status);
            }
            let exit = self.vm.exit_fd();
            // What is over would be told again and again, whatever is asked for: something else stands in its place.
            let ended = self.exited.is_some();
            let unless_ended = |fd| match ended {
                false => PollFd::from_borrowed_fd(fd, PollFlags::IN),
                true => PollFd::new(&self.drained, PollFlags::empty()),
            };
            let fds = [
                unless_ended(self.guest.as_fd()),
                PollFd::new(&self.drained, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
                unless_ended(exit),
            ];
            let happened = |fd: &PollFd<'_>| {
                fd.revents()
                    .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            };
            let numbers: Vec<u32> = self.execs.keys().copied().collect();
            let mut fds: Vec<PollFd<'_>> = fds
                .into_iter()
                .chain(
                    self.execs
                        .values()
                        .map(|client| PollFd::new(client, PollFlags::IN)),
                )
                .chain(self.watch.iter().map(|watch| PollFd::new(watch, PollFlags::IN)))
                .collect();
            poll(&mut fds, None)?;
            let happened: Vec<bool> = fds.iter().map(happened).collect();
            let [guest, drained, signals, control, exit, rest @ ..] = happened.as_slice() else {
                unreachable!("five descriptors come first")
            };
            let [guest, drained, signals, control, exit] = [*guest, *drained, *signals, *control, *exit];
            let (clients, watch) = rest.split_at(numbers.len());
            let watch = watch.contains(&true);
            let speaking: Vec<u32> = numbers
                .into_iter()
                .zip(clients)
                .filter_map(|(number, speaks)| speaks.then_some(number))
                .collect();
            for number in speaking {
                self.hear_exec(number)?;
            }
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
            if watch {
                self.tell_of_network();
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
                Received::Message(ToHost::Exited { process: 0, status }) => self.exited = Some(status),
                Received::Message(ToHost::Exited { process, status }) => {
                    if let Some(mut client) = self.execs.remove(&process) {
                        // One that is gone has its own reasons.
                        let _ = client.send(&Outcome::Exited { status });
                    }
                }
                Received::Message(ToHost::Reply { id, outcome }) => self.reply(id, outcome)?,
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

    fn reply(&mut self, id: u32, outcome: Outcome) -> Result<()> {
        // Replies to forwarded signals have no client.
        let Some(waiting) = self.waiting.remove(&id) else {
            return Ok(());
        };
        let done = matches!(outcome, Outcome::Done);
        let mut client = match waiting {
            Waiting::Start(client, since) => {
                match &outcome {
                    // There never was a workload, so there is neither output nor an end of it to wait for.
                    Outcome::Failed { kind, .. } => {
                        self.exited = Some(ExitStatus::Code {
                            code: failure::code_of(*kind),
                        });
                        self.outputs_left = 0;
                    }
                    _ => {
                        self.status.set(Status::Running);
                        phase_took("start", since.elapsed().as_secs_f64() * 1000.0);
                    }
                }
                client
            }
            Waiting::Freeze(client, then) => {
                if done {
                    self.status.set(then);
                }
                client
            }
            Waiting::Exec(mut client, number) => {
                let heard = client.send(&outcome).is_ok();
                if !done {
                    self.forget_endpoints(number);
                } else if heard {
                    self.execs.insert(number, client);
                } else {
                    self.kill_exec(number)?;
                }
                return Ok(());
            }
            Waiting::Other(client) => client,
        };
        // A client that did not wait has its own reasons.
        let _ = client.send(&outcome);
        Ok(())
    }

    /// What the client of a running process says: signals and window sizes for it. When it is gone, so is its process.
    fn hear_exec(&mut self, number: u32) -> Result<()> {
        let Some(client) = self.execs.get_mut(&number) else {
            return Ok(());
        };
        let mut received = client.receive_some().unwrap_or(Received::Closed);
        loop {
            let request = match received {
                Received::Message(Request::Signal { signal, .. }) => Request::Signal {
                    process: number,
                    signal,
                    all: false,
                },
                Received::Message(Request::Resize { rows, columns, .. }) => Request::Resize {
                    process: number,
                    rows,
                    columns,
                },
                Received::Pending => return Ok(()),
                Received::Message(_) | Received::Closed => {
                    self.execs.remove(&number);
                    return self.kill_exec(number);
                }
            };
            if self.exited.is_none() {
                self.request(request)?;
            }
            let Some(client) = self.execs.get_mut(&number) else {
                return Ok(());
            };
            received = match client.buffered() {
                Ok(message) => message.map_or(Received::Pending, Received::Message),
                Err(_) => Received::Closed,
            };
        }
    }

    fn kill_exec(&mut self, number: u32) -> Result<()> {
        self.forget_endpoints(number);
        if self.exited.is_none() {
            self.request(Request::Signal {
                process: number,
                signal: libc::SIGKILL,
                all: false,
            })?;
        }
        Ok(())
    }

    fn forget_endpoints(&self, number: u32) {
        if let Ok(mut endpoints) = self.endpoints.lock() {
            endpoints
                .retain(|port, _| protocol::stdio_of(*port).is_none_or(|(process, _)| process != number));
        }
    }

    /// Gives a new process its number, and its client's sockets to the ports that it will connect to.
    fn admit_exec(&mut self, exec: &mut Exec, descriptors: Vec<OwnedFd>) -> Result<(), &'static str> {
        let expected = if exec.process.terminal { 1 } else { 3 };
        if descriptors.len() != expected {
            return Err("the wrong number of standard streams came with the process");
        }
        if self.last_exec == protocol::MAX_PROCESS {
            return Err("the container has had as many processes as can be counted");
        }
        self.last_exec += 1;
        exec.number = self.last_exec;
        let mut endpoints = self.endpoints.lock().map_err(|_| "no streams can be made")?;
        for (stream, descriptor) in (0..).zip(descriptors) {
            endpoints.insert(protocol::stdio(exec.number, stream), UnixStream::from(descriptor));
        }
        Ok(())
    }

    fn serve_client(&mut self) -> Result<()> {
        let Ok((stream, _)) = self.control.accept() else {
            return Ok(());
        };
        let mut client = Client::new(stream);
        client.wait_at_most(SEND_DEADLINE).context("control socket")?;
        let Ok(Some(mut request)) = client.receive() else {
            return Ok(());
        };
        let descriptors = client.descriptors();
        let refusal = match &mut request {
            Request::Setup(_) => Some("only create sets a guest up"),
            Request::Start if self.started => Some("the container has been started already"),
            // As kill(2) succeeds with a process that has ended and that nobody has waited for.
            Request::Signal { .. } if self.exited.is_some() => {
                let _ = client.send(&Outcome::Done);
                return Ok(());
            }
            _ if self.exited.is_some() => Some("the container's process has ended"),
            Request::Exec(exec) => self.admit_exec(exec, descriptors).err(),
            _ => None,
        };
        if let Some(message) = refusal {
            let _ = client.send(&Outcome::Failed {
                kind: FailureKind::Other,
                message: message.to_owned(),
            });
            return Ok(());
        }
        let waiting = match &request {
            Request::Start => {
                self.started = true;
                self.streams.start_inputs()?;
                Waiting::Start(client, Instant::now())
            }
            Request::Exec(exec) => Waiting::Exec(client, exec.number),
            Request::Freeze { frozen: true } => Waiting::Freeze(client, Status::Paused),
            Request::Freeze { frozen: false } => Waiting::Freeze(client, Status::Running),
            _ => Waiting::Other(client),
        };
        let id = self.request(request)?;
        self.waiting.insert(id, waiting);
        Ok(())
    }

    /// Engines don't ask a runtime before they change a network, so this is all that whoever asked for it will see.
    fn tell_of_network(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        match network::unfollowed(watch) {
            Ok(sentences) => {
                for sentence in sentences {
                    tracing::warn!("{sentence}");
                    eprintln!("cwrun: {sentence}");
                }
            }
            Err(error) => {
                tracing::warn!("changes of the network can't be seen any more: {error:#}");
                self.watch = None;
            }
        }
    }

    fn forward_signal(&mut self) -> Result<()> {
        let signal = signal_fd::next(&self.signals)?;
        // SIGCHLD is of an orphan that this process, first of its PID namespace, inherited from a hook.
        let request = terminal::request_for(signal, self.terminal.as_ref());
        if let (Some(request), None) = (request, self.exited) {
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
