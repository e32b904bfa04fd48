//! Gives the host back the room that deleted files took on the scratch disk.
//!
//! A discard can't go through dm-integrity: it would have to mark sectors as "never mind what is here", and a host could set
//! such marks too. So it goes around it. What lies in free blocks is of no value, and whoever gets them next writes before
//! reading:
//!
//! ```text
//!   free blocks ─ fallocate ─► a file without a name ─ FIEMAP ─► their places ─ discard ─► /dev/vdb, at the same offsets
//!                              └ dropped: they are free again
//! ```
//!
//! While that file has them, nobody else can. It takes piece by piece, and leaves a quarter of what is free alone, so that the
//! workload does not meet a full disk.

use crate::failure::{Context as _, Result};
use crate::sys;
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, fstatvfs, openat};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

/// How often a look is taken.
const INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that must have become free since the last time.
const WORTH_IT: u64 = 64 << 20;
/// Bytes taken at a time.
const PIECE: u64 = 64 << 20;

/// Watches the file system on `directory`, which lies on `disk` at the same offsets, for as long as the guest runs.
pub fn watch(directory: &'static str, disk: &'static str) -> Result<()> {
    let mut trim = Trim::new(directory, disk)?;
    let watch = move || {
        loop {
            thread::sleep(INTERVAL);
            if let Err(failure) = trim.look() {
                // What is not given back costs the host room, and the workload nothing.
                crate::kmsg::error(&format!("trim: {failure}"));
                return;
            }
        }
    };
    thread::Builder::new()
        .name("trim".into())
        .spawn(watch)
        .map(drop)
        .context(|| "start the trim thread".into())
}

struct Trim {
    directory: OwnedFd,
    disk: File,
    /// Free bytes, at their lowest since the last time.
    lowest: u64,
}

impl Trim {
    fn new(directory: &str, disk: &str) -> Result<Self> {
        let open = openat(CWD, directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let mut trim = Self {
            directory: open.context(|| format!("open {directory}"))?,
            disk: File::options()
                .write(true)
                .open(disk)
                .context(|| format!("open {disk}"))?,
            lowest: 0,
        };
        trim.lowest = trim.free()?;
        Ok(trim)
    }

    fn free(&self) -> Result<u64> {
        let stat = fstatvfs(&self.directory).context(|| "statfs of the scratch space".into())?;
        Ok(stat.f_bfree * stat.f_frsize)
    }

    fn look(&mut self) -> Result<()> {
        let free = self.free()?;
        self.lowest = self.lowest.min(free);
        if free - self.lowest >= WORTH_IT {
            self.give_back(free - free / 4)?;
            self.lowest = self.free()?;
        }
        Ok(())
    }

    /// Discards up to `bytes` bytes of free blocks.
    fn give_back(&self, bytes: u64) -> Result<()> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            openat(&self.directory, ".", flags, Mode::empty()).context(|| "a file for free blocks".into())?;
        let file = File::from(file);
        for start in (0..bytes).step_by(PIECE as usize) {
            match fallocate(&file, FallocateFlags::empty(), start, PIECE.min(bytes - start)) {
                // The workload was faster.
                Err(rustix::io::Errno::NOSPC) => break,
                result => result.context(|| "take free blocks".into())?,
            }
            for extent in
                sys::extents(&file, start..start + PIECE).context(|| "places of free blocks".into())?
            {
                sys::discard(&self.disk, &extent).context(|| "discard free blocks".into())?;
            }
        }
        Ok(())
    }
}
