//! From a copy of init to the container's first process, in the order that makes each step possible.
//!
//! ```text
//!   init ─ unshare(PID), fork ─┐
//!                              ├ namespaces: mount, IPC, UTS, cgroup
//!                              ├ host name, sysctls, OOM score           needs init's /proc
//!                              ├ mounts, devices, files, masks           the root is still a directory
//!                              ├ pivot_root                              from here on / is the container's
//!                              ├ descriptors 0–2, session, terminal
//!                              ├ working directory, limits, scheduling, user
//!                              ├ the program found ──► Ready
//!                              └ go ──► hooks ──► filter of system calls ──► execve
//! ```

mod copyup;
mod devices;
mod hooks;
mod limits;
mod mounts;
mod program;
pub mod root;
mod scheduling;
mod seccomp;
pub mod terminal;
mod user;

use crate::cgroup::Cgroup;
use crate::failure::{Context as _, Failure, Result};
use crate::link::Link;
use crate::sys;
use program::Program;
use root::Root;
use rustix::fs::Mode;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};
use seccomp::Filter;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use terminal::Terminal;
use user::Kept;
use workload::{Environment, Hook, Process, RootPropagation, Workload};

/// What the container's first process is made from.
pub struct Container<'a> {
    /// What runs.
    pub workload: &'a Workload,
    /// The engine's values for this run, checked.
    pub environment: &'a Environment,
    /// The root directory, a mount point in the current mount namespace.
    pub root: &'a str,
    /// An empty directory for the injected files' mount.
    pub files: &'a str,
    /// The control group, if there is one.
    pub cgroup: Option<&'a Cgroup>,
}

/// The workload's standard streams.
pub enum Stdio {
    /// Ends of pipes: input, output, error.
    Pipes([OwnedFd; 3]),
    /// A terminal, made on the way.
    Terminal,
}

impl Container<'_> {
    /// Runs in the child: becomes the workload, or reports why not and ends.
    pub fn run(&self, stdio: Stdio, link: &Link) -> ! {
        begin(self.prepare(stdio, link), link)
    }

    /// Everything up to the start; `None` if there is to be none.
    fn prepare(&self, stdio: Stdio, link: &Link) -> Result<Option<Start<'_>>> {
        let process = &self.workload.process;
        sys::reset_signals();
        rustix::process::umask(Mode::empty());
        self.enter_namespaces()?;
        self.set_kernel_values()?;
        let root = Root::open(self.root)?;
        let terminal = self.furnish(&root, &stdio)?;
        // The working directory is made while nothing can be in the way of writing.
        root.directory(&process.cwd)
            .map_err(|failure| Failure::other(format!("process.cwd: {failure}")))?;
        if self.workload.readonly_root {
            sys::set_mount_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), false)
                .context(|| "make the root read-only".into())?;
        }
        pivot(&root)?;
        self.propagate_root()?;
        let start = become_process(process, stdio, terminal, link)?;
        Ok(start.map(|start| Start {
            hooks: &self.workload.start_hooks,
            state: &self.environment.state,
            ..start
        }))
    }

    fn propagate_root(&self) -> Result<()> {
        let kind = match self.workload.root_propagation {
            None => return Ok(()),
            Some(RootPropagation::Shared) => MountPropagationFlags::SHARED,
            Some(RootPropagation::Unbindable) => MountPropagationFlags::UNBINDABLE,
        };
        mount_change("/", kind).context(|| "linux.rootfsPropagation".into())
    }

    fn enter_namespaces(&self) -> Result<()> {
        if let Some(cgroup) = self.cgroup {
            // Before the namespace, whose root is then this group.
            cgroup.enter()?;
        }
        let namespaces =
            UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
        // SAFETY: none of the flags makes descriptors private to a thread, which is what is unsafe about the call.
        unsafe { unshare_unsafe(namespaces) }.context(|| "make the container's namespaces".into())?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context(|| "make mounts private".into())
    }

    /// Values that belong to the new namespaces or to this process, through init's `/proc`.
    fn set_kernel_values(&self) -> Result<()> {
        if let Some(name) = &self.environment.hostname {
            rustix::system::sethostname(name.as_bytes()).context(|| format!("hostname {name:?}"))?;
        }
        if let Some(name) = &self.environment.domainname {
            rustix::system::setdomainname(name.as_bytes()).context(|| format!("domainname {name:?}"))?;
        }
        for (key, value) in &self.workload.sysctl {
            let path = sysctl_path(key)
                .ok_or_else(|| Failure::other(format!("linux.sysctl: {key:?} is no name of a setting")))?;
            fs::write(&path, value).context(|| format!("linux.sysctl: set {key} to {value:?}"))?;
        }
        self.set_clocks()?;
        set_oom_score(&self.workload.process)
    }

    /// Enters a time namespace of its own whose clocks are as far ahead as they are to be (time_namespaces(7)).
    fn set_clocks(&self) -> Result<()> {
        let offsets = &self.workload.time_offsets;
        if offsets.is_empty() {
            return Ok(());
        }
        let context = || "linux.timeOffsets".into();
        // SAFETY: the flag makes no descriptors private to a thread, which is what is unsafe about the call.
        unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }.context(context)?;
        let lines: String = offsets
            .iter()
            .map(|(clock, by)| format!("{clock} {} {}\n", by.seconds, by.nanoseconds))
            .collect();
        // In one write, before there is anybody in it.
        fs::write("/proc/self/timens_offsets", lines).context(context)?;
        let namespace = fs::File::open("/proc/self/ns/time_for_children").context(context)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time)).context(context)
    }

    /// Puts everything into the root that is not in the image.
    fn furnish(&self, root: &Root, stdio: &Stdio) -> Result<Option<Terminal>> {
        mounts::mount_all(root, &self.workload.mounts, &self.environment.volumes)?;
        devices::make(root, &self.workload.devices)?;
        let terminal = match stdio {
            Stdio::Pipes(_) => None,
            Stdio::Terminal => Some(self.open_terminal(root)?),
        };
        mounts::inject(root, self.files, &self.environment.files)?;
        for path in &self.workload.masked_paths {
            mounts::mask(root, path)?;
        }
        for path in &self.workload.readonly_paths {
            mounts::make_readonly(root, path)?;
        }
        Ok(terminal)
    }

    fn open_terminal(&self, root: &Root) -> Result<Terminal> {
        let terminal = Terminal::open(
            root,
            self.workload.process.user.uid,
            self.environment.console_size,
        )?;
        terminal.bind_console(root)?;
        Ok(terminal)
    }
}

/// Another process in a container that has its first.
pub struct Member<'a> {
    /// What it is.
    pub process: &'a Process,
    /// Rows and columns of its terminal.
    pub console_size: Option<(u16, u16)>,
    /// The container's first process, as a pidfd. The caller makes its children in that one's PID namespace already.
    pub first: BorrowedFd<'a>,
    /// The control group, if there is one.
    pub cgroup: Option<&'a Cgroup>,
}

impl Member<'_> {
    /// Runs in the child: becomes the process, or reports why not and ends.
    pub fn run(&self, stdio: Stdio, link: &Link) -> ! {
        begin(self.prepare(stdio, link), link)
    }

    fn prepare(&self, stdio: Stdio, link: &Link) -> Result<Option<Start<'_>>> {
        sys::reset_signals();
        rustix::process::umask(Mode::empty());
        set_oom_score(self.process)?;
        if let Some(cgroup) = self.cgroup {
            cgroup.enter()?;
        }
        let namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::TIME;
        move_into_thread_name_spaces(self.first, namespaces)
            .context(|| "enter the container's namespaces".into())?;
        let terminal = match stdio {
            Stdio::Pipes(_) => None,
            Stdio::Terminal => {
                let root = Root::open("/")?;
                Some(Terminal::open(&root, self.process.user.uid, self.console_size)?)
            }
        };
        become_process(self.process, stdio, terminal, link)
    }
}

/// Through init's `/proc`.
fn set_oom_score(process: &Process) -> Result<()> {
    let score = process.oom_score_adj.unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .context(|| format!("process.oomScoreAdj: set to {score}"))
}

/// In the container: everything that makes this process the one that is asked for, up to the start; `None` if there is to be none.
fn become_process<'a>(
    process: &Process,
    stdio: Stdio,
    terminal: Option<Terminal>,
    link: &Link,
) -> Result<Option<Start<'a>>> {
    let master = take_streams(stdio, terminal)?;
    rustix::process::chdir(&*process.cwd).context(|| format!("chdir `{}`", process.cwd))?;
    limits::apply(&process.rlimits)?;
    scheduling::apply(process)?;
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let kept = user::become_user(
        &process.user,
        process.capabilities.as_ref(),
        Filter::needs(process),
    )?;
    let program = Program::find(process, &String::from_utf8_lossy(&passwd))?;
    let filter = process.seccomp.as_ref().map(Filter::new);
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).context(|| "set no_new_privs".into())?;
    }
    sys::close_on_exec_from(3).context(|| "mark descriptors".into())?;
    link.ready(master.as_ref().map(OwnedFd::as_fd))?;
    drop(master);
    Ok(link.wait_for_go()?.then_some(Start {
        program,
        filter,
        kept,
        hooks: &[],
        state: "",
    }))
}

/// Becomes what has been prepared, or reports why not and ends.
fn begin(prepared: Result<Option<Start<'_>>>, link: &Link) -> ! {
    let failure = match prepared {
        Ok(Some(start)) => start.execute(),
        Ok(None) => sys::exit_now(0),
        Err(failure) => failure,
    };
    link.failed(&failure);
    sys::exit_now(127)
}

/// What is left to do once the start is there.
struct Start<'a> {
    program: Program,
    filter: Option<Filter>,
    kept: Option<Kept>,
    /// Programs that come before it.
    hooks: &'a [Hook],
    /// What they are told of the container.
    state: &'a str,
}

impl Start<'_> {
    /// Becomes the program. Returns only if that fails.
    fn execute(self) -> Failure {
        let Self {
            program,
            filter,
            kept,
            hooks,
            state,
        } = self;
        if let Err(failure) = hooks::run(hooks, state) {
            return failure;
        }
        program.execute(|| filter.map_or(Ok(()), |filter| filter.load(kept)))
    }
}

/// Makes the root the root, and forgets all else.
fn pivot(root: &Root) -> Result<()> {
    let steps = || -> rustix::io::Result<()> {
        rustix::process::fchdir(root)?;
        // Old and new on the same place, then the old, which is on top, off (pivot_root(2)).
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    steps().context(|| "pivot_root".into())
}

/// Makes pipes or terminal the descriptors 0 to 2, in a session of their own; returns a terminal's master.
fn take_streams(stdio: Stdio, terminal: Option<Terminal>) -> Result<Option<OwnedFd>> {
    rustix::process::setsid().context(|| "make a session".into())?;
    let (streams, master) = match (stdio, terminal) {
        (Stdio::Pipes(pipes), _) => (pipes, None),
        (Stdio::Terminal, Some(Terminal { master, slave })) => {
            rustix::process::ioctl_tiocsctty(&slave).context(|| "take the terminal".into())?;
            let copy = || slave.try_clone().context(|| "copy the terminal".into());
            ([copy()?, copy()?, slave], Some(master))
        }
        (Stdio::Terminal, None) => return Err(Failure::other("there is no terminal")),
    };
    let [input, output, error] = &streams;
    let dup = || {
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(error)
    };
    dup().context(|| "set standard streams".into())?;
    Ok(master)
}

/// File of a sysctl, by the rules of sysctl(8): dots separate, unless a slash comes first.
fn sysctl_path(key: &str) -> Option<String> {
    let slashes_separate = key
        .find(['.', '/'])
        .is_some_and(|at| key.as_bytes().get(at) == Some(&b'/'));
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' if !slashes_separate => '/',
            '/' if !slashes_separate => '.',
            other => other,
        })
        .collect();
    let sound = path
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    (sound && !path.contains('\0')).then(|| format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_files_below_proc_sys() {
        let file = |key| sysctl_path(key);
        assert_eq!(
            file("net.ipv4.ip_forward").unwrap(),
            "/proc/sys/net/ipv4/ip_forward"
        );
        assert_eq!(
            file("net.ipv4.conf.eth0/1.rp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"
        );
        assert_eq!(
            file("net/ipv4/conf/eth0.1/rp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"
        );
        for bad in ["", ".", "../x", "a/../../x", "kernel..x", "/etc/passwd"] {
            assert_eq!(file(bad), None, "{bad}");
        }
    }
}
