//! System calls that rustix does not have, behind safe functions. With [`crate::dm`]'s one ioctl, this is all the
//! unsafe code of the crate.

use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Result of a system call, as an `io::Error`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A change of a mount's attributes (mount_setattr(2)): nothing, unless said otherwise.
pub const NO_CHANGE: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

/// Sets `MOUNT_ATTR_*` bits on a mount, and on those below it if `recursive`.
pub fn set_mount_attributes(mount: impl AsFd, set: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        ..NO_CHANGE
    };
    change_mount(mount, attributes, recursive)
}

/// Changes the attributes of a mount, and of those below it if `recursive`.
pub fn change_mount(mount: impl AsFd, attributes: libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal and the structure lives across the call with its own size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Where the blocks of `file` in the byte range `logical` lie on its disk, in bytes (`FS_IOC_FIEMAP`, linux/fiemap.h).
pub fn extents(file: &File, mut logical: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    const COUNT: usize = 256;
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved2: [u32; 3],
    }
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; COUNT],
    }
    // _IOWR('f', 11, struct fiemap), whose size is counted without extents.
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    let mut places = Vec::new();
    while !logical.is_empty() {
        let mut map = Box::new(Fiemap {
            start: logical.start,
            length: logical.end - logical.start,
            flags: 0,
            mapped: 0,
            count: COUNT as u32,
            reserved: 0,
            extents: [Extent::default(); COUNT],
        });
        // SAFETY: the kernel writes the header and at most `count` extents, for which there is room.
        check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) }.into())?;
        let mapped = map.extents.get(..map.mapped as usize).unwrap_or_default();
        let Some(last) = mapped.last() else { break };
        places.extend(
            mapped
                .iter()
                .map(|extent| extent.physical..extent.physical.saturating_add(extent.length)),
        );
        // Extents come in order and none is empty, so each turn goes on from here.
        logical.start = last.logical.saturating_add(last.length).max(logical.start + 1);
    }
    Ok(places)
}

/// Tells `disk` that these bytes are not needed any more (`BLKDISCARD`, linux/fs.h).
pub fn discard(disk: &File, bytes: &Range<u64>) -> io::Result<()> {
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [bytes.start, bytes.end.saturating_sub(bytes.start)];
    // SAFETY: the kernel reads the two numbers, start and length.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKDISCARD, range.as_ptr()) }.into()).map(drop)
}

/// Which side of a [`fork`] this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with a pidfd of the new.
    Parent(OwnedFd),
}

/// Makes a copy of this process. Other threads may run: the child stays within what the C library keeps usable in it, its
/// allocator above all.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: see above; the C library's fork leaves its allocator usable in the child.
    let pid = check(unsafe { libc::fork() }.into())?;
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return Ok(Fork::Child);
    };
    Ok(Fork::Parent(rustix::process::pidfd_open(
        pid,
        rustix::process::PidfdFlags::empty(),
    )?))
}

/// Ends this process at once: nothing of the parent's copied state runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return and runs no handler.
    unsafe { libc::_exit(code) }
}

/// Sends a signal by number, real-time ones too.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            0usize,
            0u32,
        )
    };
    check(result).map(drop)
}

/// Sends a signal by number to a process of our PID namespace.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// All signals back to their default action and unblocked, as a program expects to find them.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: only the default action is installed. SIGKILL, SIGSTOP and the C library's own refuse; they need none.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// A list of strings in the form that `execve` takes, so that nothing has to be allocated between preparing and calling it.
pub struct Pointers<'a> {
    pointers: Vec<*const libc::c_char>,
    strings: PhantomData<&'a [CString]>,
}

impl<'a> Pointers<'a> {
    /// The list of these strings.
    pub fn to(strings: &'a [CString]) -> Self {
        let pointers = strings.iter().map(|text| text.as_ptr());
        Self {
            pointers: pointers.chain([std::ptr::null()]).collect(),
            strings: PhantomData,
        }
    }
}

/// Replaces this process by a program. Returns only if that fails.
pub fn execute(path: &CStr, args: &Pointers<'_>, env: &Pointers<'_>) -> io::Error {
    // SAFETY: path is NUL-terminated, both arrays are NULL-terminated, and what they point to outlives the call.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Adds a filter of system calls to this thread (seccomp(2)).
pub fn load_seccomp_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::Error::from(Errno::INVAL))?,
        // The kernel only reads them.
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the instructions and the structure that counts them outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    check(result).map(drop)
}

/// Sets one resource limit of this process by its kernel number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure lives across the call; the old value is not asked for.
    check(unsafe { libc::prlimit64(0, resource, &raw const limit, std::ptr::null_mut()) }.into()).map(drop)
}

/// What sched_setattr(2) takes.
pub struct SchedulerAttributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// Sets how this thread is scheduled.
pub fn set_scheduler(attributes: &SchedulerAttributes) -> io::Result<()> {
    /// `struct sched_attr` in its first version, linux/sched/types.h.
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let raw = Raw {
        size: size_of::<Raw>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
    };
    // SAFETY: the structure lives across the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0u32) }).map(drop)
}

/// Sets how reads and writes of this thread are scheduled: class and priority in the kernel's encoding.
pub fn set_io_priority(priority: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) }).map(drop)
}

/// Sets the execution domain of this thread.
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::personality(domain.into()) }.into()).map(drop)
}

/// Bytes of a socket that its device (AF_VSOCK) or peer (AF_UNIX) has not taken yet (`SIOCOUTQ`).
pub fn unsent_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }.into())?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Connects a stream socket to a port of the host.
pub fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw =
        check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: a descriptor fresh from the kernel, owned by nobody else; it fits an int.
    let socket = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    // The default of two seconds is too short on a host under load.
    let timeout = libc::timeval {
        tv_sec: 60,
        tv_usec: 0,
    };
    const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    // SAFETY: both structures outlive their calls and are passed with their own sizes.
    unsafe {
        check(
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                SO_VM_SOCKETS_CONNECT_TIMEOUT,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
            .into(),
        )?;
        check(
            libc::connect(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_vm>() as libc::socklen_t,
            )
            .into(),
        )?;
    }
    Ok(socket)
}
