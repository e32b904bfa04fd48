//! Files and directories that the other side has open.

use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Open descriptors by the numbers that the other side has (`fh`).
#[derive(Debug)]
pub struct Opened {
    by_number: HashMap<u64, Open>,
    last: u64,
    most: usize,
}

/// Something open.
#[derive(Debug)]
pub struct Open {
    /// The file or directory.
    pub fd: OwnedFd,
    /// Which of the two: a number for one is none for the other.
    pub directory: bool,
}

impl Opened {
    /// None yet, and at most `most`.
    pub fn new(most: usize) -> Self {
        Self {
            by_number: HashMap::new(),
            last: 0,
            most,
        }
    }

    /// Fails where one more would be too many: asked before something is opened or made.
    pub fn expect_room(&self) -> Result<(), Errno> {
        if self.by_number.len() < self.most {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Gives it a number.
    pub fn put(&mut self, fd: OwnedFd, directory: bool) -> u64 {
        self.last += 1; // 64 bits don't overflow
        self.by_number.insert(self.last, Open { fd, directory });
        self.last
    }

    /// The file of this number.
    pub fn file(&self, number: u64) -> Result<&OwnedFd, Errno> {
        self.get(number, false)
    }

    /// The directory of this number.
    pub fn directory(&self, number: u64) -> Result<&OwnedFd, Errno> {
        self.get(number, true)
    }

    fn get(&self, number: u64, directory: bool) -> Result<&OwnedFd, Errno> {
        let open = self
            .by_number
            .get(&number)
            .filter(|open| open.directory == directory);
        open.map(|open| &open.fd).ok_or(Errno::BADF)
    }

    /// Closes it.
    pub fn close(&mut self, number: u64, directory: bool) -> Result<(), Errno> {
        self.get(number, directory)?;
        self.by_number.remove(&number);
        Ok(())
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.by_number.clear();
    }
}
