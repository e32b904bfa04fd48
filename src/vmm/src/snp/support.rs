//! Whether a machine can run SNP guests, and if not, what is missing and where to look.
//!
//! ```text
//!   processor   CPUID 0x8000001f EAX bit 4
//!   firmware    the kernel keeps the flag only if the firmware (BIOS) has reserved the reverse map table
//!   kernel      KVM knows the VM type and guest_memfd (Linux 6.11)
//!   module      /sys/module/kvm_amd/parameters/sev_snp is Y
//!   device      /dev/sev, of the ccp driver
//! ```
//!
//! This module opens nothing: the caller collects the facts.

use std::fmt;

use kvm_bindings::KVM_X86_SNP_VM;

/// CPUID 0x8000001f EAX: SEV-SNP.
const SNP: u32 = 1 << 4;

/// What was found on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// CPUID 0x8000001f: EAX, EBX, ECX, EDX; `None` where the processor has no such leaf.
    pub encryption: Option<[u32; 4]>,
    /// Whether `sev_snp` is among the flags of `/proc/cpuinfo`.
    pub kernel_flag: bool,
    /// Content of `/sys/module/kvm_amd/parameters/sev_snp`, if there is one.
    pub parameter: Option<String>,
    /// Whether `/sys/module/kvm_amd` is there.
    pub module: bool,
    /// What `KVM_CAP_VM_TYPES` answers, 0 without KVM.
    pub vm_types: u32,
    /// Whether KVM has `KVM_CAP_GUEST_MEMFD` and `KVM_CAP_MEMORY_ATTRIBUTES`.
    pub guest_memfd: bool,
    /// Whether `/dev/sev` can be opened; else why not.
    pub device: Result<(), String>,
}

/// A machine that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// How many SNP and SEV-ES guests can run at once.
    pub guests: u32,
    /// Which bit of a page table entry encrypts.
    pub encryption_bit: u8,
}

/// The first thing that a machine lacks, from the processor upwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The processor can't.
    Processor,
    /// The firmware has not prepared it.
    Firmware,
    /// The kernel is too old.
    Kernel,
    /// The module is not there.
    Module,
    /// The module has it off.
    Parameter(String),
    /// No device of the secure processor.
    Device(String),
    /// No key is reserved for SNP guests.
    Asids,
}

impl Missing {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Missing::Processor => {
                "SEV-SNP needs an AMD EPYC 7003 or later, and no virtualization around this machine (CPUID 0x8000001f EAX bit 4)"
            }
            Missing::Firmware => {
                "enable SMEE, SEV-SNP and full RMP table coverage in the firmware's set-up; `dmesg | grep -i -e SEV-SNP -e RMP` says what the kernel found"
            }
            Missing::Kernel => "run Linux 6.11 or later on this host, with CONFIG_KVM_AMD_SEV",
            Missing::Module => "load the module kvm_amd",
            Missing::Parameter(_) => {
                "load kvm_amd with sev=1 sev_es=1 sev_snp=1; `dmesg | grep -e kvm_amd -e ccp` says why it stays off (old SEV firmware, iommu=off, or memory encryption by the host)"
            }
            Missing::Device(_) => {
                "load the module ccp, and see `dmesg | grep ccp`; a user needs the group that owns /dev/sev"
            }
            Missing::Asids => "set \"SEV-ES ASID space limit\" in the firmware's set-up to more than 1",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Processor => f.write_str("the processor has no SEV-SNP"),
            Missing::Firmware => {
                f.write_str("the processor has SEV-SNP, but the firmware has not prepared it (no sev_snp in /proc/cpuinfo)")
            }
            Missing::Kernel => f.write_str("the kernel's KVM knows no SEV-SNP guests"),
            Missing::Module => f.write_str("the module kvm_amd is not loaded"),
            Missing::Parameter(value) => write!(
                f,
                "SEV-SNP is off in kvm_amd (/sys/module/kvm_amd/parameters/sev_snp is {value:?})"
            ),
            Missing::Device(why) => write!(f, "/dev/sev can't be used: {why}"),
            Missing::Asids => f.write_str("the firmware reserves no encryption keys (ASIDs) for SEV-SNP guests"),
        }
    }
}

impl std::error::Error for Missing {}

impl Facts {
    /// Whether SNP guests can run.
    pub fn verdict(&self) -> Result<Support, Missing> {
        let leaf = self.encryption.filter(|[eax, ..]| eax & SNP != 0);
        let [_, ebx, _, first_sev_asid] = leaf.ok_or(Missing::Processor)?;
        if !self.kernel_flag {
            return Err(Missing::Firmware);
        }
        if !self.module {
            return Err(Missing::Module);
        }
        let Some(parameter) = &self.parameter else {
            return Err(Missing::Kernel);
        };
        if !matches!(parameter.trim(), "Y" | "1") {
            return Err(Missing::Parameter(parameter.trim().to_owned()));
        }
        if self.vm_types & (1 << KVM_X86_SNP_VM) == 0 || !self.guest_memfd {
            return Err(Missing::Kernel);
        }
        if let Err(why) = &self.device {
            return Err(Missing::Device(why.clone()));
        }
        // ASIDs below the first of plain SEV guests are for SEV-ES and SNP; 0 is the host's.
        match first_sev_asid.saturating_sub(1) {
            0 => Err(Missing::Asids),
            guests => Ok(Support {
                guests,
                encryption_bit: (ebx & 0x3f) as u8,
            }),
        }
    }
}

/// CPUID 0x8000001f of the processor that this runs on, if it has it.
pub fn cpuid_facts() -> Option<[u32; 4]> {
    use std::arch::x86_64::__cpuid;
    const LEAF: u32 = 0x8000_001f;
    if __cpuid(0x8000_0000).eax < LEAF {
        return None;
    }
    let leaf = __cpuid(LEAF);
    Some([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Facts {
        Facts {
            encryption: Some([0x1f, 51 | 5 << 6, 509, 100]),
            kernel_flag: true,
            parameter: Some("Y\n".into()),
            module: true,
            vm_types: 0x1f,
            guest_memfd: true,
            device: Ok(()),
        }
    }

    #[test]
    fn a_machine_that_can_says_how_many_guests() {
        let support = able().verdict().unwrap();
        assert_eq!(
            support,
            Support {
                guests: 99,
                encryption_bit: 51
            }
        );
    }

    #[test]
    fn the_first_thing_that_is_missing_is_named() {
        let lacking = |change: &dyn Fn(&mut Facts)| {
            let mut facts = able();
            change(&mut facts);
            facts.verdict().unwrap_err()
        };
        assert_eq!(lacking(&|facts| facts.encryption = None), Missing::Processor);
        assert_eq!(
            lacking(&|facts| facts.encryption = Some([0x0f, 51, 509, 100])),
            Missing::Processor
        );
        assert_eq!(lacking(&|facts| facts.kernel_flag = false), Missing::Firmware);
        assert_eq!(lacking(&|facts| facts.module = false), Missing::Module);
        assert_eq!(lacking(&|facts| facts.parameter = None), Missing::Kernel);
        assert_eq!(
            lacking(&|facts| facts.parameter = Some("N\n".into())),
            Missing::Parameter("N".into())
        );
        assert_eq!(lacking(&|facts| facts.vm_types = 0xf), Missing::Kernel);
        assert_eq!(lacking(&|facts| facts.guest_memfd = false), Missing::Kernel);
        assert_eq!(
            lacking(&|facts| facts.device = Err("no such file".into())),
            Missing::Device("no such file".into())
        );
        assert_eq!(
            lacking(&|facts| facts.encryption = Some([0x1f, 51, 509, 1])),
            Missing::Asids
        );
    }

    #[test]
    fn every_lack_says_where_to_look() {
        assert!(
            Missing::Parameter("N".into())
                .to_string()
                .contains("/sys/module/kvm_amd/parameters/sev_snp")
        );
        assert!(Missing::Processor.advice().contains("0x8000001f"));
        assert!(Missing::Firmware.advice().contains("dmesg"));
    }
}
