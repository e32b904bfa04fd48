//! Files that appear whole or not at all, and the bar that shows how far they are.

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A file being made: it has no name until it is complete, so that a killed command leaves nothing.
pub struct Output {
    /// Open for reading and writing.
    pub file: File,
    path: PathBuf,
}

impl Output {
    /// For nobody but its owner to read.
    pub fn create(path: &Path) -> Result<Self> {
        Self::with_mode(path, Mode::RUSR | Mode::WUSR)
    }

    /// For everybody to read whom the umask lets.
    pub fn create_public(path: &Path) -> Result<Self> {
        Self::with_mode(path, Mode::from_raw_mode(0o666))
    }

    fn with_mode(path: &Path, mode: Mode) -> Result<Self> {
        ensure!(path.file_name().is_some(), "{}: not a file name", path.display());
        ensure!(!path.is_dir(), "{} is a directory", path.display());
        let file = unnamed(directory_of(path), mode).with_context(|| path.display().to_string())?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Gives it its name, in place of whatever had it.
    pub fn publish(self) -> Result<()> {
        let aside = suffixed(&self.path, ".cwrun-new");
        let publish = || -> std::io::Result<()> {
            match fs::remove_file(&aside) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            give_name(&self.file, &aside)?;
            fs::rename(&aside, &self.path).inspect_err(|_| drop(fs::remove_file(&aside)))
        };
        publish().with_context(|| self.path.display().to_string())
    }
}

/// A file in this directory that has no name there, open for reading and writing.
pub fn unnamed(directory: &Path, mode: Mode) -> std::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, mode)?.into())
}

/// Gives a file without a name one that nothing has.
pub fn give_name(file: &File, path: &Path) -> std::io::Result<()> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        unnamed,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

/// The directory that a file is in.
pub fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The path with something behind its last name.
pub fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Bytes, rate and time left; on a terminal only, and gone when the work is done.
pub fn progress_bar() -> ProgressBar {
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is a constant that is tested");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_there_is_no_bar() {
        let bar = progress_bar();
        assert_eq!(
            bar.is_hidden(),
            !std::io::IsTerminal::is_terminal(&std::io::stderr())
        );
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        drop(Output::create(&path).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::write(&path, "old").unwrap();
        Output::create(&path).unwrap().publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
