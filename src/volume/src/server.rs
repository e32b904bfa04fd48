//! What is asked for, done.

use crate::inodes::{Inodes, ROOT};
use crate::message::{
    self, Body, FSYNC_DATA, GETATTR_FH, Header, OPEN_KILL_SUIDGID, Opcode, WRITE_CACHE, WRITE_KILL_SUIDGID,
    fattr,
};
use crate::opened::Opened;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
    Statx, StatxFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, copy_file_range, fallocate,
    fdatasync, fstatvfs, fsync, ftruncate, getxattr, linkat, listxattr, makedev, mkdirat, mknodat, open,
    openat2, readlinkat, removexattr, renameat_with, seek, setxattr, statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Length of an answer's header, in bytes.
pub const HEADER: usize = 16;
/// The longest request without what is to be written, in bytes: an extended attribute with its name.
const MAX_BODY: usize = 68 << 10;
/// The longest value, or list of names, of extended attributes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_XATTR: usize = 64 << 10;
/// Most bytes of a directory that are read at once.
const DIRECTORY_BYTES: usize = 32 << 10;
/// Most bytes of a file that are copied for one request: others wait for it.
const MAX_COPY: u64 = 16 << 20;
/// Names of ACLs. They would be of no effect: who may do what is decided by the guest, by owner and mode.
const ACLS: &[u8] = b"system.posix_acl_";

/// A request's bytes, and where its answer goes.
pub trait Exchange {
    /// Copies the next bytes of the request into all of `bytes`; `false` if there are fewer.
    fn take(&mut self, bytes: &mut [u8]) -> bool;
    /// Bytes of the request that have not been taken.
    fn left(&self) -> usize;
    /// Bytes that an answer may have, with its header.
    fn room(&self) -> usize;
    /// Answers: the header, and behind it `payload`, or what [`fill`](Exchange::fill) has put there if that is empty.
    fn answer(&mut self, header: &[u8; HEADER], payload: &[u8]);
    /// Reads up to `bytes` bytes of `file` from `offset` on to behind the answer's header; fewer only at the end of the file.
    fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<usize>;
    /// Writes the next `bytes` bytes of the request to `file`, at `offset` or at its end. Returns how many.
    fn drain(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize, at_end: bool) -> io::Result<usize>;
}

/// How much the other side may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Inodes known at a time. Each is a descriptor.
    pub inodes: usize,
    /// Files and directories open at a time. Each is a descriptor.
    pub opened: usize,
}

/// Serves one directory.
#[derive(Debug)]
pub struct Server {
    inodes: Inodes,
    opened: Opened,
    /// Where this process finds its own descriptors (`/proc/self/fd`), for calls that take no descriptor of an inode.
    descriptors: PathBuf,
    /// The same, open.
    links: OwnedFd,
}

/// What comes of a request.
enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many, which are in place.
    Filled(usize),
}

type Result<T, E = Errno> = std::result::Result<T, E>;

/// Nothing but success.
const DONE: Result<Answer> = Ok(Answer::Bytes(Vec::new()));

impl Server {
    /// Serves the directory `root`, a descriptor with `O_PATH`. `descriptors` is `/proc/self/fd`, wherever that is.
    pub fn new(root: OwnedFd, descriptors: &Path, limits: Limits) -> io::Result<Self> {
        let stat = stat(&root)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            inodes: Inodes::new(root, &stat, limits.inodes),
            opened: Opened::new(limits.opened),
            descriptors: descriptors.to_owned(),
            links: open(descriptors, flags, Mode::empty())?,
        })
    }

    /// For a root that is there only for the directory `name` below it, another mount: shows its inodes under the numbers that they have.
    pub fn keep_numbers_below(&mut self, name: &str) -> io::Result<()> {
        let root = &self.inodes.get(ROOT)?.fd;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = rustix::fs::openat(root, name, flags, Mode::empty())?;
        self.inodes.keep_numbers_of(&stat(&below)?);
        Ok(())
    }

    /// Closes all that the other side had, as at the beginning.
    pub fn reset(&mut self) {
        self.opened.clear();
        self.inodes.clear();
    }

    /// Serves one request.
    pub fn handle(&mut self, exchange: &mut impl Exchange) {
        let mut header = [0; Header::BYTES];
        if !exchange.take(&mut header) {
            // Nothing to be answered has been asked.
            return;
        }
        let header = Header::parse(&header);
        let whole = header.length as usize == exchange.left() + Header::BYTES;
        let opcode = Opcode::of(header.opcode);
        let result = match opcode {
            _ if !whole => Err(Errno::INVAL),
            None => Err(Errno::NOSYS),
            Some(Opcode::Read) => self.read(exchange),
            Some(Opcode::Write) => self.write(exchange),
            Some(opcode) => self.dispatch(opcode, &header, exchange),
        };
        if opcode.is_some_and(Opcode::is_silent) {
            return;
        }
        let room = exchange.room().saturating_sub(HEADER);
        match result {
            Ok(Answer::Bytes(bytes)) if bytes.len() <= room => {
                exchange.answer(&message::answer(header.unique, bytes.len(), None), &bytes);
            }
            Ok(Answer::Filled(bytes)) => {
                exchange.answer(&message::answer(header.unique, bytes, None), &[]);
            }
            Ok(Answer::Bytes(_)) => {
                exchange.answer(&message::answer(header.unique, 0, Some(Errno::INVAL)), &[]);
            }
            Err(error) => exchange.answer(&message::answer(header.unique, 0, Some(error)), &[]),
        }
    }

    fn dispatch(&mut self, opcode: Opcode, header: &Header, exchange: &mut impl Exchange) -> Result<Answer> {
        let mut body = vec![0; exchange.left()];
        if body.len() > MAX_BODY {
            return Err(Errno::TOOBIG);
        }
        if !exchange.take(&mut body) {
            return Err(Errno::INVAL);
        }
        let body = &mut Body(&body);
        let room = exchange.room().saturating_sub(HEADER);
        match opcode {
            Opcode::Init => self.init(body),
            Opcode::Destroy => {
                self.reset();
                DONE
            }
            Opcode::Lookup => self.lookup(header.node, body.name()?),
            Opcode::Forget => {
                self.inodes.forget(header.node, body.u64()?);
                DONE
            }
            Opcode::BatchForget => self.batch_forget(body),
            Opcode::GetAttr => self.get_attr(header, body),
            Opcode::SetAttr => self.set_attr(header, body),
            Opcode::ReadLink => self.read_link(header),
            Opcode::Symlink => self.symlink(header, body),
            Opcode::MkNod => self.mknod(header, body),
            Opcode::MkDir => self.mkdir(header, body),
            Opcode::Unlink => self.unlink(header, body, AtFlags::empty()),
            Opcode::RmDir => self.unlink(header, body, AtFlags::REMOVEDIR),
            Opcode::Rename | Opcode::Rename2 => self.rename(opcode, header, body),
            Opcode::Link => self.link(header, body),
            Opcode::Open => self.open(header, body, FileType::RegularFile),
            Opcode::OpenDir => self.open(header, body, FileType::Directory),
            Opcode::Create => self.create(header, body),
            Opcode::TmpFile => self.tmpfile(header, body),
            Opcode::Release => self.opened.close(body.u64()?, false).and(DONE),
            Opcode::ReleaseDir => self.opened.close(body.u64()?, true).and(DONE),
            Opcode::ReadDir => self.read_dir(body, room),
            Opcode::StatFs => self.stat_fs(header),
            Opcode::Fsync | Opcode::FsyncDir => self.fsync(opcode, body),
            Opcode::SetXattr => self.set_xattr(header, body),
            Opcode::GetXattr => self.get_xattr(header, body, room),
            Opcode::ListXattr => self.list_xattr(header, body, room),
            Opcode::RemoveXattr => self.remove_xattr(header, body),
            Opcode::Fallocate => self.fallocate(body),
            Opcode::LSeek => self.lseek(body),
            Opcode::CopyFileRange => self.copy_file_range(body),
            // What has been begun is finished: nothing here waits for anybody but a disk.
            Opcode::Interrupt => DONE,
            // They have their own ways, because of their content.
            Opcode::Read | Opcode::Write => Err(Errno::INVAL),
        }
    }

    fn init(&mut self, body: &mut Body<'_>) -> Result<Answer> {
        let (major, _minor) = (body.u32()?, body.u32()?);
        let (readahead, offered) = (body.u32()?, body.u32()?);
        if major < message::MAJOR {
            return Err(Errno::PROTO);
        }
        self.reset();
        // A newer major version is told ours, and tries again with that.
        Ok(Answer::Bytes(message::init_out(offered, readahead)))
    }

    fn lookup(&mut self, parent: u64, name: &CStr) -> Result<Answer> {
        let found = self.find(parent, name)?;
        self.enter(found)
    }

    /// What has this name in the directory, as a descriptor that only names it.
    fn find(&self, parent: u64, name: &CStr) -> Result<OwnedFd> {
        below(&self.inodes.get(parent)?.fd, name, OFlags::PATH, Mode::empty())
    }

    /// Tells the other side of an inode.
    fn enter(&mut self, fd: OwnedFd) -> Result<Answer> {
        self.entry(fd).map(Answer::Bytes)
    }

    fn entry(&mut self, fd: OwnedFd) -> Result<Vec<u8>> {
        let stat = stat(&fd)?;
        let shown = self.inodes.shown(&stat);
        let number = self.inodes.told(fd, &stat)?;
        Ok(message::entry_out(number, &stat, shown))
    }

    fn batch_forget(&mut self, body: &mut Body<'_>) -> Result<Answer> {
        let count = body.u32()?;
        body.skip(4)?;
        for _ in 0..count {
            let (node, times) = (body.u64()?, body.u64()?);
            self.inodes.forget(node, times);
        }
        DONE
    }

    fn get_attr(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let flags = body.u32()?;
        body.skip(4)?;
        let handle = body.u64()?;
        let stat = match self.opened.file(handle) {
            Ok(file) if flags & GETATTR_FH != 0 => stat(file)?,
            _ => stat(&self.inodes.get(header.node)?.fd)?,
        };
        let shown = self.inodes.shown(&stat);
        Ok(Answer::Bytes(message::attr_out(&stat, shown)))
    }

    fn set_attr(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let valid = body.u32()?;
        body.skip(4)?;
        let handle = body.u64()?;
        let size = body.u64()?;
        body.skip(8)?; // lock owner
        let (atime, mtime) = (body.u64()?, body.u64()?);
        body.skip(8)?; // ctime
        let (atime_ns, mtime_ns) = (body.u32()?, body.u32()?);
        body.skip(4)?;
        let mode = body.u32()?;
        body.skip(4)?;
        let (uid, gid) = (body.u32()?, body.u32()?);
        let set = |bit| valid & bit != 0;

        let inode = self.inodes.get(header.node)?;
        if set(fattr::UID | fattr::GID) {
            let uid = set(fattr::UID).then(|| user(uid)).transpose()?;
            let gid = set(fattr::GID).then(|| group(gid)).transpose()?;
            chownat(&inode.fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if set(fattr::MODE) {
            // After the owner, whose change takes set-ID bits away.
            self.chmod(&inode.fd, mode)?;
        }
        if set(fattr::SIZE) {
            if set(fattr::KILL_SUIDGID) {
                self.strip(&inode.fd)?;
            }
            match self.opened.file(handle) {
                Ok(file) if set(fattr::FH) => ftruncate(file, size)?,
                _ => ftruncate(
                    self.reopen(header.node, OFlags::WRONLY, FileType::RegularFile)?,
                    size,
                )?,
            }
        }
        if set(fattr::ATIME | fattr::MTIME) {
            let time = |given, now, seconds, nanoseconds| match (set(given), set(now)) {
                (false, _) => Ok(Timespec {
                    tv_sec: 0,
                    tv_nsec: rustix::fs::UTIME_OMIT,
                }),
                (true, true) => Ok(Timespec {
                    tv_sec: 0,
                    tv_nsec: rustix::fs::UTIME_NOW,
                }),
                (true, false) => timespec(seconds, nanoseconds),
            };
            let times = Timestamps {
                last_access: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_ns)?,
                last_modification: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_ns)?,
            };
            utimensat(&inode.fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        let stat = stat(&inode.fd)?;
        let shown = self.inodes.shown(&stat);
        Ok(Answer::Bytes(message::attr_out(&stat, shown)))
    }

    fn chmod(&self, fd: &OwnedFd, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        chmodat(CWD, self.path(fd), mode, AtFlags::empty())
    }

    /// Takes the set-ID bits of a file away, as the kernel does for a writer who may not keep them: this thread may. What capabilities the
    /// file gives go with any write.
    fn strip(&self, fd: &OwnedFd) -> Result<()> {
        const SET_USER: u32 = 0o4000;
        let mode = u32::from(stat(fd)?.stx_mode);
        // Without the right to execute, the second bit means something else.
        let group = if mode & 0o010 != 0 { SET_GROUP } else { 0 };
        match mode & !(SET_USER | group) {
            same if same == mode => Ok(()),
            stripped => self.chmod(fd, stripped),
        }
    }

    /// A path that leads to what `fd` names, whatever that is called. It is followed once: where it leads to a symbolic link, that is it.
    fn path(&self, fd: &OwnedFd) -> PathBuf {
        self.descriptors.join(fd.as_raw_fd().to_string())
    }

    /// Opens an inode that is a file or directory, and nothing else: opening a pipe would wait, and a device do who knows what.
    fn reopen(&self, node: u64, flags: OFlags, kind: FileType) -> Result<OwnedFd> {
        let inode = self.inodes.get(node)?;
        if inode.kind != kind {
            return Err(match kind {
                FileType::Directory => Errno::NOTDIR,
                _ => Errno::NXIO,
            });
        }
        self.through_link(&inode.fd, flags)
    }

    fn through_link(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
        let name = fd.as_raw_fd().to_string();
        openat2(
            &self.links,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::empty(),
        )
    }

    fn read_link(&self, header: &Header) -> Result<Answer> {
        let inode = self.inodes.get(header.node)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(&inode.fd, "", Vec::new())?;
        Ok(Answer::Bytes(target.into_bytes()))
    }

    fn symlink(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (name, target) = (body.name()?, body.text()?);
        let parent = &self.inodes.get(header.node)?.fd;
        symlinkat(target, parent, name)?;
        self.finish(header, name, 0o777)
    }

    fn mknod(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (mode, device) = (body.u32()?, body.u32()?);
        body.skip(8)?;
        let name = body.name()?;
        let parent = &self.inodes.get(header.node)?.fd;
        let (major, minor) = message::device_parts(device);
        // Devices are refused by the kernel, for want of the capability.
        let kind = FileType::from_raw_mode(mode);
        mknodat(parent, name, kind, first_mode(mode), makedev(major, minor))?;
        self.finish(header, name, mode)
    }

    fn mkdir(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let mode = body.u32()?;
        body.skip(4)?;
        let name = body.name()?;
        mkdirat(&self.inodes.get(header.node)?.fd, name, first_mode(mode))?;
        self.finish(header, name, mode)
    }

    /// Gives what has just been made its owner and mode, and tells the other side of it.
    fn finish(&mut self, header: &Header, name: &CStr, mode: u32) -> Result<Answer> {
        let made = self.find(header.node, name)?;
        self.give(header, &made, mode).inspect_err(|_| {
            // What can't be given to its owner is not made.
            let flags = match stat(&made).map(|stat| FileType::from_raw_mode(stat.stx_mode.into())) {
                Ok(FileType::Directory) => AtFlags::REMOVEDIR,
                _ => AtFlags::empty(),
            };
            if let Ok(parent) = self.inodes.get(header.node) {
                let _ = unlinkat(&parent.fd, name, flags);
            }
        })?;
        self.enter(made)
    }

    /// A new inode belongs to whom made it, or to its directory's group where that has the set-group-ID bit: this the kernel has
    /// done already.
    fn give(&self, header: &Header, made: &OwnedFd, mode: u32) -> Result<()> {
        let parent = stat(&self.inodes.get(header.node)?.fd)?;
        let stat = stat(made)?;
        let group_stays = u32::from(parent.stx_mode) & SET_GROUP != 0 || stat.stx_gid == header.gid;
        if stat.stx_uid != header.uid || !group_stays {
            let gid = (!group_stays).then(|| group(header.gid)).transpose()?;
            chownat(made, "", Some(user(header.uid)?), gid, AtFlags::EMPTY_PATH)?;
        }
        let now = u32::from(stat.stx_mode);
        if FileType::from_raw_mode(now) != FileType::Symlink && mode & 0o7000 & !now != 0 {
            self.chmod(made, (mode & 0o7777) | (now & SET_GROUP))?;
        }
        Ok(())
    }

    fn unlink(&mut self, header: &Header, body: &mut Body<'_>, flags: AtFlags) -> Result<Answer> {
        unlinkat(&self.inodes.get(header.node)?.fd, body.name()?, flags)?;
        DONE
    }

    fn rename(&mut self, opcode: Opcode, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let to = body.u64()?;
        let flags = match opcode {
            Opcode::Rename2 => {
                let flags = body.u32()?;
                body.skip(4)?;
                RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?
            }
            _ => RenameFlags::empty(),
        };
        let (old, new) = (body.name()?, body.name()?);
        let (from, to) = (&self.inodes.get(header.node)?.fd, &self.inodes.get(to)?.fd);
        renameat_with(from, old, to, new, flags)?;
        DONE
    }

    fn link(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (node, name) = (body.u64()?, body.name()?);
        let path = self.path(&self.inodes.get(node)?.fd);
        linkat(
            CWD,
            path,
            &self.inodes.get(header.node)?.fd,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.lookup(header.node, name)
    }

    fn open(&mut self, header: &Header, body: &mut Body<'_>, kind: FileType) -> Result<Answer> {
        let (flags, how) = (body.u32()?, body.u32()?);
        self.opened.expect_room()?;
        let directory = kind == FileType::Directory;
        let flags = if directory {
            OFlags::DIRECTORY
        } else {
            access(flags)?
        };
        let file = self.reopen(header.node, flags, kind)?;
        if how & OPEN_KILL_SUIDGID != 0 && !directory {
            self.strip(&file)?;
        }
        let handle = self.opened.put(file, directory);
        Ok(Answer::Bytes(message::open_out(handle).to_vec()))
    }

    fn create(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (flags, mode) = (body.u32()?, body.u32()?);
        body.skip(4)?; // the umask, which is in the mode
        let how = body.u32()?;
        let name = body.name()?;
        self.opened.expect_room()?;
        let access = access(flags)?;
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        let parent = &self.inodes.get(header.node)?.fd;
        let made = below(
            parent,
            name,
            access | OFlags::CREATE | OFlags::EXCL,
            first_mode(mode),
        );
        let (file, entry) = match made {
            Ok(file) => {
                let given = self
                    .give(header, &file, mode)
                    .and_then(|()| self.through_link(&file, OFlags::PATH))
                    .and_then(|named| self.entry(named));
                let entry = given.inspect_err(|_| {
                    if let Ok(parent) = self.inodes.get(header.node) {
                        let _ = unlinkat(&parent.fd, name, AtFlags::empty());
                    }
                })?;
                (file, entry)
            }
            // Made by somebody on the host meanwhile.
            Err(Errno::EXIST) if !exclusive => {
                let found = self.find(header.node, name)?;
                let is_file = FileType::from_raw_mode(stat(&found)?.stx_mode.into()) == FileType::RegularFile;
                if !is_file {
                    return Err(Errno::EXIST);
                }
                let file = self.through_link(&found, access)?;
                if how & OPEN_KILL_SUIDGID != 0 {
                    self.strip(&file)?;
                }
                (file, self.entry(found)?)
            }
            Err(error) => return Err(error),
        };
        Ok(self.opened_entry(entry, file))
    }

    fn tmpfile(&mut self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (flags, mode) = (body.u32()?, body.u32()?);
        self.opened.expect_room()?;
        // `O_EXCL` here says that the file will never have a name.
        let keep = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let flags = (access(flags)? - OFlags::TRUNC) | keep | OFlags::TMPFILE;
        let parent = &self.inodes.get(header.node)?.fd;
        let file = openat2(parent, ".", flags | OFlags::CLOEXEC, first_mode(mode), BENEATH)?;
        self.give(header, &file, mode)?;
        let named = self.through_link(&file, OFlags::PATH)?;
        let entry = self.entry(named)?;
        Ok(self.opened_entry(entry, file))
    }

    fn opened_entry(&mut self, mut entry: Vec<u8>, file: OwnedFd) -> Answer {
        let handle = self.opened.put(file, false);
        entry.extend(message::open_out(handle));
        Answer::Bytes(entry)
    }

    fn read(&mut self, exchange: &mut impl Exchange) -> Result<Answer> {
        let mut body = [0; 40];
        if !exchange.take(&mut body) {
            return Err(Errno::INVAL);
        }
        let body = &mut Body(&body);
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let bytes = (size as usize).min(exchange.room().saturating_sub(HEADER));
        let file = self.opened.file(handle)?.as_fd();
        let read = exchange.fill(file, offset, bytes).map_err(errno)?;
        Ok(Answer::Filled(read))
    }

    fn write(&mut self, exchange: &mut impl Exchange) -> Result<Answer> {
        let mut body = [0; 40];
        if !exchange.take(&mut body) {
            return Err(Errno::INVAL);
        }
        let body = &mut Body(&body);
        let (handle, offset, size, how) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
        body.skip(8)?; // lock owner
        let flags = OFlags::from_bits_retain(body.u32()?);
        // At the end as it is now, which the other side may not know yet.
        let at_end = flags.contains(OFlags::APPEND) && how & WRITE_CACHE == 0;
        if size as usize != exchange.left() {
            return Err(Errno::INVAL);
        }
        let file = self.opened.file(handle)?;
        if how & WRITE_KILL_SUIDGID != 0 {
            self.strip(file)?;
        }
        let written = exchange
            .drain(file.as_fd(), offset, size as usize, at_end)
            .map_err(errno)?;
        Ok(Answer::Bytes(message::count_out(written)))
    }

    fn read_dir(&mut self, body: &mut Body<'_>, room: usize) -> Result<Answer> {
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let directory = self.opened.directory(handle)?;
        let room = room.min(size as usize);
        if i64::try_from(offset).is_err() {
            return Err(Errno::INVAL);
        }
        seek(directory, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BYTES.min(room).max(1 << 10)];
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut out = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if out.is_empty() => return Err(error),
                Err(_) => break,
            };
            let kind = entry.file_type().as_raw_mode() >> 12;
            let (inode, next) = (entry.ino(), entry.next_entry_cookie());
            let put = message::directory_entry(inode, next, kind, entry.file_name(), room, &mut out);
            if put.is_none() {
                break;
            }
        }
        Ok(Answer::Bytes(out))
    }

    fn stat_fs(&self, header: &Header) -> Result<Answer> {
        let stat = fstatvfs(&self.inodes.get(header.node)?.fd)?;
        let mut out = Vec::with_capacity(80);
        for number in [
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
        ] {
            out.extend(number.to_le_bytes());
        }
        for number in [stat.f_bsize, stat.f_namemax, stat.f_frsize] {
            out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        out.resize(80, 0);
        Ok(Answer::Bytes(out))
    }

    fn fsync(&self, opcode: Opcode, body: &mut Body<'_>) -> Result<Answer> {
        let (handle, flags) = (body.u64()?, body.u32()?);
        let fd = match opcode {
            Opcode::FsyncDir => self.opened.directory(handle)?,
            _ => self.opened.file(handle)?,
        };
        if flags & FSYNC_DATA != 0 {
            fdatasync(fd)?;
        } else {
            fsync(fd)?;
        }
        DONE
    }

    fn set_xattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let (size, flags) = (body.u32()?, body.u32()?);
        let name = attribute(body)?;
        let value = body.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        setxattr(self.path(&self.inodes.get(header.node)?.fd), name, value, flags)?;
        DONE
    }

    fn get_xattr(&self, header: &Header, body: &mut Body<'_>, room: usize) -> Result<Answer> {
        let size = body.u32()?;
        body.skip(4)?;
        let name = attribute(body)?;
        let path = self.path(&self.inodes.get(header.node)?.fd);
        // With room for none, the kernel says how long the value is.
        let mut value = vec![0; (size as usize).min(MAX_XATTR)];
        let length = getxattr(path, name, &mut value[..])?;
        if size == 0 {
            return Ok(Answer::Bytes(message::count_out(length)));
        }
        value.truncate(length);
        sized(value, size, room)
    }

    fn list_xattr(&self, header: &Header, body: &mut Body<'_>, room: usize) -> Result<Answer> {
        let size = body.u32()?;
        let path = self.path(&self.inodes.get(header.node)?.fd);
        let mut list = vec![0; MAX_XATTR];
        let length = listxattr(path, &mut list[..])?;
        list.truncate(length);
        let names = list.split_inclusive(|byte| *byte == 0);
        let names: Vec<u8> = names
            .filter(|name| !name.starts_with(ACLS))
            .flatten()
            .copied()
            .collect();
        sized(names, size, room)
    }

    fn remove_xattr(&self, header: &Header, body: &mut Body<'_>) -> Result<Answer> {
        let name = attribute(body)?;
        removexattr(self.path(&self.inodes.get(header.node)?.fd), name)?;
        DONE
    }

    fn fallocate(&self, body: &mut Body<'_>) -> Result<Answer> {
        let (handle, offset, length, mode) = (body.u64()?, body.u64()?, body.u64()?, body.u32()?);
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let file = self.opened.file(handle)?;
        // Whoever asks: the request does not say who may keep them.
        self.strip(file)?;
        fallocate(file, flags, offset, length)?;
        DONE
    }

    fn lseek(&self, body: &mut Body<'_>) -> Result<Answer> {
        let (handle, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
        if i64::try_from(offset).is_err() {
            return Err(Errno::INVAL);
        }
        let to = match whence.cast_signed() {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let position = seek(self.opened.file(handle)?, to)?;
        Ok(Answer::Bytes(position.to_le_bytes().to_vec()))
    }

    fn copy_file_range(&self, body: &mut Body<'_>) -> Result<Answer> {
        let (from, mut from_offset) = (body.u64()?, body.u64()?);
        body.skip(8)?; // the target's inode
        let (to, mut to_offset) = (body.u64()?, body.u64()?);
        let (length, flags) = (body.u64()?, body.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.opened.file(from)?, self.opened.file(to)?);
        self.strip(to)?;
        // Not above a constant.
        let length = length.min(MAX_COPY) as usize;
        let copied = copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length)?;
        Ok(Answer::Bytes(message::count_out(copied)))
    }

    /// How many inodes are known.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.inodes.len()
    }
}

const SET_GROUP: u32 = 0o2000;

/// A single name needs none of what these forbid. They say it to the kernel too.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// Opens what has this name in a directory, itself and not where it leads.
fn below(directory: &OwnedFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match openat2(directory, name, flags, mode, BENEATH) {
            // The kernel saw a rename on its way.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

fn stat(fd: &OwnedFd) -> Result<Statx> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(fd, "", AtFlags::EMPTY_PATH, flags)
}

/// Permissions for the time until an inode has its owner; set-ID bits come after that.
fn first_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

/// Of the flags of open(2) those that are for the host: how it may be used and how lasting writes are. Appending is each write's own.
fn access(flags: u32) -> Result<OFlags> {
    let kept = OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    let flags = OFlags::from_bits_retain(flags) & kept;
    match flags & OFlags::RWMODE {
        OFlags::RDONLY | OFlags::WRONLY | OFlags::RDWR => Ok(flags | OFlags::NONBLOCK),
        _ => Err(Errno::INVAL),
    }
}

fn user(id: u32) -> Result<Uid> {
    // This one means nobody.
    if id == u32::MAX {
        Err(Errno::INVAL)
    } else {
        Ok(Uid::from_raw(id))
    }
}

fn group(id: u32) -> Result<Gid> {
    if id == u32::MAX {
        Err(Errno::INVAL)
    } else {
        Ok(Gid::from_raw(id))
    }
}

fn timespec(seconds: u64, nanoseconds: u32) -> Result<Timespec> {
    // Larger ones have meanings of their own.
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    Ok(Timespec {
        tv_sec: seconds.cast_signed(),
        tv_nsec: nanoseconds.into(),
    })
}

/// The name of an extended attribute.
fn attribute<'a>(body: &mut Body<'a>) -> Result<&'a CStr> {
    let name = body.text()?;
    if name.to_bytes().starts_with(ACLS) {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(name)
}

/// Bytes of which somebody asks for the number (with size 0) or for all of them.
fn sized(bytes: Vec<u8>, size: u32, room: usize) -> Result<Answer> {
    if size == 0 {
        Ok(Answer::Bytes(message::count_out(bytes.len())))
    } else if bytes.len() > room.min(size as usize) {
        Err(Errno::RANGE)
    } else {
        Ok(Answer::Bytes(bytes))
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
