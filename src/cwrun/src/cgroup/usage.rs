//! What a VMM uses, from the files of its cgroup, in the shape of `runc events` (its package `types`).
//!
//! ```text
//!   /proc/<vmm>/cgroup ─► Groups ─► version 2: one directory       cpu.stat  memory.current  io.stat …
//!                                └► version 1: one per controller  cpuacct.usage  memory.usage_in_bytes  blkio.throttle.…
//! ```
//!
//! A file that the kernel does not have leaves its number out, as it does there.

use anyhow::{Context, Result};
use libcgroups::common::DEFAULT_CGROUP_ROOT;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Nanoseconds of a clock tick, in which version 1 counts (`USER_HZ` is 100 wherever Linux runs on x86).
const TICK: u64 = 10_000_000;

/// Where the cgroups of a process are.
#[derive(Debug)]
pub struct Groups {
    /// Version 2's, if the hierarchy is mounted.
    unified: Option<PathBuf>,
    /// Version 1's, by controller.
    controllers: BTreeMap<String, PathBuf>,
}

impl Groups {
    /// Those of process `pid`.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).context(path)?;
        Ok(Self::below(Path::new(DEFAULT_CGROUP_ROOT), &text))
    }

    /// Those that a process with this `/proc/<pid>/cgroup` has, with the hierarchies mounted at or below `root`.
    fn below(root: &Path, text: &str) -> Self {
        let mut groups = Self {
            unified: None,
            controllers: BTreeMap::new(),
        };
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let path = path.trim_start_matches('/');
            if names.is_empty() {
                // Beside version 1's, version 2's hierarchy is mounted where systemd does.
                groups.unified = [root.to_owned(), root.join("unified")]
                    .into_iter()
                    .find(|mount| mount.join("cgroup.procs").exists())
                    .map(|mount| mount.join(path));
            } else {
                // A name is systemd's, without controllers.
                let named = names
                    .split(',')
                    .filter(|name| !name.starts_with("name="))
                    .map(|name| (name.to_owned(), root.join(name).join(path)));
                groups.controllers.extend(named);
            }
        }
        groups
    }

    /// The directory of version 2.
    pub fn unified(&self) -> Result<&Path> {
        self.unified
            .as_deref()
            .context("the process is in no cgroup of version 2")
    }

    /// What is used by all processes in them.
    pub fn usage(&self) -> Usage {
        match &self.unified {
            Some(group) if group.join("cgroup.controllers").exists() && self.controllers.is_empty() => {
                version_2(group)
            }
            _ => self.version_1(),
        }
    }

    /// How often the kernel has ended a process in them because its memory limit was reached.
    pub fn oom_kills(&self) -> u64 {
        let file = match self.controllers.get("memory") {
            Some(group) => group.join("memory.oom_control"),
            None => self.unified.clone().unwrap_or_default().join("memory.events"),
        };
        keyed(&file).get("oom_kill").copied().unwrap_or(0)
    }

    fn version_1(&self) -> Usage {
        let file = |controller: &str, name: &str| {
            let group = self.controllers.get(controller);
            group.map(|group| group.join(name)).unwrap_or_default()
        };
        let cpu = |name: &str| keyed(&file("cpu", name));
        let (time, throttling) = (keyed(&file("cpuacct", "cpuacct.stat")), cpu("cpu.stat"));
        let memory = |name: &str| MemoryEntry {
            limit: number(&file("memory", &format!("memory.{name}limit_in_bytes"))).unwrap_or(0),
            usage: number(&file("memory", &format!("memory.{name}usage_in_bytes"))).unwrap_or(0),
            max: number(&file("memory", &format!("memory.{name}max_usage_in_bytes"))).unwrap_or(0),
            failcnt: number(&file("memory", &format!("memory.{name}failcnt"))).unwrap_or(0),
        };
        let raw = keyed(&file("memory", "memory.stat"));
        let blkio = |name: &str| operations(&file("blkio", &format!("blkio.throttle.{name}_recursive")));
        Usage {
            cpu: Cpu {
                usage: CpuUsage {
                    total: number(&file("cpuacct", "cpuacct.usage")).unwrap_or(0),
                    percpu: numbers(&file("cpuacct", "cpuacct.usage_percpu")),
                    kernel: value(&time, "system").saturating_mul(TICK),
                    user: value(&time, "user").saturating_mul(TICK),
                },
                throttling: Throttling {
                    periods: value(&throttling, "nr_periods"),
                    throttled_periods: value(&throttling, "nr_throttled"),
                    throttled_time: value(&throttling, "throttled_time"),
                },
            },
            memory: Memory {
                cache: value(&raw, "cache"),
                usage: memory(""),
                swap: memory("memsw."),
                kernel: memory("kmem."),
                kernel_tcp: memory("kmem.tcp."),
                raw,
            },
            pids: Pids {
                current: number(&file("pids", "pids.current")).unwrap_or(0),
                limit: number(&file("pids", "pids.max")).unwrap_or(0),
            },
            blkio: Blkio {
                bytes: blkio("io_service_bytes"),
                operations: blkio("io_serviced"),
            },
        }
    }
}

fn version_2(group: &Path) -> Usage {
    let cpu = keyed(&group.join("cpu.stat"));
    let raw = keyed(&group.join("memory.stat"));
    let entry = |name: &str, failure: &str| MemoryEntry {
        limit: limit(&group.join(format!("{name}.max"))),
        usage: number(&group.join(format!("{name}.current"))).unwrap_or(0),
        max: number(&group.join(format!("{name}.peak"))).unwrap_or(0),
        failcnt: value(&keyed(&group.join(format!("{name}.events"))), failure),
    };
    let usage = entry("memory", "max");
    let mut swap = entry("memory.swap", "fail");
    // As runc has it, and version 1: swap space together with memory.
    swap.usage = swap.usage.saturating_add(usage.usage);
    swap.limit = swap.limit.saturating_add(usage.limit);
    let io = nested(&group.join("io.stat"));
    let io = |read: &str, write: &str| {
        let named = [("Read", read), ("Write", write)];
        io.iter()
            .flat_map(|device| named.iter().filter_map(|(op, key)| device.entry(op, key)))
            .collect()
    };
    Usage {
        cpu: Cpu {
            usage: CpuUsage {
                total: value(&cpu, "usage_usec").saturating_mul(1000),
                percpu: Vec::new(),
                kernel: value(&cpu, "system_usec").saturating_mul(1000),
                user: value(&cpu, "user_usec").saturating_mul(1000),
            },
            throttling: Throttling {
                periods: value(&cpu, "nr_periods"),
                throttled_periods: value(&cpu, "nr_throttled"),
                throttled_time: value(&cpu, "throttled_usec").saturating_mul(1000),
            },
        },
        memory: Memory {
            cache: value(&raw, "file"),
            usage,
            swap,
            kernel: MemoryEntry::default(),
            kernel_tcp: MemoryEntry::default(),
            raw,
        },
        pids: Pids {
            current: number(&group.join("pids.current")).unwrap_or(0),
            limit: number(&group.join("pids.max")).unwrap_or(0),
        },
        blkio: Blkio {
            bytes: io("rbytes", "wbytes"),
            operations: io("rios", "wios"),
        },
    }
}

/// `data` of an event of type `stats`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Disks.
    pub blkio: Blkio,
}

/// Processor time.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// What was used.
    pub usage: CpuUsage,
    /// What was withheld.
    pub throttling: Throttling,
}

/// Processor time in nanoseconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    kernel: u64,
    user: u64,
}

/// The effect of a CPU quota; time in nanoseconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Memory in bytes.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
}

/// One kind of memory. Without a limit, that is the highest number (runc's way).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

/// Processes and threads.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// How many there may be; 0 without a limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// What was read and written, by device.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blkio {
    #[serde(rename = "ioServiceBytesRecursive", skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<BlkioEntry>,
    #[serde(rename = "ioServicedRecursive", skip_serializing_if = "Vec::is_empty")]
    operations: Vec<BlkioEntry>,
}

/// One number of one device.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: String,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The only number in a file; nothing for `max`.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The limit in a file.
fn limit(path: &Path) -> u64 {
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == "max" => u64::MAX,
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// All numbers in a file.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Lines of `key value`.
fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

fn value(of: &BTreeMap<String, u64>, key: &str) -> u64 {
    of.get(key).copied().unwrap_or(0)
}

/// Lines of `major:minor operation value`.
fn operations(path: &Path) -> Vec<BlkioEntry> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// One line of `major:minor key=value key=value …`.
struct Device {
    major: u64,
    minor: u64,
    values: BTreeMap<String, u64>,
}

impl Device {
    fn entry(&self, op: &str, key: &str) -> Option<BlkioEntry> {
        Some(BlkioEntry {
            major: self.major,
            minor: self.minor,
            op: op.to_owned(),
            value: *self.values.get(key)?,
        })
    }
}

fn nested(path: &Path) -> Vec<Device> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let device = |line: &str| {
        let (number, rest) = line.split_once(' ')?;
        let (major, minor) = number.split_once(':')?;
        let values = rest.split_ascii_whitespace().filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Some(Device {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            values: values.collect(),
        })
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
#[path = "usage_test.rs"]
mod tests;
