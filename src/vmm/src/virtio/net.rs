//! The network device (VIRTIO 1.2 §5.1): Ethernet over a tap, with one pair of queues and one thread.
//!
//! ```text
//!   a packet in either direction: header (12 bytes) │ Ethernet frame
//!
//!   guest ─ transmit queue ─► writev ─► tap ─► the host's network
//!   guest ◄─ receive queue ── readv ◄── tap
//! ```
//!
//! The kernel copies between the tap and guest memory directly, headers included: the tap speaks them too (`IFF_VNET_HDR`), so
//! checksums and segmentation that one side leaves to the other are never done here. A packet may fill several of the guest's
//! receive buffers (VIRTIO_NET_F_MRG_RXBUF), of which the driver sees none before it has all. What the guest writes into a header
//! is the host kernel's to judge, as for any process with a tap.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_bindings::virtio_net as spec;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, Chain, Queue};
use super::{COMMON_FEATURES, Command, Description, Inbox, Interrupt};
use crate::config::Nic;
use crate::memory::Ram;
use crate::sys;

/// Receive and transmit.
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Queues that the driver notifies.
pub const NOTIFIED_QUEUES: usize = QUEUE_SIZES.len();
/// Of every packet, in bytes (`struct virtio_net_hdr_v1`).
const HEADER: usize = 12;
/// Where in it the number of buffers stands.
const NUM_BUFFERS: usize = 10;
/// The longest packet with what comes on top, in bytes.
const MAX_PACKET: usize = OVERHEAD + 65535;
/// Header and Ethernet header with a VLAN tag, in bytes: what comes on top of the MTU where nothing is segmented.
const OVERHEAD: usize = HEADER + 18;
/// Packets in each direction before the other one's turn.
const ROUND: usize = 128;

/// What a guest may leave to the host, and what it may take: a feature, and the tap's word for the second kind (linux/if_tun.h).
const TAKES: [(u32, libc::c_uint); 4] = [
    (spec::VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (spec::VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (spec::VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (spec::VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];
const LEAVES: [u32; 4] = [
    spec::VIRTIO_NET_F_CSUM,
    spec::VIRTIO_NET_F_HOST_TSO4,
    spec::VIRTIO_NET_F_HOST_TSO6,
    spec::VIRTIO_NET_F_HOST_ECN,
];

const COMMAND: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
const TAP: u64 = 3;

/// What wakes the device's thread.
#[derive(Debug)]
pub struct Wakes {
    /// A command.
    pub command: EventFd,
    /// The driver has put up receive buffers.
    pub receive: EventFd,
    /// The driver has packets to send.
    pub transmit: EventFd,
}

/// A network interface, ready for its thread.
#[derive(Debug)]
pub struct Net(Nic);

impl Net {
    /// A device on `nic`.
    pub fn new(nic: Nic) -> Net {
        Net(nic)
    }

    /// What the transport shows.
    pub fn description(&self) -> Description {
        let features = [
            spec::VIRTIO_NET_F_MAC,
            spec::VIRTIO_NET_F_MTU,
            spec::VIRTIO_NET_F_STATUS,
            spec::VIRTIO_NET_F_MRG_RXBUF,
        ]
        .into_iter()
        .chain(LEAVES)
        .chain(TAKES.map(|(feature, _)| feature))
        .fold(COMMON_FEATURES, |features, bit| features | 1 << bit);
        // `struct virtio_net_config` (VIRTIO 1.2 §5.1.4).
        let mut config = Vec::with_capacity(12);
        config.extend(self.0.mac);
        config.extend((spec::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes()); // status
        config.extend(1u16.to_le_bytes()); // max_virtqueue_pairs
        config.extend(self.0.mtu.to_le_bytes());
        Description {
            kind: 1,
            features,
            queue_sizes: QUEUE_SIZES,
            config,
        }
    }

    /// Starts the device's thread.
    pub fn spawn(
        self,
        name: String,
        inbox: Inbox,
        wakes: Wakes,
        interrupt: Interrupt,
        memory: Arc<Ram>,
    ) -> io::Result<JoinHandle<()>> {
        let worker = Worker::new(self.0, name.clone(), wakes, interrupt, memory)?;
        std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(&inbox))
    }
}

/// Why the driver can't go on with this device.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("a virtqueue is broken")]
    Queue(#[from] queue::Error),
    #[error("receive buffers have room for {0} bytes, less than a packet")]
    Buffers(usize),
    #[error("the driver's features make no device: {0:#x}")]
    Features(u64),
}

/// The queues of a running device, and how its packets look.
#[derive(Debug)]
struct Active {
    receive: Queue,
    transmit: Queue,
    /// A packet may fill several buffers.
    mergeable: bool,
    /// The longest packet that the tap may give, in bytes.
    longest: usize,
}

/// The device's thread.
#[derive(Debug)]
struct Worker {
    nic: Nic,
    name: String,
    /// Watched by `epoll`, which would forget them if they were closed.
    _wakes: Wakes,
    interrupt: Interrupt,
    memory: Arc<Ram>,
    epoll: Epoll,
    /// While the driver runs the device.
    active: Option<Active>,
}

/// Whether there may be more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// A round is full.
    More,
    /// Nothing until something happens.
    Idle,
}

impl Worker {
    fn new(
        nic: Nic,
        name: String,
        wakes: Wakes,
        interrupt: Interrupt,
        memory: Arc<Ram>,
    ) -> io::Result<Worker> {
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (wakes.command.as_raw_fd(), COMMAND),
            (wakes.receive.as_raw_fd(), RECEIVE),
            (wakes.transmit.as_raw_fd(), TRANSMIT),
            (nic.tap.as_raw_fd(), TAP),
        ] {
            // Edge-triggered: every write to an eventfd is an event, and nobody has to read its counter. The tap is read until
            // it is empty, or when buffers come.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Worker {
            nic,
            name,
            _wakes: wakes,
            interrupt,
            memory,
            epoll,
            active: None,
        })
    }

    /// The thread's life.
    fn run(mut self, inbox: &Inbox) {
        let mut events = [EpollEvent::default(); 4];
        let mut progress = Progress::Idle;
        loop {
            let timeout = if progress == Progress::More { 0 } else { -1 };
            match self.epoll.wait(timeout, &mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return tracing::error!(device = self.name, %error, "the device can't wait for events");
                }
            }
            while let Some(command) = inbox.next() {
                match command {
                    Command::Activate { queues, features } => {
                        let activated = self.activate(queues, features);
                        self.fail_if_broken(activated);
                    }
                    Command::Reset(done) => {
                        self.active = None;
                        // The vCPU that waits is gone if the VM is over.
                        let _ = done.send(());
                    }
                    Command::Stop => return,
                }
            }
            let served = self.serve();
            progress = self.fail_if_broken(served).unwrap_or(Progress::Idle);
        }
    }

    fn fail_if_broken<T>(&mut self, result: Result<T, Broken>) -> Option<T> {
        result
            .inspect_err(|error| {
                self.interrupt.fail(&self.name, error);
                self.active = None;
            })
            .ok()
    }

    /// Takes the driver's queues, and tells the tap what this driver can take.
    fn activate(&mut self, queues: Vec<Queue>, features: u64) -> Result<(), Broken> {
        let [receive, transmit]: [Queue; NOTIFIED_QUEUES] =
            queues.try_into().map_err(|_| Broken::Features(features))?;
        let accepted = |bit: u32| features & (1 << bit) != 0;
        let offloads = TAKES
            .into_iter()
            .filter(|(feature, _)| accepted(*feature))
            .fold(0, |offloads, (_, offload)| offloads | offload);
        // SAFETY: the request takes a number, and the descriptor is a tap, or the call fails.
        let result = unsafe {
            libc::ioctl(
                self.nic.tap.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        };
        if result != 0 {
            // Segmentation without checksums (VIRTIO 1.2 §5.1.3.1), which no driver may accept.
            return Err(Broken::Features(features));
        }
        let segmented = [spec::VIRTIO_NET_F_GUEST_TSO4, spec::VIRTIO_NET_F_GUEST_TSO6];
        self.active = Some(Active {
            receive,
            transmit,
            mergeable: accepted(spec::VIRTIO_NET_F_MRG_RXBUF),
            longest: if segmented.into_iter().any(accepted) {
                MAX_PACKET
            } else {
                OVERHEAD + usize::from(self.nic.mtu)
            },
        });
        Ok(())
    }

    /// One round in both directions.
    fn serve(&mut self) -> Result<Progress, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Idle);
        };
        let sent = active.transmit(&self.nic, &self.memory)?;
        self.interrupt.if_needed(&mut active.transmit, &self.memory)?;
        let received = active.receive(&self.nic, &self.memory)?;
        self.interrupt.if_needed(&mut active.receive, &self.memory)?;
        Ok(if [sent, received].contains(&Progress::More) {
            Progress::More
        } else {
            Progress::Idle
        })
    }
}

impl Active {
    /// From the guest to the tap. What the tap does not take is lost, as on any wire.
    fn transmit(&mut self, nic: &Nic, memory: &Ram) -> Result<Progress, Broken> {
        let queue = &mut self.transmit;
        queue.disable_notification(memory)?;
        for _ in 0..ROUND {
            let Some(chain) = queue.pop(memory)? else {
                return Ok(if queue.enable_notification(memory)? {
                    Progress::More
                } else {
                    Progress::Idle
                });
            };
            if (HEADER..=MAX_PACKET).contains(&chain.readable.len()) {
                let _ = sys::write_once(&nic.tap, chain.readable.rest());
            }
            queue.push(memory, chain.head, 0)?;
        }
        Ok(Progress::More)
    }

    /// From the tap to the guest, as long as it has buffers.
    fn receive(&mut self, nic: &Nic, memory: &Ram) -> Result<Progress, Broken> {
        let queue = &mut self.receive;
        queue.disable_notification(memory)?;
        let mut buffers = VecDeque::new();
        let mut progress = Progress::More;
        for _ in 0..ROUND {
            if !gather(queue, memory, &mut buffers, self.longest, self.mergeable)? {
                // Asked for while the rest waits in the queue, where the driver's next notification finds it.
                progress = if queue.enable_notification(memory)? {
                    Progress::More
                } else {
                    Progress::Idle
                };
                break;
            }
            let room = if self.mergeable { buffers.len() } else { 1 };
            let pieces: Vec<_> = buffers
                .iter()
                .take(room)
                .flat_map(|chain: &Chain<'_>| chain.writable.rest())
                .copied()
                .collect();
            let bytes = match sys::read_once(&nic.tap, &pieces) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                // Empty; the next packet is an event.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    progress = Progress::Idle;
                    break;
                }
                // The tap went away with its namespace: the link is dead, and nothing else.
                Err(error) => {
                    tracing::debug!(%error, "a tap can't be read");
                    progress = Progress::Idle;
                    break;
                }
            };
            hand_over(queue, memory, &mut buffers, bytes)?;
        }
        // Last first, so that each is the one that was taken last.
        buffers.iter().for_each(|_| queue.undo_pop());
        Ok(progress)
    }
}

/// Takes buffers until there is room for a packet of `longest` bytes. `false` if the driver has not put up enough.
fn gather<'m>(
    queue: &mut Queue,
    memory: &'m Ram,
    buffers: &mut VecDeque<Chain<'m>>,
    longest: usize,
    mergeable: bool,
) -> Result<bool, Broken> {
    loop {
        let room: usize = buffers.iter().map(|chain| chain.writable.len()).sum();
        if room >= longest {
            return Ok(true);
        }
        if !mergeable && let Some(chain) = buffers.front() {
            return Err(Broken::Buffers(chain.writable.len()));
        }
        let Some(chain) = queue.pop(memory)? else {
            return Ok(false);
        };
        // The header is written as a whole.
        if chain.writable.len() < HEADER {
            return Err(Broken::Buffers(chain.writable.len()));
        }
        buffers.push_back(chain);
    }
}

/// Gives the buffers that a packet of `bytes` bytes has filled back to the driver, all at once.
fn hand_over<'m>(
    queue: &mut Queue,
    memory: &'m Ram,
    buffers: &mut VecDeque<Chain<'m>>,
    mut bytes: usize,
) -> Result<(), Broken> {
    let mut filled = Vec::new();
    let mut first = None;
    while bytes > 0 {
        let Some(chain) = buffers.pop_front() else {
            break;
        };
        let here = bytes.min(chain.writable.len());
        bytes -= here;
        // Not above the chain's length, which is below 4 GiB.
        filled.push((chain.head, here as u32));
        first.get_or_insert(chain);
    }
    if let Some(mut chain) = first {
        chain.writable.skip(NUM_BUFFERS);
        // At most as many as the queue has entries.
        chain.writable.write(&(filled.len() as u16).to_le_bytes());
    }
    Ok(queue.push_together(memory, &filled)?)
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
