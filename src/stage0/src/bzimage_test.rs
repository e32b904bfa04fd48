use proptest::prelude::*;

use super::*;

/// A header that is taken, with 64 KiB of code.
fn file() -> Vec<u8> {
    let mut file = vec![0; 0x600 + 0x1_0000];
    let fields: [(usize, &[u8]); 12] = [
        (SETUP_SECTS, &[2]),
        (SYSSIZE, &(0x1_0000u32 / 16).to_le_bytes()),
        (BOOT_FLAG, &[0x55, 0xaa]),
        (JUMP_OFFSET, &[0x6a]),
        (MAGIC, b"HdrS"),
        (VERSION, &[0x0f, 2]),
        (LOADFLAGS, &[1]),
        (INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes()),
        (KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes()),
        (RELOCATABLE, &[1, 0, 0x23]),
        (PREF_ADDRESS, &LOAD_ADDRESS.to_le_bytes()),
        (INIT_SIZE, &0x10_0000u32.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file[CMDLINE_SIZE..CMDLINE_SIZE + 2].copy_from_slice(&2047u16.to_le_bytes());
    file
}

#[test]
fn a_good_header_is_parsed() {
    let header = Header::parse(&file(), 2047).unwrap();
    let expected = Header {
        setup_len: 0x600,
        end: 0x26c,
        init_size: 0x10_0000,
        initrd_max: 0x7fff_ffff,
    };
    assert_eq!(header, expected);
}

#[test]
fn no_setup_sectors_mean_four() {
    assert_eq!((setup_len(0), setup_len(4), setup_len(255)), (2560, 2560, 131072));
}

#[test]
fn a_kernel_that_can_not_move_must_want_our_address() {
    let mut fixed = file();
    fixed[RELOCATABLE] = 0;
    assert!(Header::parse(&fixed, 0).is_ok());
    fixed[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x20_0000u64.to_le_bytes());
    assert_eq!(Header::parse(&fixed, 0), Err(Termination::KernelAddress));
}

proptest! {
    #[test]
    fn what_passes_can_be_loaded(
        changes in proptest::collection::vec((0x1f0usize..0x268, any::<u8>()), 0..6),
        len in 0usize..0x1_1000,
        cut in any::<bool>(),
        cmdline in 0u64..5000,
    ) {
        let mut file = file();
        for (at, byte) in changes {
            file[at] = byte;
        }
        if cut {
            file.truncate(len);
        }
        if let Ok(header) = Header::parse(&file, cmdline) {
            let code = file.len() as u64 - header.setup_len;
            prop_assert!(code > ENTRY_64 && header.init_size >= code);
            prop_assert!(header.end > HEADER && header.end <= HEADER_MAX_END && header.end <= file.len());
        }
    }
}
