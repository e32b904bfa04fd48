//! KVM's SEV interface as a recording: it checks what the real one would check, keeps every call, and measures pages as the firmware
//! does.

use std::collections::VecDeque;

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_MEM_GUEST_MEMFD, kvm_create_guest_memfd, kvm_enable_cap,
    kvm_memory_attributes, kvm_regs, kvm_segment, kvm_sev_init, kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, kvm_sregs, kvm_userspace_memory_region2,
};

use super::firmware::{INVALID_PARAM, SevError};
use super::kvm::SevVm;
use super::{IDENTITY_BLOCK, Identity, PAGE_BYTES, Page};

/// A call, with what matters of its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `KVM_SEV_INIT2`.
    Init {
        /// Features of the save area.
        features: u64,
        /// Version of the GHCB protocol.
        ghcb: u16,
    },
    /// `KVM_CREATE_GUEST_MEMFD`.
    Memfd {
        /// Its size.
        bytes: u64,
    },
    /// `KVM_SET_USER_MEMORY_REGION2`.
    Region {
        /// Number of the slot.
        slot: u32,
        /// Guest-physical address.
        gpa: u64,
        /// Length.
        bytes: u64,
        /// Whether it has a private side.
        private: bool,
    },
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    Attributes {
        /// Guest-physical address.
        gpa: u64,
        /// Length.
        bytes: u64,
        /// The attributes.
        attributes: u64,
    },
    /// `KVM_ENABLE_CAP`.
    Capability {
        /// Which.
        capability: u32,
        /// Its first argument.
        argument: u64,
    },
    /// `KVM_SEV_SNP_LAUNCH_START`.
    Start {
        /// The guest policy.
        policy: u64,
    },
    /// One page that the firmware took.
    Page {
        /// Guest-physical address.
        gpa: u64,
        /// Its type.
        kind: u8,
        /// Its bytes; zeros where there is no source.
        bytes: Box<Page>,
    },
    /// `KVM_CREATE_VCPU`, with the index.
    Vcpu(u8),
    /// `KVM_SET_REGS` and `KVM_SET_SREGS` of the vCPU with this index.
    Registers(u8),
    /// `KVM_SEV_SNP_LAUNCH_FINISH`.
    Finish {
        /// Host data.
        host_data: [u8; 32],
        /// Whether there is an identity block.
        identity: bool,
        /// Whether it has an author's key.
        author: bool,
    },
}

/// What the next `LAUNCH_UPDATE` does instead of its work.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The kernel is busy.
    Again,
    /// Only the first page is taken.
    OnePage,
    /// Nothing is taken, and no error told.
    Stall,
    /// The firmware refuses, with this status.
    Refuse(u32),
    /// The firmware corrects the CPUID page and refuses it: offset in the page, new word.
    Correct(usize, u32),
}

/// Registers as they were set.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// By `KVM_SET_REGS`.
    pub regs: kvm_regs,
    /// By `KVM_SET_SREGS`.
    pub sregs: kvm_sregs,
}

/// The recording.
#[derive(Debug, Default)]
pub struct Fake {
    /// Calls that succeeded.
    pub calls: Vec<Call>,
    /// Of each vCPU.
    pub registers: Vec<Option<Registers>>,
    /// What goes wrong with the next updates.
    pub troubles: VecDeque<Trouble>,
    /// What `KVM_SEV_INIT2` answers.
    pub init: Option<SevError>,
    /// What `LAUNCH_START` answers.
    pub start: Option<SevError>,
    /// What `LAUNCH_FINISH` answers.
    pub finish: Option<SevError>,
    pub(super) memfds: u32,
}

impl Fake {
    fn has(&self, call: impl Fn(&Call) -> bool) -> bool {
        self.calls.iter().any(call)
    }

    /// Panics unless `earlier` is among the calls and `later` is not: the order of a launch.
    fn between(&self, what: &str, earlier: impl Fn(&Call) -> bool, later: impl Fn(&Call) -> bool) {
        assert!(self.has(earlier), "{what} comes too early");
        assert!(!self.has(later), "{what} comes too late");
    }

    /// Pages that the firmware took, in order.
    pub fn pages(&self) -> impl Iterator<Item = (u64, u8, &Page)> {
        self.calls.iter().filter_map(|call| match call {
            Call::Page { gpa, kind, bytes } => Some((*gpa, *kind, &**bytes)),
            _ => None,
        })
    }
}

fn is_init(call: &Call) -> bool {
    matches!(call, Call::Init { .. })
}

fn is_start(call: &Call) -> bool {
    matches!(call, Call::Start { .. })
}

fn is_finish(call: &Call) -> bool {
    matches!(call, Call::Finish { .. })
}

fn is_vcpu(call: &Call) -> bool {
    matches!(call, Call::Vcpu(_))
}

fn answer(error: Option<SevError>) -> Result<(), SevError> {
    error.map_or(Ok(()), Err)
}

impl SevVm for Fake {
    fn init(&mut self, parameters: &kvm_sev_init) -> Result<(), SevError> {
        assert!(self.calls.is_empty(), "INIT2 comes first");
        assert_eq!(
            (parameters.flags, parameters.pad1, parameters.pad2),
            (0, 0, [0; 8])
        );
        answer(self.init)?;
        self.calls.push(Call::Init {
            features: parameters.vmsa_features,
            ghcb: parameters.ghcb_version,
        });
        Ok(())
    }

    fn create_guest_memfd(&mut self, parameters: &kvm_create_guest_memfd) -> Result<u32, SevError> {
        self.between("a guest_memfd", is_init, is_start);
        assert_eq!((parameters.flags, parameters.reserved), (0, [0; 6]));
        self.memfds += 1;
        self.calls.push(Call::Memfd {
            bytes: parameters.size,
        });
        Ok(100 + self.memfds)
    }

    fn set_memory_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), SevError> {
        self.between("a memory region", is_init, is_start);
        assert_eq!((region.pad1, region.pad2), (0, [0; 14]));
        assert_ne!(region.userspace_addr, 0);
        let private = region.flags == KVM_MEM_GUEST_MEMFD;
        match private {
            true => assert_eq!(region.guest_memfd, 100 + self.memfds),
            false => assert_eq!((region.flags, region.guest_memfd), (0, 0)),
        }
        self.calls.push(Call::Region {
            slot: region.slot,
            gpa: region.guest_phys_addr,
            bytes: region.memory_size,
            private,
        });
        Ok(())
    }

    fn set_memory_attributes(&mut self, attributes: &kvm_memory_attributes) -> Result<(), SevError> {
        self.between("a memory attribute", is_init, is_start);
        assert_eq!(attributes.flags, 0);
        self.calls.push(Call::Attributes {
            gpa: attributes.address,
            bytes: attributes.size,
            attributes: attributes.attributes,
        });
        Ok(())
    }

    fn enable_capability(&mut self, capability: &kvm_enable_cap) -> Result<(), SevError> {
        assert_eq!(capability.cap, KVM_CAP_EXIT_HYPERCALL);
        self.between("a capability", is_init, is_start);
        self.calls.push(Call::Capability {
            capability: capability.cap,
            argument: capability.args[0],
        });
        Ok(())
    }

    fn launch_start(&mut self, parameters: &kvm_sev_snp_launch_start) -> Result<(), SevError> {
        self.between("LAUNCH_START", is_init, is_start);
        assert_eq!(
            (parameters.flags, parameters.pad0, parameters.pad1),
            (0, [0; 6], [0; 4])
        );
        assert_eq!(parameters.gosvw, [0; 16]);
        answer(self.start)?;
        self.calls.push(Call::Start {
            policy: parameters.policy,
        });
        Ok(())
    }

    fn launch_update(
        &mut self,
        parameters: &mut kvm_sev_snp_launch_update,
        source: &mut [u8],
    ) -> Result<(), SevError> {
        self.between("LAUNCH_UPDATE", is_start, is_vcpu);
        assert_eq!((parameters.flags, parameters.pad0, parameters.pad1), (0, 0, 0));
        assert_eq!(parameters.pad2, [0; 4]);
        assert!(parameters.len > 0 && parameters.len.is_multiple_of(PAGE_BYTES as u64));
        let total = source.len() as u64;
        let has_source = parameters.uaddr != 0;
        assert_eq!(
            has_source,
            parameters.type_ != 3,
            "zero pages alone have no source"
        );
        if has_source {
            // The address is what is left of the source.
            assert_eq!(parameters.uaddr, source.as_ptr() as u64 + total - parameters.len);
        }
        let mut pages = parameters.len / PAGE_BYTES as u64;
        match self.troubles.pop_front() {
            None => {}
            Some(Trouble::Again) => return Err(SevError::kernel(libc::EAGAIN)),
            Some(Trouble::OnePage) => pages = 1,
            Some(Trouble::Stall) => pages = 0,
            Some(Trouble::Refuse(firmware)) => {
                return Err(SevError {
                    errno: libc::EIO,
                    firmware,
                });
            }
            Some(Trouble::Correct(offset, word)) => {
                assert_eq!(parameters.type_, 6, "the firmware corrects CPUID pages only");
                source[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
                return Err(SevError {
                    errno: libc::EIO,
                    firmware: INVALID_PARAM,
                });
            }
        }
        for _ in 0..pages {
            let mut bytes = Box::new([0; PAGE_BYTES]);
            if has_source {
                let at = (total - parameters.len) as usize;
                bytes.copy_from_slice(&source[at..at + PAGE_BYTES]);
                parameters.uaddr += PAGE_BYTES as u64;
            }
            self.calls.push(Call::Page {
                gpa: parameters.gfn_start * PAGE_BYTES as u64,
                kind: parameters.type_,
                bytes,
            });
            parameters.gfn_start += 1;
            parameters.len -= PAGE_BYTES as u64;
        }
        Ok(())
    }

    fn create_vcpu(&mut self, index: u8) -> Result<(), SevError> {
        self.between("a vCPU", is_start, is_finish);
        assert_eq!(usize::from(index), self.registers.len());
        self.registers.push(None);
        self.calls.push(Call::Vcpu(index));
        Ok(())
    }

    fn sregs(&mut self, index: u8) -> Result<kvm_sregs, SevError> {
        assert!(usize::from(index) < self.registers.len());
        // Something that a launch must not change.
        let boot = if index == 0 { 0x100 } else { 0 };
        Ok(kvm_sregs {
            apic_base: 0xfee0_0800 | boot,
            cs: kvm_segment {
                limit: 0xffff,
                ..Default::default()
            },
            ..Default::default()
        })
    }

    fn set_registers(&mut self, index: u8, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), SevError> {
        self.between("a register", is_vcpu, is_finish);
        assert_eq!(sregs.apic_base & !0x100, 0xfee0_0800);
        self.registers[usize::from(index)] = Some(Registers {
            regs: *regs,
            sregs: *sregs,
        });
        self.calls.push(Call::Registers(index));
        Ok(())
    }

    fn launch_finish(
        &mut self,
        parameters: &kvm_sev_snp_launch_finish,
        identity: Option<&Identity>,
    ) -> Result<(), SevError> {
        self.between("LAUNCH_FINISH", is_vcpu, is_finish);
        assert!(
            self.registers.iter().all(Option::is_some),
            "a vCPU has no registers"
        );
        // The structure of the kernel's, to the byte: a wrong one shifts the host data.
        assert_eq!(size_of_val(parameters), 88);
        assert_eq!(
            (
                parameters.flags,
                parameters.pad0,
                parameters.pad1,
                parameters.vcek_disabled
            ),
            (0, [0; 3], [0; 4], 0)
        );
        match identity {
            Some(identity) => {
                assert_eq!(parameters.id_block_en, 1);
                assert_eq!(parameters.id_block_uaddr, identity.block.as_ptr() as u64);
                assert_eq!(identity.block.len(), IDENTITY_BLOCK);
                assert_eq!(parameters.id_auth_uaddr, identity.authentication.as_ptr() as u64);
            }
            None => assert_eq!(
                (
                    parameters.id_block_en,
                    parameters.auth_key_en,
                    parameters.id_block_uaddr,
                    parameters.id_auth_uaddr
                ),
                (0, 0, 0, 0)
            ),
        }
        answer(self.finish)?;
        self.calls.push(Call::Finish {
            host_data: parameters.host_data,
            identity: parameters.id_block_en == 1,
            author: parameters.auth_key_en == 1,
        });
        Ok(())
    }
}
