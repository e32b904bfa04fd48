//! The files of a stored image: those of a directory, or of a tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

/// Longest document (index, manifest, configuration) that is read, as registries have it.
const MOST_DOCUMENT: u64 = 4 << 20;

/// Symbolic links that lead from one name in an archive to another; `docker save` makes chains of one.
const MOST_LINKS: usize = 8;

/// Where the files are.
pub struct Blobs {
    path: PathBuf,
    place: Place,
}

enum Place {
    Directory(File),
    Archive {
        file: File,
        members: HashMap<PathBuf, Member>,
    },
}

enum Member {
    Data { offset: u64, size: u64 },
    Link(PathBuf),
}

/// A part of an open file.
pub struct Blob {
    /// The file.
    pub file: File,
    /// Where the blob begins, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A `sha256:` digest, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// Parses `sha256:HEX` (descriptor.md, "Digests"). No other algorithm is known here.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64);
        let hex = |pair: &[u8]| {
            let digit = |byte: u8| match byte {
                b'0'..=b'9' => Some(byte - b'0'),
                b'a'..=b'f' => Some(byte - b'a' + 10),
                _ => None,
            };
            Some(digit(pair[0])? << 4 | digit(pair[1])?)
        };
        let bytes: Option<Vec<u8>> =
            digits.and_then(|digits| digits.as_bytes().chunks_exact(2).map(hex).collect());
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => bail!("{text:?} is no SHA-256 digest, the only kind that is supported"),
        }
    }

    /// The path of the blob in an image layout (image-layout.md, "Blobs").
    pub fn path(&self) -> PathBuf {
        format!("blobs/sha256/{}", workload::Hex(self.0)).into()
    }

    /// An error unless `found` is this digest.
    pub fn expect(&self, found: [u8; 32]) -> Result<()> {
        ensure!(
            found == self.0,
            "the content has the digest sha256:{} in place of sha256:{}",
            workload::Hex(found),
            workload::Hex(self.0)
        );
        Ok(())
    }
}

impl Blobs {
    /// Those of a directory.
    pub fn of_directory(path: &Path) -> Result<Self> {
        let directory = File::open(path)?;
        ensure!(directory.metadata()?.is_dir(), "not a directory");
        Ok(Self {
            path: path.to_owned(),
            place: Place::Directory(directory),
        })
    }

    /// Those of a tar archive, not compressed.
    pub fn of_archive(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        ensure!(file.metadata()?.is_file(), "not a file");
        let length = file.metadata()?.len();
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().context("no tar archive")? {
            let entry = entry.context("no tar archive")?;
            let name = normal(&entry.path()?);
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let (offset, size) = (entry.raw_file_position(), entry.size());
                    ensure!(
                        offset.checked_add(size).is_some_and(|end| end <= length),
                        "{} is cut off",
                        name.display()
                    );
                    Member::Data { offset, size }
                }
                EntryType::Symlink => {
                    let target = entry.link_name()?.context("a link to nothing")?;
                    Member::Link(normal(&name.parent().unwrap_or(Path::new("")).join(target)))
                }
                EntryType::Link => Member::Link(normal(&entry.link_name()?.context("a link to nothing")?)),
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self {
            path: path.to_owned(),
            place: Place::Archive { file, members },
        })
    }

    /// The file `name`, `None` if there is none.
    pub fn find(&self, name: &Path) -> Result<Option<Blob>> {
        match &self.place {
            Place::Directory(directory) => {
                // Whoever made the layout may have put links there; none of them leads out.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file =
                    match rustix::fs::openat2(directory, name, flags, Mode::empty(), ResolveFlags::BENEATH) {
                        Ok(file) => File::from(file),
                        Err(rustix::io::Errno::NOENT) => return Ok(None),
                        Err(errno) => return Err(errno).with_context(|| name.display().to_string()),
                    };
                let metadata = file.metadata()?;
                ensure!(metadata.is_file(), "{} is no file", name.display());
                Ok(Some(Blob {
                    file,
                    offset: 0,
                    size: metadata.len(),
                }))
            }
            Place::Archive { file, members } => {
                let mut name = name;
                for _ in 0..MOST_LINKS {
                    match members.get(name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = target,
                        Some(&Member::Data { offset, size }) => {
                            return Ok(Some(Blob {
                                file: file.try_clone()?,
                                offset,
                                size,
                            }));
                        }
                    }
                }
                bail!("{} lies behind too many links", name.display())
            }
        }
    }

    /// The file `name`, which is there.
    pub fn open(&self, name: &Path) -> Result<Blob> {
        self.find(name)?
            .with_context(|| format!("{} has no {}", self.path.display(), name.display()))
    }

    /// The content of the small file `name`.
    pub fn document(&self, name: &Path) -> Result<Vec<u8>> {
        let blob = self.open(name)?;
        ensure!(
            blob.size <= MOST_DOCUMENT,
            "{} is longer than 4 MiB",
            name.display()
        );
        let mut bytes = Vec::with_capacity(blob.size as usize); // at most MOST_DOCUMENT
        blob.reader().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The content of the small blob with this digest.
    pub fn digested(&self, digest: &Sha256Digest) -> Result<Vec<u8>> {
        let name = digest.path();
        let bytes = self.document(&name)?;
        digest
            .expect(Sha256::digest(&bytes).into())
            .with_context(|| name.display().to_string())?;
        Ok(bytes)
    }
}

impl Blob {
    /// Reads it from the beginning. Readers share no position.
    pub fn reader(&self) -> impl Read + '_ {
        BlobReader { blob: self, at: 0 }
    }
}

struct BlobReader<'a> {
    blob: &'a Blob,
    at: u64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.blob.size - self.at;
        let len = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let got = self
            .blob
            .file
            .read_at(&mut buffer[..len], self.blob.offset + self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// Without `.` and what leads to the root; `..` takes a name back.
fn normal(path: &Path) -> PathBuf {
    let mut all = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => all.push(name),
            Component::ParentDir => drop(all.pop()),
            _ => {}
        }
    }
    all
}
