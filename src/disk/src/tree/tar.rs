//! The members of a tar archive (POSIX.1-2017 pax, GNU tar, and what came before), with the place of their data.
//!
//! ```text
//!   ┌────────┬──────────┬────────┬──────┬─────────┬─────┬────────────┐
//!   │ header │ records  │ header │ data │ padding │  …  │ 1024 zeros │   blocks of 512 bytes
//!   │ 'x'    │ (of next)│ '0'    │      │         │     │            │
//!   └────────┴──────────┴────────┴──────┴─────────┴─────┴────────────┘
//! ```
//!
//! Headers are taken apart by the `tar` crate. What lies around them is done here: its reader cuts records at newlines, which values of
//! extended attributes contain, and it copies data where a place is wanted. Whoever made the archive is not trusted: nothing is allocated
//! by what a header says beyond [`MOST_EXTENSION`] bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use tar::{EntryType, Header};

use super::Time;

/// Bytes in a block.
const BLOCK: u64 = 512;

/// Most bytes of pax records or of a long name: attributes of a file have 64 KiB each, paths 4 KiB.
const MOST_EXTENSION: u64 = 1 << 20;

/// Prefix of records with extended attributes, as Go's archive/tar, star and GNU tar write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Prefix of records about files with holes.
const SPARSE: &[u8] = b"GNU.sparse.";

/// Why an archive can't be read on.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file can't be read.
    Read(io::Error),
    /// The member with this path (empty where it is not known) is not what it should be.
    Member(Vec<u8>, &'static str),
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    /// As it stands in the archive.
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    /// Permission bits, 0o7777 at most.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// Names with their values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug)]
pub(super) enum MemberKind {
    /// `size` bytes from `offset` of the archive on; all of them are in the file.
    Regular {
        offset: u64,
        size: u64,
    },
    /// Another name for a member that came before.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Directory,
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Reads the members of an archive one after the other.
pub(super) struct Members<'a> {
    file: &'a File,
    length: u64,
    /// Where the next header is.
    at: u64,
    /// Records of `g` headers, which hold for all members behind them.
    global: Records,
}

/// pax records: keywords and values.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// What extension headers say of the member behind them.
#[derive(Default)]
struct Extension {
    records: Records,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a> Members<'a> {
    pub(super) fn new(file: &'a File) -> Result<Self, Failure> {
        let length = file.metadata().map_err(Failure::Read)?.len();
        Ok(Self {
            file,
            length,
            at: 0,
            global: Records::new(),
        })
    }

    /// The next member, `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Failure> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::XHeader => extension.records = records(&self.extension(&header)?)?,
                EntryType::XGlobalHeader => {
                    let records = records(&self.extension(&header)?)?;
                    self.global.extend(records);
                }
                EntryType::GNULongName => extension.long_path = Some(text(self.extension(&header)?)),
                EntryType::GNULongLink => extension.long_link = Some(text(self.extension(&header)?)),
                _ => return self.member(&header, extension).map(Some),
            }
        }
    }

    /// The header at the present place; `None` for the end of the archive, which is a block of zeros or of the file.
    fn header(&mut self) -> Result<Option<Header>, Failure> {
        if self.at >= self.length {
            return Ok(None);
        }
        let mut header = Header::new_old();
        if self.length - self.at < BLOCK {
            return Err(bad(b"", "is cut off within a header"));
        }
        self.file
            .read_exact_at(header.as_mut_bytes(), self.at)
            .map_err(Failure::Read)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if header.cksum().ok() != Some(checksum(header.as_bytes())) {
            return Err(bad(
                b"",
                "is no tar archive, or damaged: a header has the wrong checksum",
            ));
        }
        self.at += BLOCK;
        Ok(Some(header))
    }

    /// Steps over `size` bytes of data and returns where they begin.
    fn data(&mut self, path: &[u8], size: u64) -> Result<u64, Failure> {
        let start = self.at;
        let end = start.checked_add(size).filter(|end| *end <= self.length);
        let end = end.ok_or_else(|| bad(path, "is cut off"))?;
        self.at = end.next_multiple_of(BLOCK);
        Ok(start)
    }

    /// What an extension header holds.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, Failure> {
        let path = header.path_bytes();
        let size = header
            .entry_size()
            .map_err(|_| bad(&path, "has a size that is no number"))?;
        if size > MOST_EXTENSION {
            return Err(bad(&path, "has more than 1 MiB of attributes"));
        }
        let start = self.data(&path, size)?;
        let mut bytes = vec![0; size as usize]; // at most MOST_EXTENSION
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(Failure::Read)?;
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, extension: Extension) -> Result<Member, Failure> {
        let mut records = self.global.clone();
        records.extend(extension.records);
        let path = records.get(&b"path"[..]).cloned();
        let path = path
            .or(extension.long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = records.get(&b"linkpath"[..]).cloned();
        let link = link
            .or(extension.long_link)
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let number = |keyword: &[u8], field: io::Result<u64>| match records.get(keyword) {
            Some(value) => decimal(value).ok_or_else(|| bad(&path, "has an attribute that is no number")),
            None => field.map_err(|_| bad(&path, "has an attribute that is no number")),
        };
        let id = |value: u64| u32::try_from(value).map_err(|_| bad(&path, "has an owner beyond 32 bits"));
        if records.keys().any(|keyword| keyword.starts_with(SPARSE)) {
            return Err(bad(
                &path,
                "is stored with holes left out, which is not supported",
            ));
        }
        let size = number(b"size", header.entry_size())?;
        let (uid, gid) = (
            id(number(b"uid", header.uid())?)?,
            id(number(b"gid", header.gid())?)?,
        );
        let mtime = match records.get(&b"mtime"[..]) {
            Some(value) => time(value).ok_or_else(|| bad(&path, "has a time that is none"))?,
            None => Time {
                // Before 1970, GNU tar writes the two's complement.
                seconds: number(b"", header.mtime())?.cast_signed(),
                nanoseconds: 0,
            },
        };
        let mode = header
            .mode()
            .map_err(|_| bad(&path, "has a mode that is no number"))?
            & 0o7777;
        let link = || link.ok_or_else(|| bad(&path, "is a link to nothing"));
        let kind = match header.entry_type() {
            // Before POSIX a directory was a file whose name ends so.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => MemberKind::Directory,
            EntryType::Regular | EntryType::Continuous => MemberKind::Regular {
                offset: self.data(&path, size)?,
                size,
            },
            EntryType::Link => MemberKind::HardLink(link()?),
            EntryType::Symlink => MemberKind::Symlink(link()?),
            EntryType::Char => {
                let (major, minor) = device(&path, header)?;
                MemberKind::Character(major, minor)
            }
            EntryType::Block => {
                let (major, minor) = device(&path, header)?;
                MemberKind::Block(major, minor)
            }
            EntryType::Directory => MemberKind::Directory,
            EntryType::Fifo => MemberKind::Fifo,
            EntryType::GNUSparse => {
                return Err(bad(
                    &path,
                    "is stored with holes left out, which is not supported",
                ));
            }
            _ => return Err(bad(&path, "is of a type that no file system has")),
        };
        // Some writers give links and directories a size, of what they link to; there is no data behind them (pax, "size").
        let xattrs = records.iter().filter_map(|(keyword, value)| {
            let name = keyword.strip_prefix(XATTR)?;
            Some((name.to_vec(), value.clone()))
        });
        Ok(Member {
            xattrs: xattrs.collect(),
            kind,
            mode: mode as u16, // 12 bits
            uid,
            gid,
            mtime,
            path,
        })
    }
}

fn bad(path: &[u8], problem: &'static str) -> Failure {
    Failure::Member(path.to_vec(), problem)
}

/// Sum of all bytes, with spaces in place of the sum itself.
fn checksum(header: &[u8; BLOCK as usize]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..])
}

fn device(path: &[u8], header: &Header) -> Result<(u32, u32), Failure> {
    match (header.device_major(), header.device_minor()) {
        // What Linux has: 12 bits and 20.
        (Ok(Some(major @ ..0x1000)), Ok(Some(minor @ ..0x10_0000))) => Ok((major, minor)),
        _ => Err(bad(path, "has no device number that Linux knows")),
    }
}

/// A name that ends with a NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Takes `LENGTH KEYWORD=VALUE\n` apart, as often as it is there; the length is that of all of it.
fn records(mut bytes: &[u8]) -> Result<Records, Failure> {
    let malformed = || bad(b"", "has pax records that are none");
    let mut records = Records::new();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(malformed)?;
        let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok());
        let length = length
            .filter(|length| *length > space && *length <= bytes.len())
            .ok_or_else(malformed)?;
        let (record, rest) = bytes.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(malformed)?;
        let (keyword, value) = (&record[..equals], &record[equals + 1..]);
        match value {
            // "Delete any header block value", but an attribute may be empty.
            [] if !keyword.starts_with(XATTR) => drop(records.remove(keyword)),
            _ => drop(records.insert(keyword.to_vec(), value.to_vec())),
        }
        bytes = rest;
    }
    Ok(records)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// `[-]SECONDS[.FRACTION]`, down to the nanosecond.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let digits = parts.next().unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| u32::from(digits.get(at).map_or(0, |digit| digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
#[path = "tar_test.rs"]
mod tests;
