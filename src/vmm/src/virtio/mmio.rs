//! The mmio transport (VIRTIO 1.2 §4.2): a device's registers and the state machine behind them.
//!
//! ```text
//!    status: 0 ─► ACKNOWLEDGE ─► +DRIVER ─► +FEATURES_OK ─► +DRIVER_OK
//!                                 features    queues          the device runs
//!                                 negotiated  set up
//! ```
//!
//! Every register is written only in the state that the arrow's label names; a write in any other state changes nothing. The
//! driver leaves a state backwards only by a reset, which takes the queues back from the device thread first.

use std::sync::Arc;

use virtio_queue::{Queue as Ring, QueueT};

use super::queue::Queue;
use super::{Command, Description, F_ACCESS_PLATFORM, F_EVENT_IDX, F_VERSION_1, Interrupt, Outbox};
use crate::memory::Ram;
use crate::snp::Pages;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"cwrn");

/// Register offsets (VIRTIO 1.2 table 4.1).
mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Length and address of a shared memory region: all ones where there is none (§4.2.2).
    pub const SHM: std::ops::Range<u64> = 0x0b0..0x0c0;
    pub const CONFIG: u64 = 0x100;
}

/// Where the driver writes to notify a queue, as an offset into the device's window.
pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

/// Device status bits (VIRTIO 1.2 §2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 0x40;
    pub const FAILED: u8 = 0x80;

    /// The states on the way up.
    pub const ACKNOWLEDGED: u8 = ACKNOWLEDGE;
    pub const NEGOTIATING: u8 = ACKNOWLEDGE | DRIVER;
    pub const CONFIGURING: u8 = NEGOTIATING | FEATURES_OK;
    pub const RUNNING: u8 = CONFIGURING | DRIVER_OK;
}

/// A device as the guest's driver sees it.
#[derive(Debug)]
pub struct Transport {
    device: Description,
    interrupt: Interrupt,
    outbox: Outbox,
    memory: Arc<Ram>,
    /// A model of page states, for the queues.
    model: Option<Arc<Pages>>,
    status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Ring>,
}

impl Transport {
    /// The transport of `device`, whose thread listens at `outbox`.
    pub fn new(
        device: Description,
        interrupt: Interrupt,
        outbox: Outbox,
        memory: Arc<Ram>,
    ) -> Result<Transport, virtio_queue::Error> {
        let queues = new_queues(&device)?;
        Ok(Transport {
            device,
            interrupt,
            outbox,
            memory,
            model: None,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
        })
    }

    /// For a guest whose memory devices can't access at will: the driver has to use [`F_ACCESS_PLATFORM`]. `model`, if there is one, is
    /// told what the device touches.
    pub fn for_confidential_guest(mut self, model: Option<Arc<Pages>>) -> Transport {
        self.device.features |= F_ACCESS_PLATFORM;
        self.model = model;
        self
    }

    /// The driver reads at `offset` of the device's window.
    ///
    /// Registers are read as aligned 32-bit words; any other access to them reads as zero (§4.2.2.2). The configuration space
    /// may be read by bytes.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let config = usize::try_from(at)
                .ok()
                .and_then(|at| self.device.config.get(at..))
                .unwrap_or_default();
            data.iter_mut().zip(config).for_each(|(to, from)| *to = *from);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// The driver writes at `offset` of the device's window. The configuration spaces here have nothing to write.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(bytes), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.kind,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.device.features, self.device_features_sel),
            register::QUEUE_NUM_MAX => self.selected_queue().map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => self.selected_queue().map_or(0, |queue| queue.ready().into()),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.status().into(),
            offset if register::SHM.contains(&offset) => u32::MAX,
            // Nothing changes the configuration, so its generation stays 0.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES if self.status == status::NEGOTIATING => self.accept_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.write_status(value),
            _ if self.status == status::CONFIGURING => self.write_queue_register(offset, value),
            // A notification that reaches us names no queue: those of queues end in KVM's ioeventfd.
            _ => {}
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return;
        };
        if offset == register::QUEUE_READY {
            return queue.set_ready(value == 1);
        }
        // A queue in use must not change (§4.2.2.2).
        if queue.ready() {
            return;
        }
        match offset {
            register::QUEUE_NUM => {
                // A size that is too large or no power of two leaves the size as it was, and the driver's rings fail
                // their check or its requests.
                if let Ok(size) = u16::try_from(value) {
                    let _ = queue.try_set_size(size);
                }
            }
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn status(&self) -> u8 {
        if self.interrupt.needs_reset() {
            self.status | status::NEEDS_RESET
        } else {
            self.status
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let Ok(value) = u8::try_from(value) else { return };
        // NEEDS_RESET is ours; a driver that writes back what it read does not change it.
        let value = value & !status::NEEDS_RESET;
        if value & status::FAILED != 0 {
            self.status |= status::FAILED;
            return;
        }
        match (self.status, value) {
            (0, status::ACKNOWLEDGED) | (status::ACKNOWLEDGED, status::NEGOTIATING) => self.status = value,
            // A set of features that can't work is refused by leaving FEATURES_OK off (§3.1.1 step 5).
            (status::NEGOTIATING, status::CONFIGURING) if self.features_fit() => self.status = value,
            (status::CONFIGURING, status::RUNNING) => self.activate(),
            _ => {}
        }
    }

    fn features_fit(&self) -> bool {
        // VIRTIO 1.2 §6.1: a driver that leaves F_ACCESS_PLATFORM would hand over addresses that mean nothing to the device.
        let needed = F_VERSION_1 | self.device.features & F_ACCESS_PLATFORM;
        self.driver_features & !self.device.features == 0 && self.driver_features & needed == needed
    }

    /// Hands the queues to the device thread.
    fn activate(&mut self) {
        self.status = status::RUNNING;
        let valid = |queue: &Ring| queue.ready() && queue.is_valid(&**self.memory);
        if let Some(index) = self.queues.iter().position(|queue| !valid(queue)) {
            return self.interrupt.fail("transport", &InvalidQueue(index));
        }
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let queues = self.queues.iter().filter_map(|queue| {
            // Made from a ring's own state, which is valid.
            let mut ring = Ring::try_from(queue.state()).ok()?;
            ring.set_event_idx(event_idx);
            Some(Queue::new(ring).modelled(self.model.clone()))
        });
        self.outbox.send(Command::Activate {
            queues: queues.collect(),
            features: self.driver_features,
        });
    }

    fn reset(&mut self) {
        if self.status & status::DRIVER_OK != 0 {
            self.outbox.reset();
        }
        self.interrupt.clear();
        self.status = 0;
        self.driver_features = 0;
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        self.queues.iter_mut().for_each(|queue| queue.reset());
    }

    fn selected_queue(&self) -> Option<&Ring> {
        self.queues.get(self.queue_sel as usize)
    }
}

/// What is read at `offset` of a place without a device (VIRTIO 1.2 §4.2.2: DeviceID 0): a driver leaves it alone without complaint.
pub fn read_placeholder(offset: u64, data: &mut [u8]) {
    data.fill(0);
    let value = match offset {
        register::MAGIC => MAGIC,
        register::VERSION => VERSION,
        _ => return,
    };
    if data.len() == 4 {
        data.copy_from_slice(&value.to_le_bytes());
    }
}

/// A queue that the driver left unready, or whose rings do not lie in guest memory.
#[derive(Debug, thiserror::Error)]
#[error("queue {0} is not set up or lies outside guest memory")]
struct InvalidQueue(usize);

fn new_queues(device: &Description) -> Result<Vec<Ring>, virtio_queue::Error> {
    device.queue_sizes.iter().map(|&size| Ring::new(size)).collect()
}

/// The low or the high half of `features`; there are no others.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
