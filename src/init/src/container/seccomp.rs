//! The workload's filter of system calls (seccomp(2)), loaded as the last thing but `execve`.
//!
//! Whatever comes after the filter must be allowed by it. So everything is prepared before the start, and behind the filter there is one
//! capset(2), which has to be there: without `no_new_privs` the kernel takes a filter only from a process with CAP_SYS_ADMIN, and the
//! workload may not have that. crun and runc change user and capabilities behind the filter too; what works with them works here.

use super::user::Kept;
use crate::failure::{Context as _, Result};
use crate::sys;
use rustix::thread::CapabilitySet;
use workload::{Process, Seccomp, SeccompFlag};

/// A filter that is ready to be loaded.
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// From the workload's bytes.
    pub fn new(seccomp: &Seccomp) -> Self {
        let (instructions, _) = seccomp.program.0.as_chunks::<{ Seccomp::INSTRUCTION_BYTES }>();
        let program = instructions.iter().map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| {
            let code = u16::from_le_bytes([c0, c1]);
            let k = u32::from_le_bytes([k0, k1, k2, k3]);
            libc::sock_filter { code, jt, jf, k }
        });
        let flags = seccomp.flags.iter().map(|flag| match flag {
            SeccompFlag::Log => libc::SECCOMP_FILTER_FLAG_LOG,
            SeccompFlag::SpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        });
        Self {
            program: program.collect(),
            flags: flags.fold(0, |all, flag| all | flag),
        }
    }

    /// The capability that loading needs, if this process can't do without.
    pub fn needs(process: &Process) -> Option<CapabilitySet> {
        (process.seccomp.is_some() && !process.no_new_privileges).then_some(CapabilitySet::SYS_ADMIN)
    }

    /// Loads it; from here on it decides on every system call of this process.
    pub fn load(&self, kept: Option<Kept>) -> Result<()> {
        if let Some(kept) = &kept {
            kept.raise()?;
        }
        sys::load_seccomp_filter(&self.program, self.flags)
            .context(|| "linux.seccomp: load the filter".into())?;
        kept.map_or(Ok(()), Kept::drop)
    }
}
