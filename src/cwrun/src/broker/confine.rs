//! What the proxy gives up before it hears from a guest: it reads some files and makes connections, and that is all.

use crate::launch::confine::keep_capabilities;
use crate::machine::landlock;
use anyhow::{Context, Result};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Nobody.
const NOBODY: u32 = 65534;
/// Where names of hosts are looked up, and what the C library loads for that.
const READABLE: [&str; 7] = ["/etc", "/lib", "/lib64", "/usr", "/run", "/var/run", "/nix/store"];

/// Allowed whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Streams, and files that name hosts.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_uname,
    // Connections.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    // Memory: programs too, since modules of the C library are loaded when the first name is looked up.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_brk,
    // Threads, clocks, random numbers.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
];

/// Families of sockets: the network, its resolver's, and what tells which addresses there are.
const FAMILIES: [libc::c_int; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

/// Confines this thread and all that it makes.
pub fn enter() -> Result<()> {
    become_nobody().context("becoming nobody")?;
    keep_capabilities(CapabilitySet::empty()).context("dropping capabilities")?;
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    landlock::read_only_below(&READABLE).context("Landlock")?;
    seccomp().context("seccomp")
}

/// Root becomes nobody. In a user namespace without such a user it stays the root of that, which is an ordinary user.
fn become_nobody() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let _ = rustix::thread::set_thread_groups(&[]);
    match rustix::thread::set_thread_res_gid(gid, gid, gid)
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
    {
        Err(Errno::INVAL) => Ok(()),
        result => Ok(result?),
    }
}

/// Whatever is not allowed fails, as if the kernel did not let it: a library that tries can go another way.
fn seccomp() -> Result<()> {
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let families: Result<Vec<_>> = FAMILIES
        .iter()
        // A family is not negative.
        .map(|family| rule(Op::Eq, *family as u64))
        .collect();
    rules.insert(libc::SYS_socket, families?);
    // No process but threads of this one.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(Op::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_prctl, vec![rule(Op::Eq, libc::PR_SET_NAME as u64)?]);
    // Its arguments lie in memory where no filter can check them. Answered as missing, and the C library uses clone.
    rules.insert(libc::SYS_clone3, Vec::new());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    for filter in [
        filter(clone3, SeccompAction::Allow, missing)?,
        filter(rules, denied, SeccompAction::Allow)?,
    ] {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, matching, TargetArch::x86_64)?;
    Ok(BpfProgram::try_from(filter)?)
}

fn rule(operator: Op, value: u64) -> Result<SeccompRule> {
    let condition = Condition::new(0, Len::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}
