//! A reader of EROFS of its own, written from the kernel's description of the format and sharing no code with the
//! writer: uncompressed images with blocks of 4 KiB only. It panics where an image is wrong.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::source::{Content, Item, join_links};

const BLOCK: usize = 4096;

struct Image<'a>(&'a [u8]);

struct Inode {
    number: u64,
    layout: u16,
    mode: u32,
    size: usize,
    union: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    nlink: u32,
    /// Offset and length of the attributes.
    xattrs: (usize, usize),
}

/// Everything in an image, as `source::walk` shows a tree.
pub fn walk(image: &[u8]) -> Vec<Item> {
    let image = Image(image);
    let root = image.superblock();
    let (mut items, mut waiting) = (Vec::new(), vec![(OsString::new(), root, root)]);
    while let Some((path, number, parent)) = waiting.pop() {
        let inode = image.inode(number);
        if inode.mode & 0o170_000 == 0o040_000 {
            let mut subdirectories = 0;
            for (name, child, kind) in image.directory(&inode) {
                match name.as_slice() {
                    b"." => assert_eq!(child, number),
                    b".." => assert_eq!(child, parent),
                    _ => {
                        subdirectories += u32::from(kind == 2);
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push("/");
                        }
                        below.push(OsString::from_vec(name));
                        waiting.push((below, child, number));
                    }
                }
            }
            assert_eq!(inode.nlink, 2 + subdirectories, "links of {path:?}");
        }
        items.push((number, image.item(path, &inode)));
    }
    join_links(items)
}

impl Image<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    /// Checks the superblock; returns the number of the root.
    fn superblock(&self) -> u64 {
        assert!(self.0[..1024].iter().all(|byte| *byte == 0), "boot sector");
        assert_eq!(self.u32(1024), 0xe0f5_e1e2, "magic");
        assert_eq!(self.0[1024 + 12], 12, "block size");
        assert_eq!(self.u32(1024 + 36) as usize * BLOCK, self.0.len(), "blocks");
        assert_eq!(self.u32(1024 + 80), 0, "incompatible features");
        u64::from(self.u16(1024 + 14))
    }

    fn inode(&self, number: u64) -> Inode {
        let at = number as usize * 32;
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "extended");
        let count = usize::from(self.u16(at + 2));
        Inode {
            number,
            layout: format >> 1,
            mode: self.u16(at + 4).into(),
            size: self.u64(at + 8) as usize,
            union: self.u32(at + 16),
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: (self.u64(at + 32) as i64, self.u32(at + 40)),
            nlink: self.u32(at + 44),
            xattrs: (at + 64, if count == 0 { 0 } else { 12 + (count - 1) * 4 }),
        }
    }

    fn data(&self, inode: &Inode) -> Vec<u8> {
        let (at, size) = (inode.union as usize * BLOCK, inode.size);
        match inode.layout {
            0 => self.0[at..at + size].to_vec(),
            2 => {
                let whole = (size - 1) / BLOCK * BLOCK;
                let tail_at = inode.xattrs.0 + inode.xattrs.1;
                let inode_at = inode.number as usize * 32;
                assert_eq!(
                    inode_at / BLOCK,
                    (tail_at + size - whole - 1) / BLOCK,
                    "inode and tail in one block"
                );
                let blocks = if whole == 0 {
                    &[][..]
                } else {
                    &self.0[at..at + whole]
                };
                [blocks, &self.0[tail_at..tail_at + size - whole]].concat()
            }
            layout => panic!("data layout {layout}"),
        }
    }

    /// Names, inode numbers and types, checked to be in order.
    fn directory(&self, inode: &Inode) -> Vec<(Vec<u8>, u64, u8)> {
        let data = self.data(inode);
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK) {
            let block = Image(block);
            let count = usize::from(block.u16(8)) / 12;
            for i in 0..count {
                let from = usize::from(block.u16(i * 12 + 8));
                let to = if i + 1 < count {
                    usize::from(block.u16(i * 12 + 20))
                } else {
                    block.0.len()
                };
                let name = block.0[from..to]
                    .split(|byte| *byte == 0)
                    .next()
                    .expect("a name")
                    .to_vec();
                let (child, kind) = (block.u64(i * 12), block.0[i * 12 + 10]);
                let types = [
                    0, 0o100_000, 0o040_000, 0o020_000, 0o060_000, 0o010_000, 0o140_000, 0o120_000,
                ];
                assert_eq!(self.inode(child).mode & 0o170_000, types[usize::from(kind)]);
                entries.push((name, child, kind));
            }
        }
        assert!(
            entries.is_sorted_by(|a, b| a.0 < b.0),
            "names in order, each once"
        );
        entries
    }

    fn xattrs(&self, inode: &Inode) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (start, len) = inode.xattrs;
        let mut at = start + 12;
        let mut all = Vec::new();
        while at < start + len {
            let (name_len, prefix, value_len) = (
                usize::from(self.0[at]),
                self.0[at + 1],
                usize::from(self.u16(at + 2)),
            );
            let prefix = match prefix {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                other => panic!("prefix {other}"),
            };
            let (name_at, value_at) = (at + 4, at + 4 + name_len);
            let name = [prefix.as_bytes(), &self.0[name_at..value_at]].concat();
            all.push((name, self.0[value_at..value_at + value_len].to_vec()));
            at = (value_at + value_len).next_multiple_of(4);
        }
        all.sort();
        all
    }

    fn item(&self, path: OsString, inode: &Inode) -> Item {
        let (major, minor) = (
            (inode.union >> 8) & 0xfff,
            (inode.union & 0xff) | ((inode.union >> 12) & 0xf_ff00),
        );
        let directory = inode.mode & 0o170_000 == 0o040_000;
        Item {
            path,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            nlink: if directory { 0 } else { inode.nlink.into() },
            same_as: OsString::new(),
            content: match inode.mode & 0o170_000 {
                0o100_000 => Content::File(if inode.size == 0 {
                    Vec::new()
                } else {
                    self.data(inode)
                }),
                0o040_000 => Content::Directory,
                0o120_000 => Content::Link(self.data(inode)),
                0o020_000 | 0o060_000 => Content::Device(major, minor),
                _ => Content::Other,
            },
            xattrs: self.xattrs(inode),
        }
    }
}
