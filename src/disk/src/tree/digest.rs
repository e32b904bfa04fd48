//! Two digests of a scanned tree: what an image is made of, and what proves that nothing changed since.
//!
//! Each is a SHA-256 over a prefix-free sequence: a domain, then for every inode fields of fixed length, and
//! variable ones behind their length.

use sha2::{Digest, Sha256};

use super::{Inode, Kind, Origin, Source, Time, Tree};
use crate::FORMAT_VERSION;

/// See [`Tree::metadata_digest`]: nothing that a faithful copy of the tree would change.
pub(super) fn metadata(tree: &Tree) -> [u8; 32] {
    let mut digest = Stream(Sha256::new_with_prefix(b"cwrun tree metadata v1\0"));
    digest.number(u64::from(FORMAT_VERSION));
    digest.number(tree.xattrs.len() as u64);
    for set in &tree.xattrs {
        digest.number(set.len() as u64);
        for (name, value) in set {
            digest.bytes(name);
            digest.bytes(value);
        }
    }
    digest.number(tree.inodes.len() as u64);
    for inode in &tree.inodes {
        digest.inode(tree, inode);
    }
    digest.0.finalize().into()
}

/// See [`Tree::identity`].
pub(super) fn identity(tree: &Tree) -> [u8; 32] {
    let mut digest = Stream(Sha256::new_with_prefix(b"cwrun tree identity v1\0"));
    digest.0.update(metadata(tree));
    if let Source::Archives(archives) = &tree.source {
        for archive in archives {
            digest.0.update(archive.digest);
        }
    }
    // Everything else is in the metadata as a whole; only of these the data is not.
    for inode in tree
        .inodes
        .iter()
        .filter(|inode| matches!(inode.kind, Kind::Regular { .. }))
    {
        match inode.origin {
            Origin::File {
                device,
                number,
                ctime,
            } => {
                digest.number(u64::from(device));
                digest.number(number);
                digest.time(ctime);
            }
            Origin::Member { archive, offset } => {
                digest.number(u64::from(archive));
                digest.number(offset);
            }
        }
    }
    digest.0.finalize().into()
}

struct Stream(Sha256);

impl Stream {
    fn number(&mut self, value: u64) {
        self.0.update(value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn time(&mut self, time: Time) {
        self.0.update(time.seconds.to_le_bytes());
        self.number(u64::from(time.nanoseconds));
    }

    fn inode(&mut self, tree: &Tree, inode: &Inode) {
        self.number(u64::from(inode.mode));
        self.number(u64::from(inode.uid) << 32 | u64::from(inode.gid));
        self.number(u64::from(inode.nlink) << 32 | u64::from(inode.xattrs));
        self.time(inode.mtime);
        // The type is part of the mode, so what follows can't be taken for something else.
        match inode.kind {
            Kind::Regular { size } => self.number(size),
            Kind::Directory { first, count } => {
                self.number(count as u64);
                for &entry in &tree.entries[first..first + count] {
                    self.bytes(tree.name(entry));
                    self.number(u64::from(entry.inode));
                }
            }
            Kind::Symlink { target } => self.bytes(tree.target(target)),
            Kind::Character { major, minor } | Kind::Block { major, minor } => {
                self.number(u64::from(major) << 32 | u64::from(minor));
            }
            Kind::Fifo | Kind::Socket => {}
        }
    }
}
