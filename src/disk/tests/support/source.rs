//! Trees to convert, and what a plain walk with the standard library sees in a tree.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

/// All that can be seen of one name in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Relative to the top; empty for the top itself.
    pub path: OsString,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// 0 for directories, where file systems differ.
    pub nlink: u64,
    /// The first path, in order, of the same file.
    pub same_as: OsString,
    pub content: Content,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    File(Vec<u8>),
    Directory,
    Link(Vec<u8>),
    Device(u32, u32),
    Other,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(data) => write!(f, "File({} bytes)", data.len()),
            Self::Directory => f.write_str("Directory"),
            Self::Link(target) => write!(f, "Link({})", target.escape_ascii()),
            Self::Device(major, minor) => write!(f, "Device({major}, {minor})"),
            Self::Other => f.write_str("Other"),
        }
    }
}

/// Everything below and including `top`, sorted by path.
pub fn walk(top: &Path) -> Vec<Item> {
    let (mut items, mut waiting) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(path) = waiting.pop() {
        let full = top.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap_or_else(|error| panic!("{full:?}: {error}"));
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            let names = fs::read_dir(&full).expect("a directory");
            waiting.extend(names.map(|name| path.join(name.expect("an entry").file_name())));
            Content::Directory
        } else if kind.is_file() {
            Content::File(fs::read(&full).unwrap_or_else(|error| panic!("{full:?}: {error}")))
        } else if kind.is_symlink() {
            Content::Link(fs::read_link(&full).expect("a link").into_os_string().into_vec())
        } else if kind.is_char_device() || kind.is_block_device() {
            Content::Device(
                rustix::fs::major(metadata.rdev()),
                rustix::fs::minor(metadata.rdev()),
            )
        } else {
            Content::Other
        };
        let item = Item {
            path: path.into_os_string(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            nlink: if kind.is_dir() { 0 } else { metadata.nlink() },
            same_as: OsString::new(),
            content,
            xattrs: xattrs(&full),
        };
        items.push((metadata.ino(), item));
    }
    join_links(items)
}

/// Sorts by path and notes which names are of one file, given their inode numbers.
pub fn join_links(mut items: Vec<(u64, Item)>) -> Vec<Item> {
    items.sort_by(|(_, a), (_, b)| a.path.as_bytes().cmp(b.path.as_bytes()));
    let mut first = HashMap::new();
    let name = |(inode, mut item): (u64, Item)| {
        item.same_as = first.entry(inode).or_insert_with(|| item.path.clone()).clone();
        item
    };
    items.into_iter().map(name).collect()
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("names of attributes");
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
            (name.to_vec(), value[..len].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// Compares two walks and names the first difference.
pub fn assert_same(left: &[Item], right: &[Item]) {
    for (left, right) in left.iter().zip(right) {
        assert!(left == right, "{left:#?}\n{right:#?}");
    }
    assert_eq!(left.len(), right.len());
}

/// One step in the making of a random tree.
#[derive(Clone, Debug)]
pub struct Step {
    pub kind: u8,
    /// Which of the directories so far (or files, for a link), modulo their number.
    pub target: usize,
    pub name: Vec<u8>,
    pub size: usize,
    pub mode: u16,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub xattrs: Vec<(u8, Vec<u8>, Vec<u8>)>,
}

/// A name that a Linux file system takes.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not allowed in a name", |byte| *byte != 0 && *byte != b'/');
    let any = prop_oneof![
        4 => prop::collection::vec(byte.clone(), 1..20),
        1 => prop::collection::vec(byte, 200..=255),
        2 => "[-+.a-c]{1,3}".prop_map(String::into_bytes),
    ];
    any.prop_filter("taken by the directory itself", |name| {
        name != b"." && name != b".."
    })
}

/// Random steps; sizes lie around the limits of blocks.
pub fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![
        Just(0),
        1..5000usize,
        4000..4200usize,
        8100..8300usize,
        1_040_000..1_060_000usize
    ];
    let xattr = (
        0..4u8,
        "[a-z.]{1,30}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..200),
    );
    let attributes = (
        any::<u16>(),
        any::<(u16, u16)>(),
        -5_000_000_000..5_000_000_000i64,
        0..1_000_000_000u32,
    );
    let step = (
        0..12u8,
        any::<usize>(),
        name(),
        size,
        attributes,
        prop::collection::vec(xattr, 0..3),
    );
    let step = step.prop_map(
        |(kind, target, name, size, (mode, owner, seconds, nanoseconds), xattrs)| Step {
            kind,
            target,
            name,
            size,
            mode: mode & 0o7777,
            owner: (owner.0.into(), owner.1.into()),
            mtime: (seconds, nanoseconds),
            xattrs,
        },
    );
    prop::collection::vec(step, 0..most)
}

/// Makes the tree that `steps` describe in the empty directory `top`. Steps that collide are left out.
pub fn make(top: &Path, steps: &[Step]) {
    let (mut directories, mut files, mut made) = (vec![top.to_owned()], Vec::new(), Vec::new());
    for step in steps {
        let path = directories[step.target % directories.len()].join(OsStr::from_bytes(&step.name));
        // Paths beyond PATH_MAX can't be walked by name; those have a test of their own.
        if path.as_os_str().len() > 3000 || fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match step.kind {
            0..=2 => {
                fs::create_dir(&path).expect("a directory");
                directories.push(path.clone());
            }
            3..=6 => {
                File::create(&path)
                    .and_then(|mut file| file.write_all(&data(step.size)))
                    .expect("a file");
                files.push(path.clone());
            }
            7 => {
                let target = OsString::from_vec(vec![b'x'; 1 + step.size % 4000]);
                std::os::unix::fs::symlink(target, &path).expect("a link");
            }
            8 if !files.is_empty() => {
                fs::hard_link(&files[step.target % files.len()], &path).expect("a hard link");
                continue;
            }
            9 => node(&path, FileType::Fifo, 0, 0),
            10 => node(
                &path,
                FileType::CharacterDevice,
                (step.size % 4096) as u32,
                step.target as u32 & 0xf_ffff,
            ),
            11 => node(
                &path,
                FileType::BlockDevice,
                (step.size % 4096) as u32,
                step.target as u32 & 0xf_ffff,
            ),
            _ => node(&path, FileType::Socket, 0, 0),
        }
        made.push((path, step));
    }
    for (path, step) in made.iter().rev() {
        attributes(path, step);
    }
}

/// Bytes that differ from block to block.
pub fn data(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// A device, FIFO or socket.
pub fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).expect("a node (run as root)");
}

fn attributes(path: &Path, step: &Step) {
    let (uid, gid) = (Uid::from_raw(step.owner.0), Gid::from_raw(step.owner.1));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .expect("chown (run as root)");
    let link = fs::symlink_metadata(path).expect("an entry").is_symlink();
    if !link {
        rustix::fs::chmod(path, Mode::from_raw_mode(step.mode.into())).expect("chmod");
    }
    let plain = fs::symlink_metadata(path).is_ok_and(|entry| entry.is_file() || entry.is_dir());
    for (namespace, name, value) in &step.xattrs {
        // User attributes are for files and directories only, and security.* has rules of its own.
        let prefix = ["user.", "trusted.", "trusted.overlay.", "security.test."][usize::from(*namespace)];
        if plain || *namespace > 0 {
            set_xattr(path, &[prefix.as_bytes(), name].concat(), value);
        }
    }
    set_mtime(path, step.mtime);
}

pub fn set_xattr(path: &Path, name: &[u8], value: &[u8]) {
    let name = CString::new(name).expect("no zero in a name");
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("an attribute (run as root)");
}

pub fn set_mtime(path: &Path, (seconds, nanoseconds): (i64, u32)) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("setting a time");
}

/// A tree with one of everything, for tests that need no more.
pub fn sample(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::create_dir_all(at("usr/share/deep/er")).expect("directories");
    for (name, size) in [
        ("empty", 0),
        ("one", 1),
        ("inline", 4032),
        ("outline", 4033),
        ("block", 4096),
        ("big", 3 << 20),
    ] {
        fs::write(at(name), data(size)).expect("a file");
    }
    fs::hard_link(at("inline"), at("usr/share/link-to-inline")).expect("a hard link");
    fs::hard_link(at("big"), at("usr/link-to-big")).expect("a hard link");
    std::os::unix::fs::symlink("usr/share", at("short-link")).expect("a link");
    std::os::unix::fs::symlink("x".repeat(4095), at("long-link")).expect("a link");
    node(&at("null"), FileType::CharacterDevice, 1, 3);
    node(&at("whiteout"), FileType::CharacterDevice, 0, 0);
    node(&at("disk"), FileType::BlockDevice, 259, 0x12345);
    node(&at("fifo"), FileType::Fifo, 0, 0);
    node(&at("socket"), FileType::Socket, 0, 0);
    for name in ["-", "+", "!first", "..dots", "...", "~last", &"n".repeat(255)] {
        fs::write(at("usr").join(name), name).expect("a file");
    }
    fs::write(at("usr").join(OsStr::from_bytes(b"\xff\xfe\n\x01")), "not UTF-8").expect("a file");
    set_xattr(&at("one"), b"user.comment", b"hello");
    set_xattr(&at("one"), b"user.empty", b"");
    set_xattr(&at("usr"), b"trusted.overlay.opaque", b"y");
    set_xattr(
        &at("empty"),
        b"security.capability",
        b"\x01\x00\x00\x02\x00\x20\x00\x00\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    // Version 2; user rwx, user 1000 rw, group r, mask rw, other none.
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    set_xattr(&at("big"), b"system.posix_acl_access", acl);
    set_xattr(&at("usr"), b"system.posix_acl_default", acl);
    for (name, time) in [
        ("one", (-1, 999_999_999)),
        ("null", (0, 0)),
        ("short-link", (1 << 33, 1)),
        ("usr", (1, 2)),
    ] {
        set_mtime(&at(name), time);
    }
}
