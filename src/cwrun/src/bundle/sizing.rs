//! How large the VM is: memory, vCPUs, writable layer.
//!
//! ```text
//!            asked for: annotation krun.*, /.krun_vm.json       else: the limits            else
//!   memory   at most the memory limit                           memory limit                vm.default_memory
//!   vCPUs    1 to 64                                            CPU quota, cpuset, host,    processors of the host,
//!                                                               at most vm.max_vcpus        at most vm.max_vcpus
//! ```
//!
//! In an image of mkcw, what `/krun-sev.json` says takes the place of `vm.default_memory` and of the processors of the host.

use super::krun::{self, Asked, Requests};
use super::{Bundle, annotations};
use crate::settings::{MAX_VCPUS, Settings};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use workload::{Scratch, Workload};

/// Sizes of one VM. They last as long as it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Memory of the VMM beside the guest's own, in bytes: the cgroup's limit is that much higher than the guest's memory.
    pub headroom: u64,
    /// Number of virtual processors.
    pub vcpus: u8,
    /// The writable layer.
    pub scratch: Scratch,
}

/// What a guest's size is bounded by.
struct Host {
    /// Processors that this process may use.
    processors: u64,
    /// Memory in MiB.
    memory_mib: u64,
}

impl Sizing {
    /// Sizes for this bundle.
    pub fn of(bundle: &Bundle, settings: &Settings) -> Result<Self> {
        Self::on(&Host::this(), bundle, settings)
    }

    /// Guest memory in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_mib << 20
    }

    fn on(host: &Host, bundle: &Bundle, settings: &Settings) -> Result<Self> {
        let asked = krun::read(bundle)?;
        let linux = bundle.spec.linux().as_ref();
        let limits = match linux.and_then(|linux| linux.resources().as_ref()) {
            Some(resources) => Limits::of(resources).context("config.json")?,
            None => Limits::default(),
        };
        let memory_mib = memory_mib(&asked, &limits, host, settings)?;
        Ok(Self {
            memory_mib,
            headroom: settings.vm.vmm_headroom,
            vcpus: vcpus(&asked, &limits, host, settings)?,
            scratch: scratch(bundle, memory_mib, settings)?,
        })
    }
}

impl Host {
    fn this() -> Self {
        let info = rustix::system::sysinfo();
        let memory = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
        Self {
            processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_mib: memory >> 20,
        }
    }
}

/// A limit and the field that sets it.
pub struct Limit {
    /// The limit.
    pub value: u64,
    /// The field's path in config.json.
    pub field: &'static str,
}

/// What `linux.resources` allows, from its own fields or those of cgroup version 2 in `unified`, which come last on the cgroup too.
#[derive(Default)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<Limit>,
    /// CPU time in whole processors, rounded up.
    pub quota: Option<u64>,
    /// Processors that may be used.
    pub cpuset: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

impl Limits {
    /// The limits in these resources.
    pub fn of(resources: &LinuxResources) -> Result<Self> {
        Ok(Self {
            memory: memory_limit(resources)?,
            quota: quota(resources)?,
            cpuset: cpuset(resources)?,
            tasks: tasks(resources)?,
        })
    }

    /// Those that a guest of this size has to keep by itself: memory below its own, and the number of its processes.
    pub fn inside(&self, sizing: &Sizing) -> workload::Limits {
        let memory = self.memory.as_ref().map(|limit| limit.value);
        workload::Limits {
            tasks: self.tasks,
            memory: memory.filter(|bytes| *bytes < sizing.memory()),
        }
    }
}

fn unified<'a>(resources: &'a LinuxResources, file: &str) -> Option<&'a str> {
    resources.unified().as_ref()?.get(file).map(|text| text.trim())
}

fn memory_limit(resources: &LinuxResources) -> Result<Option<Limit>> {
    const UNIFIED: &str = "linux.resources.unified: memory.max";
    if let Some(text) = unified(resources, "memory.max") {
        let value = unified_bytes(text).context(UNIFIED)?;
        return Ok(value.map(|value| Limit {
            value,
            field: UNIFIED,
        }));
    }
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit());
    Ok(limit.filter(|limit| *limit > 0).map(|limit| Limit {
        value: limit.unsigned_abs(),
        field: "linux.resources.memory.limit",
    }))
}

/// 0 is what some engines write for "none given", and what crun takes for it.
fn tasks(resources: &LinuxResources) -> Result<Option<u64>> {
    if let Some(text) = unified(resources, "pids.max") {
        return unified_tasks(text).context("linux.resources.unified: pids.max");
    }
    let limit = resources.pids().as_ref().map_or(0, |pids| pids.limit());
    Ok((limit > 0).then(|| limit.unsigned_abs()))
}

/// A number in `pids.max`; `None` for `max`.
pub fn unified_tasks(text: &str) -> Result<Option<u64>> {
    match text.trim() {
        "max" => Ok(None),
        text => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{text:?} is neither \"max\" nor a number"),
        },
    }
}

/// Bytes in a file of the memory controller; `None` for `max`.
pub fn unified_bytes(text: &str) -> Result<Option<u64>> {
    match text.trim() {
        "max" => Ok(None),
        text => match text.parse().ok().or_else(|| parse_size(text)) {
            Some(bytes) => Ok(Some(bytes)),
            None => bail!("{text:?} is neither \"max\" nor a number of bytes"),
        },
    }
}

fn quota(resources: &LinuxResources) -> Result<Option<u64>> {
    let whole = |quota: u64, period: u64| (quota > 0 && period > 0).then(|| quota.div_ceil(period));
    if let Some(text) = unified(resources, "cpu.max") {
        let mut words = text.split_ascii_whitespace();
        let (quota, period) = (words.next(), words.next().unwrap_or("100000"));
        return match quota {
            Some("max") => Ok(None),
            Some(quota) => match (quota.parse(), period.parse()) {
                (Ok(quota), Ok(period)) => Ok(whole(quota, period)),
                _ => bail!("linux.resources.unified: cpu.max: {text:?} is not a quota and a period"),
            },
            None => Ok(None),
        };
    }
    let Some(cpu) = resources.cpu() else {
        return Ok(None);
    };
    let quota = cpu.quota().filter(|quota| *quota > 0).map(i64::unsigned_abs);
    Ok(quota.and_then(|quota| whole(quota, cpu.period().unwrap_or(100_000))))
}

fn cpuset(resources: &LinuxResources) -> Result<Option<u64>> {
    let (list, field) = match unified(resources, "cpuset.cpus") {
        Some(list) => (Some(list), "linux.resources.unified: cpuset.cpus"),
        None => {
            let cpus = resources.cpu().as_ref().and_then(|cpu| cpu.cpus().as_deref());
            (cpus, "linux.resources.cpu.cpus")
        }
    };
    let Some(list) = list.map(str::trim).filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let count = count_processors(list)
        .with_context(|| format!("{field}: {list:?} is not a list of processors such as \"0-3,7\""))?;
    Ok(Some(count))
}

/// How many processors a list such as `0-3,7` names (cpuset(7), list format).
fn count_processors(list: &str) -> Option<u64> {
    /// Linux has no more than 8192.
    const MOST: u64 = 1 << 16;
    let mut named = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u64>().ok().filter(|number| *number < MOST);
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then(|| named.push((first, last)))?;
    }
    named.sort_unstable();
    let (mut count, mut next) = (0, 0);
    for (first, last) in named {
        let first = first.max(next);
        if first <= last {
            count += last - first + 1;
            next = last + 1;
        }
    }
    Some(count)
}

fn memory_mib(asked: &Requests, limits: &Limits, host: &Host, settings: &Settings) -> Result<u64> {
    let (by, mib) = match (&asked.ram_mib, &limits.memory) {
        (Some(Asked { value, by }), Some(limit)) => {
            ensure!(
                *value <= limit.value >> 20,
                "{by}: {value} MiB is more than the {} MiB that {} allows",
                limit.value >> 20,
                limit.field
            );
            (by.clone(), *value)
        }
        (Some(Asked { value, by }), None) => (by.clone(), *value),
        // A limit above what the host has is one that never applies, and a guest of that size would waste memory on tables for it.
        (None, Some(limit)) => (
            format!("config.json: {}", limit.field),
            (limit.value >> 20).min(host.memory_mib.max(vmm::MIN_MEMORY_MIB)),
        ),
        (None, None) => match &asked.usual {
            Some(usual) => (
                "/krun-sev.json in the image: ram_mib".to_owned(),
                usual.memory_mib,
            ),
            None => return Ok(settings.vm.default_memory >> 20),
        },
    };
    ensure!(
        mib >= vmm::MIN_MEMORY_MIB,
        "{by}: {mib} MiB is too little memory for a guest, which needs at least {} MiB",
        vmm::MIN_MEMORY_MIB
    );
    ensure!(
        mib <= vmm::MAX_MEMORY_MIB,
        "{by}: {mib} MiB is more memory than a guest can have, which is {} MiB",
        vmm::MAX_MEMORY_MIB
    );
    Ok(mib)
}

fn vcpus(asked: &Requests, limits: &Limits, host: &Host, settings: &Settings) -> Result<u8> {
    if let Some(Asked { value, by }) = &asked.cpus {
        let count = u8::try_from(*value)
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count));
        return count.with_context(|| format!("{by}: {value} is not between 1 and {MAX_VCPUS}"));
    }
    let most = match &asked.usual {
        Some(usual) => usual.cpus.min(MAX_VCPUS).into(),
        None => u64::from(settings.vm.max_vcpus).min(host.processors),
    };
    let wanted = [limits.quota, limits.cpuset]
        .into_iter()
        .flatten()
        .fold(most, u64::min);
    Ok(u8::try_from(wanted).unwrap_or(MAX_VCPUS).clamp(1, MAX_VCPUS))
}

fn scratch(bundle: &Bundle, memory_mib: u64, settings: &Settings) -> Result<Scratch> {
    const KEY: &str = annotations::SCRATCH;
    match bundle.annotation(KEY) {
        None => Ok(Scratch::Disk {
            bytes: settings.vm.default_scratch,
        }),
        Some("ram") => Ok(Scratch::Ram {
            bytes: memory_mib << 19,
        }),
        Some(text) => {
            let bytes = parse_size(text).with_context(|| {
                format!("config.json: annotation {KEY}: {text:?} is neither \"ram\" nor a size such as 4GiB")
            })?;
            ensure!(
                (Workload::MIN_SCRATCH_BYTES..=Workload::MAX_SCRATCH_BYTES).contains(&bytes),
                "config.json: annotation {KEY}: {text} is not between 4 MiB and 16 TiB"
            );
            Ok(Scratch::Disk { bytes })
        }
    }
}

/// [`parse_size`] for the command line.
pub fn parse_size_argument(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("{text:?} is not a size such as 10GiB"))
}

/// A limit on the command line: [`parse_size`], or -1 for none.
pub fn parse_limit_argument(text: &str) -> Result<i64, String> {
    match text {
        "-1" => Ok(-1),
        text => parse_size(text)
            .and_then(|bytes| i64::try_from(bytes).ok())
            .ok_or_else(|| format!("{text:?} is neither -1 nor a size such as 512m")),
    }
}

/// Bytes from a number with an optional binary unit: `512MiB`, `4g`, `1048576`.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 50)
}

#[cfg(test)]
#[path = "sizing_test.rs"]
mod tests;
