//! What the other side's numbers of inodes stand for.
//!
//! A descriptor with `O_PATH` names an inode for as long as it is open, whatever it is called by then, and keeps its number on the host
//! from being used again: so device, inode number and mount tell whether something is known already.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// The root's number, FUSE_ROOT_ID.
pub const ROOT: u64 = 1;

/// What makes two inodes the same one: two mounts of one file system may differ in what they allow.
type Identity = (u32, u32, u64, u64);

/// An inode that the other side knows.
#[derive(Debug)]
pub struct Inode {
    /// Names it (`O_PATH`).
    pub fd: OwnedFd,
    /// Its type, the part of the mode that never changes.
    pub kind: rustix::fs::FileType,
    identity: Identity,
    /// How often the other side has been told of it.
    references: u64,
}

/// All of them, by the numbers that the other side has.
#[derive(Debug)]
pub struct Inodes {
    by_number: HashMap<u64, Inode>,
    by_identity: HashMap<Identity, u64>,
    last: u64,
    most: usize,
    /// Devices seen. Of the first, inodes keep their numbers.
    devices: Vec<(u32, u32)>,
}

impl Inodes {
    /// Begins with the root. There will be at most `most`.
    pub fn new(root: OwnedFd, stat: &Statx, most: usize) -> Self {
        let mut inodes = Self {
            by_number: HashMap::new(),
            by_identity: HashMap::new(),
            last: ROOT,
            most,
            devices: vec![(stat.stx_dev_major, stat.stx_dev_minor)],
        };
        inodes.put(ROOT, root, stat);
        inodes
    }

    /// The inode of this number.
    pub fn get(&self, number: u64) -> Result<&Inode, Errno> {
        // The number was given out once, or never: to the other side both are a handle that is not valid any more.
        self.by_number.get(&number).ok_or(Errno::STALE)
    }

    /// The number of an inode that the other side is about to be told of.
    pub fn told(&mut self, fd: OwnedFd, stat: &Statx) -> Result<u64, Errno> {
        if let Some(&number) = self.by_identity.get(&identity(stat)) {
            if let Some(inode) = self.by_number.get_mut(&number) {
                inode.references = inode.references.saturating_add(1);
            }
            return Ok(number);
        }
        if self.by_number.len() >= self.most {
            return Err(Errno::NFILE);
        }
        self.last += 1; // 64 bits don't overflow
        self.put(self.last, fd, stat);
        Ok(self.last)
    }

    fn put(&mut self, number: u64, fd: OwnedFd, stat: &Statx) {
        let inode = Inode {
            fd,
            kind: rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()),
            identity: identity(stat),
            references: 1,
        };
        self.by_identity.insert(inode.identity, number);
        self.by_number.insert(number, inode);
    }

    /// The other side has forgotten `count` of the times that it was told. The root stays.
    pub fn forget(&mut self, number: u64, count: u64) {
        let Some(inode) = self.by_number.get_mut(&number) else {
            return;
        };
        inode.references = inode.references.saturating_sub(count);
        if inode.references == 0 && number != ROOT {
            let identity = inode.identity;
            self.by_number.remove(&number);
            self.by_identity.remove(&identity);
        }
    }

    /// Forgets all but the root.
    pub fn clear(&mut self) {
        self.by_number.retain(|number, _| *number == ROOT);
        self.by_identity.retain(|_, number| *number == ROOT);
    }

    /// Has inodes of this one's device keep their numbers, in place of those of the root's.
    pub fn keep_numbers_of(&mut self, stat: &Statx) {
        self.devices.insert(0, (stat.stx_dev_major, stat.stx_dev_minor));
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// The number that the other side shows for an inode of the host: the host's own, made different where another file system is mounted
    /// below the root, since all is one file system there.
    pub fn shown(&mut self, stat: &Statx) -> u64 {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let index = match self.devices.iter().position(|known| *known == device) {
            Some(index) => index,
            None if self.devices.len() < 255 => {
                self.devices.push(device);
                self.devices.len() - 1
            }
            None => 255,
        };
        // At most 255.
        stat.stx_ino ^ ((index as u64) << 56)
    }
}

fn identity(stat: &Statx) -> Identity {
    (
        stat.stx_dev_major,
        stat.stx_dev_minor,
        stat.stx_ino,
        stat.stx_mnt_id,
    )
}
