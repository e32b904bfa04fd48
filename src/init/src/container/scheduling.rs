//! How the workload's process is scheduled, on processors (sched(7)) and on disks (ioprio_set(2)), and which system it is shown
//! (personality(2)). All of it outlasts `execve`, and some of it only root may set.

use crate::failure::{Context as _, Result};
use crate::sys;
use workload::{IoPriority, IoPriorityClass, Personality, Process, Scheduler, SchedulerPolicy};

/// Bits of an I/O priority below its class.
const CLASS_SHIFT: u32 = 13;

/// Sets it all on this process.
pub fn apply(process: &Process) -> Result<()> {
    if let Some(personality) = process.personality {
        sys::set_personality(domain(personality)).context(|| "linux.personality".into())?;
    }
    if let Some(priority) = process.io_priority {
        sys::set_io_priority(io_priority(priority)).context(|| "process.ioPriority".into())?;
    }
    if let Some(scheduler) = &process.scheduler {
        sys::set_scheduler(&attributes(scheduler)).context(|| "process.scheduler".into())?;
    }
    Ok(())
}

fn domain(personality: Personality) -> u32 {
    match personality {
        Personality::Linux => 0,
        Personality::Linux32 => 8,
    }
}

fn io_priority(priority: IoPriority) -> u32 {
    let class: u32 = match priority.class {
        IoPriorityClass::Realtime => 1,
        IoPriorityClass::BestEffort => 2,
        IoPriorityClass::Idle => 3,
    };
    class << CLASS_SHIFT | u32::from(priority.priority)
}

fn attributes(scheduler: &Scheduler) -> sys::SchedulerAttributes {
    let policy = match scheduler.policy {
        SchedulerPolicy::Other => libc::SCHED_OTHER,
        SchedulerPolicy::Fifo => libc::SCHED_FIFO,
        SchedulerPolicy::RoundRobin => libc::SCHED_RR,
        SchedulerPolicy::Batch => libc::SCHED_BATCH,
        SchedulerPolicy::Idle => libc::SCHED_IDLE,
        SchedulerPolicy::Deadline => libc::SCHED_DEADLINE,
    };
    sys::SchedulerAttributes {
        policy: policy.unsigned_abs(),
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let priority = IoPriority {
            class: IoPriorityClass::Idle,
            priority: 0,
        };
        assert_eq!(io_priority(priority), 0x6000);
        let priority = IoPriority {
            class: IoPriorityClass::BestEffort,
            priority: 7,
        };
        assert_eq!(io_priority(priority), 0x4007);
    }

    #[test]
    fn the_kernel_takes_what_it_is_given() {
        // In a thread, which is all that these calls change.
        let thread = std::thread::spawn(|| {
            let scheduler = Scheduler {
                policy: SchedulerPolicy::Batch,
                nice: 5,
                priority: 0,
                flags: 0,
                runtime: 0,
                deadline: 0,
                period: 0,
            };
            sys::set_scheduler(&attributes(&scheduler)).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<_> = stat
                .rsplit_once(')')
                .unwrap()
                .1
                .split_ascii_whitespace()
                .collect();
            // Fields 19 and 41 of proc_pid_stat(5), of which the first two are cut off.
            assert_eq!((fields[16], fields[38]), ("5", "3"));
            let wrong = Scheduler {
                priority: 1,
                ..scheduler
            };
            assert!(sys::set_scheduler(&attributes(&wrong)).is_err());
            sys::set_io_priority(0x6000).unwrap();
            assert!(sys::set_io_priority(7 << CLASS_SHIFT).is_err());
        });
        thread.join().unwrap();
    }
}
