//! `process.scheduler`, `process.ioPriority` and `linux.personality`, in the words of the Workload.

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler as OciScheduler,
};
use workload::{IoPriority, IoPriorityClass, Personality, Scheduler, SchedulerPolicy};

/// `process.scheduler`. Which values go together is for the guest's kernel to say.
pub fn scheduler(scheduler: &OciScheduler) -> Result<Scheduler> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => SchedulerPolicy::Other,
        LinuxSchedulerPolicy::SchedFifo => SchedulerPolicy::Fifo,
        LinuxSchedulerPolicy::SchedRr => SchedulerPolicy::RoundRobin,
        LinuxSchedulerPolicy::SchedBatch => SchedulerPolicy::Batch,
        LinuxSchedulerPolicy::SchedIdle => SchedulerPolicy::Idle,
        LinuxSchedulerPolicy::SchedDeadline => SchedulerPolicy::Deadline,
        LinuxSchedulerPolicy::SchedIso => {
            bail!("config.json: process.scheduler.policy: SCHED_ISO: Linux has no such policy")
        }
    };
    let priority = scheduler.priority().unwrap_or(0);
    let priority = u32::try_from(priority)
        .with_context(|| format!("config.json: process.scheduler.priority: {priority} is below 0"))?;
    let flags = scheduler.flags().iter().flatten();
    Ok(Scheduler {
        policy,
        nice: scheduler.nice().unwrap_or(0),
        priority,
        flags: flags.fold(0, |all, flag| all | bit(*flag)),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}

/// Flags of sched_setattr(2), linux/sched.h.
fn bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// `process.ioPriority`.
pub fn io_priority(priority: &LinuxIOPriority) -> Result<IoPriority> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => IoPriorityClass::Realtime,
        IOPriorityClass::IoprioClassBe => IoPriorityClass::BestEffort,
        IOPriorityClass::IoprioClassIdle => IoPriorityClass::Idle,
    };
    let level = priority.priority();
    match u8::try_from(level) {
        Ok(priority @ 0..=7) => Ok(IoPriority { class, priority }),
        _ => bail!("config.json: process.ioPriority.priority: {level} is not between 0 and 7"),
    }
}

/// `linux.personality`.
pub fn personality(personality: &LinuxPersonality) -> Result<Personality> {
    ensure!(
        personality.flags().as_ref().is_none_or(Vec::is_empty),
        "config.json: linux.personality.flags: not supported"
    );
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => Personality::Linux,
        LinuxPersonalityDomain::PerLinux32 => Personality::Linux32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn scheduled(value: Value) -> Result<Scheduler> {
        scheduler(&from_value(value).unwrap())
    }

    #[test]
    fn a_scheduler_keeps_its_numbers() {
        let got = scheduled(
            json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_KEEP_PARAMS"],
            "runtime": 1, "deadline": 2, "period": 3, "nice": -4, "priority": 5}),
        )
        .unwrap();
        let expected = Scheduler {
            policy: SchedulerPolicy::Deadline,
            nice: -4,
            priority: 5,
            flags: 0x12,
            runtime: 1,
            deadline: 2,
            period: 3,
        };
        assert_eq!(got, expected);
        let error = scheduled(json!({"policy": "SCHED_FIFO", "priority": -1})).unwrap_err();
        assert!(
            error.to_string().contains("process.scheduler.priority: -1"),
            "{error}"
        );
        let error = scheduled(json!({"policy": "SCHED_ISO"})).unwrap_err();
        assert!(error.to_string().contains("SCHED_ISO"), "{error}");
    }

    #[test]
    fn io_priorities_have_eight_levels() {
        let priority = |class: &str, priority: i64| {
            io_priority(&from_value(json!({"class": class, "priority": priority})).unwrap())
        };
        let realtime = priority("IOPRIO_CLASS_RT", 7).unwrap();
        assert_eq!(
            (realtime.class, realtime.priority),
            (IoPriorityClass::Realtime, 7)
        );
        for wrong in [-1, 8, 300] {
            let error = priority("IOPRIO_CLASS_BE", wrong).unwrap_err();
            assert!(
                error.to_string().contains("process.ioPriority.priority"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_personality_has_no_flags() {
        let of = |value: Value| personality(&from_value(value).unwrap());
        assert_eq!(of(json!({"domain": "LINUX"})).unwrap(), Personality::Linux);
        assert_eq!(
            of(json!({"domain": "LINUX32", "flags": []})).unwrap(),
            Personality::Linux32
        );
        let error = of(json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]})).unwrap_err();
        assert!(error.to_string().contains("linux.personality.flags"), "{error}");
    }
}
