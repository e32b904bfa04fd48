//! System call numbers of the x86-64 kernel: `asm/unistd_64.h` and `asm/unistd_x32.h` of Linux 7.1, from its
//! `arch/x86/entry/syscalls/syscall_64.tbl`.
//!
//! What the kernel's own table calls `common` has one number for both interfaces. Numbers never change once they are in a release, so a
//! table that is newer than the guest's kernel is as good as its own.

/// Set in the number of a call through the x32 interface (`__X32_SYSCALL_BIT`).
pub const X32_BIT: u32 = 0x4000_0000;

/// There is no such call on this interface.
const NONE: u16 = u16::MAX;

/// Number of a call on the x86-64 interface.
pub fn x86_64(name: &str) -> Option<u32> {
    let (_, number, _) = find(name)?;
    (number != NONE).then_some(number.into())
}

/// Number of a call on the x32 interface, with the bit that says so.
pub fn x32(name: &str) -> Option<u32> {
    let (_, _, number) = find(name)?;
    (number != NONE).then_some(u32::from(number) | X32_BIT)
}

fn find(name: &str) -> Option<(&'static str, u16, u16)> {
    let at = TABLE.binary_search_by_key(&name, |(name, ..)| name).ok()?;
    TABLE.get(at).copied()
}

/// Name, number on x86-64, number on x32; sorted by name.
#[rustfmt::skip]
pub(super) const TABLE: &[(&str, u16, u16)] = &[
    ("_sysctl", 156, NONE), ("accept", 43, 43), ("accept4", 288, 288), ("access", 21, 21), ("acct", 163, 163),
    ("add_key", 248, 248), ("adjtimex", 159, 159), ("afs_syscall", 183, 183), ("alarm", 37, 37),
    ("arch_prctl", 158, 158), ("bind", 49, 49), ("bpf", 321, 321), ("brk", 12, 12), ("cachestat", 451, 451),
    ("capget", 125, 125), ("capset", 126, 126), ("chdir", 80, 80), ("chmod", 90, 90), ("chown", 92, 92),
    ("chroot", 161, 161), ("clock_adjtime", 305, 305), ("clock_getres", 229, 229), ("clock_gettime", 228, 228),
    ("clock_nanosleep", 230, 230), ("clock_settime", 227, 227), ("clone", 56, 56), ("clone3", 435, 435),
    ("close", 3, 3), ("close_range", 436, 436), ("connect", 42, 42), ("copy_file_range", 326, 326), ("creat", 85, 85),
    ("create_module", 174, NONE), ("delete_module", 176, 176), ("dup", 32, 32), ("dup2", 33, 33), ("dup3", 292, 292),
    ("epoll_create", 213, 213), ("epoll_create1", 291, 291), ("epoll_ctl", 233, 233), ("epoll_ctl_old", 214, NONE),
    ("epoll_pwait", 281, 281), ("epoll_pwait2", 441, 441), ("epoll_wait", 232, 232), ("epoll_wait_old", 215, NONE),
    ("eventfd", 284, 284), ("eventfd2", 290, 290), ("execve", 59, 520), ("execveat", 322, 545), ("exit", 60, 60),
    ("exit_group", 231, 231), ("faccessat", 269, 269), ("faccessat2", 439, 439), ("fadvise64", 221, 221),
    ("fallocate", 285, 285), ("fanotify_init", 300, 300), ("fanotify_mark", 301, 301), ("fchdir", 81, 81),
    ("fchmod", 91, 91), ("fchmodat", 268, 268), ("fchmodat2", 452, 452), ("fchown", 93, 93), ("fchownat", 260, 260),
    ("fcntl", 72, 72), ("fdatasync", 75, 75), ("fgetxattr", 193, 193), ("file_getattr", 468, 468),
    ("file_setattr", 469, 469), ("finit_module", 313, 313), ("flistxattr", 196, 196), ("flock", 73, 73),
    ("fork", 57, 57), ("fremovexattr", 199, 199), ("fsconfig", 431, 431), ("fsetxattr", 190, 190),
    ("fsmount", 432, 432), ("fsopen", 430, 430), ("fspick", 433, 433), ("fstat", 5, 5), ("fstatfs", 138, 138),
    ("fsync", 74, 74), ("ftruncate", 77, 77), ("futex", 202, 202), ("futex_requeue", 456, 456),
    ("futex_wait", 455, 455), ("futex_waitv", 449, 449), ("futex_wake", 454, 454), ("futimesat", 261, 261),
    ("get_kernel_syms", 177, NONE), ("get_mempolicy", 239, 239), ("get_robust_list", 274, 531),
    ("get_thread_area", 211, NONE), ("getcpu", 309, 309), ("getcwd", 79, 79), ("getdents", 78, 78),
    ("getdents64", 217, 217), ("getegid", 108, 108), ("geteuid", 107, 107), ("getgid", 104, 104),
    ("getgroups", 115, 115), ("getitimer", 36, 36), ("getpeername", 52, 52), ("getpgid", 121, 121),
    ("getpgrp", 111, 111), ("getpid", 39, 39), ("getpmsg", 181, 181), ("getppid", 110, 110),
    ("getpriority", 140, 140), ("getrandom", 318, 318), ("getresgid", 120, 120), ("getresuid", 118, 118),
    ("getrlimit", 97, 97), ("getrusage", 98, 98), ("getsid", 124, 124), ("getsockname", 51, 51),
    ("getsockopt", 55, 542), ("gettid", 186, 186), ("gettimeofday", 96, 96), ("getuid", 102, 102),
    ("getxattr", 191, 191), ("getxattrat", 464, 464), ("init_module", 175, 175), ("inotify_add_watch", 254, 254),
    ("inotify_init", 253, 253), ("inotify_init1", 294, 294), ("inotify_rm_watch", 255, 255), ("io_cancel", 210, 210),
    ("io_destroy", 207, 207), ("io_getevents", 208, 208), ("io_pgetevents", 333, 333), ("io_setup", 206, 543),
    ("io_submit", 209, 544), ("io_uring_enter", 426, 426), ("io_uring_register", 427, 427),
    ("io_uring_setup", 425, 425), ("ioctl", 16, 514), ("ioperm", 173, 173), ("iopl", 172, 172),
    ("ioprio_get", 252, 252), ("ioprio_set", 251, 251), ("kcmp", 312, 312), ("kexec_file_load", 320, 320),
    ("kexec_load", 246, 528), ("keyctl", 250, 250), ("kill", 62, 62), ("landlock_add_rule", 445, 445),
    ("landlock_create_ruleset", 444, 444), ("landlock_restrict_self", 446, 446), ("lchown", 94, 94),
    ("lgetxattr", 192, 192), ("link", 86, 86), ("linkat", 265, 265), ("listen", 50, 50), ("listmount", 458, 458),
    ("listns", 470, 470), ("listxattr", 194, 194), ("listxattrat", 465, 465), ("llistxattr", 195, 195),
    ("lookup_dcookie", 212, 212), ("lremovexattr", 198, 198), ("lseek", 8, 8), ("lsetxattr", 189, 189),
    ("lsm_get_self_attr", 459, 459), ("lsm_list_modules", 461, 461), ("lsm_set_self_attr", 460, 460), ("lstat", 6, 6),
    ("madvise", 28, 28), ("map_shadow_stack", 453, 453), ("mbind", 237, 237), ("membarrier", 324, 324),
    ("memfd_create", 319, 319), ("memfd_secret", 447, 447), ("migrate_pages", 256, 256), ("mincore", 27, 27),
    ("mkdir", 83, 83), ("mkdirat", 258, 258), ("mknod", 133, 133), ("mknodat", 259, 259), ("mlock", 149, 149),
    ("mlock2", 325, 325), ("mlockall", 151, 151), ("mmap", 9, 9), ("modify_ldt", 154, 154), ("mount", 165, 165),
    ("mount_setattr", 442, 442), ("move_mount", 429, 429), ("move_pages", 279, 533), ("mprotect", 10, 10),
    ("mq_getsetattr", 245, 245), ("mq_notify", 244, 527), ("mq_open", 240, 240), ("mq_timedreceive", 243, 243),
    ("mq_timedsend", 242, 242), ("mq_unlink", 241, 241), ("mremap", 25, 25), ("mseal", 462, 462), ("msgctl", 71, 71),
    ("msgget", 68, 68), ("msgrcv", 70, 70), ("msgsnd", 69, 69), ("msync", 26, 26), ("munlock", 150, 150),
    ("munlockall", 152, 152), ("munmap", 11, 11), ("name_to_handle_at", 303, 303), ("nanosleep", 35, 35),
    ("newfstatat", 262, 262), ("nfsservctl", 180, NONE), ("open", 2, 2), ("open_by_handle_at", 304, 304),
    ("open_tree", 428, 428), ("open_tree_attr", 467, 467), ("openat", 257, 257), ("openat2", 437, 437),
    ("pause", 34, 34), ("perf_event_open", 298, 298), ("personality", 135, 135), ("pidfd_getfd", 438, 438),
    ("pidfd_open", 434, 434), ("pidfd_send_signal", 424, 424), ("pipe", 22, 22), ("pipe2", 293, 293),
    ("pivot_root", 155, 155), ("pkey_alloc", 330, 330), ("pkey_free", 331, 331), ("pkey_mprotect", 329, 329),
    ("poll", 7, 7), ("ppoll", 271, 271), ("prctl", 157, 157), ("pread64", 17, 17), ("preadv", 295, 534),
    ("preadv2", 327, 546), ("prlimit64", 302, 302), ("process_madvise", 440, 440), ("process_mrelease", 448, 448),
    ("process_vm_readv", 310, 539), ("process_vm_writev", 311, 540), ("pselect6", 270, 270), ("ptrace", 101, 521),
    ("putpmsg", 182, 182), ("pwrite64", 18, 18), ("pwritev", 296, 535), ("pwritev2", 328, 547),
    ("query_module", 178, NONE), ("quotactl", 179, 179), ("quotactl_fd", 443, 443), ("read", 0, 0),
    ("readahead", 187, 187), ("readlink", 89, 89), ("readlinkat", 267, 267), ("readv", 19, 515), ("reboot", 169, 169),
    ("recvfrom", 45, 517), ("recvmmsg", 299, 537), ("recvmsg", 47, 519), ("remap_file_pages", 216, 216),
    ("removexattr", 197, 197), ("removexattrat", 466, 466), ("rename", 82, 82), ("renameat", 264, 264),
    ("renameat2", 316, 316), ("request_key", 249, 249), ("restart_syscall", 219, 219), ("rmdir", 84, 84),
    ("rseq", 334, 334), ("rseq_slice_yield", 471, 471), ("rt_sigaction", 13, 512), ("rt_sigpending", 127, 522),
    ("rt_sigprocmask", 14, 14), ("rt_sigqueueinfo", 129, 524), ("rt_sigreturn", 15, 513), ("rt_sigsuspend", 130, 130),
    ("rt_sigtimedwait", 128, 523), ("rt_tgsigqueueinfo", 297, 536), ("sched_get_priority_max", 146, 146),
    ("sched_get_priority_min", 147, 147), ("sched_getaffinity", 204, 204), ("sched_getattr", 315, 315),
    ("sched_getparam", 143, 143), ("sched_getscheduler", 145, 145), ("sched_rr_get_interval", 148, 148),
    ("sched_setaffinity", 203, 203), ("sched_setattr", 314, 314), ("sched_setparam", 142, 142),
    ("sched_setscheduler", 144, 144), ("sched_yield", 24, 24), ("seccomp", 317, 317), ("security", 185, 185),
    ("select", 23, 23), ("semctl", 66, 66), ("semget", 64, 64), ("semop", 65, 65), ("semtimedop", 220, 220),
    ("sendfile", 40, 40), ("sendmmsg", 307, 538), ("sendmsg", 46, 518), ("sendto", 44, 44),
    ("set_mempolicy", 238, 238), ("set_mempolicy_home_node", 450, 450), ("set_robust_list", 273, 530),
    ("set_thread_area", 205, NONE), ("set_tid_address", 218, 218), ("setdomainname", 171, 171),
    ("setfsgid", 123, 123), ("setfsuid", 122, 122), ("setgid", 106, 106), ("setgroups", 116, 116),
    ("sethostname", 170, 170), ("setitimer", 38, 38), ("setns", 308, 308), ("setpgid", 109, 109),
    ("setpriority", 141, 141), ("setregid", 114, 114), ("setresgid", 119, 119), ("setresuid", 117, 117),
    ("setreuid", 113, 113), ("setrlimit", 160, 160), ("setsid", 112, 112), ("setsockopt", 54, 541),
    ("settimeofday", 164, 164), ("setuid", 105, 105), ("setxattr", 188, 188), ("setxattrat", 463, 463),
    ("shmat", 30, 30), ("shmctl", 31, 31), ("shmdt", 67, 67), ("shmget", 29, 29), ("shutdown", 48, 48),
    ("sigaltstack", 131, 525), ("signalfd", 282, 282), ("signalfd4", 289, 289), ("socket", 41, 41),
    ("socketpair", 53, 53), ("splice", 275, 275), ("stat", 4, 4), ("statfs", 137, 137), ("statmount", 457, 457),
    ("statx", 332, 332), ("swapoff", 168, 168), ("swapon", 167, 167), ("symlink", 88, 88), ("symlinkat", 266, 266),
    ("sync", 162, 162), ("sync_file_range", 277, 277), ("syncfs", 306, 306), ("sysfs", 139, 139), ("sysinfo", 99, 99),
    ("syslog", 103, 103), ("tee", 276, 276), ("tgkill", 234, 234), ("time", 201, 201), ("timer_create", 222, 526),
    ("timer_delete", 226, 226), ("timer_getoverrun", 225, 225), ("timer_gettime", 224, 224),
    ("timer_settime", 223, 223), ("timerfd_create", 283, 283), ("timerfd_gettime", 287, 287),
    ("timerfd_settime", 286, 286), ("times", 100, 100), ("tkill", 200, 200), ("truncate", 76, 76),
    ("tuxcall", 184, 184), ("umask", 95, 95), ("umount2", 166, 166), ("uname", 63, 63), ("unlink", 87, 87),
    ("unlinkat", 263, 263), ("unshare", 272, 272), ("uprobe", 336, 336), ("uretprobe", 335, 335),
    ("uselib", 134, NONE), ("userfaultfd", 323, 323), ("ustat", 136, 136), ("utime", 132, 132),
    ("utimensat", 280, 280), ("utimes", 235, 235), ("vfork", 58, 58), ("vhangup", 153, 153), ("vmsplice", 278, 532),
    ("vserver", 236, NONE), ("wait4", 61, 61), ("waitid", 247, 529), ("write", 1, 1), ("writev", 20, 516),
];
