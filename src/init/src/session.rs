//! The life of one container, from the start to the last byte: one thread, one poll(2), nothing that blocks.
//!
//! ```text
//!   control ◄──────► session ──── link, pidfd ────► process
//!   stdio sockets ◄─ pumps ─► pipes or terminal ──►
//! ```

use crate::cgroup::Cgroup;
use crate::container::terminal;
use crate::control::Control;
use crate::failure::{Context as _, Failure, Result, reason};
use crate::link::Report;
use crate::process::{Process, Streams};
use crate::pump::{Delivery, End, Kind, Pump};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use workload::protocol::{FailureKind, Outcome, Request, Status, ToGuest, ToHost};

/// How often delivery is looked at while no event can tell of it.
const DELIVERY_TICK: Duration = Duration::from_millis(5);
/// How long a host that has the bytes may take to close its end before they count as delivered.
const DELIVERY_GRACE: Duration = Duration::from_millis(500);

/// Sockets of the workload's standard streams: one with a terminal, else three.
pub type Sockets = Vec<OwnedFd>;

/// A container that is prepared, runs, or has ended.
pub struct Session {
    control: Control,
    process: Process,
    cgroup: Option<Cgroup>,
    /// Towards the workload; ends with it.
    input: Option<Pump>,
    /// From the workload; delivered to the last byte.
    outputs: Vec<Pump>,
    terminal: Option<Terminal>,
    state: State,
}

struct Terminal {
    master: End,
    /// Dropped when the workload has ended, so that the master sees the end.
    _slave: OwnedFd,
}

/// Where the first process is.
enum State {
    /// Waits for the start.
    Prepared,
    /// Told to go; this request's reply is owed.
    Starting(u32),
    /// Runs the program.
    Running,
    /// Could not run the program; the host knows.
    StartFailed,
    /// Has ended; its output is on its way.
    Ended {
        /// How it ended.
        status: Status,
        /// Since when the device has had all of the output.
        taken_since: Option<Instant>,
    },
    /// Has ended, and the host has been told all there is to tell.
    Told,
}

impl Session {
    /// Joins the parts. The control stream no longer blocks.
    pub fn new(
        control: Control,
        process: Process,
        streams: Streams,
        sockets: Sockets,
        cgroup: Option<Cgroup>,
    ) -> Result<Self> {
        control.set_nonblocking()?;
        let (input, outputs, terminal) = connect(streams, sockets)?;
        Ok(Self {
            control,
            process,
            cgroup,
            input: Some(input),
            outputs,
            terminal,
            state: State::Prepared,
        })
    }

    /// Serves until the workload's end has been told to the host, or the host is gone. Returns the control stream.
    pub fn run(mut self) -> Result<Control> {
        while !self.is_over() {
            self.wait()?;
            self.control.flush()?;
            self.serve_host()?;
            self.serve_process()?;
            self.move_bytes();
            self.finish()?;
        }
        Ok(self.control)
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Told) && self.control.is_flushed()
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. } | State::Told)
    }

    fn wait(&self) -> Result<()> {
        let mut interests = vec![self.control.interest()];
        if !self.has_ended() {
            interests.push(PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN));
        }
        if matches!(self.state, State::Starting(_)) {
            interests.push(PollFd::new(&self.process.link, PollFlags::IN));
        }
        for pump in self.input.iter().chain(&self.outputs) {
            interests.extend(pump.interests());
        }
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: DELIVERY_TICK.subsec_nanos().into(),
        };
        let delivering = self.has_ended() && self.outputs.iter().any(Pump::is_finished);
        match poll(&mut interests, delivering.then_some(&tick)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context(|| "poll".into()),
        }
    }

    fn serve_host(&mut self) -> Result<()> {
        if is_readable(&self.control)? {
            self.control.receive()?;
        }
        while let Some(ToGuest { id, request }) = self.control.next_request()? {
            match self.serve(id, request) {
                Ok(Some(outcome)) => self.control.reply(id, outcome)?,
                Ok(None) => {}
                Err(failure) => self.control.reply(id, failure.into())?,
            }
        }
        Ok(())
    }

    /// The request's outcome, unless it comes later.
    fn serve(&mut self, id: u32, request: Request) -> Result<Option<Outcome>> {
        match request {
            Request::Setup(_) => Err(Failure::other("the workload is already set up")),
            Request::Start => self.start(id),
            Request::Signal { signal, all } => self.signal(signal, all).map(|()| Some(Outcome::Done)),
            Request::Resize { rows, columns } => {
                let terminal = self
                    .terminal
                    .as_ref()
                    .ok_or_else(|| Failure::other("the workload has no terminal to resize"))?;
                terminal::resize(&terminal.master, rows, columns).context(|| "resize the terminal".into())?;
                Ok(Some(Outcome::Done))
            }
        }
    }

    fn start(&mut self, id: u32) -> Result<Option<Outcome>> {
        if !matches!(self.state, State::Prepared) {
            return Err(Failure::other("the workload has already been started"));
        }
        self.process.link.go()?;
        self.state = State::Starting(id);
        Ok(None)
    }

    fn signal(&self, signal: i32, all: bool) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Failure::other(format!("{signal} is not the number of a signal")));
        }
        let sent = match &self.cgroup {
            Some(cgroup) if all => cgroup.signal(signal),
            _ if self.has_ended() => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => self.process.signal(signal),
        };
        sent.map_err(|error| match error {
            error if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                Failure::new(FailureKind::NoProcess, "the workload's process has ended")
            }
            error => Failure::other(format!("send signal {signal}: {}", reason(error))),
        })
    }

    fn serve_process(&mut self) -> Result<()> {
        if let State::Starting(id) = self.state
            && is_readable(&self.process.link)?
        {
            let (outcome, state) = match self.process.link.report()? {
                Report::Failed(failure) => (failure.into(), State::StartFailed),
                // Closed by execve, or by a signal that was faster, of which `Exited` will tell.
                Report::Closed | Report::Ready(_) => (Outcome::Done, State::Running),
            };
            self.state = state;
            self.control.reply(id, outcome)?;
        }
        if self.has_ended() || !is_readable(&self.process.pidfd())? {
            return Ok(());
        }
        let Some(status) = self.process.status().context(|| "wait for the workload".into())? else {
            return Ok(());
        };
        self.input = None;
        self.terminal = None;
        self.state = match self.state {
            // The host knows, and nobody waits for the output of a program that never was.
            State::StartFailed => State::Told,
            _ => State::Ended {
                status,
                taken_since: None,
            },
        };
        Ok(())
    }

    fn move_bytes(&mut self) {
        for pump in self.input.iter_mut().chain(&mut self.outputs) {
            pump.work();
        }
    }

    /// After the end: waits for the output's delivery, then tells the host.
    fn finish(&mut self) -> Result<()> {
        let State::Ended { status, taken_since } = &mut self.state else {
            return Ok(());
        };
        let slowest = self
            .outputs
            .iter()
            .map(|pump| {
                if pump.is_finished() {
                    pump.delivery()
                } else {
                    Delivery::Under
                }
            })
            .min()
            .unwrap_or(Delivery::Confirmed);
        let delivered = match slowest {
            Delivery::Under => {
                *taken_since = None;
                false
            }
            Delivery::Taken => taken_since.get_or_insert_with(Instant::now).elapsed() > DELIVERY_GRACE,
            Delivery::Confirmed => true,
        };
        if delivered {
            let status = *status;
            self.outputs.clear();
            self.state = State::Told;
            self.control.send(&ToHost::Exited { status })?;
        }
        Ok(())
    }
}

/// Joins the workload's streams to their sockets: the pump towards it, those from it, and its terminal.
fn connect(streams: Streams, sockets: Sockets) -> Result<(Pump, Vec<Pump>, Option<Terminal>)> {
    let end = |fd, kind| End::new(fd, kind).context(|| "standard streams".into());
    match (streams, <[OwnedFd; 3]>::try_from(sockets)) {
        (Streams::Pipes { input, output, error }, Ok([zero, one, two])) => {
            let pump = |from: (OwnedFd, Kind), to: (OwnedFd, Kind)| {
                Ok(Pump::new(end(from.0, from.1)?, end(to.0, to.1)?))
            };
            let outputs = vec![
                pump((output, Kind::Pipe), (one, Kind::Socket))?,
                pump((error, Kind::Pipe), (two, Kind::Socket))?,
            ];
            Ok((pump((zero, Kind::Socket), (input, Kind::Pipe))?, outputs, None))
        }
        (Streams::Terminal { master, slave }, Err(sockets)) => {
            let socket = sockets
                .into_iter()
                .next()
                .ok_or_else(|| Failure::other("the terminal has no stream"))?;
            let (socket, master) = (end(socket, Kind::Socket)?, end(master, Kind::Terminal)?);
            let input = Pump::new(socket.clone(), master.clone());
            let output = Pump::new(master.clone(), socket);
            Ok((
                input,
                vec![output],
                Some(Terminal {
                    master,
                    _slave: slave,
                }),
            ))
        }
        _ => Err(Failure::other(
            "the workload's streams do not match its terminal setting",
        )),
    }
}

fn is_readable(fd: &impl std::os::fd::AsFd) -> Result<bool> {
    let mut interest = [PollFd::new(fd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut interest, Some(&now)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "poll".into()),
        }
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
