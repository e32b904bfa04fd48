//! What the guest's CPUID instruction answers: what KVM supports on this processor, with our topology and without what a
//! container guest has no business with.
//!
//! Topology: one package, one die, `vcpus` cores with one thread each, APIC id = index of the vCPU.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1 ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const PERF_CORE: u32 = 1 << 23;
const PERF_NB: u32 = 1 << 24;
/// Leaves that describe the host's topology level by level: Intel's two and AMD's.
const EXTENDED_TOPOLOGY: [u32; 3] = [0xb, 0x1f, 0x8000_0026];

/// What the table depends on, besides KVM's answer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How many vCPUs the guest has.
    pub vcpus: u8,
    /// Whether KVM emulates the local APIC's TSC deadline mode.
    pub tsc_deadline: bool,
}

/// The table for vCPU `index`, from the entries that KVM supports.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], shape: Shape, index: u8) -> Vec<kvm_cpuid_entry2> {
    let mut table: Vec<_> = supported
        .iter()
        .filter(|entry| !EXTENDED_TOPOLOGY.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut table {
        adapt(entry, shape, index);
    }
    let offers = |leaf: u32| supported.iter().any(|entry| entry.function == leaf);
    for leaf in [0xb, 0x1f].into_iter().filter(|&leaf| offers(leaf)) {
        table.extend((0..3).map(|subleaf| topology_entry(leaf, subleaf, shape.vcpus, index)));
    }
    table
}

/// Leaves 0xb and 0x1f: subleaf 0 is the thread level, 1 the core level, 2 the end.
fn topology_entry(leaf: u32, subleaf: u32, vcpus: u8, index: u8) -> kvm_cpuid_entry2 {
    let (shift, processors, level) = match subleaf {
        0 => (0, 1, 1 << 8),
        1 => (apic_id_bits(vcpus), vcpus.into(), 2 << 8),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: subleaf | level,
        edx: index.into(),
        ..Default::default()
    }
}

/// Number of low APIC id bits that tell `vcpus` processors apart.
fn apic_id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, shape: Shape, index: u8) {
    let (vcpus, id) = (u32::from(shape.vcpus), u32::from(index));
    match entry.function {
        1 => {
            // CLFLUSH line size stays; count of logical processors, initial APIC id.
            entry.ebx = entry.ebx & 0xffff | vcpus.next_power_of_two().min(0xff) << 16 | id << 24;
            entry.ecx = set(entry.ecx & !VMX | HYPERVISOR, TSC_DEADLINE, shape.tsc_deadline);
            entry.edx = set(entry.edx, HTT, vcpus > 1);
        }
        // Intel's caches: the first two levels belong to one core, the third to all.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (vcpus - 1).min(0x3f) << 26;
        }
        // No performance counters: they watch the host's other tenants too well.
        0xa | 0x8000_0022 => clear(entry),
        // No nested guests.
        0x8000_000a => clear(entry),
        0x8000_0001 => {
            entry.ecx &= !(SVM | PERF_CORE | PERF_NB);
            if vcpus == 1 {
                entry.ecx &= !CMP_LEGACY;
            }
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1) | apic_id_bits(shape.vcpus) << 12,
        // AMD's caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // AMD's topology: extended APIC id, core id with one thread per core, one node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn set(value: u32, bits: u32, on: bool) -> u32 {
    if on { value | bits } else { value & !bits }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        let entry = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        vec![
            entry(1, 0, 0x800f12, 0x0710_0800, VMX | 1 << 21, 1 << 9),
            entry(4, 3, 0x1c03_c163, 0, 0, 0),
            entry(0xa, 0, 0x0730_0402, 0, 0, 0x603),
            entry(0xb, 0, 1, 2, 0x100, 37),
            entry(0xb, 1, 4, 16, 0x201, 37),
            entry(0x8000_0001, 0, 0, 0, SVM | CMP_LEGACY | PERF_CORE, 0),
            entry(0x8000_0008, 0, 0x3030, 0, 0x700f, 0),
            entry(0x8000_000a, 0, 1, 8, 0, 0xffff),
            entry(0x8000_001e, 0, 37, 0x112, 3, 0),
        ]
    }

    fn find(table: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> kvm_cpuid_entry2 {
        *table
            .iter()
            .find(|entry| (entry.function, entry.index) == (leaf, subleaf))
            .unwrap()
    }

    #[test]
    fn every_leaf_agrees_on_the_apic_id() {
        let shape = Shape {
            vcpus: 4,
            tsc_deadline: true,
        };
        for id in 0..4 {
            let table = for_vcpu(&supported(), shape, id);
            assert_eq!(find(&table, 1, 0).ebx >> 24, u32::from(id));
            assert_eq!(find(&table, 0xb, 0).edx, u32::from(id));
            assert_eq!(find(&table, 0xb, 1).edx, u32::from(id));
            assert_eq!(find(&table, 0x8000_001e, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn cores_are_counted_the_same_everywhere() {
        let table = for_vcpu(
            &supported(),
            Shape {
                vcpus: 3,
                tsc_deadline: true,
            },
            0,
        );
        assert_eq!(find(&table, 1, 0).ebx >> 16 & 0xff, 4);
        assert_eq!(find(&table, 1, 0).edx & HTT, HTT);
        let core = find(&table, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
        assert_eq!(find(&table, 0xb, 2).ebx, 0);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(find(&table, 4, 3).eax >> 26, 2);
        assert_eq!(find(&table, 4, 3).eax >> 14 & 0xfff, 2);
    }

    #[test]
    fn one_vcpu_has_no_siblings() {
        let table = for_vcpu(
            &supported(),
            Shape {
                vcpus: 1,
                tsc_deadline: false,
            },
            0,
        );
        assert_eq!(find(&table, 1, 0).edx & HTT, 0);
        assert_eq!(find(&table, 1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(find(&table, 0xb, 1).eax, 0);
        assert_eq!(find(&table, 0x8000_0001, 0).ecx, 0);
    }

    #[test]
    fn nested_guests_and_counters_are_hidden() {
        let table = for_vcpu(
            &supported(),
            Shape {
                vcpus: 2,
                tsc_deadline: true,
            },
            1,
        );
        let one = find(&table, 1, 0);
        assert_eq!(
            one.ecx & (VMX | HYPERVISOR | TSC_DEADLINE),
            HYPERVISOR | TSC_DEADLINE
        );
        assert_eq!(find(&table, 0xa, 0).eax, 0);
        assert_eq!(find(&table, 0x8000_000a, 0).edx, 0);
        assert_eq!(find(&table, 0x8000_0001, 0).ecx, CMP_LEGACY);
    }
}
