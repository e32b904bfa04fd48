//! Decides where everything goes, then produces any part of the image on demand, in any order, from any thread.

use super::encode::{self, Storage, Superblock};
use super::{FIRST_INODE_AT, INODE_LEN, SLOT, xattr};
use crate::tree::{Entry, Kind, ROOT, Reader, Tree};
use crate::{BLOCK, Error, widen};

const BLOCK_LEN: u64 = BLOCK as u64;
const SLOTS_PER_BLOCK: u64 = BLOCK_LEN / SLOT;

/// The layout of one image.
pub(crate) struct Plan<'t> {
    tree: &'t Tree,
    label: String,
    uuid: [u8; 16],
    /// Encoded extended attributes, in the order of [`Tree::xattrs`].
    xattrs: Vec<Vec<u8>>,
    /// Place of each inode, by its index in the tree.
    places: Vec<Place>,
    /// Inodes in the order of their places.
    order: Vec<u32>,
    /// First block of directories.
    directories_at: u64,
    /// For each directory block its first entry and the number of them.
    directory_blocks: Vec<(usize, usize)>,
    /// Data that lies in blocks of its own, in the order of their places.
    extents: Vec<Extent>,
    /// Length of the image in blocks.
    blocks: u32,
}

/// Where an inode and its data lie.
#[derive(Clone, Copy)]
struct Place {
    /// Number of the inode: offset in units of 32 bytes.
    number: u64,
    /// First block of data outside the inode.
    block: u32,
    storage: Storage,
    /// Bytes of data behind the inode.
    inline: u16,
    /// Length of the data, outside and behind the inode.
    size: u64,
    /// Of a directory with inline data: the first entry in there.
    tail: usize,
}

/// The data of one inode.
struct Extent {
    block: u32,
    inode: u32,
}

impl<'t> Plan<'t> {
    /// Lays out `tree`. `label` has at most 15 bytes.
    pub(crate) fn new(tree: &'t Tree, label: &str, uuid: [u8; 16]) -> Result<Self, Error> {
        let mut plan = Self {
            tree,
            label: label.to_owned(),
            uuid,
            xattrs: tree.xattrs.iter().map(xattr::encode).collect(),
            places: Vec::with_capacity(tree.inodes.len()),
            order: Vec::new(),
            directories_at: 0,
            directory_blocks: Vec::new(),
            extents: Vec::new(),
            blocks: 0,
        };
        let metadata_blocks = plan.place_inodes()?;
        plan.directories_at = metadata_blocks;
        plan.place_data(metadata_blocks)?;
        Ok(plan)
    }

    /// Length of the image in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.into()
    }

    /// Gives every inode its slots, the root first; returns how many blocks they take.
    fn place_inodes(&mut self) -> Result<u64, Error> {
        let mut slots = Slots::new();
        for (index, inode) in self.tree.inodes.iter().enumerate() {
            let xattrs = self.xattrs[inode.xattrs as usize].len();
            if xattrs > xattr::LONGEST {
                return Err(Error::XattrTotal {
                    path: self.tree.path(index as u32),
                    size: xattrs,
                });
            }
            let head = INODE_LEN + xattrs;
            let mut place = self.storage(inode.kind, head);
            place.number = slots.take(head + usize::from(place.inline));
            self.places.push(place);
        }
        let mut order: Vec<u32> = (0..self.tree.inodes.len() as u32).collect();
        order.sort_unstable_by_key(|&index| self.place(index).number);
        self.order = order;
        Ok(slots.blocks)
    }

    /// Decides what part of the data goes behind an inode that takes `head` bytes; plans directory blocks.
    fn storage(&mut self, kind: Kind, head: usize) -> Place {
        let room = BLOCK.saturating_sub(head);
        let mut place = Place {
            number: 0,
            block: 0,
            storage: Storage::Plain,
            inline: 0,
            size: 0,
            tail: 0,
        };
        // `len` is at most `room`, less than 4096.
        let mut inline = |len: u64| (place.storage, place.inline) = (Storage::Inline, len as u16);
        match kind {
            Kind::Regular { size } => {
                place.size = size;
                if (1..=widen(room)).contains(&size) {
                    inline(size);
                }
            }
            Kind::Symlink { target } => {
                place.size = target.len();
                if (1..=widen(room)).contains(&target.len()) {
                    inline(target.len());
                }
            }
            Kind::Directory { first, count } => {
                // Relative for now: `place_data` adds where directory blocks start.
                place.block = self.directory_blocks.len() as u32;
                let (last, used) = self.plan_directory(first, count);
                if used <= room {
                    self.directory_blocks.pop();
                    (place.storage, place.inline, place.tail) = (Storage::Inline, used as u16, last);
                }
                let full = self.directory_blocks.len() as u64 - u64::from(place.block);
                place.size = match place.storage {
                    Storage::Inline => full * BLOCK_LEN + widen(used),
                    Storage::Plain => (full - 1) * BLOCK_LEN + widen(used),
                };
            }
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo | Kind::Socket => {}
        }
        place
    }

    /// Cuts a directory into blocks; returns the first entry of the last one and the bytes used in it.
    fn plan_directory(&mut self, mut first: usize, count: usize) -> (usize, usize) {
        let end = first + count;
        loop {
            let entries: &[Entry] = &self.tree.entries[first..end];
            let lengths = entries.iter().map(|entry| self.tree.name(*entry).len());
            let (fit, used) = encode::directory_block(lengths);
            self.directory_blocks.push((first, fit));
            if first + fit == end {
                return (first, used);
            }
            first += fit;
        }
    }

    /// Gives blocks to all data that is not inline: directories, then files in the order of their inodes.
    fn place_data(&mut self, metadata_blocks: u64) -> Result<(), Error> {
        let mut next = metadata_blocks + widen(self.directory_blocks.len());
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.size == u64::from(place.inline) {
                place.block = 0; // nothing outside the inode
            } else if let Kind::Directory { .. } = self.tree.inodes[index].kind {
                // Within `next`, which is checked below.
                place.block = place.block.wrapping_add(metadata_blocks as u32);
            } else {
                place.block = next as u32;
                self.extents.push(Extent {
                    block: next as u32,
                    inode: index as u32,
                });
                next = next.saturating_add(place.size.div_ceil(BLOCK_LEN));
            }
        }
        self.blocks = u32::try_from(next).map_err(|_| Error::TooLarge {
            path: self.tree.root_path().to_owned(),
            blocks: next,
        })?;
        Ok(())
    }

    fn place(&self, inode: u32) -> &Place {
        &self.places[inode as usize]
    }

    /// Length in bytes of an inode with all that lies behind it.
    fn extent_of_inode(&self, inode: u32) -> usize {
        let xattrs = &self.xattrs[self.tree.at(inode).xattrs as usize];
        INODE_LEN + xattrs.len() + usize::from(self.place(inode).inline)
    }

    /// Produces the image from block `first` on into `buffer`, which is of whole blocks. Whatever it held is overwritten.
    pub(crate) fn fill(&self, first: u64, buffer: &mut [u8], reader: &mut Reader<'t>) -> Result<(), Error> {
        let end = first + widen(buffer.len() / BLOCK);
        let files_at = self.directories_at + widen(self.directory_blocks.len());
        let metadata = (files_at.clamp(first, end) - first) as usize * BLOCK;
        buffer[..metadata].fill(0);
        if first < self.directories_at {
            self.fill_inodes(first * BLOCK_LEN, buffer, reader)?;
        }
        for number in first.max(self.directories_at)..end.min(files_at) {
            let (entry, count) = self.directory_blocks[(number - self.directories_at) as usize];
            let at = (number - first) as usize * BLOCK;
            encode::directory(
                self.tree,
                entry,
                count,
                |inode| self.place(inode).number,
                &mut buffer[at..at + BLOCK],
            );
        }
        if end > files_at {
            self.fill_files(first * BLOCK_LEN, metadata, buffer, reader)?;
        }
        if first == 0 {
            let superblock = Superblock {
                root: self.place(ROOT).number,
                inodes: widen(self.places.len()),
                blocks: self.blocks,
                uuid: &self.uuid,
                label: &self.label,
            };
            encode::superblock(buffer, &superblock);
        }
        Ok(())
    }

    /// The inodes that lie, at least in part, in the bytes from `start` on.
    fn fill_inodes(&self, start: u64, buffer: &mut [u8], reader: &mut Reader<'t>) -> Result<(), Error> {
        let end = start + widen(buffer.len());
        // One inode with long attributes may reach into this part from the one before.
        let next = self
            .order
            .partition_point(|&inode| self.place(inode).number * SLOT < start);
        let mut bytes = Vec::new();
        for &inode in &self.order[next.saturating_sub(1)..] {
            let at = self.place(inode).number * SLOT;
            if at >= end {
                break;
            }
            if at + widen(self.extent_of_inode(inode)) > start {
                bytes.clear();
                self.encode_inode(inode, &mut bytes, reader)?;
                overlay(start, buffer, at, &bytes);
            }
        }
        Ok(())
    }

    /// An inode with its attributes and inline data.
    fn encode_inode(&self, index: u32, bytes: &mut Vec<u8>, reader: &mut Reader<'t>) -> Result<(), Error> {
        let (inode, place) = (self.tree.at(index), self.place(index));
        let xattrs = &self.xattrs[inode.xattrs as usize];
        let number = index.wrapping_add(1);
        bytes.extend(encode::inode(
            inode,
            place.size,
            place.storage,
            place.block,
            xattrs.len(),
            number,
        ));
        bytes.extend_from_slice(xattrs);
        let data_at = bytes.len();
        bytes.resize(data_at + usize::from(place.inline), 0);
        let data = &mut bytes[data_at..];
        match inode.kind {
            _ if data.is_empty() => {}
            Kind::Regular { .. } => reader.read(index, 0, data)?,
            Kind::Symlink { target } => data.copy_from_slice(self.tree.target(target)),
            Kind::Directory { first, count } => {
                let count = first + count - place.tail;
                encode::directory(
                    self.tree,
                    place.tail,
                    count,
                    |inode| self.place(inode).number,
                    data,
                );
            }
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo | Kind::Socket => {}
        }
        Ok(())
    }

    /// The data that lies, at least in part, in the bytes from `start` on, and zeros behind each file. `clean` bytes
    /// belong to what is in front of all files.
    fn fill_files(
        &self,
        start: u64,
        clean: usize,
        buffer: &mut [u8],
        reader: &mut Reader<'t>,
    ) -> Result<(), Error> {
        let end = start + widen(buffer.len());
        let next = self
            .extents
            .partition_point(|extent| u64::from(extent.block) * BLOCK_LEN <= start);
        let mut filled = clean;
        for extent in &self.extents[next.saturating_sub(1)..] {
            let at = u64::from(extent.block) * BLOCK_LEN;
            let (from, to) = (at.max(start), (at + self.place(extent.inode).size).min(end));
            if at >= end {
                break;
            }
            if from >= to {
                continue;
            }
            let (first, last) = ((from - start) as usize, (to - start) as usize);
            buffer[filled..first].fill(0);
            filled = last;
            let part = &mut buffer[first..last];
            match self.tree.at(extent.inode).kind {
                Kind::Symlink { target } => overlay(from, part, at, self.tree.target(target)),
                _ => reader.read(extent.inode, from - at, part)?,
            }
        }
        buffer[filled..].fill(0);
        Ok(())
    }
}

/// Copies the part of `bytes`, which lie at `at`, that falls into `buffer`, which lies at `start`.
fn overlay(start: u64, buffer: &mut [u8], at: u64, bytes: &[u8]) {
    let skip = start.saturating_sub(at) as usize;
    let to = at.saturating_sub(start) as usize;
    let (Some(bytes), Some(buffer)) = (bytes.get(skip..), buffer.get_mut(to..)) else {
        return;
    };
    let len = bytes.len().min(buffer.len());
    buffer[..len].copy_from_slice(&bytes[..len]);
}

/// Hands out slots for inodes: best fit among the gaps of all blocks begun, else a new block.
struct Slots {
    /// Blocks with exactly `i` free slots at their end, by `i`.
    gaps: Vec<Vec<u64>>,
    /// Bit `i` is set where `gaps[i]` has blocks.
    used: u128,
    /// Blocks begun.
    blocks: u64,
}

impl Slots {
    fn new() -> Self {
        let mut slots = Self {
            gaps: vec![Vec::new(); SLOTS_PER_BLOCK as usize],
            used: 0,
            blocks: 1,
        };
        slots.put_gap(0, SLOTS_PER_BLOCK - FIRST_INODE_AT / SLOT);
        slots
    }

    /// The first of enough slots for `len` bytes. Up to a block, all lie in one block.
    fn take(&mut self, len: usize) -> u64 {
        let need = widen(len).div_ceil(SLOT);
        let fitting = if need < SLOTS_PER_BLOCK {
            self.used >> need << need
        } else {
            0
        };
        if fitting != 0 {
            let free = u64::from(fitting.trailing_zeros());
            let gap = &mut self.gaps[free as usize];
            let block = gap.pop().expect("the bit says that there is one");
            if gap.is_empty() {
                self.used &= !(1 << free);
            }
            self.put_gap(block, free - need);
            return (block + 1) * SLOTS_PER_BLOCK - free;
        }
        let first = self.blocks;
        self.blocks += need.div_ceil(SLOTS_PER_BLOCK);
        self.put_gap(self.blocks - 1, (self.blocks - first) * SLOTS_PER_BLOCK - need);
        first * SLOTS_PER_BLOCK
    }

    fn put_gap(&mut self, block: u64, free: u64) {
        if free >= INODE_LEN as u64 / SLOT {
            self.gaps[free as usize].push(block);
            self.used |= 1 << free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_gaps() {
        let mut slots = Slots::new();
        assert_eq!(slots.take(64), 36, "behind the superblock");
        assert_eq!(slots.take(4096), 128, "a block of its own");
        assert_eq!(slots.take(90 * 32), 38, "exactly what is left of block 0");
        assert_eq!(slots.take(3000), 2 * 128);
        assert_eq!(slots.take(2000), 3 * 128);
        assert_eq!(slots.take(1000), 2 * 128 + 94, "the smaller gap that fits");
        assert_eq!(slots.take(5000), 4 * 128, "more than a block");
        assert_eq!(slots.take(64), 2 * 128 + 126, "exactly what is left of block 2");
        assert_eq!(
            slots.take(64),
            3 * 128 + 63,
            "best fit: 65 slots in block 3, 99 in block 5"
        );
        assert_eq!(slots.blocks, 6);
    }

    #[test]
    fn overlays_are_cut_to_the_buffer() {
        let mut buffer = [0; 4];
        overlay(10, &mut buffer, 8, &[1, 2, 3]);
        assert_eq!(buffer, [3, 0, 0, 0]);
        overlay(10, &mut buffer, 12, &[7, 8, 9]);
        assert_eq!(buffer, [3, 0, 7, 8]);
        overlay(10, &mut buffer, 20, &[5]);
        overlay(10, &mut buffer, 1, &[5]);
        assert_eq!(buffer, [3, 0, 7, 8]);
    }
}
