//! What this machine has of SEV-SNP.

use anyhow::{Context, Result, anyhow};
use std::fs::{self, File};
use std::path::Path;
use tee::vmsa::CpuModel;
use vmm::snp::{Facts, HostTraits, Missing, Support, cpuid_facts};

const SEV: &str = "/dev/sev";
const MODULE: &str = "/sys/module/kvm_amd";

/// Whether SNP guests can run here; the error says what is missing and what to do about it.
pub fn support() -> Result<Support> {
    facts()
        .verdict()
        .map_err(|missing| anyhow!("{missing}: {}", missing.advice()))
}

/// The same, with the missing thing itself.
pub fn verdict() -> Result<Support, Missing> {
    facts().verdict()
}

fn facts() -> Facts {
    let (vm_types, guest_memfd) = crate::kvm::open().map_or((0, false), vmm::kvm_facts);
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Facts {
        encryption: cpuid_facts(),
        kernel_flag: has_flag(&flags, "sev_snp"),
        parameter: fs::read_to_string(Path::new(MODULE).join("parameters/sev_snp")).ok(),
        module: Path::new(MODULE).exists(),
        vm_types,
        guest_memfd,
        device: open_sev()
            .map(drop)
            .map_err(|error| format!("{:#}", error.root_cause())),
    }
}

/// Whether `/proc/cpuinfo` has this flag.
fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_ascii_whitespace().any(|word| word == flag))
}

/// `/dev/sev`.
pub fn open_sev() -> Result<File> {
    File::options().read(true).write(true).open(SEV).context(SEV)
}

/// What guest policies depend on.
pub fn traits() -> HostTraits {
    let smt = fs::read_to_string("/sys/devices/system/cpu/smt/active").unwrap_or_default();
    HostTraits {
        smt: smt.trim() == "1",
        sockets: sockets(),
    }
}

/// Processor packages; 1 where the kernel does not say.
fn sockets() -> u32 {
    let mut packages = Vec::new();
    for cpu in fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .flatten()
    {
        packages.extend(fs::read_to_string(cpu.path().join("topology/physical_package_id")).ok());
    }
    packages.sort_unstable();
    packages.dedup();
    u32::try_from(packages.len()).unwrap_or(u32::MAX).max(1)
}

/// The generation of this processor, which a guest's reset registers show. A processor without SNP counts as the oldest with it.
pub fn cpu_model() -> CpuModel {
    let signature = std::arch::x86_64::__cpuid(1).eax;
    let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
    model_of(family, model)
}

/// AMD's family and model numbers: EPYC 9004 and 8004 are 0x10 to 0x1f and 0xa0 to 0xaf of family 0x19, EPYC 9005 is family 0x1a.
fn model_of(family: u32, model: u32) -> CpuModel {
    match (family, model) {
        (0x19, 0x10..=0x1f | 0xa0..=0xaf) => CpuModel::Genoa,
        (0x1a.., _) => CpuModel::Turin,
        _ => CpuModel::Milan,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_a_whole_word() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu sev sev_es\nbugs\t\t: sev_snp\n";
        assert!(has_flag(cpuinfo, "sev_es"));
        assert!(!has_flag(cpuinfo, "sev_snp"));
        assert!(!has_flag(cpuinfo, "se"));
    }

    #[test]
    fn generations_are_told_by_family_and_model() {
        assert_eq!(model_of(0x19, 0x01), CpuModel::Milan);
        assert_eq!(model_of(0x19, 0x11), CpuModel::Genoa);
        assert_eq!(model_of(0x19, 0xa0), CpuModel::Genoa);
        assert_eq!(model_of(0x1a, 0x02), CpuModel::Turin);
    }
}
