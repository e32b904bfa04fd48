//! Reads a finished image back: decrypts the whole payload and checks every block of it.
//!
//! Level 0 and the levels above are recomputed from the data and compared with what the image holds, up to the root
//! hash. Any flipped bit in the payload, in data, superblock, tree or padding, is found.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use luks::Xts;

use crate::verity::{self, Geometry, HASHES_PER_BLOCK, Hash, Hasher};
use crate::{BLOCK, Error, Layout, VolumeKey, widen};

/// Checks the payload of `image` against `layout`, which comes from a trusted source. The LUKS2 header is not looked
/// at.
///
/// # Errors
/// [`Error::Layout`], [`Error::Length`], [`Error::BadBlock`] with the first damaged block (with a wrong key: block 0),
/// [`Error::Image`].
pub fn verify(image: &File, key: &VolumeKey, layout: &Layout) -> Result<(), Error> {
    layout.check()?;
    let actual = image
        .metadata()
        .map_err(|source| Error::Image {
            action: "examine",
            source,
        })?
        .len();
    if actual != layout.image_bytes() {
        return Err(Error::Length {
            expected: layout.image_bytes(),
            actual,
        });
    }
    let payload = Payload {
        image,
        xts: Xts::new(key.as_bytes()),
        layout,
        hasher: Hasher::new(&layout.salt),
    };
    payload.superblock()?;
    payload.tree()
}

struct Payload<'a> {
    image: &'a File,
    xts: Xts,
    layout: &'a Layout,
    hasher: Hasher,
}

impl Payload<'_> {
    /// Decrypts blocks of the payload from `block` on.
    fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let offset = block * widen(BLOCK);
        self.image
            .read_exact_at(buffer, self.layout.payload_offset + offset)
            .map_err(|source| {
                let action = if source.kind() == io::ErrorKind::UnexpectedEof {
                    "read to the end of"
                } else {
                    "read"
                };
                Error::Image { action, source }
            })?;
        self.xts.decrypt(buffer, offset, BLOCK);
        Ok(())
    }

    fn superblock(&self) -> Result<(), Error> {
        let Layout {
            uuid,
            salt,
            data_blocks,
            ..
        } = self.layout;
        let mut block = [0; BLOCK];
        self.read(*data_blocks, &mut block)?;
        if block == verity::superblock(uuid, salt, *data_blocks) {
            return Ok(());
        }
        Err(Error::BadBlock {
            part: "verity superblock",
            block: *data_blocks,
        })
    }

    /// From the top down, so that each block of hashes is known to be right when what lies below is checked with it.
    fn tree(&self) -> Result<(), Error> {
        let start = self.layout.hash_tree_offset / widen(BLOCK);
        let geometry = Geometry::new(self.layout.data_blocks);
        let mut buffer = vec![0; HASHES_PER_BLOCK * BLOCK];
        let Some((leaves, above)) = geometry.levels.split_first() else {
            return self.data(0, &[self.layout.root_hash], &mut buffer);
        };
        let mut expected = vec![self.layout.root_hash];
        for level in above.iter().rev() {
            let mut held = Vec::new();
            for (number, hash) in (start + level.start..).zip(&expected).take(level.blocks as usize) {
                held.extend(self.hashes(number, hash)?);
            }
            expected = held;
        }
        for (number, hash) in (0..leaves.blocks).zip(&expected) {
            let hashes = self.hashes(start + leaves.start + number, hash)?;
            self.data(number * widen(HASHES_PER_BLOCK), &hashes, &mut buffer)?;
        }
        Ok(())
    }

    /// The hashes in one block of the tree, if it is the one with the hash `expected`.
    fn hashes(&self, block: u64, expected: &Hash) -> Result<[Hash; HASHES_PER_BLOCK], Error> {
        let mut content = [0; BLOCK];
        self.read(block, &mut content)?;
        if self.hasher.hash(&content) != *expected {
            return Err(Error::BadBlock {
                part: "hash tree",
                block,
            });
        }
        let (hashes, _) = content.as_chunks();
        Ok(std::array::from_fn(|i| hashes[i]))
    }

    /// Checks data blocks from `first` on, as many as there are hashes, or up to the last.
    fn data(&self, first: u64, expected: &[Hash], buffer: &mut [u8]) -> Result<(), Error> {
        let blocks = (self.layout.data_blocks - first).min(widen(expected.len())) as usize;
        let part = &mut buffer[..blocks * BLOCK];
        self.read(first, part)?;
        let blocks = (first..).zip(part.chunks_exact(BLOCK));
        match blocks
            .zip(expected)
            .find(|((_, block), expected)| self.hasher.hash(block) != **expected)
        {
            None => Ok(()),
            Some(((block, _), _)) => Err(Error::BadBlock { part: "data", block }),
        }
    }
}
