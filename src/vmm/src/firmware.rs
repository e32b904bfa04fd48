//! Guests that start in a firmware of the caller's, which takes kernel and initrd from a window of shared memory: as SNP guests do, and
//! without SNP to try the rest.
//!
//! ```text
//!   RAM      launch pages: firmware, page of hashes, …     ◄─ measured under SNP, else just written
//!   window   whatever the caller stages: kernel, initrd …  ◄─ never RAM, never private
//!   vCPUs    registers as given; the firmware makes the boot parameters
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::exit::Exit;
use crate::layout;
use crate::memory::Ram;
use crate::snp::{
    self, Backing, Content, KvmBacking, KvmSev, LaunchPages, Pages, Range, SevError, Snp, VcpuState,
};
use crate::vcpu::{self, Maker};

/// A guest's firmware and what it is given.
pub struct Firmware {
    /// In the order in which they are measured.
    pub pages: Vec<LaunchPages>,
    /// How each vCPU starts, by index.
    pub vcpus: Vec<VcpuState>,
    /// First address of the window: below 4 GiB, above all low RAM, at a page.
    pub window: u64,
    /// What lies in the window.
    pub staged: Vec<Staged>,
    /// What a value that the guest ends itself with means: of the GHCB MSR under SNP.
    pub termination: fn(u64) -> Option<&'static str>,
    /// The port by which a guest without SNP ends itself with such a code.
    pub termination_port: u16,
    /// SNP; without it, page states are a model.
    pub snp: Option<Snp>,
}

impl fmt::Debug for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Firmware")
            .field("pages", &self.pages)
            .field("window", &self.window)
            .field("staged", &self.staged)
            .field("snp", &self.snp)
            .finish_non_exhaustive()
    }
}

/// Something in the window.
#[derive(Debug)]
pub struct Staged {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// What it is.
    pub source: Source,
}

/// Where staged bytes come from.
#[derive(Debug)]
pub enum Source {
    /// From here.
    Bytes(Vec<u8>),
    /// A file's first bytes.
    File {
        /// The file.
        file: File,
        /// How many.
        bytes: u64,
    },
}

/// Why a guest with a firmware could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is staged outside the window.
    #[error("{bytes:#x} bytes at {gpa:#x} can't be staged in the window at {window:#x}")]
    Window {
        /// First address.
        gpa: u64,
        /// Length.
        bytes: u64,
        /// The window's first address.
        window: u64,
    },
    /// Reading failed.
    #[error("can't read what is staged at {gpa:#x}")]
    Read {
        /// Where it goes.
        gpa: u64,
        /// The host's error.
        source: io::Error,
    },
    /// A page falls outside guest memory.
    #[error("launch pages don't fit into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// As many states as vCPUs.
    #[error("there are {states} states for {vcpus} vCPUs")]
    States {
        /// Number of states.
        states: usize,
        /// Number of vCPUs.
        vcpus: u8,
    },
    /// The launch.
    #[error(transparent)]
    Launch(#[from] snp::Error),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] vcpu::Error),
}

/// What vCPU threads and devices need to know of such a guest.
#[derive(Debug)]
pub struct Confidential {
    /// Page states.
    pub pages: Arc<Pages>,
    /// Whether they are a model, without effect.
    pub modelled: bool,
    /// See [`Firmware::termination`].
    pub termination: fn(u64) -> Option<&'static str>,
    /// See [`Firmware::termination_port`]; none under SNP.
    pub termination_port: Option<u16>,
}

impl Confidential {
    /// The end of a guest that gave this code.
    pub fn terminated(&self, code: u64) -> Exit {
        Exit::Terminated {
            reason: (self.termination)(code).unwrap_or_default().to_owned(),
            code,
        }
    }
}

impl Source {
    fn bytes(&self) -> u64 {
        match self {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File { bytes, .. } => *bytes,
        }
    }
}

impl Firmware {
    /// The window's place and size: as much as is staged, in whole pages.
    pub fn window(&self) -> Result<(u64, u64), Error> {
        let mut end = self.window;
        for Staged { gpa, source } in &self.staged {
            let bytes = source.bytes();
            let stop = gpa
                .checked_add(bytes)
                .filter(|stop| *gpa >= self.window && *stop <= layout::VIRTIO_MMIO);
            let stop = stop.ok_or(Error::Window {
                gpa: *gpa,
                bytes,
                window: self.window,
            })?;
            end = end.max(stop);
        }
        let bytes = (end - self.window).next_multiple_of(layout::PAGE);
        match self.window >= layout::LOW_RAM_MAX && self.window.is_multiple_of(layout::PAGE) {
            true => Ok((self.window, bytes.max(layout::PAGE))),
            false => Err(Error::Window {
                gpa: self.window,
                bytes,
                window: self.window,
            }),
        }
    }

    /// Copies what is staged into the window.
    pub fn stage(&self, memory: &Ram) -> Result<(), Error> {
        for Staged { gpa, source } in &self.staged {
            match source {
                Source::Bytes(bytes) => memory.write_slice(bytes, GuestAddress(*gpa))?,
                Source::File { file, bytes } => {
                    // Within the window, so it fits.
                    let slice = memory.get_slice(GuestAddress(*gpa), *bytes as usize)?;
                    let read = crate::sys::read_exact_at(file, &slice, 0);
                    read.map_err(|source| Error::Read { gpa: *gpa, source })?;
                }
            }
        }
        Ok(())
    }

    /// Starts it without SNP: pages are written, and their states are a model.
    pub fn place(&self, maker: &Maker<'_>, memory: &Ram) -> Result<(Vec<VcpuFd>, Confidential), Error> {
        for LaunchPages { gpa, content } in &self.pages {
            if let Content::Measured(bytes) = content {
                memory.write_slice(bytes, GuestAddress(*gpa))?;
            }
        }
        let vcpus = (0..self.count()?)
            .map(|index| maker.make(index))
            .collect::<Result<Vec<_>, _>>()?;
        if let (Some(vcpu), Some(state)) = (vcpus.first(), self.vcpus.first()) {
            let set = || {
                let mut sregs = vcpu.get_sregs()?;
                state.put_sregs(&mut sregs);
                vcpu.set_regs(&state.regs())?;
                vcpu.set_sregs(&sregs)
            };
            set().map_err(|source| vcpu::Error::Setup {
                what: "the boot registers",
                vcpu: 0,
                source,
            })?;
        }
        let pages = Arc::new(Pages::new(&self.ram(memory), Box::new(Modelled)));
        Ok((vcpus, self.confidential(pages, true)))
    }

    /// Launches it under SNP.
    pub fn launch(
        &self,
        snp: &Snp,
        vm: &Arc<VmFd>,
        maker: &Maker<'_>,
        memory: &Arc<Ram>,
    ) -> Result<(Vec<VcpuFd>, Confidential), Error> {
        let states = &self.vcpus[..usize::from(self.count()?)];
        let range = |gpa: u64| {
            let found = memory
                .iter()
                .find(|region| region.start_addr().raw_value() == gpa);
            found.map(|region| Range {
                gpa,
                bytes: region.len(),
                shared: region.as_ptr() as u64,
            })
        };
        let ram: Vec<_> = self
            .ram(memory)
            .into_iter()
            .filter_map(|(gpa, _)| range(gpa))
            .collect();
        let staging = range(self.window).ok_or(Error::Window {
            gpa: self.window,
            bytes: 0,
            window: self.window,
        })?;
        let mut sev = KvmSev {
            vm,
            sev: &snp.sev,
            make_vcpu: Box::new(|index| {
                maker.make_bare(index).map_err(|error| match error {
                    vcpu::Error::Setup { source, .. } => SevError::kernel(source.errno()),
                    _ => SevError::kernel(libc::EINVAL),
                })
            }),
            memfds: vec![],
            vcpus: vec![],
        };
        let cpuid = maker.table(0);
        snp::launch(
            &mut sev,
            &snp::Launch {
                ram: &ram,
                staging,
                pages: &self.pages,
                vcpus: states,
                cpuid: &cpuid,
                policy: snp.policy,
                host_data: snp.host_data,
                identity: snp.identity.as_ref(),
            },
        )?;
        let (vcpus, private) = (sev.vcpus, sev.memfds);
        let backing = KvmBacking::new(Arc::clone(vm), Arc::clone(memory), &ram, private);
        let pages = Arc::new(Pages::new(&self.ram(memory), Box::new(backing)));
        pages.all_private();
        Ok((vcpus, self.confidential(pages, false)))
    }

    fn count(&self) -> Result<u8, Error> {
        u8::try_from(self.vcpus.len()).map_err(|_| Error::States {
            states: self.vcpus.len(),
            vcpus: u8::MAX,
        })
    }

    /// Pieces of RAM: all of memory but the window.
    fn ram(&self, memory: &Ram) -> Vec<(u64, u64)> {
        let pieces = memory
            .iter()
            .map(|region| (region.start_addr().raw_value(), region.len()));
        pieces.filter(|(gpa, _)| *gpa != self.window).collect()
    }

    fn confidential(&self, pages: Arc<Pages>, modelled: bool) -> Confidential {
        if modelled {
            pages.all_private();
        }
        Confidential {
            pages,
            modelled,
            termination: self.termination,
            termination_port: modelled.then_some(self.termination_port),
        }
    }
}

/// Page states without effect: what changes them is only recorded.
#[derive(Debug)]
struct Modelled;

impl Backing for Modelled {
    fn set_private(&self, _gpa: u64, _bytes: u64, _private: bool) -> io::Result<()> {
        Ok(())
    }

    fn discard_shared(&self, _gpa: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard_private(&self, _gpa: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}

/// What KVM on this machine says of SNP guests: `KVM_CAP_VM_TYPES`, and whether there are guest_memfd and memory attributes.
/// Nothing if it is not KVM.
pub fn kvm_facts(kvm: File) -> (u32, bool) {
    let Ok(kvm) = crate::vm::kvm_from_file(kvm) else {
        return (0, false);
    };
    let types = kvm.check_extension_raw(kvm_bindings::KVM_CAP_VM_TYPES.into());
    let private = kvm.check_extension(Cap::GuestMemfd) && kvm.check_extension(Cap::MemoryAttributes);
    (u32::try_from(types).unwrap_or(0), private)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firmware(staged: Vec<Staged>) -> Firmware {
        Firmware {
            pages: vec![],
            vcpus: vec![],
            window: 0xc000_0000,
            staged,
            termination: |_| None,
            termination_port: 0,
            snp: None,
        }
    }

    fn bytes(gpa: u64, bytes: usize) -> Staged {
        Staged {
            gpa,
            source: Source::Bytes(vec![0x5a; bytes]),
        }
    }

    #[test]
    fn the_window_is_as_large_as_what_is_staged() {
        assert_eq!(firmware(vec![]).window().unwrap(), (0xc000_0000, 0x1000));
        let some = firmware(vec![bytes(0xc000_0000, 72), bytes(0xc000_1000, 0x1001)]);
        assert_eq!(some.window().unwrap(), (0xc000_0000, 0x3000));
    }

    #[test]
    fn nothing_is_staged_outside_the_window() {
        for (gpa, length) in [(0xbfff_ffff, 1), (0xcfff_ffff, 2), (u64::MAX, 1)] {
            let result = firmware(vec![bytes(gpa, length)]).window();
            assert!(matches!(result, Err(Error::Window { .. })), "{gpa:#x}");
        }
    }

    #[test]
    fn staged_bytes_arrive() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"kernel", 0).unwrap();
        let firmware = firmware(vec![
            bytes(0xc000_0010, 2),
            Staged {
                gpa: 0xc000_1000,
                source: Source::File { file, bytes: 6 },
            },
        ]);
        let memory = crate::memory::allocate_beside(64, Some(firmware.window().unwrap())).unwrap();
        firmware.stage(&memory).unwrap();
        let mut read = [0; 6];
        memory.read_slice(&mut read, GuestAddress(0xc000_1000)).unwrap();
        assert_eq!(&read, b"kernel");
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0xc000_0010)).unwrap(), 0x5a5a);
        assert_eq!(firmware.ram(&memory), [(0, 64 << 20)]);
    }
}
