//! The guest's RAM: anonymous memory of this process, in one or two pieces around the hole below 4 GiB.
//!
//! The guest shares this memory with us and changes it at any moment, so it is never a Rust reference: reads and
//! writes go through `vm-memory`'s volatile accessors, and what is checked is a private copy.

use std::io;
use std::ops::Deref;
use std::ptr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, mmap::MmapRegionError,
};

use crate::layout::{ABOVE_4G, LOW_RAM_MAX};

/// The guest's RAM as seen from the VMM.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Size of a huge page, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// The least guest RAM with which a guest boots, in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;
/// The most guest RAM that the memory map has room for, in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u64 = 1 << 20;

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Less than the guest needs.
    #[error("memory is {0} MiB, less than the {MIN_MEMORY_MIB} MiB that a guest needs to boot")]
    TooSmall(u64),
    /// More than the memory map can hold.
    #[error("memory is {0} MiB, more than the {MAX_MEMORY_MIB} MiB that a guest can have")]
    TooLarge(u64),
    /// The host refuses the address space.
    #[error("can't reserve {mib} MiB of address space for guest memory")]
    Map {
        /// The size asked for, in MiB.
        mib: u64,
        /// What the mapping failed with.
        source: io::Error,
    },
    /// The mapping is not one that guest memory can be made of.
    #[error("guest memory can't be made of the reserved address space")]
    Region(#[source] MmapRegionError),
    /// The host refuses advice about the memory.
    #[error("can't set the paging policy of guest memory")]
    Advise(#[source] io::Error),
    /// The pieces do not fit together.
    #[error("guest memory regions don't form an address space")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// KVM refuses the memory.
    #[error("KVM refuses the guest memory region at {gpa:#x}")]
    Register {
        /// Guest-physical address of the region.
        gpa: u64,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
}

/// `(guest-physical address, bytes)` of each piece of RAM for a guest with `bytes` of it.
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= LOW_RAM_MAX {
        vec![(0, bytes)]
    } else {
        vec![(0, LOW_RAM_MAX), (ABOVE_4G, bytes - LOW_RAM_MAX)]
    }
}

/// Guest RAM and the mappings that it consists of.
#[derive(Debug)]
pub struct Ram {
    // Dropped before the mappings that it points to.
    memory: GuestMemory,
    _mappings: Vec<Mapping>,
}

impl Deref for Ram {
    type Target = GuestMemory;

    fn deref(&self) -> &GuestMemory {
        &self.memory
    }
}

/// Reserves `mib` MiB of guest RAM. Pages come into being when they are touched, as huge pages where the host has them.
pub fn allocate(mib: u64) -> Result<Ram, Error> {
    allocate_beside(mib, None)
}

/// The same, with memory that is no RAM of the guest's at `window` (address and bytes) below 4 GiB and above all low RAM.
pub fn allocate_beside(mib: u64, window: Option<(u64, u64)>) -> Result<Ram, Error> {
    match mib {
        ..MIN_MEMORY_MIB => return Err(Error::TooSmall(mib)),
        MIN_MEMORY_MIB..=MAX_MEMORY_MIB => {}
        _ => return Err(Error::TooLarge(mib)),
    }
    let (mut regions, mut mappings) = (Vec::new(), Vec::new());
    let mut pieces = ranges(mib << 20);
    pieces.extend(window);
    pieces.sort_unstable();
    for (gpa, bytes) in pieces {
        // Below 2^40, so it fits a usize.
        let mapping = Mapping::new(bytes as usize).map_err(|source| Error::Map { mib, source })?;
        mapping.advise().map_err(Error::Advise)?;
        let region =
            GuestRegionMmap::new(mapping.region()?, GuestAddress(gpa)).ok_or(Error::TooLarge(mib))?;
        regions.push(region);
        mappings.push(mapping);
    }
    let memory = GuestMemory::from_regions(regions).map_err(Error::Layout)?;
    Ok(Ram {
        memory,
        _mappings: mappings,
    })
}

/// Anonymous memory that starts at a huge page's boundary. Only where host and guest addresses agree on those boundaries can KVM
/// map huge pages, which makes a guest's page faults 512 times rarer.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; `start` is used for unmapping only, by the one owner.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives access to the two numbers, not to what they point to.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        let reserved = bytes + HUGE_PAGE;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                protection,
                flags | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        let head = base.align_offset(HUGE_PAGE);
        let start = base.wrapping_add(head);
        unmap(base, head);
        unmap(start.wrapping_add(bytes), HUGE_PAGE - head);
        Ok(Mapping { start, bytes })
    }

    /// The mapping as a region for `vm-memory`, which does not own it.
    fn region(&self) -> Result<MmapRegion, Error> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: the range is mapped with these flags for as long as `self`, and `Ram` keeps `self` longer than the region.
        unsafe { MmapRegion::build_raw(self.start, self.bytes, protection, flags) }.map_err(Error::Region)
    }

    /// Asks for huge pages, and keeps the guest's secrets out of core dumps of ours.
    fn advise(&self) -> io::Result<()> {
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: the range is ours; neither advice changes its contents.
            let result = unsafe { libc::madvise(self.start.cast(), self.bytes, advice) };
            if result == 0 {
                continue;
            }
            let error = io::Error::last_os_error();
            // A host kernel without transparent huge pages answers EINVAL. That costs speed, nothing else.
            if !(advice == libc::MADV_HUGEPAGE && error.raw_os_error() == Some(libc::EINVAL)) {
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

/// Unmaps a range of pages that this module has mapped and that nothing refers to any more.
fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: as said above; the callers are `Mapping`'s constructor, for what it cuts off, and its destructor.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

/// Gives the memory to the VM.
///
/// The caller keeps `memory` alive for as long as the VM lives.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let gpa = region.start_addr().raw_value();
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one live mapping that belongs to `memory`, which the caller keeps for the VM's life;
        // regions don't overlap (`from_regions` checked), and each has a slot of its own.
        unsafe { vm.set_user_memory_region(description) }
            .map_err(|source| Error::Register { gpa, source })?;
    }
    Ok(())
}

/// End of RAM below the hole: where the highest low page ends.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ranges((3 << 30) + 4096), [(0, 3 << 30), (4 << 30, 4096)]);
        assert_eq!(ranges(8 << 30), [(0, 3 << 30), (4 << 30, 5 << 30)]);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(matches!(allocate(MIN_MEMORY_MIB - 1), Err(Error::TooSmall(63))));
        assert!(matches!(allocate(0), Err(Error::TooSmall(0))));
        assert!(matches!(allocate(u64::MAX), Err(Error::TooLarge(u64::MAX))));
    }

    #[test]
    fn every_region_starts_at_a_huge_page() {
        for region in allocate(4096).unwrap().iter() {
            assert!((region.as_ptr() as usize).is_multiple_of(HUGE_PAGE));
        }
    }

    #[test]
    fn memory_starts_as_zero_and_is_as_large_as_asked() {
        use vm_memory::Bytes;
        let memory = allocate(4096).unwrap();
        assert_eq!(low_end(&memory), LOW_RAM_MAX);
        assert_eq!(memory.last_addr().raw_value(), (5 << 30) - 1);
        let word: u64 = memory.read_obj(GuestAddress((5 << 30) - 8)).unwrap();
        assert_eq!(word, 0);
        assert!(memory.read_obj::<u64>(GuestAddress((5 << 30) - 7)).is_err());
        assert!(memory.read_obj::<u64>(GuestAddress(LOW_RAM_MAX - 4)).is_err());
    }
}
