//! The file system device (VIRTIO 1.2 §5.11): FUSE requests for a server over a directory of the host, with one thread.
//!
//! ```text
//!   hiprio queue  ─┐   readable: header │ arguments │ data to write …
//!   request queue ─┴►  writable: header │ answer, or data read …
//! ```
//!
//! The kernel copies between files and guest memory directly (`preadv`, `pwritev2`). What requests mean is the server's to know.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vmm_sys_util::eventfd::EventFd;
use volume::{Exchange, HEADER, Server};

use super::queue::{self, Buffer, Chain, Queue};
use super::worker::{Device, Worker};
use super::{COMMON_FEATURES, Description, Inbox, Interrupt};
use crate::config::{Thread, Volume};
use crate::memory::Ram;
use crate::sys;

/// Requests that must not wait, and requests. The second has room for the pages of the largest one.
const QUEUE_SIZES: &[u16] = &[64, 512];
/// How many of them there are.
pub const QUEUES: usize = QUEUE_SIZES.len();
/// Longest tag, in bytes.
const TAG: usize = 36;

/// Why a volume can't be offered to the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tag is too long or empty.
    #[error("volume tag {0:?} is not 1 to 36 bytes")]
    Tag(String),
}

/// A volume, ready for its thread.
#[derive(Debug)]
pub struct Fs {
    tag: [u8; TAG],
    server: Server,
    thread: Thread,
}

impl Fs {
    /// A device for `volume`.
    pub fn new(volume: Volume) -> Result<Fs, Error> {
        let Volume {
            tag: name,
            server,
            thread,
        } = volume;
        if name.is_empty() || name.len() > TAG {
            return Err(Error::Tag(name));
        }
        let mut tag = [0; TAG];
        tag.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Ok(Fs { tag, server, thread })
    }

    /// What the transport shows.
    pub fn description(&self) -> Description {
        // `struct virtio_fs_config` (VIRTIO 1.2 §5.11.4).
        let mut config = self.tag.to_vec();
        config.extend(1u32.to_le_bytes()); // num_request_queues
        Description {
            kind: VIRTIO_ID_FS,
            features: COMMON_FEATURES,
            queue_sizes: QUEUE_SIZES,
            config,
        }
    }

    /// What the device's thread has to do, and that thread. `wake` wakes it for commands and for the guest's notifications.
    pub fn work(
        self,
        name: String,
        inbox: Inbox,
        wake: EventFd,
        interrupt: Interrupt,
        memory: Arc<Ram>,
    ) -> (impl FnOnce() + Send, Thread) {
        let worker = Worker {
            device: self.server,
            name,
            wake,
            interrupt,
            memory,
        };
        (move || worker.run(&inbox), self.thread)
    }
}

impl Device for Server {
    fn serve(&mut self, queue: &mut Queue, memory: &Ram, interrupt: &Interrupt) -> Result<(), queue::Error> {
        loop {
            queue.disable_notification(memory)?;
            while let Some(chain) = queue.pop(memory)? {
                let head = chain.head;
                let written = serve(self, chain);
                queue.push(memory, head, written)?;
                // A reader waits for this one, whatever else there is to do.
                interrupt.if_needed(queue, memory)?;
            }
            if !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {
        Server::reset(self);
    }
}

/// Has one request served. Returns how many bytes were written into its writable part.
fn serve(server: &mut Server, chain: Chain<'_>) -> u32 {
    let Chain {
        readable,
        writable: mut payload,
        ..
    } = chain;
    let room = payload.len();
    let header = payload.split_front(HEADER);
    let mut exchange = Request {
        readable,
        header,
        payload,
        room,
        filled: 0,
        answered: 0,
    };
    server.handle(&mut exchange);
    // A chain is shorter than 4 GiB.
    exchange.answered as u32
}

/// One request in guest memory.
struct Request<'m> {
    readable: Buffer<'m>,
    header: Buffer<'m>,
    payload: Buffer<'m>,
    room: usize,
    filled: usize,
    answered: usize,
}

impl Exchange for Request<'_> {
    fn take(&mut self, bytes: &mut [u8]) -> bool {
        self.readable.read_into(bytes)
    }

    fn left(&self) -> usize {
        self.readable.len()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn answer(&mut self, header: &[u8; HEADER], payload: &[u8]) {
        self.answered = self.header.write(header) + self.filled + self.payload.write(payload);
    }

    fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<usize> {
        self.filled = sys::read_most_at(file, &mut self.payload.first(bytes), offset)?;
        Ok(self.filled)
    }

    fn drain(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize, at_end: bool) -> io::Result<usize> {
        sys::write_most_at(file, &mut self.readable.first(bytes), offset, at_end)
    }
}

#[cfg(test)]
#[path = "fs_test.rs"]
mod tests;

#[cfg(test)]
#[path = "fs_fuzz_test.rs"]
mod fuzz_tests;
