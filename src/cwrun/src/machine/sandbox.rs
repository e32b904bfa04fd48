//! The VMM's seccomp filter: what a process that runs a guest needs, and nothing that opens, executes or connects.
//!
//! Entered after the VM has been made and before it runs, by the thread that all others come from.

use anyhow::Result;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Allowed whatever the arguments, with the reason.
const ALLOWED: &[(&str, &[libc::c_long])] = &[
    (
        "streams, disks and the serial console, all of them open already",
        &[
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_fallocate,
            libc::SYS_fdatasync,
            libc::SYS_lseek,
            libc::SYS_close,
            libc::SYS_fcntl,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
        ],
    ),
    (
        "sockets between threads, and the control socket's clients",
        &[
            libc::SYS_accept4,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_shutdown,
            libc::SYS_setsockopt,
            libc::SYS_getsockopt,
        ],
    ),
    (
        "KVM_RUN and the other operations on the VM; terminal size",
        &[libc::SYS_ioctl],
    ),
    (
        "event loops",
        &[
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
        ],
    ),
    (
        "memory",
        &[
            libc::SYS_munmap,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_brk,
        ],
    ),
    (
        "threads, and signals between them",
        &[
            libc::SYS_futex,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_gettid,
            libc::SYS_getpid,
            libc::SYS_tgkill,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_restart_syscall,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ],
    ),
    (
        "clocks, and keys of hash maps",
        &[
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_getrandom,
        ],
    ),
    // Not really: the other filter answers these with ENOSYS.
    ("calls of the C library that it can do without", &MISSING),
];

/// Allowed besides to a thread that serves a volume.
const ALLOWED_FOR_VOLUMES: &[(&str, &[libc::c_long])] = &[
    (
        "files by names and descriptors, in a root where there is nothing else",
        &[
            libc::SYS_openat2,
            libc::SYS_readlinkat,
            libc::SYS_getdents64,
            libc::SYS_statfs,
            libc::SYS_fstatfs,
            libc::SYS_pwritev2,
            libc::SYS_copy_file_range,
            libc::SYS_ftruncate,
            libc::SYS_fsync,
        ],
    ),
    (
        "what makes and changes them",
        &[
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_symlinkat,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_fchownat,
            libc::SYS_fchmodat,
            libc::SYS_utimensat,
        ],
    ),
    (
        "extended attributes",
        &[
            libc::SYS_getxattr,
            libc::SYS_setxattr,
            libc::SYS_listxattr,
            libc::SYS_removexattr,
        ],
    ),
];

/// Answered with ENOSYS instead of an end. The arguments of clone3 lie in memory where no filter can check them, and the C
/// library then uses clone; it opens `/proc/sys/vm/overcommit_memory` before it gives memory back, and can do without.
const MISSING: [libc::c_long; 2] = [libc::SYS_clone3, libc::SYS_openat];

/// Restricts this thread and all that it makes to these calls; any other ends the process.
pub fn enter() -> Result<()> {
    load(allow_list(&[])?)
}

/// The same for a thread that serves a volume, which may do with files what guests ask for.
pub fn enter_for_volumes() -> Result<()> {
    load(allow_list(ALLOWED_FOR_VOLUMES)?)
}

fn load(allowed: SeccompFilter) -> Result<()> {
    for filter in [missing()?, allowed] {
        seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}

fn missing() -> Result<SeccompFilter> {
    let rules = BTreeMap::from(MISSING.map(|call| (call, Vec::new())));
    let answer = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        answer,
        TargetArch::x86_64,
    )?)
}

fn allow_list(more: &[(&str, &[libc::c_long])]) -> Result<SeccompFilter> {
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(more)
        .flat_map(|(_, calls)| calls.iter().map(|call| (*call, Vec::new())))
        .collect();
    let exec = libc::PROT_EXEC as u64;
    let thread = libc::CLONE_THREAD as u64;
    // No memory that can be executed, no process but threads of this one, and of prctl(2) only a thread's name.
    rules.insert(libc::SYS_mmap, vec![rule(2, Op::MaskedEq(exec), 0)?]);
    rules.insert(libc::SYS_mprotect, vec![rule(2, Op::MaskedEq(exec), 0)?]);
    rules.insert(libc::SYS_clone, vec![rule(0, Op::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_prctl, vec![rule(0, Op::Eq, libc::PR_SET_NAME as u64)?]);
    // A pair leads nowhere but to its other half: between the vsock device and the thread that answers a stream of the guest's.
    rules.insert(libc::SYS_socketpair, vec![rule(0, Op::Eq, libc::AF_UNIX as u64)?]);
    Ok(SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?)
}

fn rule(argument: u8, operator: Op, value: u64) -> Result<SeccompRule> {
    Ok(SeccompRule::new(vec![Condition::new(
        argument,
        Len::Qword,
        operator,
        value,
    )?])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` in a forked child under the filter and returns its wait status.
    fn confined(work: impl FnOnce()) -> i32 {
        confined_by(enter, work)
    }

    fn confined_by(enter: fn() -> Result<()>, work: impl FnOnce()) -> i32 {
        // SAFETY: the child runs only `work`, which allocates nothing that another thread could have locked, and leaves
        // by `_exit`.
        unsafe {
            match libc::fork() {
                0 => {
                    let entered = rustix::thread::set_no_new_privs(true).is_ok() && enter().is_ok();
                    work();
                    libc::_exit(if entered { 0 } else { 1 })
                }
                pid => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
                    status
                }
            }
        }
    }

    #[test]
    fn a_thread_can_be_made_and_joined() {
        let status = confined(|| {
            drop(
                std::thread::Builder::new()
                    .name("t".into())
                    .spawn(|| ())
                    .map(|t| t.join()),
            )
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_file_cant_be_opened() {
        let status = confined(|| {
            if std::fs::File::open("/").is_ok() {
                std::process::abort();
            }
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_thread_of_a_volume_opens_files_and_makes_no_socket() {
        let open = || {
            let flags = rustix::fs::OFlags::RDONLY;
            let resolve = rustix::fs::ResolveFlags::empty();
            rustix::fs::openat2(rustix::fs::CWD, "/", flags, rustix::fs::Mode::empty(), resolve)
        };
        let status = confined_by(enter_for_volumes, || {
            if open().is_err() {
                std::process::abort();
            }
        });
        assert_eq!(status, 0);
        // All others still can't.
        assert!(libc::WIFSIGNALED(confined(|| drop(open()))));
        let socket = || drop(std::net::TcpListener::bind("127.0.0.1:0"));
        assert!(libc::WIFSIGNALED(confined_by(enter_for_volumes, socket)));
    }

    #[test]
    fn two_threads_can_have_a_pair_of_sockets() {
        let status = confined(|| {
            if std::os::unix::net::UnixStream::pair().is_err() {
                std::process::abort();
            }
        });
        assert_eq!(status, 0);
        let other = || {
            drop(rustix::net::socketpair(
                rustix::net::AddressFamily::TIPC,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::empty(),
                None,
            ))
        };
        assert!(libc::WIFSIGNALED(confined(other)));
    }

    #[test]
    fn a_new_socket_or_process_ends_the_process() {
        for work in [
            (|| drop(std::net::TcpListener::bind("127.0.0.1:0"))) as fn(),
            || {
                // SAFETY: fork has no preconditions here; the filter ends the process before it happens.
                unsafe { libc::fork() };
            },
        ] {
            assert!(libc::WIFSIGNALED(confined(work)));
        }
    }
}
