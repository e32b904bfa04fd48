//! Virtio devices (VIRTIO 1.2) behind the mmio transport.
//!
//! ```text
//!   vCPU threads                              device thread (one per device)
//!   ┌───────────────────────────┐  commands   ┌──────────────────────────────┐
//!   │ mmio::Transport: registers ├────────────►│ Inbox      the device itself │
//!   │ and their state machine   │  wake       │ Queue ◄──► guest memory      │
//!   └───────────▲───────────────┘             └──────┬───────────────────────┘
//!               │ status bits                        │ used buffers
//!               └──────────── Interrupt ◄────────────┘──► irqfd ──► guest
//!        guest's notifications: ioeventfd ──► wakes the device thread, without an exit to a vCPU thread
//! ```
//!
//! The guest is hostile: whatever it writes to registers, rings, descriptors or buffers, a device may stop working for that
//! guest ([`Interrupt::fail`]), and nothing else may happen.

mod backing;
pub mod block;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod vsock;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use queue::Queue;

/// Feature bits of all devices (VIRTIO 1.2 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Both sides say at which index they want to hear of the other.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// The device is not a legacy one.
pub const F_VERSION_1: u64 = 1 << 32;
/// The device goes through whatever stands between it and the guest's memory: the driver must use the platform's DMA interface, which
/// bounces through shared pages where memory is encrypted.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// What every device here offers.
pub const COMMON_FEATURES: u64 = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1;

/// Interrupt status: the device has used a buffer (VIRTIO 1.2 §4.2.2).
const INTERRUPT_USED_BUFFER: u32 = 1;
/// Interrupt status: the device's configuration or state has changed.
const INTERRUPT_CONFIGURATION: u32 = 2;

/// What the transport shows of a device.
#[derive(Debug, Clone)]
pub struct Description {
    /// Device ID (VIRTIO 1.2 §5).
    pub kind: u32,
    /// Features offered.
    pub features: u64,
    /// Largest size of each queue, a power of two.
    pub queue_sizes: &'static [u16],
    /// The device's configuration space.
    pub config: Vec<u8>,
}

/// The device's way to the guest's attention, shared by the transport and the device thread.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<InterruptState>);

#[derive(Debug)]
struct InterruptState {
    status: AtomicU32,
    needs_reset: AtomicBool,
    /// The host's kernel raises the line too, and tells nobody.
    also_kernel: AtomicBool,
    line: EventFd,
}

impl Interrupt {
    /// Interrupts by writing to `line`, which KVM has as an irqfd.
    pub fn new(line: EventFd) -> Interrupt {
        let state = InterruptState {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            also_kernel: AtomicBool::new(false),
            line,
        };
        Interrupt(Arc::new(state))
    }

    /// Tells the driver that buffers have been used.
    pub fn used_buffer(&self) {
        self.raise(INTERRUPT_USED_BUFFER);
    }

    /// The same, if the driver wants to hear of those that were given back to it through `queue`.
    pub fn if_needed(&self, queue: &mut Queue, memory: &GuestMemory) -> Result<(), queue::Error> {
        if queue.needs_interrupt(memory)? {
            self.used_buffer();
        }
        Ok(())
    }

    /// The driver broke the protocol in a way from which this device can't go on: only a reset helps
    /// (VIRTIO 1.2 §2.1.2, DEVICE_NEEDS_RESET).
    pub fn fail(&self, device: &str, reason: &dyn std::error::Error) {
        let cause = reason.source().map(|cause| cause.to_string());
        tracing::warn!(device, %reason, cause, "the guest's driver broke the protocol; the device waits for a reset");
        self.0.needs_reset.store(true, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIGURATION);
    }

    /// The line, for the host's kernel to raise when it has used buffers. Since it tells nobody, the driver is told at each interrupt that
    /// there may be some, and finds out.
    pub fn line_for_kernel(&self) -> &EventFd {
        self.0.also_kernel.store(true, Ordering::SeqCst);
        &self.0.line
    }

    /// The line is an edge: every raise is one, also with the status bit still set, because a driver may have read the
    /// status already and not yet acknowledged it.
    fn raise(&self, bit: u32) {
        self.0.status.fetch_or(bit, Ordering::SeqCst);
        // The counter of an irqfd is drained by KVM at once; it can't overflow.
        let _ = self.0.line.write(1);
    }

    fn status(&self) -> u32 {
        let status = self.0.status.load(Ordering::SeqCst);
        if self.0.also_kernel.load(Ordering::SeqCst) {
            status | INTERRUPT_USED_BUFFER
        } else {
            status
        }
    }

    fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::SeqCst);
    }

    fn needs_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    fn clear(&self) {
        self.0.status.store(0, Ordering::SeqCst);
        self.0.needs_reset.store(false, Ordering::SeqCst);
        self.0.also_kernel.store(false, Ordering::SeqCst);
    }
}

/// What the transport tells a device thread.
#[derive(Debug)]
pub enum Command {
    /// The driver is ready: these are its queues.
    Activate {
        /// One for each of [`Description::queue_sizes`], all valid.
        queues: Vec<Queue>,
        /// What the driver has accepted of [`Description::features`].
        features: u64,
    },
    /// The driver resets the device: let go of all queues and then answer.
    Reset(mpsc::Sender<()>),
    /// The VM is over.
    Stop,
}

/// The transport's end of the way to a device thread.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

/// The device thread's end.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Command>,
}

/// A way for commands to a device thread, which is woken through `wake`.
pub fn command_channel(wake: EventFd) -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel();
    (
        Outbox {
            sender,
            wake: Arc::new(wake),
        },
        Inbox { receiver },
    )
}

impl Outbox {
    /// Sends a command and wakes the device thread.
    pub fn send(&self, command: Command) {
        // A device thread that has ended needs no commands.
        if self.sender.send(command).is_ok() {
            // Fails only if the counter is full, and then the thread is awake.
            let _ = self.wake.write(1);
        }
    }

    /// Resets the device and waits until it has let go of its queues.
    pub fn reset(&self) {
        let (done, wait) = mpsc::channel();
        self.send(Command::Reset(done));
        // An error means that the thread has ended, which lets go of the queues too.
        let _ = wait.recv();
    }
}

impl Inbox {
    /// The next command, if there is one.
    pub fn next(&self) -> Option<Command> {
        match self.receiver.try_recv() {
            Ok(command) => Some(command),
            Err(mpsc::TryRecvError::Empty) => None,
            // Without a transport there is nothing left to do.
            Err(mpsc::TryRecvError::Disconnected) => Some(Command::Stop),
        }
    }
}
