//! How large the VM is: memory, vCPUs, writable layer.

use super::Bundle;
use crate::settings::{MAX_VCPUS, Settings};
use anyhow::{Context, Result, ensure};
use workload::{Scratch, Workload};

/// Sizes of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizing {
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Memory of the VMM beside the guest's own, in bytes, added to the cgroup's limit.
    pub headroom: u64,
    /// Number of virtual processors.
    pub vcpus: u8,
    /// The writable layer.
    pub scratch: Scratch,
}

impl Sizing {
    /// Sizes from annotations, else from the resource limits, else from the settings.
    pub fn of(bundle: &Bundle, settings: &Settings) -> Result<Self> {
        Ok(Self {
            memory_mib: memory_mib(bundle, settings)?,
            headroom: settings.vm.vmm_headroom,
            vcpus: vcpus(bundle, settings)?,
            scratch: scratch(bundle, settings)?,
        })
    }
}

fn memory_mib(bundle: &Bundle, settings: &Settings) -> Result<u64> {
    let resources = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let limit = resources
        .and_then(|r| r.memory().as_ref())
        .and_then(|memory| memory.limit())
        .filter(|limit| *limit > 0);
    let (field, mib) = match (number(bundle, "krun.ram_mib")?, limit) {
        (Some(mib), _) => ("annotation krun.ram_mib", mib),
        (None, Some(limit)) => ("linux.resources.memory.limit", limit.unsigned_abs() >> 20),
        (None, None) => return Ok(settings.vm.default_memory >> 20),
    };
    ensure!(
        mib >= vmm::MIN_MEMORY_MIB,
        "config.json: {field}: {mib} MiB is too little memory for a guest, which needs at least {} MiB",
        vmm::MIN_MEMORY_MIB
    );
    Ok(mib)
}

fn vcpus(bundle: &Bundle, settings: &Settings) -> Result<u8> {
    let resources = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|r| r.cpu().as_ref());
    let quota = cpu.and_then(|cpu| match (cpu.quota(), cpu.period().unwrap_or(100_000)) {
        (Some(quota), period) if quota > 0 && period > 0 => Some(quota.unsigned_abs().div_ceil(period)),
        _ => None,
    });
    let available = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let wanted = match number(bundle, "krun.cpus")? {
        Some(count) => {
            ensure!(
                (1..=u64::from(MAX_VCPUS)).contains(&count),
                "config.json: annotation krun.cpus: {count} is not between 1 and {MAX_VCPUS}"
            );
            count
        }
        None => {
            let most = available.min(u64::from(settings.vm.max_vcpus));
            quota.unwrap_or(most).min(most)
        }
    };
    Ok(u8::try_from(wanted).unwrap_or(MAX_VCPUS).clamp(1, MAX_VCPUS))
}

fn scratch(bundle: &Bundle, settings: &Settings) -> Result<Scratch> {
    const KEY: &str = "io.cwrun.scratch";
    match bundle.annotation(KEY) {
        None => Ok(Scratch::Disk {
            bytes: settings.vm.default_scratch,
        }),
        Some("ram") => Ok(Scratch::Ram {
            bytes: memory_mib(bundle, settings)? << 19,
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

fn number(bundle: &Bundle, key: &str) -> Result<Option<u64>> {
    let Some(text) = bundle.annotation(key) else {
        return Ok(None);
    };
    let value = text
        .parse()
        .with_context(|| format!("config.json: annotation {key}: {text:?} is not a number"))?;
    Ok(Some(value))
}

/// [`parse_size`] for the command line.
pub fn parse_size_argument(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("{text:?} is not a size such as 10GiB"))
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
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1048576", Some(1 << 20)),
            ("4GiB", Some(4 << 30)),
            ("512m", Some(512 << 20)),
            ("2 TiB", Some(2 << 40)),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        for bad in ["", "GiB", "4x", "-1", "99999999999999999999", "9999T"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
