//! Directories that host and guest use at the same time.

use crate::layers::Stack;
use crate::podman::{IMAGE, Podman};
use crate::podman_shell::{Shell, same};
use e2e::process::eventually;
use e2e::{Bundle, Cwrun, bed, pattern, tree};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory on the host for a guest, which goes away with its test.
struct Shared {
    dir: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let dir = bed().scratch();
        fs::create_dir(dir.path().join("shared")).expect("the bed is writable");
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Beside it, where no guest may get.
    fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// An entry of `mounts`.
fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    let mut all = vec!["rbind", "rprivate"];
    all.extend(options);
    json!({"destination": destination, "type": "bind", "source": source, "options": all})
}

fn with(bundle: Bundle, mounts: &[Value]) -> Bundle {
    bundle.with(|config| {
        let list = config["mounts"].as_array_mut().expect("a list");
        list.extend(mounts.iter().cloned());
    })
}

fn script(shared: &Shared, script: &str) -> Bundle {
    with(Bundle::script(script), &[bind(&shared.path(), "/data", &[])])
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn both_sides_read_and_write_at_the_same_time() {
    let shared = Shared::new();
    fs::write(shared.join("from-host"), "hello\n").unwrap();
    let cwrun = Cwrun::new();
    let bundle = script(
        &shared,
        "cat /data/from-host; echo there >/data/from-guest; mkdir -p /data/a/b && echo deep >/data/a/b/c
        until [ -e /data/go ]; do sleep 0.1; done; cat /data/go; echo more >>/data/from-host
        grep /data /proc/mounts; awk '$5 == \"/data\" { print \"root\", $4 }' /proc/self/mountinfo; mv /data/a /data/d; rm /data/go; ls /data",
    );
    let container = cwrun.create("both", &bundle);
    cwrun.ok(["start", "both"]);
    eventually("the guest writes", 60, || {
        fs::read_to_string(shared.join("a/b/c"))
            .is_ok_and(|text| text == "deep\n")
            .then_some(())
    });
    assert_eq!(shared.read("from-guest"), "there\n");
    // Complete when it appears.
    fs::write(shared.join(".go"), "now\n").unwrap();
    fs::rename(shared.join(".go"), shared.join("go")).unwrap();
    assert_eq!(cwrun.wait(&container), 0, "{}", container.errors());
    let output = container.output();
    assert!(
        output.starts_with("hello\nnow\nvolume0 /data virtiofs rw,nodev,"),
        "{output}"
    );
    let path = shared.path();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        output.ends_with(&format!("\nroot /{name}\nd\nfrom-guest\nfrom-host\n")),
        "{output}"
    );
    assert_eq!(shared.read("from-host"), "hello\nmore\n");
    assert_eq!(shared.read("d/b/c"), "deep\n");
    cwrun.ok(["delete", "both"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn owners_modes_and_times_are_the_same_on_both_sides() {
    let shared = Shared::new();
    fs::write(shared.join("theirs"), "x").unwrap();
    std::os::unix::fs::chown(shared.join("theirs"), Some(1234), Some(2345)).unwrap();
    fs::set_permissions(shared.join("theirs"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(shared.join("group")).unwrap();
    std::os::unix::fs::chown(shared.join("group"), None, Some(77)).unwrap();
    fs::set_permissions(shared.join("group"), fs::Permissions::from_mode(0o2777)).unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let cwrun = Cwrun::new();
    let as_user = "import os
os.setgid(100); os.setuid(1000); os.umask(0o027)
os.chdir('/data')
open('mine', 'w').close(); os.mkdir('mydir'); os.symlink('mine', 'mylink'); os.mkfifo('mypipe')
open('group/file', 'w').close(); os.mkdir('group/dir')
for path in ['theirs', 'root']:
    try:
        open(path); print(path, 'open')
    except PermissionError: print(path, 'denied')
os.utime('mine', ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
";
    let text = format!(
        "import os
open('/data/root', 'w').close(); os.chown('/data/root', 5, 6); os.chmod('/data/root', 0o6711)
s = os.stat('/data/theirs'); print(s.st_uid, s.st_gid, oct(s.st_mode))
if os.fork() == 0:
    exec('''{as_user}''')
    os._exit(0)
print(os.wait()[1])
"
    );
    let bundle = with(
        Bundle::on(&bed().debian(), ["python3", "-u", "-c", &text]),
        &[bind(&shared.path(), "/data", &[])],
    );
    let output = cwrun.run("owners", &bundle).finish().ok().text();
    assert_eq!(output, "1234 2345 0o100640\ntheirs denied\nroot denied\n0\n");
    let look = |name: &str| {
        let meta = fs::symlink_metadata(shared.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(look("root"), (5, 6, 0o6711));
    assert_eq!(look("mine"), (1000, 100, 0o640));
    assert_eq!(look("mydir"), (1000, 100, 0o750));
    assert_eq!(look("mylink"), (1000, 100, 0o777));
    assert_eq!(look("mypipe"), (1000, 100, 0o640));
    assert_eq!(look("group/file"), (1000, 77, 0o640));
    assert_eq!(look("group/dir"), (1000, 77, 0o2750));
    let meta = fs::metadata(shared.join("mine")).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_100_000_000, 987_654_321));
}

/// What a file system does, asked by a program.
const POSIX: &str = r#"
import errno, fcntl, os, stat, threading
os.chdir('/data')
def expect(number, call, *args):
    try:
        call(*args)
    except OSError as error:
        assert error.errno == number, (call, args, error)
    else:
        raise AssertionError((call, args))
# Hard links.
with open('one', 'w') as f: f.write('1')
os.link('one', 'two')
assert os.stat('one').st_nlink == 2 and os.path.samefile('one', 'two')
with open('two', 'a') as f: f.write('2')
assert open('one').read() == '12'
os.symlink('one', 'link'); os.link('link', 'link2', follow_symlinks=False)
assert os.readlink('link2') == 'one'
# Rename: over something, and not over something.
with open('new', 'w') as f: f.write('new')
os.rename('new', 'two')
assert open('two').read() == 'new' and os.stat('one').st_nlink == 1
os.mkdir('d1'); os.mkdir('d2'); open('d2/f', 'w').close()
expect(errno.ENOTEMPTY, os.rename, 'd1', 'd2')
expect(errno.ENOTEMPTY, os.rmdir, 'd2')
os.rename('d2/f', 'd1/g'); os.rename('d1', 'd2')
assert os.listdir('d2') == ['g']
expect(errno.EINVAL, os.rename, 'd2', 'd2/below')
expect(errno.EISDIR, os.unlink, 'd2')
expect(errno.ENOTDIR, os.listdir, 'one')
expect(errno.EEXIST, os.mkdir, 'd2')
expect(errno.ENAMETOOLONG, os.mkdir, 'x' * 256)
os.mkdir('y' * 255); os.rmdir('y' * 255)
# Removed while it is open.
f = open('gone', 'w+'); f.write('still'); f.flush(); os.unlink('gone')
assert os.fstat(f.fileno()).st_nlink == 0
f.seek(0); assert f.read() == 'still'
os.fchmod(f.fileno(), 0o600); os.ftruncate(f.fileno(), 2); f.seek(0); assert f.read() == 'st'
f.close()
# Without a name, and then with one.
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640); os.write(fd, b'nameless')
os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=os.open('/', os.O_RDONLY), follow_symlinks=True); os.close(fd)
assert open('named').read() == 'nameless' and os.stat('named').st_mode & 0o777 == 0o640
# Extended attributes.
os.setxattr('one', 'user.a', b'x' * 1000)
assert os.getxattr('one', 'user.a') == b'x' * 1000 and os.listxattr('one') == ['user.a']
expect(errno.EEXIST, os.setxattr, 'one', 'user.a', b'', os.XATTR_CREATE)
os.removexattr('one', 'user.a')
expect(errno.ENODATA, os.getxattr, 'one', 'user.a')
expect(errno.EOPNOTSUPP, os.setxattr, 'one', 'system.posix_acl_access', b'')
# Appending, by two who don't know of each other.
a, b = (os.open('log', os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644) for _ in range(2))
for n in range(10): os.write((a, b)[n % 2], b'%d' % n)
assert open('log').read() == '0123456789'
# Holes.
fd = os.open('sparse', os.O_CREAT | os.O_RDWR, 0o644); os.pwrite(fd, b'end', 1 << 30)
assert os.fstat(fd).st_size == (1 << 30) + 3 and os.fstat(fd).st_blocks < 1000
assert os.lseek(fd, 0, os.SEEK_DATA) > 1 << 29
os.posix_fallocate(fd, 0, 8192); os.close(fd)
# A stale set-user-ID bit goes with the next write of somebody who is not root.
fd = os.open('suid', os.O_CREAT | os.O_WRONLY, 0o777); os.fchmod(fd, 0o4777); os.close(fd)
if os.fork() == 0:
    os.setuid(1000)
    fd = os.open('suid', os.O_WRONLY); os.write(fd, b'x'); os.close(fd); os._exit(0)
os.wait(); assert stat.S_IMODE(os.stat('suid').st_mode) == 0o777, oct(os.stat('suid').st_mode)
# Locks, between the guest's processes.
fd = os.open('lock', os.O_CREAT | os.O_RDWR, 0o644); fcntl.lockf(fd, fcntl.LOCK_EX)
if os.fork() == 0:
    fd = os.open('lock', os.O_RDWR)
    expect(errno.EAGAIN, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB); os._exit(0)
assert os.wait()[1] == 0
# Pipes and sockets are the guest's. Devices there are none.
os.mkfifo('pipe'); t = threading.Thread(target=lambda: open('pipe', 'w').write('through')); t.start()
assert open('pipe').read() == 'through'; t.join()
expect(errno.EPERM, os.mknod, 'device', stat.S_IFCHR | 0o600, os.makedev(1, 3))
# Many names, that the host has made; and some removed while they are listed.
assert sorted(os.listdir('many')) == [f'{n:05}' for n in range(5000)]
os.mkdir('some')
for n in range(300): os.link('one', f'some/{n}')
with os.scandir('some') as entries:
    for entry in entries: os.unlink(entry.path)
os.rmdir('some')
s = os.statvfs('.'); assert s.f_blocks > 0 and s.f_namemax == 255
os.sync()
print('done')
"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn it_is_a_file_system_as_posix_has_it() {
    // On a file system with attributes of users.
    let mut stack = Stack::new();
    let shared = stack.layer();
    fs::create_dir(shared.join("many")).unwrap();
    for number in 0..5000 {
        fs::write(shared.join(format!("many/{number:05}")), "").unwrap();
    }
    let cwrun = Cwrun::new();
    // A root that may do what the program does; capabilities as podman's.
    let bundle = with(
        Bundle::on(&bed().debian(), ["python3", "-u", "-c", POSIX]),
        &[bind(&shared, "/data", &[])],
    )
    .with(|config| {
        for set in ["bounding", "effective", "permitted"] {
            let set = config["process"]["capabilities"][set]
                .as_array_mut()
                .expect("a list");
            set.push("CAP_MKNOD".into());
        }
    });
    let done = cwrun.run("posix", &bundle).deadline(300).finish().ok();
    assert_eq!(done.text(), "done\n");
    assert_eq!(fs::read_to_string(shared.join("named")).unwrap(), "nameless");
    assert_eq!(fs::read_to_string(shared.join("log")).unwrap(), "0123456789");
}

/// Writes, reads and maps a file at random.
const EXERCISE: &str = env!("CARGO_BIN_EXE_exercise-file");

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn files_are_what_was_written_and_mapped() {
    let shared = Shared::new();
    // The program comes in another volume, with its libraries.
    let program = Shared::new();
    let call = tree::carry(
        Path::new(EXERCISE),
        &program.join("exercise"),
        "/exercise/exercise",
    );
    let cwrun = Cwrun::new();
    let rounds = e2e::rounds(300, 9_000);
    let calls: Vec<_> = (1..4)
        .map(|seed| format!("{} /data/{seed} {rounds} {seed} &", call.join(" ")))
        .collect();
    let bundle = with(
        Bundle::on(
            &bed().debian(),
            ["sh", "-c", &format!("{} wait", calls.join(" "))],
        ),
        &[
            bind(&shared.path(), "/data", &[]),
            bind(&program.path(), "/exercise", &["ro"]),
        ],
    );
    let output = cwrun.run("exercise", &bundle).deadline(2400).finish().ok().text();
    let mut sums: Vec<_> = output.lines().collect();
    sums.sort_unstable();
    let mut expected: Vec<_> = ["1", "2", "3"]
        .map(|name| pattern::sha256(&fs::read(shared.join(name)).unwrap()))
        .into();
    expected.sort_unstable();
    assert_eq!(sums, expected);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn links_lead_nowhere_on_the_host() {
    let shared = Shared::new();
    let secret = shared.outside("secret");
    fs::write(&secret, "secret\n").unwrap();
    fs::write(shared.join("inside"), "inside\n").unwrap();
    symlink(&secret, shared.join("absolute")).unwrap();
    symlink("../secret", shared.join("up")).unwrap();
    symlink("..", shared.join("parent")).unwrap();
    symlink("inside", shared.join("good")).unwrap();
    symlink("/etc/hostname", shared.join("name")).unwrap();
    let cwrun = Cwrun::new();
    let text = "cd /data; for f in absolute up parent/secret good name; do cat $f 2>/dev/null || echo no; done
        echo overwritten >up; echo overwritten >absolute; readlink up; cd ..; ls /data/.. | grep -c secret; ls -d /data/../data/inside";
    let bundle = script(&shared, text).with(|config| {
        config["mounts"].as_array_mut().expect("a list").push(json!(
            {"destination": "/etc/hostname", "type": "bind", "source": shared.join("inside"), "options": ["bind"]}
        ));
    });
    let output = cwrun.run("links", &bundle).finish().text();
    // What they lead to is the guest's: `up` is `/secret` there, which is made.
    assert_eq!(
        output,
        "no\nno\nno\ninside\ninside\n../secret\n1\n/data/../data/inside\n"
    );
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_large_file_arrives_whole_both_ways() {
    let shared = Shared::new();
    let mib = e2e::rounds(16, 64);
    let bytes = pattern::bytes(mib << 20);
    let sum = pattern::sha256(&bytes);
    fs::write(shared.join("in"), &bytes).unwrap();
    let cwrun = Cwrun::new();
    let text = "sha256sum </data/in; cp /data/in /data/out; cp /data/in /tmp/copy; sync
        dd if=/tmp/copy of=/data/odd bs=77777 2>/dev/null; sha256sum </data/odd";
    let started = std::time::Instant::now();
    let bundle = script(&shared, text);
    let output = cwrun.run("large", &bundle).deadline(300).finish().ok().text();
    eprintln!("{mib} MiB in three times and out twice: {:?}", started.elapsed());
    assert_eq!(output, format!("{sum}  -\n{sum}  -\n"));
    for name in ["out", "odd"] {
        assert_eq!(
            pattern::sha256(&fs::read(shared.join(name)).unwrap()),
            sum,
            "{name}"
        );
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_read_only_volume_changes_in_no_way() {
    let shared = Shared::new();
    fs::write(shared.join("file"), "as it was\n").unwrap();
    fs::set_permissions(shared.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(shared.join("file"), Some(1234), None).unwrap();
    let cwrun = Cwrun::new();
    // Made writable by the guest's own root, who may do that, it is still not on the host.
    let text = "cd /data; cat file; for i in 1 2; do
            (echo x >file) 2>&1; (echo x >new) 2>&1; rm file 2>&1; chmod 777 file 2>&1; mkdir d 2>&1; mv file g 2>&1
            mount -o remount,rw /data 2>&1 && echo remounted
        done; cat file";
    let bundle = with(Bundle::script(text), &[bind(&shared.path(), "/data", &["ro"])]).with(|config| {
        for set in ["bounding", "effective", "permitted"] {
            let set = config["process"]["capabilities"][set]
                .as_array_mut()
                .expect("a list");
            set.push("CAP_SYS_ADMIN".into());
        }
    });
    let output = cwrun.run("readonly", &bundle).finish().ok().text();
    assert_eq!(output.matches("Read-only file system").count(), 12, "{output}");
    assert_eq!(output.matches("remounted").count(), 2, "{output}");
    assert_eq!(output.matches("as it was").count(), 2, "{output}");
    assert_eq!(shared.read("file"), "as it was\n");
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 1);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn mounts_lie_over_each_other_as_they_are_listed() {
    let (outer, inner) = (Shared::new(), Shared::new());
    fs::write(outer.join("outer"), "").unwrap();
    fs::create_dir(outer.join("usr")).unwrap();
    fs::write(inner.join("inner"), "").unwrap();
    fs::write(outer.outside("conf"), "conf\n").unwrap();
    let cwrun = Cwrun::new();
    let mounts = [
        bind(&outer.path(), "/bin/data", &[]),
        bind(&inner.path(), "/bin/data/below/here", &["noexec", "rshared"]),
        json!({"destination": "/bin/data/tmp", "type": "tmpfs", "source": "tmpfs"}),
        bind(&outer.outside("conf"), "/bin/data/etc/conf", &["ro"]),
        // Over what the image has.
        bind(&inner.path(), "/etc", &[]),
    ];
    let text = "ls /bin/data; ls /bin/data/below/here /etc; cat /bin/data/etc/conf; echo x >/bin/data/tmp/file
        cp /bin/busybox /bin/data/; cp /bin/busybox /bin/data/below/here/
        /bin/data/busybox true && echo ran; /bin/data/below/here/busybox true 2>&1 | grep -o 'Permission denied'
        mv /bin/data/outer /bin/data/below/here/moved && ls /etc";
    let output = cwrun
        .run("nested", &with(Bundle::script(text), &mounts))
        .finish()
        .ok()
        .text();
    assert_eq!(
        output,
        "below\netc\nouter\ntmp\nusr\n/bin/data/below/here:\ninner\n\n/etc:\ninner\nconf\nran\nPermission denied\nbusybox\ninner\nmoved\n"
    );
    // Where something was mounted there is a place for it on the host, as with any runtime.
    assert!(outer.join("below/here").is_dir() && outer.join("tmp").is_dir());
    assert_eq!(outer.read("etc/conf"), "");
    assert!(inner.join("moved").is_file());
    assert_eq!(fs::read_dir(outer.join("tmp")).unwrap().count(), 0);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_mount_below_the_source_belongs_to_it() {
    let shared = Shared::new();
    let cwrun = Cwrun::new();
    fs::create_dir(shared.join("below")).unwrap();
    let mounted = e2e::Run::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(shared.join("below"))
        .finish();
    mounted.ok();
    fs::write(shared.join("below/file"), "there\n").unwrap();
    let text = "cat /data/below/file; echo x >/data/below/new; ls -i /data/below | wc -l";
    let output = cwrun.run("below", &script(&shared, text)).finish();
    let written = fs::read_to_string(shared.join("below/new"));
    e2e::Run::new("umount").arg(shared.join("below")).finish().ok();
    assert_eq!(output.ok().text(), "there\n2\n");
    assert_eq!(written.unwrap(), "x\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_the_host_renames_meanwhile_leads_nowhere_else() {
    let shared = Shared::new();
    fs::write(shared.outside("secret"), "secret").unwrap();
    for dir in ["a/b/c", "x/y/z"] {
        fs::create_dir_all(shared.join(dir)).unwrap();
        fs::write(shared.join(dir).join("file"), "fine").unwrap();
    }
    let cwrun = Cwrun::new();
    let text = "until [ -e /data/stop ]; do
            cat /data/a/b/c/file /data/x/y/z/file /data/a/b/c/../../../../secret /data/a/b/secret 2>/dev/null
            ls -R /data >/dev/null 2>&1; echo w >/data/a/b/c/written 2>/dev/null; echo .
        done; echo over";
    let container = cwrun.create("race", &script(&shared, text));
    cwrun.ok(["start", "race"]);
    container.expect_output("fine");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut rounds = 0;
    while std::time::Instant::now() < end {
        // Out of the volume and in again, into each other, and a link in their place.
        let away = shared.outside("away");
        fs::rename(shared.join("a/b"), &away).unwrap();
        symlink("../..", shared.join("a/b")).unwrap();
        std::thread::yield_now();
        fs::remove_file(shared.join("a/b")).unwrap();
        fs::rename(shared.join("x/y"), shared.join("a/b")).unwrap();
        fs::rename(&away, shared.join("x/y")).unwrap();
        rounds += 1;
    }
    fs::write(shared.join("stop"), "").unwrap();
    assert_eq!(cwrun.wait(&container), 0);
    eprintln!("{rounds} rounds of renames");
    let output = container.output();
    assert!(
        output.ends_with("over\n") && !output.contains("secret"),
        "{output}"
    );
    assert!(!shared.outside("written").exists() && !shared.outside("c").exists());
    cwrun.ok(["delete", "race"]);
}

/// What the guest does while names change under it on both sides: it changes them itself, and reads and writes whatever it gets hold of.
const HOSTILE: &str = r#"
import os, random
os.chdir('/data')
def attempt(call, *args, **named):
    try:
        return call(*args, **named)
    except OSError:
        return None
places = ['a', 'x', 'a/b', 'a/c', 'x/b', 'x/c', 'a/b/c', 'x/c/b']
targets = ['..', '../..', '../../..', '/', '../outside', '../../outside', '../../../outside', '/outside', '/volumes', '/proc/self/root', '/proc/self/fd']
names = ['canary', 'outside/canary', '../canary', '../outside/canary', '../../canary', '../../outside/canary', '../../../outside/canary', 'b/canary', 'c/canary']
def change(choose):
    one, other = choose.sample(places, 2)
    what = choose.randrange(6)
    if what == 0: attempt(os.rename, one, other)
    elif what == 1: attempt(os.rename, one, 'away'); attempt(os.rename, other, one); attempt(os.rename, 'away', other)
    elif what == 2: attempt(os.unlink, one); attempt(os.symlink, choose.choice(targets), one)
    elif what == 3: attempt(os.unlink, one); attempt(os.mkdir, one)
    elif what == 4: attempt(os.link, one, other, follow_symlinks=False)
    else: attempt(os.rmdir, one); attempt(os.makedirs, one)
def use(choose):
    flags = os.O_PATH | os.O_DIRECTORY | choose.choice([0, os.O_NOFOLLOW])
    directory = attempt(os.open, choose.choice(places), flags)
    if directory is None: return 0
    name = choose.choice(names)
    file = attempt(os.open, name, choose.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT]), 0o600, dir_fd=directory)
    if file is not None:
        if b'secret' in (attempt(os.pread, file, 100, 0) or b''): print('read outside by', name, flush=True)
        attempt(os.pwrite, file, b'overwritten', 0)
        attempt(os.fchmod, file, 0o777)
        os.close(file)
    what = choose.randrange(6)
    if what == 0: attempt(os.unlink, name, dir_fd=directory)
    elif what == 1: attempt(os.rename, name, 'taken', src_dir_fd=directory)
    elif what == 2: attempt(os.link, name, 'taken', src_dir_fd=directory, follow_symlinks=choose.random() < 0.5)
    elif what == 3: attempt(os.chown, name, 7, 7, dir_fd=directory)
    elif what == 4: attempt(os.utime, name, (1, 1), dir_fd=directory)
    else: attempt(os.rename, 'taken', name, dst_dir_fd=directory)
    os.close(directory)
    return file is not None
children = []
for seed in range(4):
    child = os.fork()
    if child == 0:
        choose = random.Random(seed)
        opened = rounds = 0
        while rounds % 50 or not os.path.exists('/data/stop'):
            rounds += 1
            if seed == 0: change(choose)
            elif seed == 1 and rounds % 4 == 0: change(choose)
            else: opened += use(choose)
        os.write(1, f'child {seed} rounds {rounds} opened {opened}\n'.encode())
        os._exit(0)
    children.append(child)
print('begun', flush=True)
print('over', [os.waitpid(child, 0)[1] for child in children], flush=True)
"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_hostile_guest_gets_nowhere_else_while_both_sides_rename() {
    let shared = Shared::new();
    let outside = shared.outside("outside");
    for dir in [shared.join("a/b/c"), shared.join("x/c/b"), outside.clone()] {
        fs::create_dir_all(dir).unwrap();
    }
    // Before the guest puts others in their places.
    let directories = [shared.join("a"), shared.join("x"), outside.clone()].map(|path| {
        use rustix::fs::{Mode, OFlags, open};
        open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .unwrap()
    });
    let canary = outside.join("canary");
    fs::write(&canary, "secret").unwrap();
    let look = || {
        let meta = fs::symlink_metadata(&canary).unwrap();
        (
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.nlink(),
            meta.mtime_nsec(),
            meta.ctime_nsec(),
        )
    };
    let before = look();
    let cwrun = Cwrun::new();
    let bundle = with(
        Bundle::on(&bed().debian(), ["python3", "-u", "-c", HOSTILE]),
        &[bind(&shared.path(), "/data", &[])],
    );
    let container = cwrun.create("hostile", &bundle);
    cwrun.ok(["start", "hostile"]);
    container.expect_output("begun");
    let (rounds, moved) = rename_in_and_out(&directories, &outside, e2e::rounds(15, 600) as u64);
    fs::write(shared.join("stop"), "").unwrap();
    assert_eq!(cwrun.wait(&container), 0, "{}", container.errors());
    let output = container.output();
    eprintln!("{rounds} rounds of renames on the host, {moved} directories moved\n{output}");
    assert!(
        output.contains("over [0, 0, 0, 0]") && !output.contains("read outside"),
        "{output}"
    );
    assert!(moved > 0, "the host never got to move one");
    let opened = output.lines().filter_map(|line| line.rsplit_once("opened "));
    let opened: u64 = opened.filter_map(|(_, number)| number.parse::<u64>().ok()).sum();
    assert!(opened > 0, "the guest never got to open a file: {output}");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "secret");
    assert_eq!(look(), before, "inode, mode, owner, links, times");
    // Nothing was made, moved or linked there but by the host.
    for entry in fs::read_dir(&outside).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(["canary", "away"].contains(&name.to_str().unwrap()), "{name:?}");
    }
    cwrun.ok(["delete", "hostile"]);
}

/// Moves directories out of the shared one and in again, with links in their place meanwhile. All by descriptors: the guest's links must
/// not lead the host. Returns how often that was tried and how often a directory was moved.
fn rename_in_and_out(directories: &[OwnedFd; 3], outside: &Path, seconds: u64) -> (u64, u64) {
    use rustix::fs::{AtFlags, renameat, symlinkat, unlinkat};
    let [a, x, away] = directories;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let (mut rounds, mut moved) = (0, 0);
    while std::time::Instant::now() < end {
        for (from, to, name) in [(a, x, "b"), (x, a, "c"), (a, x, "c"), (x, a, "b")] {
            rounds += 1;
            if renameat(from, name, away, "away").is_err() {
                let _ = fs::remove_dir_all(outside.join("away"));
                continue;
            }
            let _ = symlinkat("../../outside", from, name);
            std::thread::yield_now();
            let _ = unlinkat(from, name, AtFlags::empty());
            // Over an empty directory, or into nothing; else something else was moved out for good.
            if renameat(away, "away", to, name).is_ok() || renameat(away, "away", from, name).is_ok() {
                moved += 1;
            } else if unlinkat(away, "away", AtFlags::empty()).is_err() {
                // The guest, which may have it open, may still put something there: then the next one tries again.
                let _ = fs::remove_dir_all(outside.join("away"));
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    (rounds, moved)
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_block_device_of_the_host_is_a_disk_of_the_guest() {
    let podman = Podman::new();
    let shared = Shared::new();
    let image = shared.join("image");
    fs::write(&image, pattern::bytes(4 << 20)).unwrap();
    let device = e2e::Run::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .finish()
        .ok()
        .text();
    let device = device.trim();
    let run = |option: &str, script: &str| {
        let option = format!("{device}:/dev/{option}");
        podman
            .command(&[
                "run",
                "--rm",
                "--network",
                "none",
                "--device",
                &option,
                IMAGE,
                "sh",
                "-c",
                script,
            ])
            .finish()
    };
    let read = run(
        "data:r",
        "sha256sum </dev/data; (echo x >/dev/data) 2>/dev/null || echo read-only
        stat -c '%F %a' /dev/data; [ $(stat -c %t:%T /dev/data) != 0:0 ] && echo numbered",
    );
    let write = run(
        "deep/data:rw",
        "echo written | dd of=/dev/deep/data bs=512 seek=2 conv=notrunc 2>/dev/null; sync",
    );
    let none = run("data:w", "true");
    let gone = run(
        "data:r",
        "dd if=/dev/data bs=512 skip=2 count=1 2>/dev/null | head -n 1",
    );
    e2e::Run::new("losetup").arg("--detach").arg(device).finish().ok();
    let sum = pattern::sha256(&pattern::bytes(4 << 20));
    let text = read.ok().text();
    assert!(
        text.starts_with(&format!("{sum}  -\nread-only\nblock special file 6"))
            && text.ends_with("\nnumbered\n"),
        "{text}"
    );
    write.ok();
    assert_eq!(&fs::read(&image).unwrap()[1024..1032], b"written\n");
    assert!(
        none.code != 0 && none.stderr.contains("no rule in linux.resources.devices"),
        "{}",
        none.stderr
    );
    assert_eq!(gone.ok().text(), "written\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn nothing_is_left_when_the_machine_is_killed() {
    let shared = Shared::new();
    let cwrun = Cwrun::new();
    let bundle = script(
        &shared,
        "exec 3>/data/file; echo begun >&3; while :; do echo x >&3; sleep 0.1; done",
    );
    let container = cwrun.create("killed", &bundle);
    cwrun.ok(["start", "killed"]);
    eventually("the guest writes", 60, || {
        shared.join("file").exists().then_some(())
    });
    let pid = rustix::process::Pid::from_raw(container.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(cwrun.wait(&container), 128 + 9);
    cwrun.ok(["delete", "killed"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/volumes/"), "{mounts}");
    fs::remove_dir_all(shared.path()).unwrap();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn only_their_threads_may_do_anything_with_files() {
    let (writable, readonly) = (Shared::new(), Shared::new());
    let cwrun = Cwrun::new();
    let bundle = with(
        Bundle::idle(),
        &[
            bind(&writable.path(), "/w", &[]),
            bind(&readonly.path(), "/r", &["ro"]),
        ],
    );
    let container = cwrun.create("threads", &bundle);
    let mut seen = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", container.pid)).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap_or_default()
                .to_owned()
        };
        let capabilities = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
        let expected = match field("Name:").as_str() {
            // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP.
            "volume0" => 1 | (1 << 1) | (1 << 3) | (1 << 4) | (1 << 31),
            "volume1" => 1 << 1,
            _ => 0,
        };
        assert_eq!(capabilities, expected, "{status}");
        assert_eq!(
            (field("CapBnd:"), field("NoNewPrivs:"), field("Seccomp:")),
            ("0000000000000000".into(), "1".into(), "2".into()),
            "{status}"
        );
        seen.push(field("Name:"));
    }
    assert!(
        seen.iter().filter(|name| name.starts_with("volume")).count() == 2,
        "{seen:?}"
    );
    let root = PathBuf::from(format!("/proc/{}/root", container.pid));
    assert!(fs::write(root.join("volumes/1/new"), "").is_err());
    cwrun.ok(["delete", "--force", "threads"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn in_a_user_namespace_owners_are_those_of_its_map() {
    let shared = Shared::new();
    // Nobody but the host's root gets to it by its path.
    fs::set_permissions(shared.outside(""), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(shared.path(), Some(100_000), Some(100_000)).unwrap();
    fs::write(shared.join("theirs"), "").unwrap();
    fs::write(shared.join("mine"), "").unwrap();
    std::os::unix::fs::chown(shared.join("mine"), Some(101_000), Some(100_005)).unwrap();
    let cwrun = Cwrun::new();
    let text = "cd /data; stat -c '%n %u %g' mine theirs; mkdir made; touch made/f; chown 7:8 made/f
        chown 100:100 theirs 2>/dev/null || echo refused";
    let bundle = script(&shared, text).with(|config| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        config["linux"]["namespaces"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"type": "user"}));
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    let output = cwrun.run("mapped", &bundle).finish().ok().text();
    assert_eq!(output, "mine 1000 5\ntheirs 65534 65534\nrefused\n");
    let owner = |name: &str| {
        fs::metadata(shared.join(name))
            .map(|meta| (meta.uid(), meta.gid()))
            .unwrap()
    };
    assert_eq!(owner("made"), (100_000, 100_000));
    assert_eq!(owner("made/f"), (100_007, 100_008));
    assert_eq!(owner("theirs"), (0, 0));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_container_may_be_denied_any() {
    let shared = Shared::new();
    let cwrun = Cwrun::new();
    let bundle = script(&shared, "true").annotation("io.cwrun.volumes", "deny");
    let message = cwrun.run("denied", &bundle).finish().expect(1).stderr;
    for part in ["mounts[7]", "on /data is a directory", "io.cwrun.volumes"] {
        assert!(message.contains(part), "{message}");
    }
    let bundle = script(&shared, "true").annotation("io.cwrun.volumes", "untrusted");
    cwrun.run("allowed", &bundle).finish().ok();
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podman_shares_directories_and_volumes() {
    let podman = Podman::new();
    let shared = Shared::new();
    fs::write(shared.join("file"), "from the host\n").unwrap();
    let bound = format!("{}:/data", shared.path().display());
    let run = |volume: &str, script: &str| {
        podman.ok(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            volume,
            IMAGE,
            "sh",
            "-c",
            script,
        ])
    };
    assert_eq!(
        run(
            &bound,
            "cat /data/file; echo back >/data/back; stat -c %u /data/back"
        ),
        "from the host\n0\n"
    );
    assert_eq!(shared.read("back"), "back\n");
    assert_eq!(
        run(
            &format!("{bound}:ro"),
            "touch /data/new 2>/dev/null || echo read-only"
        ),
        "read-only\n"
    );
    assert_eq!(run(&format!("{bound}:U,z"), "cat /data/back"), "back\n");
    // A volume of its own: it begins with what the image has there, and keeps what is written.
    podman.ok(&["volume", "create", "e2e-volume"]);
    let text = "test -s /etc/passwd && echo copied; echo kept >/etc/kept";
    assert_eq!(run("e2e-volume:/etc", text), "copied\n");
    assert_eq!(
        run("e2e-volume:/v", "cat /v/kept; grep -c root /v/passwd"),
        "kept\n1\n"
    );
    let text = "echo started >>/v/log; wc -l </v/log";
    let create = [
        "create",
        "--name",
        "e2e-keeps",
        "--network",
        "none",
        "-v",
        "e2e-volume:/v",
        IMAGE,
        "sh",
        "-c",
        text,
    ];
    podman.ok(&create);
    assert_eq!(podman.ok(&["start", "--attach", "e2e-keeps"]), "1\n");
    assert_eq!(podman.ok(&["start", "--attach", "e2e-keeps"]), "2\n");
    podman.ok(&["rm", "e2e-keeps"]);
    podman.ok(&["volume", "rm", "e2e-volume"]);
}

/// What of a directory on the host changes.
fn owners(podman: &mut Shell, dir: &Path) {
    for name in ["", "file", "made"] {
        let meta = fs::symlink_metadata(dir.join(name)).map(|meta| (meta.uid(), meta.gid(), meta.mode()));
        podman.note(format!("{name:?} on the host: {meta:?}"));
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn options_of_podman_for_volumes() {
    const OPTIONS: [&str; 9] = [
        "z",
        "Z",
        "U",
        "O",
        "ro,z",
        "rw,nosuid,nodev,noexec",
        "rshared",
        "U,O",
        "slave,ro",
    ];
    let look = "for d in /d?; do echo $d; cat $d/file; (echo made >$d/made) 2>/dev/null || echo read-only; ls $d; stat -c %u:%g:%a $d $d/file; done";
    let dir = |index: usize| PathBuf::from(format!("/tmp/podman-test/dir{index}"));
    let volumes = OPTIONS.iter().enumerate();
    let volumes: Vec<_> = volumes
        .map(|(index, options)| format!("--volume $TEST/dir{index}:/d{index}:{options}"))
        .collect();
    let volumes = volumes.join(" ");
    same(|podman| {
        for index in 0..OPTIONS.len() {
            let _ = fs::remove_dir_all(dir(index));
            fs::create_dir(dir(index)).unwrap();
            fs::write(dir(index).join("file"), "from the host\n").unwrap();
        }
        for user in ["--user 1234:2345", ""] {
            podman.say(&format!(
                "run --rm --network none {user} {volumes} $IMAGE sh -c '{look}'"
            ));
        }
        for index in 0..OPTIONS.len() {
            owners(podman, &dir(index));
        }
        // In one another, in whatever order they are given; a file in a directory; a tmpfs between.
        podman.say(
            "run --rm --network none --volume $TEST/dir0:/d/in/dir --volume $TEST/file:/d/in/dir/inner:ro --tmpfs /d/in --volume named:/d
            $IMAGE sh -c 'find /d | sort; cat /d/in/dir/inner; echo kept >/d/kept; echo lost >/d/in/lost'",
        );
        // What the image has there is copied into a new volume, with its owners and modes, and not into one that has something.
        podman.say("run --rm --network none --volume named:/etc --volume copied:/tmp --volume nocopy:/var:nocopy $IMAGE
            sh -c 'ls /etc /var; stat -c %a:%u /tmp'");
        podman.say("run --rm --network none --mount type=bind,src=$TEST/dir0,dst=/d,ro=true --mount type=tmpfs,dst=/t,tmpfs-size=1m $IMAGE
            sh -c 'touch /d/x 2>/dev/null || echo read-only; df -k /t | tail -n 1 | tr -s \" \" | cut -d \" \" -f 2'");
        // Without a name; they go with the container, and another can use them.
        podman.say("create --name keeper --network none --volume /anonymous $IMAGE sh -c 'echo it >>/anonymous/file; wc -l </anonymous/file'");
        podman.say("start --attach keeper");
        podman.say("start --attach keeper");
        podman.say("run --rm --network none --volumes-from keeper:ro $IMAGE sh -c 'wc -l </anonymous/file; touch /anonymous/x 2>/dev/null || echo read-only'");
        podman.say("rm --volumes keeper");
        podman.say("volume rm named copied nocopy");
        podman.say("volume ls --quiet");
        podman.say("run --rm --network none --volume /no/such/directory:/d $IMAGE true");
    });
}
