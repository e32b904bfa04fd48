//! `update`: other limits for a running container, on the VMM's cgroup and in the guest.

use crate::bundle::update::{self, Plan};
use crate::bundle::{parse_json, sizing::Sizing};
use crate::cli::{Global, Update, UpdateLimits};
use crate::control;
use crate::state::{Container, Root, Status};
use anyhow::{Context, Result, ensure};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use workload::protocol::Request;

/// Longest list of limits that is read from standard input, in bytes.
const MAX_INPUT: u64 = 16 << 20;

/// The command.
pub fn run(global: &Global, args: &Update) -> Result<()> {
    let container = Root::new(global.root.clone())?.get(&args.id)?;
    let status = container.status();
    ensure!(
        matches!(status, Status::Created | Status::Running | Status::Paused),
        "container {:?} is {status}, its limits can't be changed",
        args.id
    );
    ensure!(
        !container.record.infra,
        "container {:?} is the infra container of a pod: it has no virtual machine whose limits could be changed",
        args.id
    );
    let asked = match &args.resources {
        Some(path) => read(path).with_context(|| format!("--resources {}", path.display()))?,
        None => limits(&args.limits)?,
    };
    let sizing = container.record.sizing.clone();
    let sizing = sizing.with_context(|| {
        format!(
            "container {:?} was made by a release that did not note how large it is",
            args.id
        )
    })?;
    for note in apply(&container, &asked, &sizing)? {
        // On stderr too, which is the caller's: unlike create's, it is not the container's.
        let _ = writeln!(std::io::stderr(), "cwrun: {note}");
        if global.log.is_some() {
            tracing::warn!("{note}");
        }
    }
    Ok(())
}

/// Sets the limits, the host's first, since it is the one that may refuse. Returns what the caller should know.
fn apply(container: &Container, asked: &LinuxResources, sizing: &Sizing) -> Result<Vec<String>> {
    // Against another update, which would begin from the same limits.
    let lock = container.lock()?;
    ensure!(lock.is_some(), "container {:?} is gone", container.record.id);
    let mut config = container.config()?;
    let mut linux = config.linux().clone().unwrap_or_default();
    let current = linux.resources().clone().unwrap_or_default();
    let Plan {
        resources,
        host,
        guest,
        guest_changes,
        notes,
    } = update::plan(&current, asked, sizing)?;
    match (&container.record.cgroup, container.record.vmm) {
        (Some(cgroup), Some(vmm)) => cgroup.limit(vmm.pid, &host)?,
        _ => ensure!(
            only_the_guests(asked),
            "container {:?} has no cgroup of its own: only linux.resources.memory.limit and pids.limit can be changed",
            container.record.id
        ),
    }
    if guest_changes {
        control::request(container, Request::Limit(guest))?;
    }
    linux.set_resources(Some(resources));
    config.set_linux(Some(linux));
    container.save_config(&config)?;
    Ok(notes)
}

/// Whether the guest alone can see to these limits.
fn only_the_guests(asked: &LinuxResources) -> bool {
    let mut rest = asked.clone();
    rest.set_pids(None);
    if let Some(mut memory) = *rest.memory() {
        memory.set_limit(None);
        rest.set_memory((memory != Default::default()).then_some(memory));
    }
    rest == LinuxResources::default()
}

fn read(path: &Path) -> Result<LinuxResources> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut bytes)?;
    } else {
        bytes = fs::read(path)?;
    }
    parse_json(&bytes)
}

/// The limits that are given one by one.
fn limits(limits: &UpdateLimits) -> Result<LinuxResources> {
    let document = json!({
        "blockIO": {"weight": limits.blkio_weight},
        "cpu": {
            "burst": limits.cpu_burst,
            "idle": limits.cpu_idle,
            "period": limits.cpu_period,
            "quota": limits.cpu_quota,
            "realtimePeriod": limits.cpu_rt_period,
            "realtimeRuntime": limits.cpu_rt_runtime,
            "shares": limits.cpu_share,
            "cpus": limits.cpuset_cpus,
            "mems": limits.cpuset_mems
        },
        "memory": {
            "kernel": limits.kernel_memory,
            "kernelTCP": limits.kernel_memory_tcp,
            "limit": limits.memory,
            "reservation": limits.memory_reservation,
            "swap": limits.memory_swap
        },
        "pids": {"limit": limits.pids_limit}
    });
    serde_json::from_value(without_nulls(document)).context("linux.resources")
}

/// The document without members that are null, and without objects that then have none.
fn without_nulls(document: Value) -> Value {
    let Value::Object(members) = document else {
        return document;
    };
    let members = members
        .into_iter()
        .map(|(name, value)| (name, without_nulls(value)));
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    Value::Object(members.filter(|(_, value)| !empty(value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parsed(arguments: &str) -> Result<LinuxResources> {
        let arguments = ["cwrun", "update"]
            .into_iter()
            .chain(arguments.split(' '))
            .chain(["id"]);
        match Cli::try_parse_from(arguments)?.command {
            Command::Update(update) => limits(&update.limits),
            other => panic!("{other:?}"),
        }
    }

    /// As crun and runc spell them.
    #[test]
    fn options_become_fields() {
        let given = "--memory 512m --memory-swap=-1 --memory-reservation 1048576 --cpu-quota -1 --cpu-period 100000 --cpu-share 512 \
                     --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit -1 --blkio-weight 100 --cpu-idle 1 --cpu-burst 5 --cpu-rt-period 6 \
                     --cpu-rt-runtime 7 --kernel-memory 8 --kernel-memory-tcp 9";
        let expected = json!({
            "memory": {"limit": 512 << 20, "swap": -1, "reservation": 1 << 20, "kernel": 8, "kernelTCP": 9},
            "cpu": {"quota": -1, "period": 100_000, "shares": 512, "cpus": "0-1", "mems": "0", "idle": 1, "burst": 5,
                "realtimePeriod": 6, "realtimeRuntime": 7},
            "pids": {"limit": -1},
            "blockIO": {"weight": 100}
        });
        let limits = parsed(&given.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        assert_eq!(serde_json::to_value(&limits).unwrap(), expected);
        assert_eq!(
            parsed("--cpu-shares 512")
                .unwrap()
                .cpu()
                .as_ref()
                .unwrap()
                .shares(),
            Some(512)
        );
        assert_eq!(parsed("--pids-limit 5").unwrap().memory(), &None);
        assert!(parsed("--memory lots").is_err());
        assert!(parsed("--resources x --memory 1").is_err());
    }

    #[test]
    fn the_guest_sees_to_two_of_them() {
        assert!(only_the_guests(&parsed("--memory 1 --pids-limit 2").unwrap()));
        for other in ["--memory-swap 1", "--cpu-quota 1", "--blkio-weight 10"] {
            assert!(!only_the_guests(&parsed(other).unwrap()), "{other}");
        }
    }
}
