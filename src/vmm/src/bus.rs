//! Leads the vCPUs' accesses to ports and device memory to the devices.
//!
//! An access that belongs to no device reads as all ones and writes nothing, like an empty bus. A device decides what a wrong
//! width or offset does; nothing a guest accesses is an error of ours.

use std::sync::{Mutex, PoisonError};

use crate::layout::{MAX_VIRTIO_DEVICES, VIRTIO_MMIO, VIRTIO_MMIO_SIZE};
use crate::serial::Serial;
use crate::virtio::mmio::{self, Transport};

/// COM1.
const SERIAL_PORTS: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
/// The keyboard controller's status and command port.
const KEYBOARD_COMMAND: u16 = 0x64;
/// The command that pulls the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;

/// What a write led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The guest goes on.
    Continue,
    /// The guest asked for a reset.
    Reset,
}

/// All devices that vCPU exits can reach.
#[derive(Debug)]
pub struct Bus {
    serial: Mutex<Serial>,
    /// Device `i` answers at `VIRTIO_MMIO + i * VIRTIO_MMIO_SIZE`.
    virtio: Vec<Mutex<Transport>>,
}

impl Bus {
    /// A bus with these devices.
    pub fn new(serial: Serial, virtio: Vec<Transport>) -> Bus {
        Bus {
            serial: Mutex::new(serial),
            virtio: virtio.into_iter().map(Mutex::new).collect(),
        }
    }

    /// A vCPU reads from `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], true) = (&mut *data, SERIAL_PORTS.contains(&port)) {
            *byte = lock(&self.serial).read(port - SERIAL_PORTS.start());
        } else if port == KEYBOARD_COMMAND {
            // Both buffers empty: a command may be written.
            data.fill(0);
        }
    }

    /// A vCPU writes to `port`.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Outcome {
        match *data {
            [KEYBOARD_RESET] if port == KEYBOARD_COMMAND => return Outcome::Reset,
            [byte] if SERIAL_PORTS.contains(&port) => {
                lock(&self.serial).write(port - SERIAL_PORTS.start(), byte)
            }
            _ => {}
        }
        Outcome::Continue
    }

    /// A vCPU reads from device memory at `gpa`.
    pub fn memory_read(&self, gpa: u64, data: &mut [u8]) {
        match self.virtio_at(gpa) {
            Some((Some(device), offset)) => lock(device).read(offset, data),
            Some((None, offset)) => mmio::read_placeholder(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes to device memory at `gpa`.
    pub fn memory_write(&self, gpa: u64, data: &[u8]) {
        if let Some((Some(device), offset)) = self.virtio_at(gpa) {
            lock(device).write(offset, data);
        }
    }

    /// Everything the guest has written to the serial port and that is still kept.
    pub fn console_tail(&self) -> String {
        lock(&self.serial).tail()
    }

    /// The place for a virtio-mmio device at `gpa`, with the device if there is one, and the offset into its window.
    fn virtio_at(&self, gpa: u64) -> Option<(Option<&Mutex<Transport>>, u64)> {
        let offset = gpa.checked_sub(VIRTIO_MMIO)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?;
        (index < MAX_VIRTIO_DEVICES).then(|| (self.virtio.get(index), offset % VIRTIO_MMIO_SIZE))
    }
}

/// Locks a device. A thread that panicked while it held the lock ended the process, or a test.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
