//! The block device (VIRTIO 1.2 §5.2): a disk over files, with one queue and one thread.
//!
//! ```text
//!   readable: type u32 │ reserved u32 │ sector u64 │ data to write …
//!   writable: data read … │ status u8
//! ```
//!
//! The kernel copies between the file and guest memory directly (`preadv`, `pwritev`). A discard punches a hole, so a
//! sparse file gets smaller again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use virtio_bindings::virtio_blk as spec;
use vmm_sys_util::eventfd::EventFd;

use super::backing::Backing;
use super::queue::{self, Chain, Queue};
use super::worker::{Device, Worker};
use super::{COMMON_FEATURES, Description, Inbox, Interrupt};
use crate::config::{Access, Disk};
use crate::memory::Ram;

/// The unit of the protocol, in bytes, whatever the block size is.
const SECTOR: u64 = 512;
const QUEUE_SIZES: &[u16] = &[256];
/// Data segments in a request: what the queue holds besides header and status.
const SEG_MAX: u32 = 254;
/// Longest identifier, in bytes.
const ID_BYTES: usize = spec::VIRTIO_BLK_ID_BYTES as usize;
/// Header of a request, in bytes.
const HEADER: usize = 16;
/// One range of a discard or write-zeroes request, in bytes.
const RANGE: usize = 16;
/// Ranges in a discard or write-zeroes request.
const MAX_RANGES: u32 = 16;
/// Sectors in such a range: 2 GiB for a discard, which costs no more than a smaller one; 32 MiB for zeros, which may have to be
/// written.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// The driver hears of finished requests at least after this many bytes.
const INTERRUPT_AFTER: u64 = 1 << 20;

/// Why a disk can't be offered to the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The length is unknown.
    #[error("can't tell the size of disk {serial:?}")]
    Size {
        /// The disk's serial.
        serial: String,
        /// The host's error.
        source: io::Error,
    },
    /// The length is no number of sectors.
    #[error("disk {serial:?} is {bytes} bytes long, which is not a multiple of 512")]
    Unaligned {
        /// The disk's serial.
        serial: String,
        /// Its length.
        bytes: u64,
    },
    /// The serial is too long or not ASCII.
    #[error("disk serial {0:?} is not 1 to 20 characters of printable ASCII")]
    Serial(String),
}

/// A disk, ready for its thread.
#[derive(Debug)]
pub struct Block {
    backing: Backing,
    access: Access,
    sectors: u64,
    id: [u8; ID_BYTES],
    /// The log knows already that the host fails at this disk.
    told: AtomicBool,
}

/// Why a request fails, as the driver is told.
#[derive(Debug)]
enum Failure {
    /// The request is not one that can be carried out.
    Request,
    /// The host can't carry it out.
    Host(io::Error),
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Failure::Unsupported,
            _ => Failure::Host(error),
        }
    }
}

impl Block {
    /// A device over `disk`.
    pub fn new(disk: Disk) -> Result<Block, Error> {
        let Disk {
            files,
            access,
            serial,
        } = disk;
        if serial.is_empty() || serial.len() > ID_BYTES || !serial.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(Error::Serial(serial));
        }
        let backing = match Backing::new(files) {
            Ok(backing) => backing,
            Err(source) => return Err(Error::Size { serial, source }),
        };
        let bytes = backing.len();
        if !bytes.is_multiple_of(SECTOR) {
            return Err(Error::Unaligned { serial, bytes });
        }
        let mut id = [0; ID_BYTES];
        id.iter_mut()
            .zip(serial.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(Block {
            backing,
            access,
            sectors: bytes / SECTOR,
            id,
            told: AtomicBool::new(false),
        })
    }

    /// What the transport shows.
    pub fn description(&self) -> Description {
        let mut bits = vec![spec::VIRTIO_BLK_F_SEG_MAX, spec::VIRTIO_BLK_F_BLK_SIZE];
        match self.access {
            Access::ReadOnly => bits.push(spec::VIRTIO_BLK_F_RO),
            Access::ReadWrite => bits.push(spec::VIRTIO_BLK_F_FLUSH),
            Access::Scratch => {}
        }
        if self.access != Access::ReadOnly {
            bits.extend([spec::VIRTIO_BLK_F_DISCARD, spec::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let features = bits
            .into_iter()
            .fold(COMMON_FEATURES, |features, bit| features | 1 << bit);
        Description {
            kind: 2,
            features,
            queue_sizes: QUEUE_SIZES,
            config: self.config(),
        }
    }

    /// `struct virtio_blk_config` (VIRTIO 1.2 §5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend(self.sectors.to_le_bytes()); // capacity
        config.extend(0u32.to_le_bytes()); // size_max
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]); // geometry
        config.extend((SECTOR as u32).to_le_bytes()); // blk_size
        config.extend([0; 8]); // topology
        config.extend([0; 4]); // writeback, unused, num_queues
        config.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        config.extend(8u32.to_le_bytes()); // discard_sector_alignment: a page
        config.extend(MAX_ZERO_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap, unused
        config
    }

    /// Starts the device's thread, which `wake` wakes for commands and for the guest's notifications.
    pub fn spawn(
        self,
        name: String,
        inbox: Inbox,
        wake: EventFd,
        interrupt: Interrupt,
        memory: Arc<Ram>,
    ) -> io::Result<JoinHandle<()>> {
        let worker = Worker {
            device: self,
            name: name.clone(),
            wake,
            interrupt,
            memory,
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(&inbox))
    }

    /// Carries out one request. Returns how many bytes were written into its writable part.
    fn execute(&self, chain: &mut Chain<'_>) -> u32 {
        // Without room for the status there is no way to answer.
        let Some(mut status) = chain.writable.split_last_byte() else {
            return 0;
        };
        let (data, code) = match self.dispatch(chain) {
            Ok(bytes) => (bytes, spec::VIRTIO_BLK_S_OK),
            Err(Failure::Request) => (0, spec::VIRTIO_BLK_S_IOERR),
            Err(Failure::Host(error)) => {
                self.tell(&error);
                (0, spec::VIRTIO_BLK_S_IOERR)
            }
            Err(Failure::Unsupported) => (0, spec::VIRTIO_BLK_S_UNSUPP),
        };
        status.write(&[code as u8]);
        data.saturating_add(1)
    }

    /// The guest sees an I/O error, whatever it was; the host's operator learns the cause. Once, as guests try again and again.
    fn tell(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let serial = self
                .id
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .escape_ascii();
            tracing::error!(
                "disk {serial} of the guest fails on the host, which the guest sees as an I/O error: {error}"
            );
        }
    }

    /// Returns how many bytes of data were written into the writable part.
    fn dispatch(&self, chain: &mut Chain<'_>) -> Result<u32, Failure> {
        let header: [u8; HEADER] = chain.readable.read().ok_or(Failure::Request)?;
        let kind = u32::from_le_bytes(array(&header, 0));
        let sector = u64::from_le_bytes(array(&header, 8));
        match kind {
            spec::VIRTIO_BLK_T_IN => self.read(chain, sector),
            spec::VIRTIO_BLK_T_GET_ID => Ok(chain.writable.write(&self.id) as u32),
            _ if self.access == Access::ReadOnly => match kind {
                spec::VIRTIO_BLK_T_OUT => Err(Failure::Request),
                _ => Err(Failure::Unsupported),
            },
            spec::VIRTIO_BLK_T_OUT => self.write(chain, sector),
            spec::VIRTIO_BLK_T_FLUSH => self.flush(),
            spec::VIRTIO_BLK_T_DISCARD => self.for_ranges(chain, |range| self.discard(range)),
            spec::VIRTIO_BLK_T_WRITE_ZEROES => self.for_ranges(chain, |range| self.write_zeroes(range)),
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&self, chain: &mut Chain<'_>, sector: u64) -> Result<u32, Failure> {
        let bytes = chain.writable.len() as u64;
        let offset = self.offset(sector, bytes)?;
        self.backing.read(chain.writable.rest_mut(), offset, bytes)?;
        // A chain is shorter than 4 GiB.
        Ok(bytes as u32)
    }

    fn write(&self, chain: &mut Chain<'_>, sector: u64) -> Result<u32, Failure> {
        let bytes = chain.readable.len() as u64;
        let offset = self.offset(sector, bytes)?;
        self.backing.write(chain.readable.rest_mut(), offset, bytes)?;
        Ok(0)
    }

    fn flush(&self) -> Result<u32, Failure> {
        if self.access == Access::ReadWrite {
            self.backing.sync()?;
        }
        Ok(0)
    }

    /// The byte offset of `bytes` bytes from `sector` on, which lie on the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let end = sector.checked_add(bytes / SECTOR).ok_or(Failure::Request)?;
        if !bytes.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(Failure::Request);
        }
        // Below the capacity, which is the files' length.
        Ok(sector * SECTOR)
    }

    /// Calls `each` with every range of a discard or write-zeroes request.
    fn for_ranges(
        &self,
        chain: &mut Chain<'_>,
        each: impl Fn(Range) -> Result<(), Failure>,
    ) -> Result<u32, Failure> {
        let bytes = chain.readable.len();
        if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes / RANGE > MAX_RANGES as usize {
            return Err(Failure::Request);
        }
        while let Some(range) = chain.readable.read::<RANGE>() {
            let sectors = u32::from_le_bytes(array(&range, 8));
            let bytes = u64::from(sectors) * SECTOR;
            let offset = self.offset(u64::from_le_bytes(array(&range, 0)), bytes)?;
            each(Range {
                offset,
                bytes,
                flags: u32::from_le_bytes(array(&range, 12)),
            })?;
        }
        Ok(0)
    }

    fn discard(&self, range: Range) -> Result<(), Failure> {
        // The only flag there is belongs to write-zeroes (§5.2.6.2).
        if range.flags != 0 {
            return Err(Failure::Unsupported);
        }
        if range.bytes > u64::from(MAX_DISCARD_SECTORS) * SECTOR {
            return Err(Failure::Request);
        }
        Ok(self.backing.punch(range.offset, range.bytes)?)
    }

    fn write_zeroes(&self, range: Range) -> Result<(), Failure> {
        if range.flags & !UNMAP != 0 {
            return Err(Failure::Unsupported);
        }
        if range.bytes > u64::from(MAX_ZERO_SECTORS) * SECTOR {
            return Err(Failure::Request);
        }
        let unmap = range.flags & UNMAP != 0;
        Ok(self.backing.zero(range.offset, range.bytes, unmap)?)
    }
}

/// Write-zeroes may deallocate.
const UNMAP: u32 = spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// A range of a discard or write-zeroes request that lies on the disk.
#[derive(Debug, Clone, Copy)]
struct Range {
    offset: u64,
    bytes: u64,
    flags: u32,
}

/// `N` bytes at the constant offset `at` of a fixed-size record that has them.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

impl Device for Block {
    fn serve(&mut self, queue: &mut Queue, memory: &Ram, interrupt: &Interrupt) -> Result<(), queue::Error> {
        loop {
            queue.disable_notification(memory)?;
            let mut bytes = 0;
            while let Some(mut chain) = queue.pop(memory)? {
                bytes += (chain.readable.len() + chain.writable.len()) as u64;
                let written = self.execute(&mut chain);
                queue.push(memory, chain.head, written)?;
                if bytes >= INTERRUPT_AFTER {
                    bytes = 0;
                    interrupt.if_needed(queue, memory)?;
                }
            }
            interrupt.if_needed(queue, memory)?;
            if !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[path = "block_test.rs"]
mod tests;
