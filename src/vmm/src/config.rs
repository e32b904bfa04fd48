//! What the caller hands over to make a VM.

use std::fmt;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::firmware::Firmware;

/// Everything a VM is made of. All files are opened by the caller.
pub struct Config {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: File,
    /// What the boot vCPU starts.
    pub boot: Boot,
    /// Guest RAM in MiB, at least [`MIN_MEMORY_MIB`](crate::MIN_MEMORY_MIB).
    pub memory_mib: u64,
    /// Number of virtual processors, 1 to what KVM recommends.
    pub vcpus: u8,
    /// Disks in the order in which the guest names them: `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Directories of the host.
    pub volumes: Vec<Volume>,
    /// The socket device.
    pub vsock: Vsock,
    /// Where the kernel's log goes as it is written, besides the tail that is kept in memory. A sink that is not ready
    /// loses lines; it never holds up the guest.
    pub console: Option<File>,
}

/// How a guest starts.
#[derive(Debug)]
pub enum Boot {
    /// In the kernel, which the VMM loads.
    Kernel {
        /// An uncompressed `vmlinux` (ELF64, x86-64).
        kernel: File,
        /// The initial RAM file system, in any format that the kernel understands.
        initrd: File,
        /// Added to the base command line; later words win over earlier ones.
        cmdline: String,
    },
    /// In a firmware, which does the rest. All devices then demand `VIRTIO_F_ACCESS_PLATFORM`, and there can be no volumes.
    Firmware(Box<Firmware>),
}

/// One virtio block device over files or block devices.
#[derive(Debug)]
pub struct Disk {
    /// The backing files, which lie on the disk one after the other. Their length at the start is the disk's capacity: a
    /// multiple of 512 bytes.
    pub files: Vec<File>,
    /// Who may write, and how lasting the writes are.
    pub access: Access,
    /// What the guest reads in `/sys/block/*/serial`: at most 20 bytes of ASCII.
    pub serial: String,
}

/// How a guest may use a [`Disk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The guest can't write; the device says so and refuses it.
    ReadOnly,
    /// The guest writes, and a flush makes the writes durable (`fdatasync`).
    ReadWrite,
    /// The guest writes, and the file is thrown away with the VM, so a flush has nothing to do.
    Scratch,
}

/// One virtio network device.
#[derive(Debug)]
pub struct Nic {
    /// What is at the other end.
    pub link: Link,
    /// `/dev/vhost-net`, if the host's kernel is to move the packets of a tap. Not used where guests have memory of their own, or
    /// where the kernel can't.
    pub vhost: Option<File>,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The largest packet, in bytes, without the Ethernet header.
    pub mtu: u16,
}

/// Where the packets of a [`Nic`] come from and go to.
#[derive(Debug)]
pub enum Link {
    /// A tap: without packet information and with virtio headers of 12 bytes (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`,
    /// `TUNSETVNETHDRSZ`), set to be non-blocking.
    Tap(File),
    /// A stream of Ethernet frames, each behind its length in bytes (32 bits, big-endian), as `passt` and QEMU's `-netdev stream`
    /// have it. Set to be non-blocking.
    Stream(UnixStream),
}

/// One virtio file system device.
#[derive(Debug)]
pub struct Volume {
    /// What the guest mounts it by: 1 to 36 bytes.
    pub tag: String,
    /// What answers the driver's requests.
    pub server: volume::Server,
    /// Where it does.
    pub thread: Thread,
}

/// A thread of the caller's that waits for what it is to do, with the privileges that it takes.
#[derive(Debug)]
pub struct Thread {
    /// Where it gets its work from. It ends with that, and when there will be none.
    pub work: mpsc::Sender<Work>,
    /// Itself.
    pub handle: JoinHandle<()>,
}

/// What a thread does.
pub type Work = Box<dyn FnOnce() + Send>;

/// Answers the guest's connection requests: a stream to the endpoint for this port, or `None` to refuse.
///
/// It runs on the vsock thread: it must not block.
pub type Connect = Box<dyn FnMut(u32) -> Option<UnixStream> + Send>;

/// The socket device (VIRTIO 1.2 §5.10), with endpoints in this process.
pub struct Vsock {
    /// The guest's address, 3 or above.
    pub guest_cid: u32,
    /// Called for each connection that the guest opens to the host (CID 2), with the port it asks for.
    pub connect: Connect,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("guest_cid", &self.guest_cid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("memory_mib", &self.memory_mib)
            .field("vcpus", &self.vcpus)
            .field("boot", &self.boot)
            .field("disks", &self.disks)
            .field("nics", &self.nics)
            .field("volumes", &self.volumes)
            .field("vsock", &self.vsock)
            .finish_non_exhaustive()
    }
}
