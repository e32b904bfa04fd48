//! PID 1's own story: surroundings, control stream, container, end.
//!
//! ```text
//!   world ─► Hello ─► Setup ─► layers ─► scratch ─► overlay ─► process ─► Ready ─► session ─► Exited ─► reset
//! ```

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::container::root::Root;
use crate::control::Control;
use crate::dm::Mapper;
use crate::failure::{Context as _, Failure, Result};
use crate::process::Process;
use crate::session::{Identity, Session, Sockets, open_streams};
use crate::{evidence, kmsg, layers, network, scratch, sealed, sys, whiteouts, world};
use mkcw::InnerConfig;
use rustix::event::{Timespec, poll};
use rustix::time::{ClockId, clock_gettime, clock_settime};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use workload::protocol::{CONTROL, HOST_CID, Outcome, Request, Setup, ToGuest, ToHost, VERSION};
use workload::{Environment, Workload, account};

/// Search path of images that set none, as engines have it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest list of users or groups that is read, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;
/// How far the guest's clock may be from the host's before it is set.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
/// How long the host may take to end the guest once nothing is left to do.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs the guest to its end. An error is one that could not be told to the host.
pub fn run() -> Result<()> {
    let kernel_ms = since_boot().as_millis();
    world::make()?;
    let socket = sys::vsock_connect(HOST_CID, CONTROL).context(|| "connect to the host".into())?;
    let mut control = Control::new(socket);
    control.send(&ToHost::Hello {
        version: VERSION,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        kernel_ms: u64::try_from(kernel_ms).unwrap_or(u64::MAX),
    })?;
    let ToGuest { id, request } = control.wait_for_request()?;
    let Request::Setup(setup) = request else {
        control.reply(id, Failure::other("the first request must be the set-up").into())?;
        return farewell(control);
    };
    let mut phases = Phases::new(setup.debug);
    let prepared = set_up(*setup, &mut phases);
    world::hurry(false);
    match prepared {
        Ok(prepared) => {
            control.reply(id, Outcome::Ready { phases: phases.done })?;
            let Prepared {
                process,
                streams,
                sockets,
                cgroup,
                exec,
                identity,
            } = prepared;
            let mut session = Session::new(control, process, streams, sockets, Some(cgroup))?;
            if !exec {
                session.refuse_exec();
            }
            if let Some(identity) = identity {
                session.identify(identity);
            }
            farewell(session.run()?)
        }
        Err(failure) => {
            kmsg::error(&failure.message);
            control.reply(id, failure.into())?;
            farewell(control)
        }
    }
}

/// A container short of its start.
struct Prepared {
    process: Process,
    streams: crate::process::Streams,
    sockets: Sockets,
    cgroup: Cgroup,
    /// The host may have more processes run.
    exec: bool,
    /// What verifiers can have.
    identity: Option<Identity>,
}

fn set_up(setup: Setup, phases: &mut Phases) -> Result<Prepared> {
    let Setup {
        workload,
        mut environment,
        keys,
        unix_time_ns,
        ..
    } = setup;
    let bytes = workload.0;
    let mut workload = Workload::from_bytes(&bytes).map_err(|error| Failure::other(error.to_string()))?;
    evidence::check(&bytes, workload.tee)?;
    environment.check().map_err(Failure::other)?;
    workload
        .admit(&environment)
        .map_err(|error| Failure::other(error.to_string()))?;
    set_clock(Duration::from_nanos(unix_time_ns))?;
    let mapper = Mapper::open()?;
    // Side by side: most of both is waiting, for the disk or for the kernel's own threads.
    let ((lower, inner), secrets) = thread::scope(|scope| {
        let scratch = scope.spawn(|| scratch::make(&mapper, &workload.scratch));
        let lower = sealed::release(&workload, keys).and_then(|released| {
            if workload.sealed.is_some() {
                phases.end("broker");
            }
            // Wiped at the end of this: the kernel has them now, and the workload's process starts as a copy of this one.
            let lower = layers::activate(&mapper, &workload.root, &released.keys)?;
            Ok((lower, released.secrets))
        });
        phases.end("layers");
        // A panic there is one here.
        scratch
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        phases.end("scratch");
        lower
    })?;
    scratch::overlay(&lower)?;
    whiteouts::show(&lower, workload.readonly_root)?;
    if let Some(inner) = inner {
        run_instead(&inner, &mut workload.process)?;
    }
    phases.end("overlay");
    let sockets = open_streams(0, workload.process.terminal)?;
    phases.end("streams");
    secrets.give(&mut environment.files, &mut workload.process.env);
    let prepared = prepare_process(&workload, &environment, sockets)?;
    sealed::wipe(&mut environment.files, &mut workload.process.env);
    phases.end("process");
    let identity = evidence::source(workload.tee)?.map(|reports| Identity {
        workload: bytes,
        reports,
    });
    Ok(Prepared { identity, ..prepared })
}

/// Puts what a disk says is to run in the place of what the host says.
fn run_instead(inner: &InnerConfig, process: &mut workload::Process) -> Result<()> {
    let args: Vec<String> = inner.args().into_iter().map(str::to_owned).collect();
    if args.is_empty() {
        return Err(Failure::other("the disk's configuration names no program to run"));
    }
    let read = |name: &str| Root::open(world::ROOT)?.read_text(name, MAX_ACCOUNTS);
    let user = account::look_up(&inner.user, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|error| Failure::other(error.to_string()))?;
    process.args = args;
    process.cwd.clone_from(&inner.working_dir);
    process.user = workload::User {
        umask: process.user.umask,
        ..user
    };
    process.env.clone_from(&inner.env);
    if !process.env.iter().any(|variable| variable.starts_with("PATH=")) {
        process.env.push(DEFAULT_PATH.to_owned());
    }
    Ok(())
}

fn prepare_process(workload: &Workload, environment: &Environment, sockets: Sockets) -> Result<Prepared> {
    network::set_up(&environment.interfaces)?;
    let cgroup = Cgroup::make(Path::new(world::CGROUP), "container")?;
    cgroup.limit(&environment.limits)?;
    let container = Container {
        workload,
        environment,
        root: world::ROOT,
        files: world::FILES,
        cgroup: Some(&cgroup),
    };
    let (process, streams) = Process::prepare(&container)?;
    Ok(Prepared {
        process,
        streams,
        sockets,
        cgroup,
        exec: workload.tee.is_none_or(|tee| tee.exec),
        identity: None,
    })
}

/// Sets the clock if it is far off: a guest without kvmclock starts in 1970.
fn set_clock(host: Duration) -> Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let now = Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0));
    if host.abs_diff(now) <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(host.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: host.subsec_nanos().into(),
    };
    clock_settime(ClockId::Realtime, time).context(|| "set the clock".into())
}

/// Waits until the host has heard everything and ends the guest, or has had time enough to.
fn farewell(mut control: Control) -> Result<()> {
    control.set_nonblocking()?;
    let deadline = Instant::now() + FAREWELL;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        // Interrupted or not, the deadline decides.
        let _ = poll(&mut [control.interest()], Some(&timeout));
        if control.flush().is_err() || control.receive().is_err() {
            break;
        }
    }
    Ok(())
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is ever negative.
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Where the milliseconds go.
struct Phases {
    started: Instant,
    log: bool,
    done: Vec<(String, u64)>,
}

impl Phases {
    fn new(log: bool) -> Self {
        Self {
            started: Instant::now(),
            log,
            done: Vec::new(),
        }
    }

    fn end(&mut self, name: &str) {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.log {
            kmsg::info(&format!("{name}: {milliseconds} ms"));
        }
        self.done.push((name.to_owned(), milliseconds));
        self.started = Instant::now();
    }
}
