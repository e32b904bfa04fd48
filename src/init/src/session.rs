//! The life of one container, from the start to the last byte: one thread, one poll(2), nothing that blocks.
//!
//! ```text
//!   control ◄──────► session ──┬── task 0: the first process
//!                              ├── task k: one more, by `Exec`
//!                              └── cgroup: all of them
//! ```
//!
//! The container is over when its first process is: the kernel then kills the others, which share its PID namespace.

use crate::cgroup::Cgroup;
use crate::container::Member;
use crate::control::Control;
use crate::evidence::Source;
use crate::failure::{Context as _, Failure, Result, reason};
use crate::process::{Process, Streams};
use crate::sys;
pub use crate::task::Sockets;
use crate::task::{News, Task, is_readable};
use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};
use workload::Blob;
use workload::protocol::{
    Exec, FailureKind, HOST_CID, MAX_PROCESS, Outcome, Request, Status, ToGuest, ToHost, stdio,
};

/// Number of the container's first process.
const FIRST: u32 = 0;
/// How often delivery is looked at while no event can tell of it.
const DELIVERY_TICK: Duration = Duration::from_millis(5);
/// How long the ends of other processes may take to be told after that of the first.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A container that is prepared, runs, or has ended.
pub struct Session {
    control: Control,
    cgroup: Option<Cgroup>,
    tasks: BTreeMap<u32, Task>,
    /// The highest number of a process so far.
    highest: u32,
    /// How the first process ended, until the host is told.
    status: Option<Status>,
    /// Since when it is over.
    over_since: Option<Instant>,
    /// The host may have more processes run.
    exec_allowed: bool,
    /// What verifiers can have.
    identity: Option<Identity>,
}

/// What a confidential guest shows to verifiers.
pub struct Identity {
    /// The Workload's canonical bytes.
    pub workload: Vec<u8>,
    /// The TEE's reports, by REPORT_DATA.
    pub reports: Source,
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
        Ok(Self {
            control,
            cgroup,
            tasks: BTreeMap::from([(FIRST, Task::first(process, streams, sockets)?)]),
            highest: FIRST,
            status: None,
            over_since: None,
            exec_allowed: true,
            identity: None,
        })
    }

    /// From here on the first process stays the only one that the host starts.
    pub fn refuse_exec(&mut self) {
        self.exec_allowed = false;
    }

    /// From here on verifiers are answered.
    pub fn identify(&mut self, identity: Identity) {
        self.identity = Some(identity);
    }

    /// Serves until the end of the container has been told to the host, or the host is gone. Returns the control stream.
    pub fn run(mut self) -> Result<Control> {
        while !self.is_over() {
            self.wait()?;
            self.control.flush()?;
            self.serve_host()?;
            self.serve_tasks()?;
        }
        Ok(self.control)
    }

    /// Of the first process, the end is told last.
    fn is_over(&self) -> bool {
        self.tasks.is_empty() && self.control.is_flushed()
    }

    fn wait(&self) -> Result<()> {
        let mut interests = vec![self.control.interest()];
        interests.extend(self.tasks.values().flat_map(Task::interests));
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: DELIVERY_TICK.subsec_nanos().into(),
        };
        let ticking = self.over_since.is_some() || self.tasks.values().any(Task::is_delivering);
        match poll(&mut interests, ticking.then_some(&tick)) {
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
            Request::Setup(_) => return Err(Failure::other("the workload is already set up")),
            Request::Start => {
                self.task(FIRST)?.start(id)?;
                return Ok(None);
            }
            Request::Exec(exec) => {
                self.exec(id, &exec)?;
                return Ok(None);
            }
            Request::Signal { process, signal, all } => self.signal(process, signal, all)?,
            Request::Resize {
                process,
                rows,
                columns,
            } => self.task(process)?.resize(rows, columns)?,
            Request::Freeze { frozen } => self
                .cgroup()?
                .freeze(frozen)
                .context(|| "freeze the container".into())?,
            Request::Processes => {
                let pids = self.cgroup()?.processes().context(|| "list processes".into())?;
                let pids = pids.into_iter().filter_map(number_inside).collect();
                return Ok(Some(Outcome::Processes { pids }));
            }
            Request::Limit(limits) => self.cgroup()?.limit(&limits)?,
            Request::Usage => {
                let cgroup = self.cgroup()?;
                return Ok(Some(Outcome::Usage {
                    tasks: cgroup.tasks()?,
                    oom_kills: cgroup.oom_kills()?,
                }));
            }
            Request::Attest { nonce } => return self.attest(&nonce.report_data()).map(Some),
        }
        Ok(Some(Outcome::Done))
    }

    fn task(&mut self, number: u32) -> Result<&mut Task> {
        self.tasks.get_mut(&number).ok_or_else(gone)
    }

    fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup
            .as_ref()
            .ok_or_else(|| Failure::other("the container has no control group"))
    }

    fn exec(&mut self, id: u32, exec: &Exec) -> Result<()> {
        // SECURITY: a process of the host's choice could read all of the workload's memory.
        if !self.exec_allowed {
            return Err(Failure::other(
                "the container is confidential, and its Workload does not let the host run more processes in it",
            ));
        }
        if exec.number <= self.highest || exec.number > MAX_PROCESS {
            return Err(Failure::other(format!(
                "process number {} is not a new one",
                exec.number
            )));
        }
        self.highest = exec.number;
        let first = self.tasks.get(&FIRST).ok_or_else(gone)?;
        let below = match &exec.cgroup {
            Some(path) => Some(self.cgroup()?.below(path)?),
            None => None,
        };
        let sockets = open_streams(exec.number, exec.process.terminal)?;
        let member = Member {
            process: &exec.process,
            console_size: exec.console_size,
            first: first.pidfd(),
            cgroup: below.as_ref().or(self.cgroup.as_ref()),
        };
        let (process, unready) = Process::join(&member)?;
        let task = Task::forked(process, unready, sockets, id);
        self.tasks.insert(exec.number, task);
        Ok(())
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Outcome> {
        let Some(Identity { workload, reports }) = &self.identity else {
            return Err(Failure::other(
                "the container is not confidential, so there is nobody to say what it is",
            ));
        };
        let evidence = reports(report_data)?;
        Ok(Outcome::Evidence {
            report: Blob(evidence.report),
            certificates: Blob(evidence.certificates),
            workload: Blob(workload.clone()),
        })
    }

    fn signal(&mut self, process: u32, signal: i32, all: bool) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Failure::other(format!("{signal} is not the number of a signal")));
        }
        let sent = match &self.cgroup {
            Some(cgroup) if all => cgroup.signal(signal),
            _ => self.task(process)?.signal(signal),
        };
        sent.map_err(|error| match error {
            error if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                gone()
            }
            error => Failure::other(format!("send signal {signal}: {}", reason(error))),
        })
    }

    /// Does what can be done for every task, and tells the host what came of it.
    fn serve_tasks(&mut self) -> Result<()> {
        let mut news = Vec::new();
        for (&number, task) in &mut self.tasks {
            task.work(&mut news)?;
            for item in news.drain(..) {
                match item {
                    News::Reply(id, outcome) => self.control.reply(id, outcome)?,
                    News::Exited(status) if number == FIRST => self.status = Some(status),
                    News::Exited(status) => self.control.send(&ToHost::Exited {
                        process: number,
                        status,
                    })?,
                }
            }
        }
        self.tasks
            .retain(|number, task| *number == FIRST || !task.is_over());
        if self.tasks.get(&FIRST).is_some_and(Task::is_over) {
            self.end()?;
        }
        Ok(())
    }

    /// After the first process: waits a moment for the others, which the kernel has killed, and tells of its own end last.
    fn end(&mut self) -> Result<()> {
        let since = self.over_since.get_or_insert_with(Instant::now);
        if self.tasks.len() > 1 && since.elapsed() < LAST_WORDS {
            return Ok(());
        }
        self.tasks.clear();
        match self.status.take() {
            Some(status) => self.control.send(&ToHost::Exited {
                process: FIRST,
                status,
            }),
            // It never ran, which the host knows.
            None => Ok(()),
        }
    }
}

/// Connects the standard streams of process `number`.
pub fn open_streams(number: u32, terminal: bool) -> Result<Sockets> {
    let streams = if terminal { 0..=0 } else { 0..=2 };
    streams
        .map(|stream| {
            sys::vsock_connect(HOST_CID, stdio(number, stream))
                .context(|| format!("connect standard stream {stream}"))
        })
        .collect()
}

fn gone() -> Failure {
    Failure::new(FailureKind::NoProcess, "the workload's process has ended")
}

/// The number that a process has in its own PID namespace (`NSpid`, proc_pid_status(5)). Nothing if it has ended.
fn number_inside(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
#[path = "session_test.rs"]
pub(crate) mod tests;
