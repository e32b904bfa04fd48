//! The network device (VIRTIO 1.2 §5.1): Ethernet over a tap or a stream, with one pair of queues and one thread.
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
//! is the host kernel's to judge, as for any process with a tap. A [`stream`] carries frames alone, complete ones, and copies them.
//! With [`vhost`] the kernel takes packets out of the queues itself, and the thread here has only commands to wait for.

mod stream;
mod vhost;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_bindings::virtio_net as spec;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, Buffer, Chain, Queue};
use super::{COMMON_FEATURES, Command, Description, Inbox, Interrupt};
use crate::config::{Link, Nic};
use crate::memory::Ram;
use crate::sys;
use stream::Stream;
use vhost::{Ring, Vhost};

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
const LINK: u64 = 3;
const ERROR: u64 = 4;

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
        let mut bits = vec![
            spec::VIRTIO_NET_F_MAC,
            spec::VIRTIO_NET_F_MTU,
            spec::VIRTIO_NET_F_STATUS,
            spec::VIRTIO_NET_F_MRG_RXBUF,
        ];
        if let Link::Tap(_) = self.0.link {
            bits.extend(LEAVES);
            bits.extend(TAKES.map(|(feature, _)| feature));
        }
        let features = bits
            .into_iter()
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
    #[error("the host's kernel can't run the queues")]
    Start(#[source] io::Error),
    #[error("the host's kernel can't go on with a queue")]
    Stopped,
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

/// The way out.
#[derive(Debug)]
enum Wire {
    Tap(File),
    Stream(Box<Stream>),
}

impl Wire {
    fn new(link: Link) -> Wire {
        match link {
            Link::Tap(tap) => Wire::Tap(tap),
            Link::Stream(socket) => Wire::Stream(Box::new(Stream::new(socket))),
        }
    }

    /// Whether a packet can be sent. If not, the wire says when: it becomes writable.
    fn has_room(&self) -> bool {
        match self {
            Wire::Tap(_) => true,
            Wire::Stream(stream) => stream.has_room(),
        }
    }

    /// Sends a packet of the guest's. What a tap does not take is lost, as on any wire.
    fn send(&mut self, packet: &mut Buffer<'_>) {
        match self {
            Wire::Tap(tap) => drop(sys::write_once(tap, packet.rest())),
            Wire::Stream(stream) => stream.send(packet),
        }
    }

    fn flush(&mut self) {
        if let Wire::Stream(stream) = self {
            stream.flush();
        }
    }
}

/// The device's thread.
#[derive(Debug)]
struct Worker {
    wire: Wire,
    /// Runs the queues in this thread's place. Dropped before the memory.
    vhost: Option<Vhost>,
    mtu: u16,
    name: String,
    /// Watched by `epoll`, which would forget them if they were closed, or by the kernel.
    wakes: Wakes,
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
        let link = match &nic.link {
            Link::Tap(tap) => (tap.as_raw_fd(), EventSet::IN),
            Link::Stream(socket) => (socket.as_raw_fd(), EventSet::IN | EventSet::OUT),
        };
        let vhost = match (&nic.link, nic.vhost) {
            (Link::Tap(_), Some(file)) => Vhost::new(file, &memory)
                .inspect_err(|error| tracing::warn!(device = name, %error, "vhost-net can't be used"))
                .ok(),
            _ => None,
        };
        let mut watched = vec![((wakes.command.as_raw_fd(), EventSet::IN), COMMAND)];
        match &vhost {
            Some(vhost) => watched.push(((vhost.error.as_raw_fd(), EventSet::IN), ERROR)),
            None => watched.extend([
                ((wakes.receive.as_raw_fd(), EventSet::IN), RECEIVE),
                ((wakes.transmit.as_raw_fd(), EventSet::IN), TRANSMIT),
                (link, LINK),
            ]),
        }
        for ((fd, events), token) in watched {
            // Edge-triggered: every write to an eventfd is an event, and nobody has to read its counter. The link is read until
            // it is empty, or when buffers come.
            let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Worker {
            wire: Wire::new(nic.link),
            vhost,
            mtu: nic.mtu,
            name,
            wakes,
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
                        self.let_go();
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
                self.let_go();
            })
            .ok()
    }

    /// Lets go of the driver's queues.
    fn let_go(&mut self) {
        self.active = None;
        if let Some(vhost) = &self.vhost {
            vhost.stop();
        }
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
        if let Wire::Tap(tap) = &self.wire {
            // SAFETY: the request takes a number, and the descriptor is a tap, or the call fails.
            let result = unsafe {
                libc::ioctl(
                    tap.as_raw_fd(),
                    libc::TUNSETOFFLOAD,
                    libc::c_ulong::from(offloads),
                )
            };
            if result != 0 {
                // Segmentation without checksums (VIRTIO 1.2 §5.1.3.1), which no driver may accept.
                return Err(Broken::Features(features));
            }
        }
        if let (Some(vhost), Wire::Tap(tap)) = (&self.vhost, &self.wire) {
            let rings = [(&receive, &self.wakes.receive), (&transmit, &self.wakes.transmit)];
            let rings = rings.map(|(queue, kick)| Ring { queue, kick });
            return vhost
                .start(
                    tap,
                    features,
                    rings,
                    self.interrupt.line_for_kernel(),
                    &self.memory,
                )
                .map_err(Broken::Start);
        }
        let segmented = [spec::VIRTIO_NET_F_GUEST_TSO4, spec::VIRTIO_NET_F_GUEST_TSO6];
        self.active = Some(Active {
            receive,
            transmit,
            mergeable: accepted(spec::VIRTIO_NET_F_MRG_RXBUF),
            longest: if segmented.into_iter().any(accepted) {
                MAX_PACKET
            } else {
                OVERHEAD + usize::from(self.mtu)
            },
        });
        Ok(())
    }

    /// One round in both directions.
    fn serve(&mut self) -> Result<Progress, Broken> {
        if let Some(vhost) = &self.vhost
            && vhost.error.read().is_ok()
        {
            return Err(Broken::Stopped);
        }
        let Some(active) = &mut self.active else {
            return Ok(Progress::Idle);
        };
        let sent = active.transmit(&mut self.wire, &self.memory)?;
        self.interrupt.if_needed(&mut active.transmit, &self.memory)?;
        let received = active.receive(&mut self.wire, &self.memory)?;
        self.interrupt.if_needed(&mut active.receive, &self.memory)?;
        Ok(if [sent, received].contains(&Progress::More) {
            Progress::More
        } else {
            Progress::Idle
        })
    }
}

impl Active {
    /// From the guest to the wire.
    fn transmit(&mut self, wire: &mut Wire, memory: &Ram) -> Result<Progress, Broken> {
        let queue = &mut self.transmit;
        queue.disable_notification(memory)?;
        // What a stream did not take before.
        wire.flush();
        let mut progress = Progress::More;
        for _ in 0..ROUND {
            if !wire.has_room() {
                wire.flush();
                if !wire.has_room() {
                    progress = Progress::Idle;
                    break;
                }
            }
            let Some(mut chain) = queue.pop(memory)? else {
                progress = if queue.enable_notification(memory)? {
                    Progress::More
                } else {
                    Progress::Idle
                };
                break;
            };
            if (HEADER..=MAX_PACKET).contains(&chain.readable.len()) {
                wire.send(&mut chain.readable);
            }
            queue.push(memory, chain.head, 0)?;
        }
        wire.flush();
        Ok(progress)
    }

    /// From the wire to the guest, as long as it has buffers.
    fn receive(&mut self, wire: &mut Wire, memory: &Ram) -> Result<Progress, Broken> {
        self.receive.disable_notification(memory)?;
        let mut buffers = VecDeque::new();
        let mut progress = Progress::More;
        for _ in 0..ROUND {
            let filled = match wire {
                Wire::Tap(tap) => self.receive_packet(tap, memory, &mut buffers)?,
                Wire::Stream(stream) => self.receive_frame(stream, memory, &mut buffers)?,
            };
            match filled {
                Filled::Bytes(bytes) => hand_over(&mut self.receive, memory, &mut buffers, bytes)?,
                Filled::NothingToRead => {
                    progress = Progress::Idle;
                    break;
                }
                Filled::NoBuffers => {
                    // Asked for while the rest waits in the queue, where the driver's next notification finds it.
                    if !self.receive.enable_notification(memory)? {
                        progress = Progress::Idle;
                    }
                    break;
                }
            }
        }
        // Last first, so that each is the one that was taken last.
        buffers.iter().for_each(|_| self.receive.undo_pop());
        Ok(progress)
    }

    /// Has the kernel read the tap's next packet into the guest's buffers, in which there is room for any.
    fn receive_packet<'m>(
        &mut self,
        tap: &File,
        memory: &'m Ram,
        buffers: &mut VecDeque<Chain<'m>>,
    ) -> Result<Filled, Broken> {
        if !gather(&mut self.receive, memory, buffers, self.longest, self.mergeable)? {
            return Ok(Filled::NoBuffers);
        }
        let room = if self.mergeable { buffers.len() } else { 1 };
        let pieces: Vec<_> = buffers
            .iter()
            .take(room)
            .flat_map(|chain: &Chain<'_>| chain.writable.rest())
            .copied()
            .collect();
        match sys::read_once(tap, &pieces) {
            Ok(0) => Ok(Filled::NothingToRead),
            Ok(bytes) => Ok(Filled::Bytes(bytes)),
            // Empty; the next packet is an event.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::NothingToRead),
            // The tap went away with its namespace: the link is dead, and nothing else.
            Err(error) => {
                tracing::debug!(%error, "a tap can't be read");
                Ok(Filled::NothingToRead)
            }
        }
    }

    /// Copies the stream's next frame into the guest's buffers, behind a header that says nothing of it.
    fn receive_frame<'m>(
        &mut self,
        stream: &mut Stream,
        memory: &'m Ram,
        buffers: &mut VecDeque<Chain<'m>>,
    ) -> Result<Filled, Broken> {
        let Some(frame) = stream.frame() else {
            return Ok(Filled::NothingToRead);
        };
        let bytes = HEADER + frame.len();
        if !gather(&mut self.receive, memory, buffers, bytes, self.mergeable)? {
            return Ok(Filled::NoBuffers);
        }
        // `hand_over` writes the number of buffers into the first one, so that one stays as it is.
        let mut pieces: Vec<_> = buffers
            .iter()
            .flat_map(|chain| chain.writable.rest())
            .copied()
            .collect();
        sys::fill(&mut pieces, &[&[0; HEADER], frame]);
        stream.drop_frame();
        Ok(Filled::Bytes(bytes))
    }
}

/// What has become of the guest's receive buffers.
enum Filled {
    /// They hold a packet of so many bytes, header included.
    Bytes(usize),
    /// There are not enough of them.
    NoBuffers,
    /// Nothing came.
    NothingToRead,
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

#[cfg(test)]
#[path = "net_fuzz_test.rs"]
mod fuzz_tests;
