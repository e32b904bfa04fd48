//! Puts the initrd at the end of low guest memory, where the kernel is least likely to need the room.

use std::fs::File;
use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::layout::PAGE;
use crate::memory::{self, GuestMemory};

/// Why an initrd can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("can't read it")]
    Read(#[source] io::Error),
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// It and the kernel need more memory than there is.
    #[error(
        "its {bytes} bytes don't fit between the kernel's end at {kernel_end:#x} and the end of low memory at {low_end:#x}"
    )]
    TooLarge {
        /// Size of the initrd.
        bytes: u64,
        /// First address above the kernel.
        kernel_end: u64,
        /// End of RAM below the hole.
        low_end: u64,
    },
}

/// Where the initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address, at a page boundary. Below 4 GiB.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Reads `file` into the highest pages of low memory that hold it.
pub fn load(memory: &GuestMemory, file: &File, kernel_end: u64) -> Result<Initrd, Error> {
    let bytes = file.metadata().map_err(Error::Read)?.len();
    let initrd = place(bytes, kernel_end, memory::low_end(memory))?;
    let slice = memory
        .get_slice(GuestAddress(initrd.start.into()), initrd.len as usize)
        .map_err(|error| Error::Read(io::Error::other(error)))?;
    crate::sys::read_exact_at(file, &slice, 0).map_err(Error::Read)?;
    Ok(initrd)
}

/// The place for `bytes` bytes between `kernel_end` and `low_end`.
fn place(bytes: u64, kernel_end: u64, low_end: u64) -> Result<Initrd, Error> {
    if bytes == 0 {
        return Err(Error::Empty);
    }
    let too_large = Error::TooLarge {
        bytes,
        kernel_end,
        low_end,
    };
    let Some(start) = low_end.checked_sub(bytes).map(|start| start & !(PAGE - 1)) else {
        return Err(too_large);
    };
    if start < kernel_end {
        return Err(too_large);
    }
    match (u32::try_from(start), u32::try_from(bytes)) {
        (Ok(start), Ok(len)) => Ok(Initrd { start, len }),
        _ => Err(too_large),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_end_of_low_memory() {
        assert_eq!(
            place(1, 0x200_0000, 0x400_0000).unwrap(),
            Initrd {
                start: 0x3ff_f000,
                len: 1
            }
        );
        assert_eq!(
            place(0x1000, 0x200_0000, 0x400_0000).unwrap(),
            Initrd {
                start: 0x3ff_f000,
                len: 0x1000
            }
        );
        assert_eq!(
            place(0x1001, 0x200_0000, 0x400_0000).unwrap(),
            Initrd {
                start: 0x3ff_e000,
                len: 0x1001
            }
        );
    }

    #[test]
    fn it_never_covers_the_kernel() {
        assert!(place(0x200_0000, 0x200_0000, 0x400_0000).is_ok());
        for bytes in [0x200_0001, 0x400_0000, 0x400_0001, u64::MAX] {
            assert!(
                matches!(place(bytes, 0x200_0000, 0x400_0000), Err(Error::TooLarge { .. })),
                "{bytes:#x}"
            );
        }
        assert!(matches!(place(0, 0, 0x400_0000), Err(Error::Empty)));
    }
}
