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
//! While that file has them, nobody else can. It takes piece by piece, looks each time at what is left, and leaves a sixteenth
//! alone, or [`LEFT`], so that the workload does not meet a full disk. Which blocks are left is the file system's choice, so the host
//! may keep that much, and as much again, or [`WORTH_IT`], until the next time.
//!
//! How much the host has at most is known without asking it: what was in use after the last time, and all that was written since.
//! What is free comes and goes between two looks; what was written does not.

use crate::failure::{Context as _, Failure, Result};
use crate::sys;
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, StatVfs, fallocate, fstatvfs, openat};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How often a look is taken, at most.
const INTERVAL: Duration = Duration::from_secs(10);
/// Looks take at most one part in so many of the time.
const SHARE: u32 = 20;
/// Bytes that the host may have too much, or a sixteenth of what is free.
const WORTH_IT: u64 = 64 << 20;
/// Bytes taken at a time.
const PIECE: u64 = 64 << 20;
/// Bytes that stay free for the workload, or a quarter if fewer are free.
const LEFT: u64 = 128 << 20;
/// Bytes in a sector of the kernel's statistics.
const SECTOR: u64 = 512;

/// Watches the file system on `directory` for as long as the guest runs. It is on `device`, whose content lies on `disk` at the same
/// offsets.
pub fn watch(directory: &'static str, device: &str, disk: &str) -> Result<()> {
    let mut trim = Trim::new(directory, device, disk)?;
    let watch = move || {
        let mut pause = INTERVAL;
        loop {
            thread::sleep(pause);
            let begun = Instant::now();
            if let Err(failure) = trim.look() {
                // What is not given back costs the host room, and the workload nothing.
                crate::kmsg::error(&format!("trim: {failure}"));
                return;
            }
            pause = INTERVAL.max(begun.elapsed() * SHARE);
        }
    };
    thread::Builder::new()
        .name("trim".into())
        .spawn(watch)
        .map(drop)
        .context(|| "start the trim thread".into())
}

/// Bytes of the file system, but for the free ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    used: u64,
    /// Written to its device since that exists.
    written: u64,
}

impl Usage {
    /// What the host has at most beyond what is in use, if it had no more than that at `then`.
    fn excess_since(&self, then: &Usage) -> u64 {
        let written = self.written.saturating_sub(then.written);
        then.used.saturating_add(written).saturating_sub(self.used)
    }
}

/// The next piece to take of `free` bytes, if as much stays as has to when `before` the first there were so many.
fn piece(free: u64, before: u64) -> Option<u64> {
    let left = LEFT.max(before / 16).min(before / 4);
    let piece = free.saturating_sub(left).min(PIECE);
    (piece >= PIECE / 16).then_some(piece)
}

struct Trim {
    directory: OwnedFd,
    disk: File,
    /// `/sys/block/…/stat` of the device.
    statistics: PathBuf,
    /// After the last time.
    then: Usage,
}

impl Trim {
    fn new(directory: &str, device: &str, disk: &str) -> Result<Self> {
        let open = openat(CWD, directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let name = device.trim_start_matches("/dev/");
        let mut trim = Self {
            directory: open.context(|| format!("open {directory}"))?,
            disk: File::options()
                .write(true)
                .open(disk)
                .context(|| format!("open {disk}"))?,
            statistics: PathBuf::from(format!("/sys/block/{name}/stat")),
            then: Usage { used: 0, written: 0 },
        };
        trim.then = trim.usage()?;
        Ok(trim)
    }

    fn blocks(&self) -> Result<StatVfs> {
        fstatvfs(&self.directory).context(|| "statfs of the scratch space".into())
    }

    fn free(&self) -> Result<u64> {
        self.blocks().map(|stat| stat.f_bfree * stat.f_frsize)
    }

    fn usage(&self) -> Result<Usage> {
        let stat = self.blocks()?;
        let what = || self.statistics.display().to_string();
        let text = fs::read_to_string(&self.statistics).context(what)?;
        let sectors = sectors_written(&text)
            .ok_or_else(|| Failure::other(format!("{} does not say what was written", what())))?;
        Ok(Usage {
            used: stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize,
            written: sectors.saturating_mul(SECTOR),
        })
    }

    fn look(&mut self) -> Result<()> {
        let (now, free) = (self.usage()?, self.free()?);
        if now.excess_since(&self.then) >= WORTH_IT.max(free / 16) {
            self.give_back(free)?;
            // What was written meanwhile counts the next time.
            self.then = Usage {
                written: now.written,
                ..self.usage()?
            };
        }
        Ok(())
    }

    /// Discards free blocks, of which there are `before` bytes.
    fn give_back(&self, before: u64) -> Result<()> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            openat(&self.directory, ".", flags, Mode::empty()).context(|| "a file for free blocks".into())?;
        let file = File::from(file);
        let mut start = 0;
        while let Some(piece) = piece(self.free()?, before) {
            match fallocate(&file, FallocateFlags::empty(), start, piece) {
                // The workload was faster.
                Err(rustix::io::Errno::NOSPC) => break,
                result => result.context(|| "take free blocks".into())?,
            }
            let places = sys::extents(&file, start..start + piece);
            for extent in places.context(|| "places of free blocks".into())? {
                sys::discard(&self.disk, &extent).context(|| "discard free blocks".into())?;
            }
            start += piece;
        }
        Ok(())
    }
}

/// The seventh number of a block device's statistics (Documentation/block/stat.rst).
fn sectors_written(statistics: &str) -> Option<u64> {
    statistics.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn usage(used: u64, written: u64) -> Usage {
        Usage {
            used: used * MIB,
            written: written * MIB,
        }
    }

    #[test]
    fn what_the_host_may_have_too_much() {
        let then = usage(10, 50);
        assert_eq!(usage(410, 450).excess_since(&then), 0, "written and kept");
        assert_eq!(
            usage(10, 450).excess_since(&then),
            400 * MIB,
            "and deleted, seen or not"
        );
        assert_eq!(
            usage(1, 50).excess_since(&then),
            9 * MIB,
            "what was there before, deleted"
        );
        assert_eq!(usage(110, 50).excess_since(&then), 0, "not written yet");
        assert_eq!(usage(20, 0).excess_since(&then), 0, "a counter that goes back");
    }

    #[test]
    fn pieces_leave_the_workload_its_part() {
        for (free, left) in [
            (4000, 250),
            (64_000, 4000),
            (1000, 128),
            (400, 100),
            (80, 20),
            (3, 3),
            (0, 0),
        ] {
            let mut now = free * MIB;
            let mut pieces = 0;
            while let Some(piece) = piece(now, free * MIB) {
                assert!(piece <= PIECE);
                now -= piece;
                pieces += 1;
            }
            assert!(
                (left * MIB..left * MIB + PIECE / 16).contains(&now),
                "{free}: {now}"
            );
            assert!(pieces <= free / 64 + 1, "{pieces}");
        }
        // The workload takes what is left, meanwhile.
        assert_eq!(piece(100 * MIB, 4000 * MIB), None);
    }

    #[test]
    fn statistics_are_those_of_the_kernel() {
        let line = "    1030      201    52714      312      877       40   819200     9120        0     2290     9433        0        0        0        0        0        0\n";
        assert_eq!(sectors_written(line), Some(819_200));
        assert_eq!(sectors_written("1 2 3 4 5 6 x"), None);
        assert_eq!(sectors_written("1 2 3"), None);
    }
}
