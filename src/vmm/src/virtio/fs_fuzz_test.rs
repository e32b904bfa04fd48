//! A guest that means no good, before the device and the server behind it: chains of random pieces, requests that are half right, and
//! meanwhile a process of the host that moves directories out of the volume and puts links in their place.
//!
//! ```text
//!   rings            descriptor table, available and used ring
//!   TABLES           indirect tables
//!   ARENA ─┬─ pages that a descriptor lets the device write to: anything may happen to them
//!          └─ all others: compared with a copy after each round
//!
//!   place/shared     the volume
//!   place/outside    what nobody may see, and where nothing may appear
//! ```
//!
//! The tame form keeps descriptors out of rings and tables, so that it is known where the device may write. The wild one points them
//! anywhere, where no panic, an answer that is as long as it says, and nothing outside are what is left.
//! `CWRUN_SOAK` makes them run for ten minutes together; `CWRUN_SEED` repeats a run.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use volume::Limits;

use super::*;
use crate::virtio::testing::{Arena, Choices, Driver, INDIRECT, NEXT, WRITE, memory};

const SIZE: u16 = 256;
const RINGS: u64 = 0x10_0000;
const TABLES: u64 = 0x30_0000;
const TABLE_ENTRIES: u64 = 32;
const ARENA: u64 = Arena::START;
const ARENA_BYTES: u64 = Arena::BYTES;
const MEMORY_BYTES: u64 = 64 << 20;
/// The inode that needs no looking up.
const ROOT: u64 = 1;
/// In a file beside the volume.
const SECRET: &[u8] = b"what is outside stays outside";
/// Names that a guest uses, and some that it should not.
const NAMES: &[&str] = &[
    "a",
    "b",
    "moved",
    "moved",
    "link",
    "out",
    "absolute",
    "secret",
    "..",
    ".",
    "",
    "../outside/secret",
    "dir/../../outside",
    "/etc/passwd",
    "user.x",
    "security.capability",
    "system.posix_acl_access",
    "trusted.overlay.opaque",
];

mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const FALLOCATE: u32 = 43;
    pub const TMPFILE: u32 = 51;
    pub const LAST: u64 = 55;
}

/// Directories on the host.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir };
        for name in ["shared/dir", "shared/moved", "outside/elsewhere"] {
            std::fs::create_dir_all(place.path(name)).unwrap();
        }
        std::fs::write(place.path("outside/secret"), SECRET).unwrap();
        std::fs::write(place.path("shared/dir/file"), vec![b'f'; 10_000]).unwrap();
        symlink("../outside/secret", place.path("shared/link")).unwrap();
        symlink("../outside", place.path("shared/out")).unwrap();
        symlink(place.path("outside/secret"), place.path("shared/absolute")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Moves a directory of the volume out and a link in, and back, until `end`.
    fn stir(root: &Path, end: &AtomicBool) -> u64 {
        let (inside, outside) = (root.join("shared/moved"), root.join("outside/elsewhere/moved"));
        let mut moves = 0;
        while !end.load(Ordering::Relaxed) {
            // The guest may have removed or renamed it, or have put something in its place.
            if std::fs::rename(&inside, &outside).is_ok() {
                moves += 1;
                let _ = symlink("../outside", &inside);
                std::thread::yield_now();
                let _ = std::fs::remove_file(&inside);
                let _ = std::fs::rename(&outside, &inside);
            } else {
                let _ = std::fs::create_dir(&inside);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        moves
    }

    /// What was moved out while the guest knew it is still the guest's; all else there is as it was.
    fn expect_untouched(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.path("outside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["elsewhere", "secret"]);
        assert_eq!(std::fs::read(self.path("outside/secret")).unwrap(), SECRET);
        let other = std::fs::read_dir(self.path("outside/elsewhere"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .find(|name| name != "moved");
        assert_eq!(other, None);
    }
}

/// What the guest knows, and what it waits for.
struct Bench {
    choices: Choices,
    wild: bool,
    memory: Arc<Ram>,
    driver: Driver,
    available: u16,
    queue: Queue,
    server: Server,
    interrupt: Interrupt,
    /// Numbers of inodes and of open files that the server has told.
    nodes: Vec<u64>,
    handles: Vec<u64>,
    /// For each head: what was asked there, where the answer begins, and how many bytes of it lie there in one piece.
    asked: Vec<(u32, u64, u32)>,
    /// The last that went well.
    latest: u32,
    used: u16,
    answers: u64,
    successes: u64,
    arena: Arena,
}

impl Bench {
    fn new(wild: bool, place: &Place) -> Bench {
        let memory = memory();
        let driver = Driver::new(&memory, RINGS, SIZE);
        let root = OwnedFd::from(std::fs::File::open(place.path("shared")).unwrap());
        let limits = Limits {
            inodes: 64,
            opened: 16,
        };
        Bench {
            choices: Choices::new(),
            wild,
            arena: Arena::new(&memory),
            queue: driver.queue(),
            memory,
            driver,
            available: 0,
            server: Server::new(root, Path::new("/proc/self/fd"), limits).unwrap(),
            interrupt: Interrupt::new(EventFd::new(0).unwrap()),
            nodes: vec![ROOT],
            handles: vec![1],
            asked: vec![(0, 0, 0); SIZE.into()],
            latest: 0,
            used: 0,
            answers: 0,
            successes: 0,
        }
    }

    /// No descriptor that was ever written lets the device write any more, however it comes to it.
    fn forget_descriptors(&mut self) {
        for (start, bytes) in [(RINGS, 0x4000), (TABLES, TABLE_ENTRIES as usize * 16 * 16)] {
            self.memory
                .write_slice(&vec![0; bytes], GuestAddress(start))
                .unwrap();
        }
        self.arena.forget_writable();
    }

    /// As after a reset of the device.
    fn reset(&mut self) {
        self.memory
            .write_slice(&[0; 0xc000], GuestAddress(RINGS))
            .unwrap();
        self.forget_descriptors();
        (self.available, self.used) = (0, 0);
        self.asked.fill((0, 0, 0));
        self.forget();
        self.queue = self.driver.queue();
        Device::reset(&mut self.server);
    }

    fn forget(&mut self) {
        (self.nodes, self.handles) = (vec![ROOT], vec![1]);
    }

    fn name(&mut self) -> Vec<u8> {
        let mut name = match self.choices.below(60) {
            0 => self.choices.bytes(8),
            1 => vec![b'n'; 300],
            2..20 => b"dir".to_vec(),
            20..35 => b"file".to_vec(),
            _ => NAMES[self.choices.below(NAMES.len() as u64) as usize]
                .as_bytes()
                .to_vec(),
        };
        if !self.choices.one_in(200) {
            name.push(0);
        }
        name
    }

    fn known(&mut self, of_nodes: bool) -> u64 {
        if self.choices.one_in(40) {
            return self.choices.next();
        }
        let (choice, at) = (self.choices.below(5), self.choices.next() as usize);
        let known = if of_nodes { &self.nodes } else { &self.handles };
        match choice {
            0 | 1 if of_nodes => ROOT,
            2 | 3 => known[known.len() - 1],
            _ => known[at % known.len()],
        }
    }

    /// Something small, or some edge.
    fn number(&mut self) -> u64 {
        match self.choices.below(12) {
            0 => self.choices.next(),
            1 => u64::MAX - self.choices.below(2),
            2 => 1 << self.choices.below(64),
            3 | 4 => 0,
            _ => self.choices.below(100_000),
        }
    }

    /// A request whose fields have the right places, more or less, since the structures begin alike: a number that may be of
    /// an open file, numbers, a name or two, data.
    fn request(&mut self) -> (u32, Vec<u8>) {
        let opcode = match (self.choices.below(3), self.latest) {
            (0, _) => self.choices.below(opcode::LAST) as u32,
            // What goes on with it.
            (1, opcode::LOOKUP | opcode::MKDIR) => {
                [opcode::LOOKUP, opcode::OPEN, opcode::OPENDIR, opcode::CREATE]
                    [self.choices.below(4) as usize]
            }
            (1, opcode::OPEN | opcode::CREATE) => {
                [opcode::READ, opcode::WRITE][self.choices.below(2) as usize]
            }
            _ => [opcode::LOOKUP, opcode::LOOKUP, opcode::CREATE, opcode::MKDIR]
                [self.choices.below(4) as usize],
        };
        let mut body = Vec::new();
        match opcode {
            opcode::LOOKUP | opcode::SYMLINK | 10 | 11 | 24 => {
                body.extend(self.name());
                if opcode == opcode::SYMLINK {
                    body.extend(self.name());
                }
            }
            opcode::MKDIR | opcode::MKNOD | opcode::CREATE | opcode::TMPFILE => {
                // Mode or flags, umask and the like: 8 or 16 bytes.
                let first = match self.choices.below(2) {
                    0 => self.choices.below(3) as u32,
                    _ => self.choices.next() as u32 & 0o17_7777,
                };
                body.extend(first.to_le_bytes());
                let fields = if opcode == opcode::MKDIR { 1 } else { 3 };
                for _ in 0..fields {
                    body.extend((self.choices.next() as u32 & 0o7777).to_le_bytes());
                }
                body.extend(self.name());
            }
            opcode::OPEN | opcode::OPENDIR => {
                let flags = if self.choices.one_in(4) {
                    self.choices.next() as u32
                } else {
                    self.choices.below(3) as u32
                };
                body.extend(flags.to_le_bytes());
                body.extend(0u32.to_le_bytes());
            }
            12 | opcode::LINK | 45 => {
                body.extend(self.known(true).to_le_bytes());
                if opcode == 45 {
                    body.extend(self.choices.below(8).to_le_bytes());
                }
                body.extend(self.name());
                body.extend(self.name());
            }
            21 | 22 => {
                body.extend((self.number() as u32).to_le_bytes());
                body.extend((self.choices.below(3) as u32).to_le_bytes());
                body.extend(self.name());
                let length = self.choices.below(200);
                body.extend(self.choices.bytes(length));
            }
            opcode::FALLOCATE => {
                // The only one by which a request of some bytes takes as many of the disk as it likes.
                body.extend(self.known(false).to_le_bytes());
                body.extend(self.choices.below(1 << 16).to_le_bytes());
                body.extend(self.choices.below(1 << 16).to_le_bytes());
                body.extend(self.choices.below(128).to_le_bytes());
            }
            opcode::READ | opcode::WRITE | 28 => {
                let length = self.choices.below(9000);
                body.extend(self.known(false).to_le_bytes());
                let offset = if self.choices.one_in(2) { 0 } else { self.number() };
                body.extend(offset.to_le_bytes());
                let size = if self.choices.one_in(30) {
                    self.number()
                } else {
                    length
                };
                body.extend((size as u32).to_le_bytes());
                body.extend((self.choices.below(8) as u32).to_le_bytes());
                body.extend([0; 16]);
                if opcode == opcode::WRITE {
                    body.extend(self.choices.bytes(length));
                }
            }
            _ => {
                // Numbers of which the first, or the third, may be of an open file.
                for _ in 0..self.choices.below(13) {
                    let number = if self.choices.one_in(3) {
                        self.known(false)
                    } else {
                        self.number()
                    };
                    body.extend(number.to_le_bytes());
                }
            }
        }
        if self.choices.one_in(60) {
            body.truncate(self.choices.below(body.len() as u64 + 1) as usize);
        }
        let length = if self.choices.one_in(200) {
            self.choices.next() as u32
        } else {
            (body.len() + 40) as u32
        };
        let node = self.known(true);
        let mut request = Vec::with_capacity(body.len() + 40);
        request.extend(length.to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.choices.next().to_le_bytes());
        request.extend(node.to_le_bytes());
        for id in [self.choices.below(3) as u32, self.choices.below(3) as u32, 1, 0] {
            request.extend(id.to_le_bytes());
        }
        request.extend(body);
        (opcode, request)
    }

    fn room_in_arena(&mut self, length: u32) -> u64 {
        ARENA + self.choices.below(ARENA_BYTES - u64::from(length))
    }

    /// One request with its answer's place, as pieces of memory.
    fn pieces(&mut self) -> (u32, Vec<(u64, u32, bool)>) {
        let (opcode, request) = self.request();
        let mut pieces = Vec::new();
        let mut rest = &request[..];
        while !rest.is_empty() {
            let length = if self.choices.one_in(2) {
                rest.len()
            } else {
                1 + self.choices.below(rest.len() as u64) as usize
            };
            let (piece, later) = rest.split_at(length);
            let at = self.room_in_arena(length as u32);
            self.memory.write_slice(piece, GuestAddress(at)).unwrap();
            pieces.push((at, length as u32, false));
            rest = later;
        }
        for _ in 0..self.choices.below(4) {
            let length = match self.choices.below(6) {
                0 => self.choices.below(40) as u32,
                _ => 160 + self.choices.below(12_000) as u32,
            };
            pieces.push((self.room_in_arena(length), length, true));
        }
        if self.choices.one_in(400) {
            let at = self.choices.below(pieces.len() as u64) as usize;
            pieces[at].0 = match self.choices.below(3) {
                0 => MEMORY_BYTES - 1,
                1 => u64::MAX - self.choices.below(1 << 16),
                _ if self.wild => RINGS + self.choices.below(0xc000),
                _ => MEMORY_BYTES + self.choices.below(1 << 20),
            };
        }
        if self.choices.one_in(400) {
            let at = self.choices.below(pieces.len() as u64) as usize;
            pieces.swap(0, at);
        }
        if self.wild && self.choices.one_in(100) {
            let at = self.choices.below(pieces.len() as u64) as usize;
            pieces[at].1 = self.choices.next() as u32;
        }
        (opcode, pieces)
    }

    /// New requests, and word of them.
    fn offer(&mut self) {
        let mut index = self.choices.below(SIZE.into()) as u16;
        for _ in 0..1 + self.choices.below(4) {
            let (opcode, pieces) = self.pieces();
            for &(address, length, writable) in &pieces {
                if writable {
                    self.arena.note_writable(address, length);
                }
            }
            let head = index;
            let indirect = self.choices.one_in(4);
            let (table, first) = if indirect {
                let table = TABLES + self.choices.below(16) * TABLE_ENTRIES * 16;
                (table, 0)
            } else {
                (RINGS, head)
            };
            let count = pieces.len().min(TABLE_ENTRIES as usize);
            for (at, &(address, length, writable)) in pieces.iter().take(count).enumerate() {
                let wrap = |at: usize| {
                    if indirect {
                        at as u16
                    } else {
                        (first + at as u16) % SIZE
                    }
                };
                let mut flags = if at + 1 < count { NEXT } else { 0 } | if writable { WRITE } else { 0 };
                if self.choices.one_in(2000) {
                    flags = self.choices.next() as u16 & if self.wild { u16::MAX } else { NEXT };
                }
                let next = if self.choices.one_in(2000) {
                    self.choices.next() as u16
                } else {
                    wrap(at + 1)
                };
                let slot = table + u64::from(wrap(at)) * 16;
                self.driver
                    .put_descriptor_at(slot, (address, length, flags, next));
            }
            index = if indirect {
                self.driver
                    .put_descriptor(head, (table, count as u32 * 16, INDIRECT, 0));
                (head + 1) % SIZE
            } else {
                (head + count as u16) % SIZE
            };
            let answer = pieces.iter().find(|piece| piece.2);
            self.asked[usize::from(head)] =
                answer.map_or((opcode, 0, 0), |&(at, length, _)| (opcode, at, length));
            let slot = RINGS + 0x4004 + u64::from(self.available % SIZE) * 2;
            let head = if self.choices.one_in(500) {
                self.choices.next() as u16
            } else {
                head
            };
            self.memory.write_obj(head, GuestAddress(slot)).unwrap();
            self.available = self.available.wrapping_add(1);
        }
        if self.choices.one_in(1000) {
            self.available = self.choices.next() as u16;
        }
        self.driver.set_available(self.available);
    }

    /// Learns from the answers.
    fn collect(&mut self) {
        let index: u16 = self.memory.read_obj(GuestAddress(RINGS + 0x8002)).unwrap();
        while self.used != index {
            let at = RINGS + 0x8004 + u64::from(self.used % SIZE) * 8;
            self.used = self.used.wrapping_add(1);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let written: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            let Some(&(opcode, answer, piece)) = self.asked.get(head as usize) else {
                continue;
            };
            let whole = piece >= 160 && (ARENA..ARENA + ARENA_BYTES - 160).contains(&answer);
            if !whole || written < 16 {
                continue;
            }
            self.answers += 1;
            let field = |at: u64| self.memory.read_obj::<u64>(GuestAddress(answer + at)).unwrap();
            let error = (field(0) >> 32) as u32;
            if error != 0 {
                continue;
            }
            self.successes += 1;
            self.latest = opcode;
            match opcode {
                opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => {
                    self.nodes.push(field(16));
                }
                opcode::CREATE | opcode::TMPFILE => {
                    self.nodes.push(field(16));
                    self.handles.push(field(16 + 128));
                }
                opcode::OPEN | opcode::OPENDIR => self.handles.push(field(16)),
                opcode::INIT | opcode::DESTROY => self.forget(),
                _ => {}
            }
        }
        for known in [&mut self.nodes, &mut self.handles] {
            let surplus = known.len().saturating_sub(40);
            known.drain(..surplus);
        }
    }

    /// One turn of guest and device. Whether the device broke.
    fn turn(&mut self) -> bool {
        if self.choices.one_in(8) {
            self.forget_descriptors();
        }
        self.offer();
        self.arena.remember();
        let result = self.server.serve(&mut self.queue, &self.memory, &self.interrupt);
        if !self.wild {
            self.arena.expect_untouched();
        }
        self.collect();
        result.is_err()
    }

    /// Nothing of the secret has come to the guest.
    fn expect_no_secret(&self) {
        let arena = self.arena.content();
        let found = arena
            .iter()
            .enumerate()
            .any(|(at, &byte)| byte == SECRET[0] && arena[at..].starts_with(SECRET));
        assert!(!found, "the guest has read what is outside");
    }
}

fn fuzz(wild: bool) {
    let soak = std::env::var_os("CWRUN_SOAK").is_some();
    let end = Instant::now() + Duration::from_secs(if soak { 300 } else { 3 });
    let place = Place::new();
    let mut bench = Bench::new(wild, &place);
    let (mut turns, mut breaks) = (0u64, 0u64);
    let over = AtomicBool::new(false);
    let moves = std::thread::scope(|scope| {
        let stirring = scope.spawn(|| Place::stir(place.dir.path(), &over));
        // Whatever happens, the other thread is to end: the scope waits for it.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end {
                turns += 1;
                let broken = bench.turn() || turns.is_multiple_of(2000);
                if broken || turns.is_multiple_of(20) {
                    bench.expect_no_secret();
                }
                if broken {
                    breaks += 1;
                    bench.reset();
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        let moves = stirring.join().unwrap();
        result.map(|()| moves)
    });
    let moves = moves.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    place.expect_untouched();
    let (answers, successes) = (bench.answers, bench.successes);
    eprintln!(
        "wild {wild}: {turns} turns, {breaks} resets, {answers} answers, {successes} without an error, {moves} moves"
    );
    // Else nothing but the first check of everything would have been tested.
    assert!(turns > 10 && breaks < turns && successes > turns / 20 && moves > 0);
}

#[test]
fn hostile_requests_get_nowhere_else() {
    fuzz(false);
}

#[test]
fn chains_that_point_into_the_rings() {
    fuzz(true);
}
