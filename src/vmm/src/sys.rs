//! System calls on guest memory.
//!
//! The kernel copies between a descriptor and guest memory directly. Guest memory has no Rust references, so these take
//! `VolatileSlice`s and make plain `iovec`s of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// A piece of guest memory.
pub type Slice<'m> = VolatileSlice<'m, ()>;

/// The longest vector that one call takes (Linux' `UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// `iovec`s for the first pieces of `slices`: as many as one call takes.
fn vectors(slices: &[Slice<'_>]) -> Vec<libc::iovec> {
    let to_vector = |slice: &Slice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().take(MAX_VECTORS).map(to_vector).collect()
}

/// The result of a call that returns a byte count, or `None` where a signal broke it off.
fn count(result: libc::ssize_t) -> io::Result<Option<usize>> {
    match usize::try_from(result) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The first `bytes` bytes of `slices`, or all where there are fewer.
pub fn first<'m>(slices: &[Slice<'m>], mut bytes: usize) -> Vec<Slice<'m>> {
    let mut first = Vec::new();
    for slice in slices {
        // Cut to the slice's own length, so it exists.
        let piece = slice.subslice(0, bytes.min(slice.len())).unwrap_or(*slice);
        first.push(piece);
        bytes -= piece.len();
        if bytes == 0 {
            break;
        }
    }
    first
}

/// Drops the first `bytes` bytes of `slices`.
pub fn advance<'s, 'm>(slices: &'s mut [Slice<'m>], mut bytes: usize) -> &'s mut [Slice<'m>] {
    let mut first = 0;
    for slice in slices.iter_mut() {
        if bytes < slice.len() {
            // Below the slice's length, so the rest exists.
            *slice = slice.offset(bytes).unwrap_or(*slice);
            break;
        }
        bytes -= slice.len();
        first += 1;
    }
    slices.get_mut(first..).unwrap_or_default()
}

/// `preadv` or `pwritev`.
type Transfer =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Reads from `offset` of `file` until all of `slices` is filled. Uses up `slices`.
pub fn read_all_at(file: &File, slices: &mut [Slice<'_>], offset: u64) -> io::Result<()> {
    transfer_all(libc::preadv, file, slices, offset, io::ErrorKind::UnexpectedEof)
}

/// Writes all of `slices` to `file` from `offset` on. Uses up `slices`.
pub fn write_all_at(file: &File, slices: &mut [Slice<'_>], offset: u64) -> io::Result<()> {
    transfer_all(libc::pwritev, file, slices, offset, io::ErrorKind::WriteZero)
}

/// Calls until nothing is left; a call that moves nothing is the error `stuck`.
fn transfer_all(
    call: Transfer,
    file: &File,
    mut slices: &mut [Slice<'_>],
    mut offset: u64,
    stuck: io::ErrorKind,
) -> io::Result<()> {
    while !slices.is_empty() {
        let vectors = vectors(slices);
        // SAFETY: each vector is a piece of guest memory, mapped for as long as the slices' borrow. The guest may see
        // or change the bytes meanwhile, which is no concern of the kernel's copy. `vectors` outlives the call, which is
        // one of the two above.
        let result = unsafe {
            call(
                file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                file_offset(offset)?,
            )
        };
        match count(result)? {
            Some(0) if slices.iter().any(|slice| !slice.is_empty()) => return Err(stuck.into()),
            Some(bytes) => {
                offset += bytes as u64;
                slices = advance(slices, bytes);
            }
            None => {}
        }
    }
    Ok(())
}

/// Reads from `offset` of `file` until `slices` is filled or the file ends. Uses up `slices`. An error after the first bytes is left for
/// the next call to meet.
pub fn read_most_at(file: BorrowedFd<'_>, slices: &mut [Slice<'_>], offset: u64) -> io::Result<usize> {
    transfer_most(slices, |vectors, done| {
        // SAFETY: as in `transfer_all`.
        Ok(unsafe {
            libc::preadv(
                file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                file_offset(offset.saturating_add(done as u64))?,
            )
        })
    })
}

/// Writes `slices` to `file` from `offset` on, or to its end. Uses up `slices`. An error after the first bytes is left for the next
/// call to meet.
pub fn write_most_at(
    file: BorrowedFd<'_>,
    slices: &mut [Slice<'_>],
    offset: u64,
    at_end: bool,
) -> io::Result<usize> {
    let flags = if at_end { libc::RWF_APPEND } else { 0 };
    transfer_most(slices, |vectors, done| {
        // SAFETY: as in `transfer_all`; the kernel only reads the pieces.
        Ok(unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                file_offset(offset.saturating_add(done as u64))?,
                flags,
            )
        })
    })
}

/// Calls until nothing is left or a call moves nothing. Returns how many bytes were moved.
fn transfer_most(
    mut slices: &mut [Slice<'_>],
    mut call: impl FnMut(&[libc::iovec], usize) -> io::Result<libc::ssize_t>,
) -> io::Result<usize> {
    let mut done = 0;
    while slices.iter().any(|slice| !slice.is_empty()) {
        match call(&vectors(slices), done).and_then(count) {
            Ok(Some(0)) => break,
            Ok(Some(bytes)) => {
                done += bytes;
                slices = advance(slices, bytes);
            }
            Ok(None) => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads what one call of `readv` gives: from a tap, one packet.
pub fn read_once(file: &File, slices: &[Slice<'_>]) -> io::Result<usize> {
    loop {
        let vectors = vectors(slices);
        // SAFETY: as in `transfer_all`.
        let result = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        if let Some(bytes) = count(result)? {
            return Ok(bytes);
        }
    }
}

/// Writes what one call of `writev` takes: to a tap, one packet.
pub fn write_once(file: &File, slices: &[Slice<'_>]) -> io::Result<usize> {
    loop {
        let vectors = vectors(slices);
        // SAFETY: as in `transfer_all`; the kernel only reads the pieces.
        let result =
            unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        if let Some(bytes) = count(result)? {
            return Ok(bytes);
        }
    }
}

/// Copies `parts`, one after the other, to the front of `slices`; what has no room is dropped. Uses up `slices`.
pub fn fill(mut slices: &mut [Slice<'_>], parts: &[&[u8]]) {
    for part in parts {
        let mut rest = *part;
        while let (Some(slice), false) = (slices.first(), rest.is_empty()) {
            let bytes = slice.len().min(rest.len());
            slice.copy_from(&rest[..bytes]);
            rest = &rest[bytes..];
            slices = advance(slices, bytes);
        }
    }
}

/// Reads from `offset` of `file` until `slice` is filled.
pub fn read_exact_at(file: &File, slice: &Slice<'_>, offset: u64) -> io::Result<()> {
    read_all_at(file, &mut [*slice], offset)
}

/// Receives what `socket` has, up to the size of `slices`, without waiting. 0 is the end of the stream.
pub fn receive(socket: &impl AsRawFd, slices: &[Slice<'_>]) -> io::Result<usize> {
    loop {
        let mut vectors = vectors(slices);
        let mut message = message(&mut vectors);
        // SAFETY: as in `transfer_all`; `message` is a valid header without name or control data.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if let Some(bytes) = count(result)? {
            return Ok(bytes);
        }
    }
}

/// Sends from `slices` what `socket` takes without waiting.
pub fn send(socket: &impl AsRawFd, slices: &[Slice<'_>]) -> io::Result<usize> {
    loop {
        let mut vectors = vectors(slices);
        let message = message(&mut vectors);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `receive`; the kernel only reads the pieces.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        if let Some(bytes) = count(result)? {
            return Ok(bytes);
        }
    }
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: `msghdr` is a plain C structure, for which zero means "absent" in every field.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    message
}
