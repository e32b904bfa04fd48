//! The pipeline: each byte of the source is read once, and only ciphertext is ever written.
//!
//! ```text
//!             ┌─ thread ────────────────────────────────────────────────────────────┐
//!   next part │ fill 512 KiB from the plan ─► each block: hash, encrypt ─► submit  ─┼─► Writer
//!   ─────────►│  (metadata, or pread)              │                                │    (one thread
//!             │                                    └► hash block ─► encrypt ─► submit ┼─►   at a time)
//!             └───────────────────────────────────────┬─────────────────────────────┘
//!                                           hash of the hash block ─► upper levels ─► header
//! ```
//!
//! Every part has its place from the start, so threads share nothing but a counter and the queue of the writer, and
//! the bytes do not depend on their number. Memory: 1 MiB or a little more for each thread, and 32 bytes for each
//! 512 KiB of image. A part fits in the second-level cache of a core.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use luks::Xts;
use sha2::{Digest, Sha256};

use crate::erofs::Plan;
use crate::tree::{Reader, Tree};
use crate::verity::{self, Geometry, HASHES_PER_BLOCK, Hash, Hasher};
use crate::write::Writer;
use crate::{BLOCK, Error, Layout, Unlock, VolumeKey, luks2, widen};

/// Blocks in one part of the image: their hashes fill a hash block.
const PART_BLOCKS: usize = HASHES_PER_BLOCK;

/// Parts that may wait to be written, beside one for each thread.
const WAITING_PARTS: usize = 4;

/// Longest label in bytes: the EROFS superblock has 16 bytes, the last of them zero.
const LONGEST_LABEL: usize = 15;

/// How to convert.
#[derive(Default)]
pub struct Options<'a> {
    /// Threads to work with; as many as the process may use processors where `None`.
    pub threads: Option<NonZeroUsize>,
    /// Volume name of the file system and label of the LUKS2 header: up to 15 bytes, empty for none.
    pub label: &'a str,
    /// Salt of all hashes; a function of the tree where `None`. With one that nobody can guess, a root hash tells nothing about a tree to
    /// those who have an idea of what might be in it.
    pub salt: Option<[u8; 32]>,
    /// Called from any of the threads after each part.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of file system hashed, encrypted and written.
    pub done: u64,
    /// Bytes of file system in all.
    pub total: u64,
}

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// What opens it, beside the key.
    pub layout: Layout,
    /// Regular files in it.
    pub files: u64,
    /// Length in bytes of those files together.
    pub data_bytes: u64,
    /// Length in bytes of the image.
    pub image_bytes: u64,
}

/// See [`Tree::build`].
pub(crate) fn build(
    tree: &Tree,
    image: &File,
    unlock: &Unlock,
    options: &Options<'_>,
) -> Result<Built, Error> {
    let built = payload(tree, image, unlock.volume_key(), options, Place::Image)?;
    luks2::write(image, unlock, &built.layout, options.label)?;
    Ok(built)
}

/// Where in a file the payload goes.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Into an image of its own, behind the place of the header.
    Image,
    /// From this many bytes on, by itself.
    At(u64),
}

/// See [`Tree::build_payload`] and [`Tree::build_payload_at`].
pub(crate) fn payload(
    tree: &Tree,
    image: &File,
    key: &VolumeKey,
    options: &Options<'_>,
    place: Place,
) -> Result<Built, Error> {
    if options.label.len() > LONGEST_LABEL || options.label.contains('\0') {
        return Err(Error::Label {
            label: options.label.to_owned(),
        });
    }
    let digest = tree.metadata_digest();
    let uuid = uuid(&digest);
    let salt = options
        .salt
        .unwrap_or_else(|| derive(b"cwrun verity salt v1\0", &digest));
    let plan = Plan::new(tree, options.label, uuid)?;
    let mut layout = Layout::new(plan.blocks(), salt, [0; 32], uuid);
    let start = match place {
        Place::Image => {
            // Emptied first: what the file held before must not shine through the holes of the header.
            image
                .set_len(0)
                .and_then(|()| image.set_len(layout.image_bytes()))
                .map_err(failed("set the length of"))?;
            layout.payload_offset
        }
        Place::At(start) => {
            layout.payload_offset = 0;
            start
        }
    };
    let threads = threads(options.threads, plan.blocks());
    let sink = Sink {
        // A hash block follows each part.
        writer: Writer::new(image, 2 * WAITING_PARTS),
        xts: Xts::new(key.as_bytes()),
        start,
    };
    let job = Job {
        tree,
        plan: &plan,
        sink: &sink,
        hasher: Hasher::new(&salt),
        layout: &layout,
        geometry: Geometry::new(plan.blocks()),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        progress: options.progress,
    };
    let hashes = job.run(threads)?;
    let root_hash = job.finish_tree(hashes)?;
    layout.root_hash = root_hash;
    Ok(Built {
        files: tree.files(),
        data_bytes: tree.data_bytes(),
        image_bytes: layout.image_bytes(),
        layout,
    })
}

/// No more threads than parts.
fn threads(asked: Option<NonZeroUsize>, blocks: u64) -> usize {
    let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let parts = usize::try_from(blocks.div_ceil(widen(PART_BLOCKS))).unwrap_or(usize::MAX);
    asked.map_or_else(available, NonZeroUsize::get).min(parts).max(1)
}

fn derive(domain: &[u8], digest: &[u8; 32]) -> [u8; 32] {
    Sha256::new_with_prefix(domain)
        .chain_update(digest)
        .finalize()
        .into()
}

/// A UUID of version 8 (RFC 9562 §5.8: bits of our own making).
fn uuid(digest: &[u8; 32]) -> [u8; 16] {
    let bytes = derive(b"cwrun file system uuid v1\0", digest);
    let mut uuid: [u8; 16] = std::array::from_fn(|i| bytes[i]);
    uuid[6] = 0x80 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    uuid
}

fn failed(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Image { action, source }
}

/// Where plaintext goes in and ciphertext comes out.
struct Sink<'a> {
    writer: Writer<'a>,
    xts: Xts,
    /// Where in the file the payload begins, in bytes.
    start: u64,
}

impl Sink<'_> {
    /// Encrypts whole blocks, which will lie at `block` of the payload, in place.
    fn encrypt(&self, block: u64, data: &mut [u8]) {
        self.xts.encrypt(data, block * widen(BLOCK), BLOCK);
    }

    /// Writes what is encrypted.
    fn write(&self, block: u64, data: Vec<u8>) -> Result<(), Error> {
        self.writer
            .submit(self.start + block * widen(BLOCK), data)
            .map_err(failed("write"))
    }
}

/// A conversion under way.
struct Job<'a> {
    tree: &'a Tree,
    plan: &'a Plan<'a>,
    sink: &'a Sink<'a>,
    hasher: Hasher,
    layout: &'a Layout,
    geometry: Geometry,
    /// The next part that no thread has taken.
    next: AtomicU64,
    /// Bytes done.
    done: AtomicU64,
    /// A thread has failed: the others stop.
    failed: AtomicBool,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// Hashes of one part: of its hash blocks, or, in an image of one block, of that block.
type PartHashes = (u64, Vec<Hash>);

impl Job<'_> {
    /// Converts all parts; returns the hashes of the blocks of level 0, in order.
    fn run(&self, threads: usize) -> Result<Vec<Hash>, Error> {
        let work = || {
            let result = self.parts();
            if result.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            result
        };
        let mut parts = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut parts = work()?;
            for other in others {
                // A panic there is a broken invariant here as well.
                parts.extend(other.join().expect("a conversion thread never panics")?);
            }
            Ok::<_, Error>(parts)
        })?;
        parts.sort_unstable_by_key(|(part, _)| *part);
        Ok(parts.into_iter().flat_map(|(_, hashes)| hashes).collect())
    }

    /// What one thread does.
    fn parts(&self) -> Result<Vec<PartHashes>, Error> {
        let mut reader = Reader::new(self.tree);
        let mut hashes = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            let first = part * widen(PART_BLOCKS);
            let Some(blocks @ 1..) = self.plan.blocks().checked_sub(first) else {
                break;
            };
            let len = usize::try_from(blocks).map_or(PART_BLOCKS, |blocks| blocks.min(PART_BLOCKS)) * BLOCK;
            hashes.push((part, self.part(first, len, &mut reader)?));
            self.report(len);
        }
        Ok(hashes)
    }

    /// Converts `len` bytes from block `first` on.
    fn part<'t>(&'t self, first: u64, len: usize, reader: &mut Reader<'t>) -> Result<Vec<Hash>, Error> {
        let mut buffer = self.sink.writer.buffer();
        buffer.resize(len, 0);
        self.plan.fill(first, &mut buffer, reader)?;
        let mut leaves = Vec::with_capacity(PART_BLOCKS);
        // Two by two: what has been hashed lies in the first-level cache when it is encrypted.
        for (pair, number) in buffer.chunks_mut(2 * BLOCK).zip((first..).step_by(2)) {
            match pair.as_chunks().0 {
                [a, b] => leaves.extend(self.hasher.hash_two([a, b])),
                _ => leaves.push(self.hasher.hash(pair)),
            }
            self.sink.encrypt(number, pair);
        }
        self.sink.write(first, buffer)?;
        match self.geometry.levels.first() {
            None => Ok(leaves),
            Some(level) => self.hash_blocks(level.start + first / widen(HASHES_PER_BLOCK), &leaves),
        }
    }

    /// Writes hash blocks with these hashes from `block` of the tree on; returns the hashes of those.
    fn hash_blocks(&self, block: u64, hashes: &[Hash]) -> Result<Vec<Hash>, Error> {
        let block = self.layout.hash_tree_offset / widen(BLOCK) + block;
        let mut above = Vec::with_capacity(hashes.len().div_ceil(HASHES_PER_BLOCK));
        let mut data = self.sink.writer.buffer();
        data.clear();
        for group in hashes.chunks(HASHES_PER_BLOCK) {
            let block = verity::hash_block(group);
            above.push(self.hasher.hash(&block));
            data.extend_from_slice(&block);
        }
        self.sink.encrypt(block, &mut data);
        self.sink.write(block, data)?;
        Ok(above)
    }

    /// Writes the levels above level 0 and the verity superblock; returns the root hash.
    fn finish_tree(&self, mut hashes: Vec<Hash>) -> Result<Hash, Error> {
        for level in self.geometry.levels.iter().skip(1) {
            hashes = self.hash_blocks(level.start, &hashes)?;
        }
        let Layout {
            uuid,
            salt,
            data_blocks,
            ..
        } = self.layout;
        let mut superblock = verity::superblock(uuid, salt, *data_blocks).to_vec();
        self.sink.encrypt(*data_blocks, &mut superblock);
        self.sink.write(*data_blocks, superblock)?;
        // The top level is one block by construction; without levels there is one data block.
        Ok(hashes[0])
    }

    fn report(&self, len: usize) {
        let done = self.done.fetch_add(widen(len), Ordering::Relaxed) + widen(len);
        if let Some(progress) = self.progress {
            progress(Progress {
                done,
                total: self.plan.blocks() * widen(BLOCK),
            });
        }
    }
}
