//! One process with its streams, from its making to its last byte.
//!
//! ```text
//!   stdio sockets ◄─ pumps ─► pipes or terminal ──► process ──► link, pidfd
//!
//!   first:  Prepared ─ start ─► Starting ─► Running ─► Ended ─ all delivered ─► Told
//!   others: Preparing ────────────┘    └─► Failed
//! ```

use crate::container::terminal;
use crate::failure::{Context as _, Failure, Result};
use crate::link::Report;
use crate::process::{Process, Streams, Unready};
use crate::pump::{Delivery, End, Kind, Pump};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use workload::protocol::{Outcome, Status};

/// How long a host that has the bytes may take to close its end before they count as delivered.
const DELIVERY_GRACE: Duration = Duration::from_millis(500);
/// How long a terminal may take to hand on what its process wrote before it ended.
const SETTLE: Duration = Duration::from_millis(100);

/// Sockets of a process's standard streams: one with a terminal, else three.
pub type Sockets = Vec<OwnedFd>;

/// A process that is prepared, runs, or has ended.
pub struct Task {
    process: Process,
    /// Towards the process; ends with it.
    input: Option<Pump>,
    /// From the process; delivered to the last byte.
    outputs: Vec<Pump>,
    terminal: Option<Terminal>,
    /// Others may live on when it has ended, and hold its output open.
    outlived: bool,
    state: State,
}

struct Terminal {
    master: End,
    /// Dropped when the process has ended, so that the master sees the end.
    _slave: OwnedFd,
}

/// Where the process is.
enum State {
    /// Waits for the start.
    Prepared,
    /// On its way to be; starts at once. This request's reply is owed.
    Preparing { request: u32, parts: Parts },
    /// Told to go; this request's reply is owed.
    Starting(u32),
    /// Runs the program.
    Running,
    /// Could not run the program; the host knows.
    Failed,
    /// Has ended; its output is on its way.
    Ended {
        /// How it ended.
        status: Status,
        since: Instant,
        /// Since when the device has had all of the output.
        taken_since: Option<Instant>,
    },
    /// Has ended, and the host has been told all there is to tell.
    Told,
}

/// What is joined once the process is ready.
struct Parts(Unready, Sockets);

/// What the host is to hear.
pub enum News {
    /// The answer to the request that started it.
    Reply(u32, Outcome),
    /// It has ended, and all of its output has been delivered.
    Exited(Status),
}

impl Task {
    /// The container's first process, prepared.
    pub fn first(process: Process, streams: Streams, sockets: Sockets) -> Result<Self> {
        // With it, the kernel ends all others of the container.
        let mut task = Self::new(process, false, State::Prepared);
        task.connect(streams, sockets)?;
        Ok(task)
    }

    /// A process that has just been forked for `request` and starts as soon as it can.
    pub fn forked(process: Process, unready: Unready, sockets: Sockets, request: u32) -> Self {
        let parts = Parts(unready, sockets);
        Self::new(process, true, State::Preparing { request, parts })
    }

    fn new(process: Process, outlived: bool, state: State) -> Self {
        Self {
            process,
            input: None,
            outputs: Vec::new(),
            terminal: None,
            outlived,
            state,
        }
    }

    /// Lets a prepared process go, for this request.
    pub fn start(&mut self, request: u32) -> Result<()> {
        if !matches!(self.state, State::Prepared) {
            return Err(Failure::other("the workload has already been started"));
        }
        self.process.link.go()?;
        self.state = State::Starting(request);
        Ok(())
    }

    /// Sends it a signal by number. ESRCH once it has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if self.has_ended() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        self.process.signal(signal)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or_else(|| Failure::other("the workload has no terminal to resize"))?;
        terminal::resize(&terminal.master, rows, columns).context(|| "resize the terminal".into())
    }

    /// A pidfd of it.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    /// Whether there is nothing left to do for it.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Told)
    }

    /// Whether it has ended but for its output's delivery, which no event tells of.
    pub fn is_delivering(&self) -> bool {
        self.has_ended() && (self.outlived || self.outputs.iter().any(Pump::is_finished))
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. } | State::Told)
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<PollFd<'_>> {
        let mut interests = Vec::new();
        if !self.has_ended() {
            interests.push(PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN));
        }
        if matches!(self.state, State::Preparing { .. } | State::Starting(_)) {
            interests.push(PollFd::new(&self.process.link, PollFlags::IN));
        }
        for pump in self.input.iter().chain(&self.outputs) {
            interests.extend(pump.interests());
        }
        interests
    }

    /// Does what can be done now; what there is to tell is put into `news`.
    pub fn work(&mut self, news: &mut Vec<News>) -> Result<()> {
        self.hear_link(news)?;
        self.collect()?;
        for pump in self.input.iter_mut().chain(&mut self.outputs) {
            pump.work();
        }
        self.finish(news);
        Ok(())
    }

    /// What the process says of itself until it is its program.
    fn hear_link(&mut self, news: &mut Vec<News>) -> Result<()> {
        let waits = matches!(self.state, State::Preparing { .. } | State::Starting(_));
        if !waits || !is_readable(&self.process.link)? {
            return Ok(());
        }
        let report = self.process.link.report()?;
        let (request, outcome, next) = match (std::mem::replace(&mut self.state, State::Failed), report) {
            (State::Preparing { request, parts }, Report::Ready(terminal)) => {
                let Parts(unready, sockets) = parts;
                let started = unready
                    .streams(terminal)
                    .and_then(|streams| self.connect(streams, sockets))
                    .and_then(|()| self.process.link.go());
                match started {
                    Ok(()) => {
                        self.state = State::Starting(request);
                        return Ok(());
                    }
                    Err(failure) => {
                        // It may have ended by itself.
                        let _ = self.process.signal(libc::SIGKILL);
                        (request, failure.into(), State::Failed)
                    }
                }
            }
            (State::Preparing { request, .. }, Report::Closed) => {
                let failure = Failure::other("the process died while it was set up");
                (request, failure.into(), State::Failed)
            }
            (State::Preparing { request, .. } | State::Starting(request), Report::Failed(failure)) => {
                (request, failure.into(), State::Failed)
            }
            // Closed by execve, or by a signal that was faster, of which the exit status will tell.
            (State::Starting(request), _) => (request, Outcome::Done, State::Running),
            (state, _) => {
                self.state = state;
                return Ok(());
            }
        };
        self.state = next;
        news.push(News::Reply(request, outcome));
        Ok(())
    }

    /// Notes the end of the process.
    fn collect(&mut self) -> Result<()> {
        // Until its last words on the link have been heard, nobody has been told that it ran. The link ends with it at the latest.
        let speaks = matches!(self.state, State::Preparing { .. } | State::Starting(_));
        if speaks || self.has_ended() || !is_readable(&self.process.pidfd())? {
            return Ok(());
        }
        let Some(status) = self.process.status().context(|| "wait for a process".into())? else {
            return Ok(());
        };
        self.state = match self.state {
            // The host knows, and nobody waits for the output of a program that never was.
            State::Failed => State::Told,
            _ => State::Ended {
                status,
                since: Instant::now(),
                taken_since: None,
            },
        };
        self.outputs.iter_mut().for_each(Pump::mark);
        self.input = None;
        self.terminal = None;
        Ok(())
    }

    /// After the end: waits for the output's delivery, then tells the host.
    fn finish(&mut self, news: &mut Vec<News>) {
        let State::Ended {
            status,
            since,
            taken_since,
        } = &mut self.state
        else {
            return;
        };
        // What those who live on will write is not waited for, as it is not where they have a pipe of the caller's.
        if self.outlived && since.elapsed() >= SETTLE {
            self.outputs
                .iter_mut()
                .filter(|pump| !pump.is_finished())
                .for_each(Pump::end);
        }
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
            news.push(News::Exited(*status));
            self.outputs.clear();
            self.state = State::Told;
        }
    }

    /// Joins the streams to their sockets: the pump towards the process, those from it, and its terminal.
    fn connect(&mut self, streams: Streams, sockets: Sockets) -> Result<()> {
        let end = |fd, kind| End::new(fd, kind).context(|| "standard streams".into());
        match (streams, <[OwnedFd; 3]>::try_from(sockets)) {
            (Streams::Pipes { input, output, error }, Ok([zero, one, two])) => {
                let pump = |from: (OwnedFd, Kind), to: (OwnedFd, Kind)| {
                    Ok(Pump::new(end(from.0, from.1)?, end(to.0, to.1)?))
                };
                self.outputs = vec![
                    pump((output, Kind::Pipe), (one, Kind::Socket))?,
                    pump((error, Kind::Pipe), (two, Kind::Socket))?,
                ];
                self.input = Some(pump((zero, Kind::Socket), (input, Kind::Pipe))?);
                Ok(())
            }
            (Streams::Terminal { master, slave }, Err(sockets)) => {
                let socket = sockets
                    .into_iter()
                    .next()
                    .ok_or_else(|| Failure::other("the terminal has no stream"))?;
                let (socket, master) = (end(socket, Kind::Socket)?, end(master, Kind::Terminal)?);
                self.input = Some(Pump::new(socket.clone(), master.clone()));
                self.outputs = vec![Pump::new(master.clone(), socket)];
                self.terminal = Some(Terminal {
                    master,
                    _slave: slave,
                });
                Ok(())
            }
            _ => Err(Failure::other(
                "the workload's streams do not match its terminal setting",
            )),
        }
    }
}

/// Whether reading `fd` would not block.
pub fn is_readable(fd: &impl std::os::fd::AsFd) -> Result<bool> {
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
