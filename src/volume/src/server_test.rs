use super::*;
use crate::inodes::ROOT;
use proptest::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use tempfile::TempDir;

const LIMITS: Limits = Limits {
    inodes: 16,
    opened: 4,
};

/// A request and its answer in memory.
struct Call {
    request: Vec<u8>,
    at: usize,
    room: usize,
    filled: Vec<u8>,
    answer: Option<Vec<u8>>,
}

impl Exchange for Call {
    fn take(&mut self, bytes: &mut [u8]) -> bool {
        let Some(rest) = self.request.get(self.at..self.at + bytes.len()) else {
            return false;
        };
        bytes.copy_from_slice(rest);
        self.at += bytes.len();
        true
    }

    fn left(&self) -> usize {
        self.request.len() - self.at
    }

    fn room(&self) -> usize {
        self.room
    }

    fn answer(&mut self, header: &[u8; HEADER], payload: &[u8]) {
        assert!(self.answer.is_none(), "answered twice");
        let mut answer = header.to_vec();
        answer.extend(&self.filled);
        answer.extend(payload);
        assert!(payload.is_empty() || answer.len() <= self.room);
        self.answer = Some(answer);
    }

    fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<usize> {
        let file = File::from(file.try_clone_to_owned()?);
        self.filled = vec![0; bytes];
        let read = file.read_at(&mut self.filled, offset)?;
        self.filled.truncate(read);
        Ok(read)
    }

    fn drain(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: usize, at_end: bool) -> io::Result<usize> {
        let file = File::from(file.try_clone_to_owned()?);
        let offset = if at_end { file.metadata()?.len() } else { offset };
        file.write_at(&self.request[self.at..self.at + bytes], offset)
    }
}

/// A directory with a server, and something beside it that nobody gets at.
struct Test {
    dir: TempDir,
    server: Server,
}

impl Test {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(dir.path().join("root"), flags, Mode::empty()).unwrap();
        let server = Server::new(root, Path::new("/proc/self/fd"), LIMITS).unwrap();
        Self { dir, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn raw(&mut self, request: Vec<u8>, room: usize) -> Option<Vec<u8>> {
        let mut call = Call {
            request,
            at: 0,
            room,
            filled: Vec::new(),
            answer: None,
        };
        self.server.handle(&mut call);
        call.answer
    }

    /// The answer's payload, or the error's number.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let answer = self.raw(request(opcode, node, body), 1 << 20).expect("an answer");
        let mut header = Body(&answer);
        assert_eq!(header.u32().unwrap() as usize, answer.len());
        let error = header.u32().unwrap().cast_signed();
        assert_eq!(header.u64().unwrap(), 77);
        if error == 0 {
            Ok(header.0.to_vec())
        } else {
            assert_eq!(answer.len(), HEADER);
            Err(-error)
        }
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<u64, i32> {
        Ok(first(&self.ask(1, node, &text(name))?))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        Ok(first(&self.ask(
            14,
            node,
            &numbers(&[flags.cast_unsigned(), 0]),
        )?))
    }

    fn create(&mut self, name: &str) -> Result<(u64, u64), i32> {
        let mut body = numbers(&[libc_rdwr(), 0o644, 0, 0]);
        body.extend(text(name));
        let answer = self.ask(35, ROOT, &body)?;
        Ok((first(&answer), first(&answer[128..])))
    }

    fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Result<u64, i32> {
        let mut body = wide(&[handle, offset]);
        body.extend(numbers(&[bytes.len() as u32, 0, 0, 0, 0, 0]));
        body.extend(bytes);
        Ok(first(&self.ask(16, 0, &body)?))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let mut body = wide(&[handle, offset]);
        body.extend(numbers(&[size, 0, 0, 0, 0, 0]));
        self.ask(15, 0, &body)
    }

    fn names(&mut self, node: u64) -> Vec<String> {
        let handle = first(&self.ask(27, node, &[0; 8]).unwrap());
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let mut body = wide(&[handle, offset]);
            body.extend(numbers(&[4096, 0, 0, 0, 0, 0]));
            let answer = self.ask(28, node, &body).unwrap();
            let mut entries = Body(&answer);
            if entries.0.is_empty() {
                break;
            }
            while !entries.0.is_empty() {
                entries.skip(8).unwrap();
                offset = entries.u64().unwrap();
                let length = entries.u32().unwrap() as usize;
                entries.skip(4).unwrap();
                let name = entries.bytes(length).unwrap();
                names.push(String::from_utf8(name.to_vec()).unwrap());
                entries.skip((8 - length % 8) % 8).unwrap();
            }
        }
        let mut body = wide(&[handle]);
        body.extend([0; 16]);
        self.ask(29, node, &body).unwrap();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

fn libc_rdwr() -> u32 {
    OFlags::RDWR.bits()
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut request = numbers(&[40 + body.len() as u32, opcode]);
    request.extend(wide(&[77, node]));
    // Whoever runs the tests: they need not be root.
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    request.extend(numbers(&[uid.as_raw(), gid.as_raw(), 1, 0]));
    request.extend(body);
    request
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn wide(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn first(bytes: &[u8]) -> u64 {
    Body(bytes).u64().unwrap()
}

fn raw(error: Errno) -> i32 {
    error.raw_os_error()
}

#[test]
fn files_are_made_written_read_and_removed() {
    let mut test = Test::new();
    let (node, handle) = test.create("file").unwrap();
    assert_eq!(test.write(handle, 3, b"text"), Ok(4));
    assert_eq!(fs::read(test.path("file")).unwrap(), b"\0\0\0text");
    assert_eq!(test.read(handle, 3, 100).unwrap(), b"text");
    assert_eq!(test.read(handle, 100, 100).unwrap(), b"");
    assert_eq!(test.lookup(ROOT, "file"), Ok(node));
    assert_eq!(test.ask(10, ROOT, &text("file")), Ok(vec![]));
    assert_eq!(test.lookup(ROOT, "file"), Err(raw(Errno::NOENT)));
    // Both the number and what is open outlive the name.
    assert_eq!(test.read(handle, 3, 100).unwrap(), b"text");
    let attributes = test.ask(3, node, &[0; 16]).unwrap();
    assert_eq!(first(&attributes[24..]), 7, "its size");
    test.ask(18, node, &[wide(&[handle]), vec![0; 16]].concat())
        .unwrap();
    assert_eq!(test.read(handle, 0, 1), Err(raw(Errno::BADF)));
}

#[test]
fn set_id_bits_go_when_somebody_writes_who_may_not_keep_them() {
    use std::os::unix::fs::PermissionsExt;
    let mut test = Test::new();
    let (node, handle) = test.create("file").unwrap();
    let path = test.path("file");
    let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    let write = |test: &mut Test, how| {
        let body = [wide(&[handle, 0]), numbers(&[1, how, 0, 0, 0, 0]), vec![b'x']].concat();
        test.ask(16, 0, &body).unwrap();
    };
    for (before, after) in [
        (0o6777, 0o777),
        (0o2644, 0o2644),
        (0o4600, 0o600),
        (0o1755, 0o1755),
    ] {
        set(before);
        write(&mut test, 4);
        assert_eq!(mode(), after, "written, from {before:o}");
        set(before);
        let mut body = numbers(&[(1 << 3) | (1 << 11), 0]);
        body.extend(vec![0; 80]);
        test.ask(4, node, &body).unwrap();
        assert_eq!(mode(), after, "cut, from {before:o}");
        set(before);
        let flags = OFlags::WRONLY | OFlags::TRUNC;
        let opened = first(&test.ask(14, node, &numbers(&[flags.bits(), 1])).unwrap());
        assert_eq!(mode(), after, "opened, from {before:o}");
        test.ask(18, node, &[wide(&[opened]), vec![0; 16]].concat())
            .unwrap();
        set(before);
        test.ask(43, node, &[wide(&[handle, 0, 100]), vec![0; 8]].concat())
            .unwrap();
        assert_eq!(mode(), after, "allocated, from {before:o}");
    }
    // Root may keep them.
    if rustix::process::geteuid().is_root() {
        set(0o6777);
        write(&mut test, 0);
        assert_eq!(mode(), 0o6777);
    }
}

#[test]
fn names_are_single_components() {
    let mut test = Test::new();
    fs::create_dir(test.path("dir")).unwrap();
    let dir = test.lookup(ROOT, "dir").unwrap();
    for name in ["", ".", "..", "../secret", "dir/..", "/etc/passwd", "a/b"] {
        let named = text(name);
        let mode = [numbers(&[0o755, 0]), named.clone()].concat();
        let bodies = [
            (1, named.clone()),
            (6, [named.clone(), text("target")].concat()),
            (8, [numbers(&[0o10_0644, 0, 0, 0]), named.clone()].concat()),
            (9, mode),
            (10, named.clone()),
            (11, named.clone()),
            (12, [wide(&[ROOT]), named.clone(), text("new")].concat()),
            (12, [wide(&[ROOT]), text("dir"), named.clone()].concat()),
            (
                45,
                [wide(&[ROOT]), vec![0; 8], text("dir"), named.clone()].concat(),
            ),
            (13, [wide(&[dir]), named.clone()].concat()),
            (35, [numbers(&[2, 0o644, 0, 0]), named.clone()].concat()),
        ];
        for (opcode, body) in bodies {
            assert_eq!(
                test.ask(opcode, dir, &body),
                Err(raw(Errno::INVAL)),
                "{opcode} {name}"
            );
        }
    }
    assert_eq!(test.lookup(ROOT, &"x".repeat(256)), Err(raw(Errno::NAMETOOLONG)));
    assert_eq!(fs::read_dir(test.dir.path()).unwrap().count(), 2);
}

#[test]
fn links_are_never_followed() {
    let mut test = Test::new();
    symlink("../secret", test.path("file")).unwrap();
    symlink("..", test.path("dir")).unwrap();
    let (file, dir) = (
        test.lookup(ROOT, "file").unwrap(),
        test.lookup(ROOT, "dir").unwrap(),
    );
    assert_eq!(test.ask(5, file, &[]).unwrap(), b"../secret");
    assert_eq!(test.open(file, 0), Err(raw(Errno::NXIO)));
    assert_eq!(test.ask(27, dir, &[0; 8]), Err(raw(Errno::NOTDIR)));
    assert_eq!(test.lookup(dir, "secret"), Err(raw(Errno::NOTDIR)));
    assert_eq!(test.create("file"), Err(raw(Errno::EXIST)));
    // Truncating it is not truncating what it leads to.
    let mut body = numbers(&[8, 0]);
    body.extend([0; 80]);
    assert_eq!(test.ask(4, file, &body), Err(raw(Errno::NXIO)));
    // A hard link to it is one to itself.
    test.ask(13, ROOT, &[wide(&[file]), text("second")].concat())
        .unwrap();
    assert_eq!(
        fs::read_link(test.path("second")).unwrap().to_str(),
        Some("../secret")
    );
    // Mode and attributes of what it leads to stay as well.
    let mut body = numbers(&[1, 0]);
    body.extend([0; 80]);
    body[68..72].copy_from_slice(&0u32.to_le_bytes());
    let _ = test.ask(4, file, &body);
    let secret = fs::metadata(test.dir.path().join("secret")).unwrap();
    assert_eq!((secret.len(), secret.nlink()), (6, 1));
    assert_ne!(secret.mode() & 0o777, 0);
}

#[test]
fn a_number_stands_for_the_same_whatever_it_is_called() {
    let mut test = Test::new();
    fs::create_dir(test.path("dir")).unwrap();
    fs::write(test.path("dir/file"), "inside").unwrap();
    let dir = test.lookup(ROOT, "dir").unwrap();
    let file = test.lookup(dir, "file").unwrap();
    fs::rename(test.path("dir"), test.path("moved")).unwrap();
    symlink("..", test.path("dir")).unwrap();
    assert_eq!(test.lookup(dir, "file"), Ok(file));
    let handle = test.open(file, 0).unwrap();
    assert_eq!(test.read(handle, 0, 10).unwrap(), b"inside");
    assert_ne!(test.lookup(ROOT, "dir"), Ok(dir));
    // Even where it has been moved out, there is no way on from there.
    fs::rename(test.path("moved"), test.dir.path().join("out")).unwrap();
    assert_eq!(test.lookup(dir, ".."), Err(raw(Errno::INVAL)));
}

#[test]
fn nothing_but_files_and_directories_is_opened() {
    let mut test = Test::new();
    rustix::fs::mknodat(
        CWD,
        test.path("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(test.path("dir")).unwrap();
    let pipe = test.lookup(ROOT, "pipe").unwrap();
    // Opening it would wait for a writer.
    assert_eq!(test.open(pipe, 0), Err(raw(Errno::NXIO)));
    let dir = test.lookup(ROOT, "dir").unwrap();
    assert_eq!(test.open(dir, 0), Err(raw(Errno::NXIO)));
    assert_eq!(test.open(999, 0), Err(raw(Errno::STALE)));
    let handle = first(&test.ask(27, dir, &[0; 8]).unwrap());
    // A directory's number is no file's.
    assert_eq!(test.read(handle, 0, 10), Err(raw(Errno::BADF)));
}

#[test]
fn directories_are_listed_whole() {
    let mut test = Test::new();
    let expected: Vec<_> = (0..1000)
        .map(|number| format!("{number:04}{}", "x".repeat(number % 200)))
        .collect();
    for name in &expected {
        fs::write(test.path(name), "").unwrap();
    }
    assert_eq!(test.names(ROOT), expected);
    assert_eq!(test.server.known(), 1);
}

#[test]
fn numbers_and_open_files_are_limited() {
    let mut test = Test::new();
    for number in 0..20 {
        fs::write(test.path(&number.to_string()), "").unwrap();
    }
    let nodes: Vec<_> = (0..LIMITS.inodes as u64 - 1)
        .map(|number| test.lookup(ROOT, &number.to_string()).unwrap())
        .collect();
    assert_eq!(test.lookup(ROOT, "19"), Err(raw(Errno::NFILE)));
    // One that is known already is one reference more, and is forgotten with the last.
    assert_eq!(test.lookup(ROOT, "0"), Ok(nodes[0]));
    assert!(test.raw(request(2, nodes[0], &wide(&[1])), 0).is_none());
    assert_eq!(test.lookup(ROOT, "19"), Err(raw(Errno::NFILE)));
    test.raw(request(2, nodes[0], &wide(&[1])), 0);
    assert!(test.lookup(ROOT, "19").is_ok());
    let batch = [numbers(&[2, 0]), wide(&[nodes[1], 1, nodes[2], u64::MAX])].concat();
    assert!(test.raw(request(42, 0, &batch), 0).is_none());
    assert_eq!(test.server.known(), LIMITS.inodes - 2);
    let handles: Vec<_> = (0..LIMITS.opened)
        .map(|_| test.open(nodes[3], 0).unwrap())
        .collect();
    assert_eq!(test.open(nodes[3], 0), Err(raw(Errno::NFILE)));
    assert_eq!(test.create("new"), Err(raw(Errno::NFILE)));
    assert!(!test.path("new").exists());
    assert_ne!(handles[0], handles[1]);
    // The root is never forgotten.
    test.raw(request(2, ROOT, &wide(&[u64::MAX])), 0);
    assert!(test.ask(3, ROOT, &[0; 16]).is_ok());
    test.ask(38, 0, &[]).unwrap();
    assert_eq!(test.server.known(), 1);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let mut test = Test::new();
    assert_eq!(test.ask(99, ROOT, &[]), Err(raw(Errno::NOSYS)));
    assert_eq!(test.ask(3, ROOT, &[0; 3]), Err(raw(Errno::INVAL)));
    assert_eq!(test.ask(1, ROOT, b"no end"), Err(raw(Errno::INVAL)));
    assert_eq!(
        test.ask(21, ROOT, &vec![0; MAX_BODY + 1]),
        Err(raw(Errno::TOOBIG))
    );
    assert!(test.raw(vec![0; 39], 100).is_none());
    // A length that is not the request's.
    let mut wrong = request(3, ROOT, &[0; 16]);
    wrong[0] += 1;
    assert_eq!(test.raw(wrong, 100).unwrap()[4..8], (-22i32).to_le_bytes());
    // No room for the answer.
    let answer = test.raw(request(3, ROOT, &[0; 16]), 20).unwrap();
    assert_eq!(answer.len(), HEADER);
    let acl = [numbers(&[0, 0]), text("system.posix_acl_access")].concat();
    assert_eq!(test.ask(22, ROOT, &acl), Err(raw(Errno::OPNOTSUPP)));
    let times = [numbers(&[1 << 4, 0]), vec![0; 80]].concat();
    let mut bad = times.clone();
    bad[56..60].copy_from_slice(&1_000_000_000u32.to_le_bytes());
    assert_eq!(test.ask(4, ROOT, &bad), Err(raw(Errno::INVAL)));
    assert!(test.ask(4, ROOT, &times).is_ok());
    let owner = [numbers(&[2, 0]), vec![0xff; 80]].concat();
    assert_eq!(test.ask(4, ROOT, &owner), Err(raw(Errno::INVAL)));
}

#[test]
fn the_conversation_begins_with_what_both_can() {
    let mut test = Test::new();
    let answer = test
        .ask(
            26,
            0,
            &[numbers(&[7, 41, 1 << 20, u32::MAX]), vec![0; 48]].concat(),
        )
        .unwrap();
    assert_eq!(answer.len(), 64);
    let mut body = Body(&answer);
    assert_eq!((body.u32(), body.u32()), (Ok(7), Ok(33)));
    assert_eq!((body.u32(), body.u32()), (Ok(1 << 20), Ok(message::FEATURES)));
}

fn arbitrary_body() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("dir".to_owned()),
        Just("link".to_owned()),
        Just("pipe".to_owned()),
        Just("..".to_owned()),
        Just("../secret".to_owned()),
        Just("user.x".to_owned()),
        "[a-z./]{0,8}",
    ];
    let number = prop_oneof![
        0..20u32,
        Just(0o10_0644),
        Just(0o4_0755),
        Just(u32::MAX),
        any::<u32>()
    ];
    let part = prop_oneof![
        3 => name.prop_map(|name| text(&name)),
        3 => proptest::collection::vec(number, 1..7).prop_map(|n| numbers(&n)),
        2 => proptest::collection::vec(prop_oneof![0..12u64, any::<u64>()], 1..4).prop_map(|n| wide(&n)),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => Just(vec![0; 40]),
    ];
    proptest::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
    ))]

    /// Whatever is asked for, it ends, what lies outside stays as it is, and what is held stays within the limits.
    #[test]
    fn arbitrary_requests_do_no_harm(
        requests in proptest::collection::vec((0..55u32, 0..12u64, arbitrary_body(), 0..5000usize, 0..20u8), 1..60)
    ) {
        let mut test = Test::new();
        fs::write(test.path("a"), "a").unwrap();
        fs::create_dir(test.path("dir")).unwrap();
        symlink("../secret", test.path("link")).unwrap();
        rustix::fs::mknodat(CWD, test.path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for (opcode, node, body, room, cut) in requests {
            if opcode == 43 {
                // Allocating takes the host's room, as much as it has.
                continue;
            }
            let mut bytes = request(opcode, node, &body);
            if cut == 0 {
                bytes.truncate(body.len());
            }
            if let Some(answer) = test.raw(bytes, room) {
                prop_assert!(answer.len() <= room.max(HEADER));
                prop_assert_eq!(answer.len(), Body(&answer).u32().unwrap() as usize);
            }
            prop_assert!(test.server.known() <= LIMITS.inodes);
        }
        let secret = test.dir.path().join("secret");
        prop_assert_eq!(fs::read(&secret).unwrap(), b"secret");
        let meta = fs::metadata(&secret).unwrap();
        prop_assert_eq!(meta.nlink(), 1);
        prop_assert_ne!(meta.mode() & 0o777, 0);
        prop_assert_eq!(fs::read_dir(test.dir.path()).unwrap().count(), 2);
    }
}
