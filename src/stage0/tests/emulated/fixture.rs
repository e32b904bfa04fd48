//! A kernel, an initrd and a command line, staged as a VMM does.

use sha2::{Digest, Sha256};
use stage0::Termination;
use stage0::abi::{Expected, Extent, HashPage, PAGE, STAGING_START, Staging};

use crate::host::Host;
use crate::image::Elf;
use crate::machine::{End, Machine};

/// What the tenant measured, and what the host stages: the same until a test changes one of them.
pub struct Guest {
    pub hashes: HashPage,
    pub staging: Staging,
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
    pub cmdline: Vec<u8>,
    pub host: Host,
}

pub const SETUP: usize = 3 * 512;

/// A file that has all of a bzImage that a boot loader looks at, with 64 KiB of code.
pub fn kernel() -> Vec<u8> {
    let mut file: Vec<u8> = (0..SETUP + 0x1_0000).map(|at| (at * 31 / 8) as u8).collect();
    file[..SETUP].fill(0);
    put(&mut file, 0x1f1, &[2]);
    put(&mut file, 0x1f4, &(0x1_0000u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20fu16.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x234, &[1]);
    put(&mut file, 0x236, &0x3fu16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x200_0000u32.to_le_bytes());
    file
}

pub fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

pub fn expected(file: &[u8]) -> Expected {
    Expected {
        sha256: Sha256::digest(file).into(),
        len: file.len() as u64,
    }
}

impl Guest {
    /// A guest with `ram` bytes of RAM.
    pub fn new(ram: u64) -> Self {
        Self::with_kernel(ram, kernel())
    }

    /// A guest whose measured kernel is `kernel`.
    pub fn with_kernel(ram: u64, kernel: Vec<u8>) -> Self {
        let initrd: Vec<u8> = (0..10_000u32).map(|at| (at / 7) as u8).collect();
        let cmdline = b"console=ttyS0 panic=-1".to_vec();
        let place = |page: u64, file: &[u8]| Extent {
            gpa: STAGING_START + page * PAGE,
            len: file.len() as u64,
        };
        Guest {
            hashes: HashPage {
                kernel: expected(&kernel),
                initrd: expected(&initrd),
                cmdline: expected(&cmdline),
            },
            staging: Staging {
                vcpus: 3,
                ram,
                kernel: place(1, &kernel),
                initrd: place(2048, &initrd),
                cmdline: place(4096, &cmdline),
            },
            kernel,
            initrd,
            cmdline,
            host: Host::default(),
        }
    }

    /// The machine, ready to run.
    pub fn machine(self) -> Box<Machine> {
        // The host's files are where the right ones would be, whatever the descriptor says.
        let files = [
            (STAGING_START + PAGE, &*self.kernel),
            (STAGING_START + 2048 * PAGE, &*self.initrd),
            (STAGING_START + 4096 * PAGE, &*self.cmdline),
        ];
        Machine::new(
            Elf::confidential(),
            &self.hashes,
            &self.staging,
            &files,
            self.host,
        )
    }
}

/// 64 MiB.
pub const RAM: u64 = 64 << 20;

/// Runs a guest to which `attack` was done; it must end with `termination`.
#[track_caller]
pub fn caught(termination: Termination, attack: impl FnOnce(&mut Guest)) {
    let mut guest = Guest::new(RAM);
    attack(&mut guest);
    ends_with(guest, termination);
}

/// Runs a guest that must end with `termination`.
#[track_caller]
pub fn ends_with(guest: Guest, termination: Termination) {
    let mut machine = guest.machine();
    let end = machine.run();
    if let End::Terminated(msr) = end {
        assert_eq!(
            Termination::from_ghcb_msr(msr),
            Some(termination),
            "{msr:#x} {:x?}",
            machine.log.exceptions
        );
    } else {
        panic!("{end:x?} instead of {termination:?}");
    }
}
