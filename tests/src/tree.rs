//! Random trees with every kind of entry there is, and a listing that shows all of it.

use crate::pattern::{self, Choices};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Deepest directory.
const DEPTH: usize = 3;

/// A tree being made.
pub struct Maker<'c> {
    choices: &'c mut Choices,
    /// Whiteouts and opaque directories too: what only layers above others have.
    marks: bool,
    /// Attributes and devices that look like marks, for trees that are no layers.
    lookalikes: bool,
    files: Vec<PathBuf>,
}

impl<'c> Maker<'c> {
    /// A tree that is no layer of an overlay.
    pub fn plain(choices: &'c mut Choices) -> Self {
        Self::new(choices, false, true)
    }

    /// The lowest layer of an overlay.
    pub fn lowest(choices: &'c mut Choices) -> Self {
        Self::new(choices, false, false)
    }

    /// A layer above others.
    pub fn layer(choices: &'c mut Choices) -> Self {
        Self::new(choices, true, false)
    }

    fn new(choices: &'c mut Choices, marks: bool, lookalikes: bool) -> Self {
        Self {
            choices,
            marks,
            lookalikes,
            files: Vec::new(),
        }
    }

    /// Fills `directory`, which exists.
    pub fn fill(&mut self, directory: &Path) {
        self.directory(directory, 0);
        self.attributes(directory, true);
    }

    fn directory(&mut self, directory: &Path, depth: usize) {
        for name in names() {
            // Few enough that layers meet, and miss, each other.
            if self.choices.below(3) > 0 {
                self.entry(&directory.join(name), depth);
            }
        }
    }

    fn entry(&mut self, path: &Path, depth: usize) {
        let kinds = if self.marks || self.lookalikes { 12 } else { 11 };
        match self.choices.below(kinds) {
            0..=2 if depth < DEPTH => {
                fs::create_dir(path).expect("a directory");
                self.directory(path, depth + 1);
                if self.marks && self.choices.below(4) == 0 {
                    set(path, "trusted.overlay.opaque", b"y");
                }
                return self.attributes(path, true);
            }
            0..=4 => self.file(path),
            5 => {
                let target = OsString::from_vec(vec![b't'; 1 + self.choices.below(4000) as usize]);
                std::os::unix::fs::symlink(target, path).expect("a symbolic link");
                return self.attributes(path, false);
            }
            6 => node(path, FileType::Fifo, 0),
            7 => node(path, FileType::Socket, 0),
            8 => node(
                path,
                FileType::CharacterDevice,
                makedev(1, 1 + self.choices.below(300) as u32),
            ),
            9 => node(
                path,
                FileType::BlockDevice,
                makedev(7, self.choices.below(300) as u32),
            ),
            10 => {
                // A link to a file made before, in whatever directory.
                if let Some(file) = self.files.last() {
                    return fs::hard_link(file, path).expect("a hard link");
                }
                self.file(path);
            }
            // A whiteout in a layer, a device without a driver elsewhere.
            _ if self.marks => return node(path, FileType::CharacterDevice, 0),
            _ => node(path, FileType::CharacterDevice, 0),
        }
        self.attributes(path, false);
    }

    fn file(&mut self, path: &Path) {
        let size = *self
            .choices
            .one_of(&[0, 1, 100, 4095, 4096, 4097, 30_000, 300_000]);
        let file = File::create(path).expect("a file");
        // Every other one begins with a hole.
        let hole = self.choices.below(2) * (1 << 20);
        file.write_all_at(&pattern::bytes(size), hole).expect("its data");
        self.files.push(path.to_owned());
    }

    fn attributes(&mut self, path: &Path, directory: bool) {
        let link = path.symlink_metadata().expect("it is there").is_symlink();
        let ids = [0, 1, 1000, 65_536, 4_000_000_000];
        let (uid, gid) = (*self.choices.one_of(&ids), *self.choices.one_of(&ids));
        rustix::fs::chownat(
            CWD,
            path,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .expect("an owner");
        let regular = path.symlink_metadata().expect("it is there").is_file();
        if !link {
            let mode = self.choices.below(0o10_000) as u32;
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).expect("a mode");
        }
        if (regular || directory) && self.choices.below(2) == 0 {
            set(
                path,
                "user.note",
                &pattern::bytes(self.choices.below(200) as usize),
            );
            set(path, "system.posix_acl_access", &ACCESS_LIST);
        }
        if directory && self.choices.below(3) == 0 {
            set(path, "system.posix_acl_default", &ACCESS_LIST);
        }
        if regular && self.choices.below(3) == 0 {
            set(path, "security.capability", &CAPABILITY);
        }
        if self.choices.below(3) == 0 {
            set(path, "trusted.note", b"kept by root");
        }
        if self.lookalikes && self.choices.below(3) == 0 {
            set(path, "trusted.overlay.opaque", b"y");
            set(path, "trusted.overlay.redirect", b"/elsewhere");
        }
        let seconds = self.choices.below(1 << 32) as i64 - (1 << 31);
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: self.choices.below(1_000_000_000) as i64,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
    }
}

/// `user::rwx,user:1000:r--,group::r-x,mask::rwx,other::---` in the kernel's form (linux/posix_acl_xattr.h).
const ACCESS_LIST: [u8; 44] = {
    let mut bytes = [0; 44];
    bytes[0] = 2;
    let entries: [(u8, u8, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut i = 0;
    while i < entries.len() {
        let (tag, permissions, id) = entries[i];
        bytes[4 + 8 * i] = tag;
        bytes[6 + 8 * i] = permissions;
        let id = id.to_le_bytes();
        let mut j = 0;
        while j < 4 {
            bytes[8 + 8 * i + j] = id[j];
            j += 1;
        }
        i += 1;
    }
    bytes
};

/// `cap_net_raw=ep`, version 2 (linux/capability.h).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Names that every directory draws from.
fn names() -> impl Iterator<Item = OsString> {
    let plain = ["a", "b", "c", "with space", "-", ".hidden"].map(OsString::from);
    plain.into_iter().chain([
        OsString::from_vec(vec![b'n'; 255]),
        OsString::from_vec(b"not \xff utf-8\n".to_vec()),
    ])
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).expect("a node");
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name} of {path:?}: {error}"));
}

/// What `list-tree` (its path is `program`) says of `directory`.
pub fn list(program: &Path, directory: &Path) -> String {
    let output = Command::new(program)
        .arg(directory)
        .output()
        .expect("list-tree runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("it prints ASCII")
}

/// Puts `program` with the libraries that it needs into `directory`; the arguments with which it runs there, if `directory` is
/// `inside` in the container.
pub fn carry(program: &Path, directory: &Path, inside: &str) -> Vec<String> {
    fs::create_dir_all(directory).expect("a directory");
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let mut loader = None;
    for path in text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new)
    {
        let name = path.file_name().expect("a file");
        fs::copy(path, directory.join(name)).expect("a library");
        if name.as_bytes().starts_with(b"ld-") {
            loader = Some(name.to_string_lossy().into_owned());
        }
    }
    fs::copy(program, directory.join("program")).expect("the program");
    let loader = loader.expect("a dynamic program has a loader");
    vec![
        format!("{inside}/{loader}"),
        "--library-path".into(),
        inside.into(),
        format!("{inside}/program"),
    ]
}
