//! Requests as a driver makes them, and as a hostile one does.

use crate::virtio::Command;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;
use crate::virtio::command_channel;
use crate::virtio::testing::{Driver, memory};

const BASE: u64 = 0x10_0000;
const HEAD: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const STATUS: u64 = 0x20_1000;
const SECTORS: u64 = 256;

fn disk(access: Access) -> Disk {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / SECTOR) as u8).collect();
    file.write_all_at(&bytes, 0).unwrap();
    Disk {
        files: vec![file],
        access,
        serial: "disk0".into(),
    }
}

fn block(access: Access) -> Block {
    Block::new(disk(access)).unwrap()
}

/// Carries out one request with `data` to write or `room` bytes to read into. Returns bytes written and status.
fn request(block: &Block, kind: u32, sector: u64, data: &[u8], room: u32) -> (u32, u8) {
    let mut driver = Driver::new(&memory_once(), BASE, 16);
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    driver.write(HEAD, &header);
    driver.write(STATUS, &[0xee]);
    let mut parts = vec![(HEAD, 16, false)];
    if !data.is_empty() {
        driver.write(DATA, data);
        // In two pieces that are not aligned to anything.
        let cut = data.len() as u32 / 3;
        parts.extend([
            (DATA, cut, false),
            (DATA + u64::from(cut), data.len() as u32 - cut, false),
        ]);
    }
    if room > 0 {
        let cut = room / 3;
        parts.extend([(DATA, cut, true), (DATA + u64::from(cut), room - cut, true)]);
    }
    parts.push((STATUS, 1, true));
    driver.add(&parts);
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    let mut chain = queue.pop(&memory).unwrap().unwrap();
    let written = block.execute(&mut chain);
    (written, driver.read(STATUS, 1)[0])
}

thread_local! {
    static MEMORY: Arc<Ram> = memory();
}

/// One memory for all requests of a test, so that answers can be looked at.
fn memory_once() -> Arc<Ram> {
    let memory = MEMORY.with(Arc::clone);
    Driver::new(&memory, BASE, 16).write(BASE, &[0; 0x9000]);
    memory
}

fn answer(len: usize) -> Vec<u8> {
    Driver::new(&MEMORY.with(Arc::clone), BASE, 16).read(DATA, len)
}

fn ranges(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    ranges
        .iter()
        .flat_map(|(sector, count, flags)| {
            [
                &sector.to_le_bytes()[..],
                &count.to_le_bytes(),
                &flags.to_le_bytes(),
            ]
            .concat()
        })
        .collect()
}

#[test]
fn sectors_are_read_and_written() {
    let block = block(Access::ReadWrite);
    assert_eq!(request(&block, 0, 3, &[], 1024), (1025, 0));
    assert_eq!(answer(1024), [[3; 512], [4; 512]].concat());
    assert_eq!(request(&block, 1, 4, &[0xaa; 1024], 0), (1, 0));
    request(&block, 0, 3, &[], 2048);
    assert_eq!(
        answer(2048),
        [[3; 512], [0xaa; 512], [0xaa; 512], [6; 512]].concat()
    );
    assert_eq!(request(&block, 4, 0, &[], 0), (1, 0));
    assert_eq!(request(&block, 0, SECTORS - 1, &[], 512), (513, 0));
}

#[test]
fn what_lies_off_the_disk_is_an_error() {
    let block = block(Access::ReadWrite);
    for (sector, bytes) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 513),
    ] {
        assert_eq!(
            request(&block, 0, sector, &[], bytes),
            (1, 1),
            "read {bytes} at {sector}"
        );
        assert_eq!(
            request(&block, 1, sector, &vec![0; bytes as usize], 0),
            (1, 1),
            "write {bytes} at {sector}"
        );
    }
    // A file that was cut behind our back.
    block.backing.only_file().set_len(512).unwrap();
    assert_eq!(request(&block, 0, 3, &[], 512), (1, 1));
}

#[test]
fn a_read_only_disk_never_changes() {
    let block = block(Access::ReadOnly);
    assert_eq!(request(&block, 1, 0, &[0xaa; 512], 0), (1, 1));
    for kind in [4, 11, 13] {
        assert_eq!(request(&block, kind, 0, &ranges(&[(0, 8, 0)]), 0), (1, 2));
    }
    let mut first = [9; 512];
    block.backing.only_file().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
    assert_eq!(request(&block, 0, 7, &[], 512), (513, 0));
}

#[test]
fn the_serial_is_told() {
    let block = block(Access::ReadOnly);
    assert_eq!(request(&block, 8, 0, &[], 20), (21, 0));
    assert_eq!(answer(20), b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&block, 8, 0, &[], 3), (4, 0));
}

#[test]
fn unknown_requests_are_unsupported() {
    let block = block(Access::ReadWrite);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&block, kind, 0, &[], 0), (1, 2), "{kind}");
    }
}

#[test]
fn discarded_sectors_give_their_space_back() {
    let block = block(Access::Scratch);
    let before = block.backing.only_file().metadata().unwrap().blocks();
    assert_eq!(
        request(&block, 11, 0, &ranges(&[(8, 64, 0), (128, 64, 0)]), 0),
        (1, 0)
    );
    assert_eq!(request(&block, 0, 8, &[], 512), (513, 0));
    assert_eq!(answer(512), [0; 512]);
    assert_eq!(
        block.backing.only_file().metadata().unwrap().len(),
        SECTORS * SECTOR
    );
    assert!(block.backing.only_file().metadata().unwrap().blocks() < before);
    assert_eq!(request(&block, 11, 0, &ranges(&[(0, 0, 0)]), 0), (1, 0));
}

#[test]
fn zeroes_are_written_with_and_without_unmap() {
    let block = block(Access::ReadWrite);
    for flags in [0, 1] {
        request(&block, 1, 9, &[0xaa; 1536], 0);
        assert_eq!(request(&block, 13, 0, &ranges(&[(10, 1, flags)]), 0), (1, 0));
        request(&block, 0, 9, &[], 1536);
        assert_eq!(answer(1536), [[0xaa; 512], [0; 512], [0xaa; 512]].concat());
    }
    block.backing.write_zeros(512, 100 * 1024);
    request(&block, 0, 0, &[], 512 * 202);
    assert!(answer(512 * 202)[512..201 * 512].iter().all(|&byte| byte == 0));
    assert_eq!(answer(512 * 202)[201 * 512], 201);
}

#[test]
fn bad_ranges_are_refused() {
    let block = block(Access::ReadWrite);
    let too_many = vec![(0, 1, 0); 17];
    for (bad, status) in [
        (ranges(&[(SECTORS, 1, 0)]), 1),
        (ranges(&[(0, SECTORS as u32 + 1, 0)]), 1),
        (ranges(&[(u64::MAX, 1, 0)]), 1),
        (ranges(&[(0, u32::MAX, 0)]), 1),
        (ranges(&[(0, 1, 2)]), 2),
        (ranges(&[(0, 1, u32::MAX)]), 2),
        (ranges(&[(0, 1, 0)])[..15].to_vec(), 1),
        (ranges(&too_many), 1),
        (vec![], 1),
    ] {
        assert_eq!(request(&block, 11, 0, &bad, 0), (1, status), "discard {bad:?}");
        assert_eq!(
            request(&block, 13, 0, &bad, 0),
            (1, status),
            "write zeroes {bad:?}"
        );
    }
    assert_eq!(request(&block, 11, 0, &ranges(&[(0, 1, 1)]), 0), (1, 2));
}

#[test]
fn the_features_follow_from_the_access() {
    let has = |access, bit: u32| block(access).description().features >> bit & 1 == 1;
    assert!(has(Access::ReadOnly, 5) && !has(Access::ReadOnly, 9) && !has(Access::ReadOnly, 13));
    assert!(!has(Access::ReadWrite, 5) && has(Access::ReadWrite, 9) && has(Access::ReadWrite, 13));
    assert!(!has(Access::Scratch, 5) && !has(Access::Scratch, 9) && has(Access::Scratch, 14));
    let config = block(Access::ReadOnly).description().config;
    assert_eq!(config.len(), 60);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[36..40], MAX_DISCARD_SECTORS.to_le_bytes());
}

#[test]
fn disks_that_can_not_be_offered_are_refused() {
    let with = |serial: &str, len| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Block::new(Disk {
            files: vec![file],
            access: Access::ReadOnly,
            serial: serial.into(),
        })
    };
    assert!(with("x", 0).is_ok());
    assert!(matches!(with("x", 513), Err(Error::Unaligned { bytes: 513, .. })));
    for serial in ["", "123456789012345678901", "a b", "ä", "a\n"] {
        assert!(matches!(with(serial, 512), Err(Error::Serial(_))), "{serial:?}");
    }
}

#[test]
fn the_thread_serves_interrupts_and_stops() {
    let memory = memory();
    let mut driver = Driver::new(&memory, BASE, 16);
    let wake = EventFd::new(0).unwrap();
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let interrupt = Interrupt::new(line.try_clone().unwrap());
    let (outbox, inbox) = command_channel(wake.try_clone().unwrap());
    let notify = wake.try_clone().unwrap();
    let thread = block(Access::ReadOnly)
        .spawn("block0".into(), inbox, wake, interrupt.clone(), memory.clone())
        .unwrap();

    driver.write(HEAD, &[0; 16]);
    driver.add(&[(HEAD, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    outbox.send(Command::Activate {
        queues: vec![driver.queue()],
        features: 0,
    });
    let wait = |driver: &mut Driver| {
        for _ in 0..1000 {
            let used = driver.used();
            if !used.is_empty() {
                return used;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        vec![]
    };
    assert_eq!(wait(&mut driver), [(0, 513)]);
    driver.add(&[(HEAD, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    notify.write(1).unwrap();
    assert_eq!(wait(&mut driver), [(3, 513)]);
    outbox.reset();
    assert!(line.read().unwrap() >= 1);
    // A queue that breaks takes the device down, not the thread.
    outbox.send(Command::Activate {
        queues: vec![driver.queue()],
        features: 0,
    });
    driver.set_available(100);
    notify.write(1).unwrap();
    for _ in 0..1000 {
        if interrupt.needs_reset() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(interrupt.needs_reset());
    outbox.reset();
    outbox.send(Command::Stop);
    thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any bytes as a request, in any split: no panic, and a read-only disk stays as it was.
    #[test]
    fn any_request_is_harmless(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..SECTORS + 2, any::<u64>()],
        body in prop::collection::vec(any::<u8>(), 0..2048),
        parts in prop::collection::vec((0u64..4096, 0u32..4096, any::<bool>()), 0..6),
    ) {
        let mut disk = disk(Access::ReadOnly);
        let mut before = Vec::new();
        std::io::Seek::rewind(&mut disk.files[0]).unwrap();
        disk.files[0].read_to_end(&mut before).unwrap();
        let copy = disk.files[0].try_clone().unwrap();
        let block = Block::new(disk).unwrap();

        let mut driver = Driver::new(&memory_once(), BASE, 16);
        driver.write(HEAD, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &body].concat());
        let mut parts: Vec<_> = parts.iter().map(|&(at, len, writable)| (HEAD + at, len, writable)).collect();
        parts.insert(0, (HEAD, 16, false));
        parts.sort_by_key(|part| part.2);
        driver.add(&parts);
        let memory = driver.memory.clone();
        let mut chain = driver.queue().pop(&memory).unwrap().unwrap();
        let room = chain.writable.len();
        prop_assert!(block.execute(&mut chain) as usize <= room);
        let mut after = vec![0; before.len()];
        copy.read_exact_at(&mut after, 0).unwrap();
        prop_assert!(before == after);
    }
}

/// The bytes of [`disk`] in files that end in the middle of requests, one of them empty.
fn in_parts(access: Access) -> Block {
    let whole = disk(access).files.remove(0);
    let cuts = [0, 3 * SECTOR, 3 * SECTOR, 100 * SECTOR + 7, SECTORS * SECTOR];
    let part = |from: u64, to: u64| {
        let mut bytes = vec![0; (to - from) as usize];
        whole.read_exact_at(&mut bytes, from).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    };
    Block::new(Disk {
        files: cuts
            .windows(2)
            .map(|cut| part(cut[0], cut[1]))
            .collect::<Vec<File>>(),
        access,
        serial: "parts".into(),
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A disk of several files can't be told from one of a single file.
    #[test]
    fn parts_make_one_disk(
        requests in prop::collection::vec((0..4u32, 0..SECTORS, 1..64u32, any::<u8>()), 1..20),
    ) {
        let (one, parts) = (block(Access::ReadWrite), in_parts(Access::ReadWrite));
        for (kind, sector, count, fill) in requests {
            let bytes = count as usize * SECTOR as usize;
            let outcome = |block: &Block| match kind {
                0 => (request(block, spec::VIRTIO_BLK_T_IN, sector, &[], bytes as u32), answer(bytes)),
                1 => (request(block, spec::VIRTIO_BLK_T_OUT, sector, &vec![fill; bytes], 0), Vec::new()),
                2 => (request(block, spec::VIRTIO_BLK_T_DISCARD, 0, &ranges(&[(sector, count, 0)]), 0), Vec::new()),
                _ => {
                    let range = ranges(&[(sector, count, u32::from(fill & 1))]);
                    (request(block, spec::VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, 0), Vec::new())
                }
            };
            let (expected, got) = (outcome(&one), outcome(&parts));
            prop_assert_eq!(expected.0, got.0);
            if expected.0.1 == 0 {
                prop_assert_eq!(expected.1, got.1);
            }
        }
    }
}
