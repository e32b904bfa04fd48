//! The one place where an image is written: any thread hands over finished pieces, one at a time writes them.
//!
//! A file system takes an exclusive lock of the file for each buffered write, and a thread that waits for it spins.
//! So no thread waits: who finds nobody writing writes all that is queued, everybody else goes on converting.
//!
//! ```text
//!   thread A: convert │ submit: write A0, B0, A1 …                │ convert
//!   thread B: convert │ submit: queue │ convert │ submit: queue │ convert
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Longest single write in bytes. The page cache allocates pages in runs as long as a write. Longer ones save little
/// time in the kernel, and are rarely found among the memory that was freed last: in a virtual machine, whose host
/// has to back untouched memory page by page, that costs more than everything else together.
const LONGEST_WRITE: usize = 32 << 10;

/// Writes an image for several threads.
pub(crate) struct Writer<'a> {
    image: &'a File,
    queue: Mutex<Queue>,
    /// The queue has become shorter, or the writing thread has left.
    change: Condvar,
    /// Pieces that may wait.
    limit: usize,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// A thread is writing.
    busy: bool,
    /// A write has failed: nothing is written any more.
    failed: bool,
    /// Buffers of written pieces.
    spare: Vec<Vec<u8>>,
}

struct Piece {
    offset: u64,
    data: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// A writer to `image` that holds at most `limit` pieces and one for each submitting thread.
    pub(crate) fn new(image: &'a File, limit: usize) -> Self {
        Self {
            image,
            queue: Mutex::default(),
            change: Condvar::new(),
            limit,
        }
    }

    /// A buffer for a piece, of any length and content; one that has served already if there is any.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.lock().spare.pop().unwrap_or_default()
    }

    /// Takes over `data` for `offset` of the image. It is written before the last thread leaves this function, or
    /// that one gets the error.
    ///
    /// # Errors
    /// Of a write in this thread, perhaps of another thread's piece. A thread that did not write learns nothing.
    pub(crate) fn submit(&self, offset: u64, data: Vec<u8>) -> io::Result<()> {
        let mut queue = self.lock();
        queue.pieces.push_back(Piece { offset, data });
        while queue.busy && queue.pieces.len() > self.limit {
            queue = self.change.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.busy {
            return Ok(());
        }
        queue.busy = true;
        while let Some(piece) = queue.pieces.pop_front() {
            let failed = queue.failed;
            drop(queue);
            let result = if failed { Ok(()) } else { self.write(&piece) };
            queue = self.lock();
            queue.spare.push(piece.data);
            self.change.notify_one();
            if let Err(error) = result {
                queue.failed = true;
                queue.pieces.clear();
                queue.busy = false;
                self.change.notify_all();
                return Err(error);
            }
        }
        queue.busy = false;
        self.change.notify_all();
        Ok(())
    }

    fn write(&self, piece: &Piece) -> io::Result<()> {
        let mut offset = piece.offset;
        for data in piece.data.chunks(LONGEST_WRITE) {
            self.image.write_all_at(data, offset)?;
            offset += data.len() as u64;
        }
        Ok(())
    }

    /// A queue whose owner has panicked is as good as before: no statement leaves it half changed.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn every_piece_of_every_thread_arrives() {
        const PIECES: usize = 400;
        let image = tempfile::tempfile().unwrap();
        let writer = Writer::new(&image, 1);
        thread::scope(|scope| {
            for thread in 0..4u8 {
                let writer = &writer;
                scope.spawn(move || {
                    for piece in (usize::from(thread)..PIECES).step_by(4) {
                        let mut data = writer.buffer();
                        data.clear();
                        data.resize(1000, piece as u8);
                        writer.submit(piece as u64 * 1000, data).unwrap();
                    }
                });
            }
        });
        let mut bytes = vec![0; PIECES * 1000];
        image.read_exact_at(&mut bytes, 0).unwrap();
        for (piece, bytes) in bytes.chunks_exact(1000).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == piece as u8), "piece {piece}");
        }
        assert_eq!(image.metadata().unwrap().len(), 1000 * PIECES as u64);
    }

    #[test]
    fn a_failed_write_is_reported_once_and_nobody_waits_for_it() {
        let image = File::open("/dev/null").unwrap(); // not for writing
        let writer = Writer::new(&image, 1);
        let failures = thread::scope(|scope| {
            let submit = || (0..100).filter(|_| writer.submit(0, vec![1]).is_err()).count();
            let threads = [scope.spawn(submit), scope.spawn(submit)];
            threads
                .map(|thread| thread.join().unwrap())
                .into_iter()
                .sum::<usize>()
        });
        assert_eq!(failures, 1);
    }
}
