//! New limits for a container that runs: what is asked for, laid over what it has, and split as at `create`.
//!
//! ```text
//!   asked for ─┐
//!   config.json├─► resources ─┬─► host    the cgroup's, with what the VMM needs on top
//!   of create ─┘              └─► guest   what its processes may use together
//! ```
//!
//! A guest keeps the memory and the processors that it was booted with. Within them a limit can move; more is refused for memory, and for
//! processors said in a note, since a quota may well be higher than what the guest can use.

use super::host;
use super::sizing::{Limits, Sizing};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

/// What becomes of a container's limits.
#[derive(Debug)]
pub struct Plan {
    /// `linux.resources` from now on.
    pub resources: LinuxResources,
    /// Limits on the VMM's cgroup.
    pub host: LinuxResources,
    /// Limits that the guest keeps.
    pub guest: workload::Limits,
    /// Whether those are others than before.
    pub guest_changes: bool,
    /// What the one who asked should know.
    pub notes: Vec<String>,
}

/// Fields of `linux.resources` whose value 0 or "" stands for "not given", as engines write it.
const ZERO_IS_NOTHING: [(&str, &[&str]); 4] = [
    ("memory", &["limit", "reservation", "swap"]),
    (
        "cpu",
        &[
            "shares",
            "quota",
            "period",
            "realtimeRuntime",
            "realtimePeriod",
            "cpus",
            "mems",
        ],
    ),
    ("blockIO", &["weight", "leafWeight"]),
    ("pids", &["limit"]),
];

/// Fields and the file of `unified` that says the same, which would come last.
const FILES: [(&str, &str, &str); 13] = [
    ("memory", "limit", "memory.max"),
    ("memory", "reservation", "memory.low"),
    ("memory", "swap", "memory.swap.max"),
    ("cpu", "shares", "cpu.weight"),
    ("cpu", "quota", "cpu.max"),
    ("cpu", "period", "cpu.max"),
    ("cpu", "burst", "cpu.max.burst"),
    ("cpu", "idle", "cpu.idle"),
    ("cpu", "cpus", "cpuset.cpus"),
    ("cpu", "mems", "cpuset.mems"),
    ("blockIO", "weight", "io.weight"),
    ("blockIO", "weight", "io.bfq.weight"),
    ("pids", "limit", "pids.max"),
];

/// What to do so that a container with `current` resources in a VM of this size gets what is asked for.
pub fn plan(current: &LinuxResources, asked: &LinuxResources, sizing: &Sizing) -> Result<Plan> {
    let resources = merge(current, asked)?;
    let (before, after) = (Limits::of(current)?, Limits::of(&resources)?);
    check_memory(&before, &after, sizing)?;
    check_swap(&resources)?;
    let (guest, guest_before) = (after.inside(sizing), before.inside(sizing));
    Ok(Plan {
        host: host::adjust(resources.clone(), sizing)?,
        guest,
        guest_changes: guest != guest_before,
        notes: notes(&before, &after, sizing),
        resources,
    })
}

fn check_memory(before: &Limits, after: &Limits, sizing: &Sizing) -> Result<()> {
    let Some(limit) = &after.memory else { return Ok(()) };
    let allowed = before.memory.as_ref().map_or(0, |limit| limit.value);
    ensure!(
        limit.value >> 20 <= sizing.memory_mib || limit.value <= allowed,
        "{}: {} MiB is more than the {} MiB that the guest was booted with, which can't grow while it runs",
        limit.field,
        limit.value >> 20,
        sizing.memory_mib
    );
    Ok(())
}

/// With swap space memory can't become less: the kernel would say so of numbers that nobody wrote.
fn check_swap(resources: &LinuxResources) -> Result<()> {
    let memory = resources.memory().unwrap_or_default();
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit(), memory.swap()) {
        ensure!(
            swap >= limit,
            "linux.resources.memory.swap: {swap} bytes of memory and swap space together are less than the memory limit of {limit}; set both"
        );
    }
    Ok(())
}

fn notes(before: &Limits, after: &Limits, sizing: &Sizing) -> Vec<String> {
    let vcpus = u64::from(sizing.vcpus);
    let mut notes = Vec::new();
    for (what, before, after) in [
        ("CPU quota", before.quota, after.quota),
        ("CPU set", before.cpuset, after.cpuset),
    ] {
        if let Some(count) = after.filter(|count| *count > vcpus && before != after) {
            notes.push(format!(
                "the {what} is enough for {count} processors, but the guest was booted with {vcpus} and keeps them while it runs"
            ));
        }
    }
    if before.memory.is_some() && after.memory.is_none() {
        notes.push(format!(
            "without a memory limit the guest still has the {} MiB that it was booted with",
            sizing.memory_mib
        ));
    }
    notes
}

/// `asked` over `current`, field by field.
fn merge(current: &LinuxResources, asked: &LinuxResources) -> Result<LinuxResources> {
    let (mut merged, mut asked) = (object(current)?, object(asked)?);
    for (section, fields) in ZERO_IS_NOTHING {
        if let Some(section) = asked.get_mut(section).and_then(Value::as_object_mut) {
            section.retain(|field, value| {
                !(fields.contains(&field.as_str())
                    && (value.as_i64() == Some(0) || value.as_str() == Some("")))
            });
        }
    }
    for (section, field, file) in FILES {
        let given = asked
            .get(section)
            .is_some_and(|section| section.get(field).is_some());
        if let (true, Some(files)) = (given, merged.get_mut("unified").and_then(Value::as_object_mut)) {
            files.remove(file);
        }
    }
    lay_over(&mut merged, asked);
    serde_json::from_value(Value::Object(merged)).context("linux.resources")
}

fn object(resources: &LinuxResources) -> Result<Map<String, Value>> {
    match serde_json::to_value(resources).context("linux.resources")? {
        Value::Object(object) => Ok(object),
        other => bail!("linux.resources: {other} is not an object"),
    }
}

/// Members of objects take the place of those with the same name; objects among them are gone through likewise.
fn lay_over(below: &mut Map<String, Value>, above: Map<String, Value>) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Object(below)), Value::Object(above)) => lay_over(below, above),
            (_, value) => drop(below.insert(name, value)),
        }
    }
}

#[cfg(test)]
#[path = "update_test.rs"]
mod tests;
