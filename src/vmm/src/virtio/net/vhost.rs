//! vhost-net (linux/vhost.h): the host's kernel moves the packets between a tap and the guest's queues itself.
//!
//! ```text
//!   guest ─ notifies ─► ioeventfd ─► vhost thread ◄─► tap
//!     ▲                                │  queues and buffers, in the VMM's memory
//!     └───── irqfd ◄── line ◄──────────┘
//! ```
//!
//! No thread of the VMM wakes for a packet. The kernel checks rings and descriptors against the table of memory that it is given, as this
//! process would; a queue that it can't go on with is an event on [`Vhost::error`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_net as spec;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

use super::super::queue::Queue;
use super::super::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::memory::Ram;

const VHOST: u32 = 0xaf;

ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST, 0x00, u64);
ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST, 0x00, u64);
ioctl_io_nr!(VHOST_SET_OWNER, VHOST, 0x01);
// The number is made with the table's head: its regions follow.
ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST, 0x03, [u32; 2]);
ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST, 0x10, State);
ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST, 0x11, Addresses);
ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST, 0x12, State);
ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST, 0x20, Descriptor);
ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST, 0x21, Descriptor);
ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST, 0x22, Descriptor);
ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST, 0x30, Descriptor);

/// What of a device's features is the queues' business, and thereby the kernel's. All others are between the guest and the tap.
const FEATURES: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | 1 << spec::VIRTIO_NET_F_MRG_RXBUF;
/// Most pieces of memory that a table can have here: there are two of RAM.
const REGIONS: usize = 8;
/// Of a queue without a descriptor.
const NONE: RawFd = -1;

/// `struct vhost_vring_state`.
#[repr(C)]
struct State {
    index: u32,
    number: u32,
}

/// `struct vhost_vring_addr`: addresses in this process.
#[repr(C)]
struct Addresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct Descriptor {
    index: u32,
    fd: RawFd,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    gpa: u64,
    bytes: u64,
    address: u64,
    flags: u64,
}

/// `struct vhost_memory` with room for its regions.
#[repr(C)]
struct Table {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS],
}

/// One queue to be run by the kernel.
pub struct Ring<'a> {
    /// Its addresses and size.
    pub queue: &'a Queue,
    /// Where the guest notifies it.
    pub kick: &'a EventFd,
}

/// The kernel's half of a device.
#[derive(Debug)]
pub struct Vhost {
    file: File,
    /// Written to when the kernel can't go on with a queue.
    pub error: EventFd,
}

impl Vhost {
    /// `file`, which is `/dev/vhost-net`, for a guest with this memory. Fails where the kernel can't do what the device offers.
    pub fn new(file: File, memory: &Ram) -> io::Result<Vhost> {
        let mut features = 0u64;
        // SAFETY: the call writes a `u64`, or fails.
        check(unsafe { ioctl_with_mut_ref(&file, VHOST_GET_FEATURES(), &mut features) })?;
        if features & FEATURES != FEATURES {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut table = Table {
            count: 0,
            padding: 0,
            regions: [Region::default(); REGIONS],
        };
        for region in memory.iter() {
            let place = table
                .regions
                .get_mut(table.count as usize)
                .ok_or(io::ErrorKind::Unsupported)?;
            *place = Region {
                gpa: region.start_addr().0,
                bytes: region.len(),
                address: address(memory, region.start_addr().0)?,
                flags: 0,
            };
            table.count += 1;
        }
        // SAFETY: the call takes no argument.
        check(unsafe { ioctl(&file, VHOST_SET_OWNER()) })?;
        // SAFETY: the table holds as many regions as it says and outlives the call. What they name is guest memory of this process, to
        // which there are no Rust references; it outlives the device, which the thread that holds this drops before the VM does the memory.
        check(unsafe { ioctl_with_ref(&file, VHOST_SET_MEM_TABLE(), &table) })?;
        Ok(Vhost {
            file,
            error: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    /// Has the kernel run the queues, receive and transmit, of a driver with these features. It interrupts through `line`.
    pub fn start(
        &self,
        tap: &File,
        features: u64,
        rings: [Ring<'_>; 2],
        line: &EventFd,
        memory: &Ram,
    ) -> io::Result<()> {
        self.set(VHOST_SET_FEATURES(), &(features & FEATURES))?;
        for (index, ring) in (0..).zip(&rings) {
            let state = |number| State { index, number };
            let descriptor = |fd| Descriptor { index, fd };
            let [descriptors, available, used] = ring.queue.addresses();
            self.set(VHOST_SET_VRING_NUM(), &state(ring.queue.size().into()))?;
            self.set(VHOST_SET_VRING_BASE(), &state(0))?;
            let addresses = Addresses {
                index,
                flags: 0,
                descriptors: address(memory, descriptors)?,
                used: address(memory, used)?,
                available: address(memory, available)?,
                log: 0,
            };
            self.set(VHOST_SET_VRING_ADDR(), &addresses)?;
            self.set(VHOST_SET_VRING_ERR(), &descriptor(self.error.as_raw_fd()))?;
            self.set(VHOST_SET_VRING_CALL(), &descriptor(line.as_raw_fd()))?;
            self.set(VHOST_SET_VRING_KICK(), &descriptor(ring.kick.as_raw_fd()))?;
        }
        (0..2).try_for_each(|index| {
            let fd = tap.as_raw_fd();
            self.set(VHOST_NET_SET_BACKEND(), &Descriptor { index, fd })
        })
    }

    /// Takes the queues back: when this returns, the kernel has let go of them.
    pub fn stop(&self) {
        for index in 0..2 {
            // Fails only for a queue that there is not.
            let _ = self.set(VHOST_NET_SET_BACKEND(), &Descriptor { index, fd: NONE });
        }
    }

    /// One of the requests that take a structure.
    fn set<T>(&self, request: libc::c_ulong, argument: &T) -> io::Result<()> {
        // SAFETY: private, and called above with the request's own type only, which the call reads. What the addresses in it name is guest
        // memory, or the call fails.
        check(unsafe { ioctl_with_ref(&self.file, request, argument) })
    }
}

/// Where an address of the guest's is in this process.
fn address(memory: &Ram, gpa: u64) -> io::Result<u64> {
    let address = memory
        .get_host_address(GuestAddress(gpa))
        .map_err(io::Error::other)?;
    Ok(address.expose_provenance() as u64)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
