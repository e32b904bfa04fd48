//! `mount SOURCE TARGET`: serves a directory through this machine's own FUSE, with no guest between, until TARGET is unmounted. Needs root.
//!
//! What a guest's kernel does with the server, this one does as well: tests of file systems run against it in seconds.

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use volume::{Exchange, HEADER, Limits, Server};

/// The largest request: data with what is said about it.
const REQUEST: usize = (1 << 20) + (64 << 10);
const LIMITS: Limits = Limits {
    inodes: 1 << 16,
    opened: 1 << 16,
};

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, source, target] = &arguments[..] else {
        panic!("usage: mount SOURCE TARGET")
    };
    rustix::process::umask(Mode::empty());
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors)?;
    let mut device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).expect("no NUL in numbers and names");
    let root = open(
        source,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut server = Server::new(root, Path::new("/proc/self/fd"), LIMITS)?;
    mount("volume", target, "fuse.volume", MountFlags::NODEV, &*options)?;
    let mut buffer = vec![0; REQUEST];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            // Unmounted.
            Err(error) if error.raw_os_error() == Some(19) => return Ok(()),
            // Given up by who asked.
            Err(error) if error.raw_os_error() == Some(2) => continue,
            Err(error) => return Err(error),
        };
        let mut call = Call {
            request: &buffer[..length],
            filled: Vec::new(),
            device: &device,
        };
        server.handle(&mut call);
    }
}

/// One request as the kernel hands it over.
struct Call<'a> {
    request: &'a [u8],
    filled: Vec<u8>,
    device: &'a File,
}

impl Exchange for Call<'_> {
    fn take(&mut self, bytes: &mut [u8]) -> bool {
        let Some((now, later)) = self.request.split_at_checked(bytes.len()) else {
            return false;
        };
        bytes.copy_from_slice(now);
        self.request = later;
        true
    }

    fn left(&self) -> usize {
        self.request.len()
    }

    fn room(&self) -> usize {
        REQUEST
    }

    fn answer(&mut self, header: &[u8; HEADER], payload: &[u8]) {
        let answer = [&header[..], &self.filled, payload].concat();
        // Who asked may have been killed.
        let _ = self.device.write_all(&answer);
    }

    fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<usize> {
        let file = File::from(file.try_clone_to_owned()?);
        self.filled = vec![0; bytes];
        let mut read = 0;
        while read < bytes {
            match file.read_at(&mut self.filled[read..], offset + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        self.filled.truncate(read);
        Ok(read)
    }

    fn drain(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize, at_end: bool) -> io::Result<usize> {
        let file = File::from(file.try_clone_to_owned()?);
        let offset = if at_end { file.metadata()?.len() } else { offset };
        file.write_at(&self.request[..bytes], offset)
    }
}
