//! Requests as a driver makes them, and as a hostile one does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;

use proptest::prelude::*;
use volume::Limits;

use super::*;
use crate::virtio::testing::{Driver, memory};

const BASE: u64 = 0x10_0000;
const REQUEST: u64 = 0x20_0000;
const ANSWER: u64 = 0x30_0000;

fn server(dir: &Path) -> Server {
    let root = OwnedFd::from(std::fs::File::open(dir).unwrap());
    let limits = Limits { inodes: 8, opened: 8 };
    Server::new(root, Path::new("/proc/self/fd"), limits).unwrap()
}

/// Has one request served whose parts are of these lengths (readable, then writable). Returns the bytes used and the answer.
fn request(
    server: &mut Server,
    ram: &Arc<Ram>,
    bytes: &[u8],
    readable: &[u32],
    writable: &[u32],
) -> (u32, Vec<u8>) {
    let mut driver = Driver::new(ram, BASE, 64);
    driver.write(REQUEST, bytes);
    let (mut at, mut parts) = (REQUEST, Vec::new());
    for length in readable {
        parts.push((at, *length, false));
        at += u64::from(*length);
    }
    at = ANSWER;
    for length in writable {
        parts.push((at, *length, true));
        at += u64::from(*length);
    }
    driver.add(&parts);
    let mut queue = driver.queue();
    let chain = queue.pop(ram).unwrap().unwrap();
    let used = serve(server, chain);
    (used, driver.read(ANSWER, used as usize))
}

fn header(length: usize, opcode: u32, node: u64) -> Vec<u8> {
    let mut bytes = (length as u32 + 40).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    for id in [
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        0,
        0,
    ] {
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_file_is_written_and_read_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, ram) = (server(dir.path()), memory());
    let mut create = 2u32.to_le_bytes().to_vec(); // O_RDWR
    create.extend(0o644u32.to_le_bytes());
    create.extend([0; 8]);
    create.extend(b"file\0");
    let bytes = [header(create.len(), 35, 1), create].concat();
    let (used, answer) = request(&mut server, &ram, &bytes, &[40, 16, 5], &[16, 128, 16]);
    assert_eq!(used, 160);
    let handle = &answer[16 + 128..][..8];

    let data: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
    let io = |size: usize| {
        let mut body = handle.to_vec();
        body.extend(10u64.to_le_bytes());
        body.extend((size as u32).to_le_bytes());
        body.extend([0; 20]);
        body
    };
    let bytes = [header(40 + data.len(), 16, 0), io(data.len()), data.clone()].concat();
    let pieces = [40, 40, 1, 4096, 4095, 70_000, 100_000 - 78_192];
    let (used, answer) = request(&mut server, &ram, &bytes, &pieces, &[24]);
    assert_eq!((used, &answer[4..8]), (24, &[0; 4][..]));
    let written = std::fs::read(dir.path().join("file")).unwrap();
    assert_eq!((written.len(), &written[10..]), (100_010, &data[..]));

    // Reading beyond the end, with a header in two pieces.
    let bytes = [header(40, 15, 0), io(200_000)].concat();
    let (used, answer) = request(&mut server, &ram, &bytes, &[80], &[3, 20, 150_000, 50_000]);
    assert_eq!(used, 16 + 100_000);
    assert_eq!(
        (&answer[..4], &answer[16..]),
        (&used.to_le_bytes()[..], &data[..])
    );
}

#[test]
fn the_driver_learns_the_tag() {
    let dir = tempfile::tempdir().unwrap();
    let volume = |tag: &str| {
        let (work, _) = mpsc::channel();
        let handle = std::thread::spawn(|| ());
        Fs::new(Volume {
            tag: tag.into(),
            server: server(dir.path()),
            thread: Thread { work, handle },
        })
    };
    let description = volume("data").unwrap().description();
    assert_eq!((description.kind, description.queue_sizes.len()), (26, QUEUES));
    assert_eq!(&description.config[..5], b"data\0");
    assert_eq!(&description.config[36..], [1, 0, 0, 0]);
    assert!(matches!(volume(""), Err(Error::Tag(_))));
    assert!(volume(&"x".repeat(37)).is_err());
}

proptest! {
    /// Whatever the pieces are, an answer is as long as it says, or there is none.
    #[test]
    fn arbitrary_chains_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        opcode in 0..55u32,
        readable in proptest::collection::vec(0..200u32, 1..6),
        writable in proptest::collection::vec(0..200u32, 0..6),
        sound in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut server, ram) = (server(dir.path()), memory());
        let mut request_bytes = bytes;
        if sound {
            let total: u32 = readable.iter().sum();
            request_bytes = [header((total as usize).saturating_sub(40), opcode, 1), request_bytes].concat();
        }
        let room: u32 = writable.iter().sum();
        let (used, answer) = request(&mut server, &ram, &request_bytes, &readable, &writable);
        prop_assert!(used <= room);
        if used >= 16 {
            prop_assert_eq!(&answer[..4], &used.to_le_bytes()[..]);
        }
    }
}
