//! Making a tap (Documentation/networking/tuntap.rst).

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const DEVICE: &str = "/dev/net/tun";
const VHOST: &str = "/dev/vhost-net";
/// Bytes of the header before each packet (`struct virtio_net_hdr_v1`).
const HEADER: libc::c_int = 12;

/// A new tap in this network namespace whose name is `prefix` and a number: the descriptor that carries its packets, and the name. It is
/// gone when the descriptor is closed.
pub fn open(prefix: &str) -> Result<(File, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File = rustix::fs::open(DEVICE, flags, Mode::empty())
        .context(DEVICE)?
        .into();
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let pattern = format!("{prefix}%d");
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(pattern.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is an `ifreq` that outlives the call, which writes the name into it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .with_context(|| format!("{DEVICE}: a new tap"))?;
    let header = HEADER;
    // SAFETY: the argument is an `int` that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
        .with_context(|| format!("{DEVICE}: packet headers of {HEADER} bytes"))?;
    // SAFETY: the kernel ends the name with a zero within the array, and it has the array's lifetime.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok((file, name.to_string_lossy().into_owned()))
}

/// What has the kernel move packets between taps and guests, where there is such a thing and this user may have it.
pub fn vhost() -> Option<File> {
    rustix::fs::open(VHOST, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .inspect_err(|error| tracing::debug!(%error, "{VHOST} is not used"))
        .ok()
        .map(File::from)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
