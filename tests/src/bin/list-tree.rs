//! `list-tree DIRECTORY`: everything that can be seen of the entries below a directory, a line each, sorted. Two trees that print the
//! same are the same to any program. Links of directories are left out: overlayfs counts them in a way of its own.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let root = PathBuf::from(std::env::args_os().nth(1).unwrap_or_default());
    let mut lister = Lister::default();
    lister.entry(&root, OsStr::new("."))?;
    for line in lister.lines {
        println!("{line}");
    }
    Ok(())
}

#[derive(Default)]
struct Lister {
    lines: Vec<String>,
    /// The first name of files with several.
    links: HashMap<(u64, u64), String>,
}

impl Lister {
    fn entry(&mut self, path: &Path, name: &OsStr) -> io::Result<()> {
        let shown = name.as_bytes().escape_ascii().to_string();
        let meta = match fs::symlink_metadata(path) {
            // overlayfs lists a whiteout where there is nothing below to hide.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lines.push(format!("{shown} listed, but not there"));
                return Ok(());
            }
            meta => meta?,
        };
        let mut line = format!(
            "{shown} mode={:o} owner={}:{} mtime={}.{}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        line += &content(path, &meta)?;
        if !meta.is_dir() {
            let first = self
                .links
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| shown.clone());
            line += &format!(" links={} first={first}", meta.nlink());
        }
        line += &attributes(path)?;
        self.lines.push(line);
        if meta.is_dir() {
            let mut names: Vec<_> = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<_>>()?;
            names.sort();
            for child in names {
                let mut full = name.to_owned();
                full.push("/");
                full.push(&child);
                self.entry(&path.join(child), &full)?;
            }
        }
        Ok(())
    }
}

fn content(path: &Path, meta: &Metadata) -> io::Result<String> {
    let kind = meta.file_type();
    if kind.is_file() {
        return Ok(format!(" size={} data={:x}", meta.size(), hash(&fs::read(path)?)));
    }
    if kind.is_symlink() {
        return Ok(format!(
            " target={}",
            fs::read_link(path)?.as_os_str().as_bytes().escape_ascii()
        ));
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Ok(format!(" device={:x}", meta.rdev()));
    }
    Ok(String::new())
}

fn attributes(path: &Path) -> io::Result<String> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut names: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        text += &format!(" {}={}", name.escape_ascii(), value[..length].escape_ascii());
    }
    Ok(text)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
