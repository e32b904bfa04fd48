//! The socket device (VIRTIO 1.2 §5.10): streams between the guest and endpoints in this process.
//!
//! The guest connects to host port P; the owner of the VM answers with one end of a socket pair or refuses. From then on the
//! device carries bytes with credit in both directions, and ends each direction when its sender has ended it. All of it is one
//! thread with one epoll, see [`Worker`](worker::Worker).

mod connection;
mod packet;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::{COMMON_FEATURES, Description, Inbox, Interrupt};
use crate::config::Vsock as Config;
use crate::memory::Ram;

/// To the guest, from the guest, events.
const QUEUE_SIZES: &[u16] = &[128, 128, 16];
/// Queues whose notifications matter: the driver has nothing to say on the event queue.
pub const NOTIFIED_QUEUES: usize = 2;
/// Addresses up to this one are reserved (VIRTIO 1.2 §5.10.4).
const LAST_RESERVED_CID: u32 = 2;

/// Why there can be no socket device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that means something else.
    #[error("vsock address {0} is reserved: a guest's address is 3 or above")]
    Cid(u32),
}

/// What wakes the device's thread.
#[derive(Debug)]
pub struct Wakes {
    /// A command has come.
    pub command: EventFd,
    /// The driver has put buffers into the queue to the guest.
    pub to_guest: EventFd,
    /// The driver has put packets into the queue from the guest.
    pub from_guest: EventFd,
    /// The VM is over: deliver what the guest has sent, then stop. Stays readable.
    pub ended: OwnedFd,
}

/// The device, ready for its thread.
#[derive(Debug)]
pub struct Vsock {
    config: Config,
}

impl Vsock {
    /// A device with the guest's address and the endpoints of `config`.
    pub fn new(config: Config) -> Result<Vsock, Error> {
        match config.guest_cid {
            ..=LAST_RESERVED_CID | u32::MAX => Err(Error::Cid(config.guest_cid)),
            _ => Ok(Vsock { config }),
        }
    }

    /// What the transport shows.
    pub fn description(&self) -> Description {
        let config = u64::from(self.config.guest_cid).to_le_bytes().to_vec();
        Description {
            kind: 19,
            features: COMMON_FEATURES,
            queue_sizes: QUEUE_SIZES,
            config,
        }
    }

    /// Starts the device's thread.
    pub fn spawn(
        self,
        inbox: Inbox,
        wakes: Wakes,
        interrupt: Interrupt,
        memory: Arc<Ram>,
    ) -> io::Result<JoinHandle<()>> {
        let worker = worker::Worker::new(self.config, wakes, interrupt, memory)?;
        std::thread::Builder::new()
            .name("vsock".into())
            .spawn(move || worker.run(&inbox))
    }
}
