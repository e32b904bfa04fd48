//! One flipped byte anywhere in the disk's payload: an I/O error or a refusal, never wrong data.

use e2e::pattern::{Choices, bytes};
use e2e::{Bundle, Cwrun, bed, host, rounds};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Reads everything that there is, names, attributes and contents, a line each.
const READ_ALL: &str = "find /etc /bin /usr /data -exec stat -c '%n %f %s %Y %u %g' {} + ; \
    find /data /etc /bin -type f -exec sha256sum {} + ; find /bin /sbin /usr -type l -exec ls -ld {} +";

/// A disk in the cache, and where things are in it.
struct Disk {
    image: PathBuf,
    payload: u64,
    superblock: u64,
    end: u64,
}

impl Disk {
    fn in_cache(cwrun: &Cwrun) -> Self {
        let image = host::tree(cwrun.cache())
            .into_iter()
            .find(|path| path.ends_with("image"))
            .expect("a disk is in the cache");
        let record = fs::read(image.with_file_name("record.json")).expect("it has a record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("the record is JSON");
        let number = |name: &str| {
            record["layout"][name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name} in {record}"))
        };
        let payload = number("payload_offset");
        let (superblock, length) = (number("verity_superblock_offset"), number("payload_bytes"));
        assert_eq!(fs::metadata(&image).unwrap().len(), payload + length);
        Self {
            image,
            payload,
            superblock,
            end: length,
        }
    }

    /// Flips one bit or more of the byte at this position of the payload; the same again undoes it.
    fn flip(&self, position: u64, mask: u8) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.image)
            .expect("root may write");
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.payload + position).unwrap();
        file.write_all_at(&[byte[0] ^ mask], self.payload + position)
            .unwrap();
    }

    /// The one block that no guest reads: the verity superblock, there for other tools.
    fn is_unread(&self, position: u64) -> bool {
        (self.superblock..self.superblock + 4096).contains(&position)
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_flipped_byte_is_an_error_and_never_wrong_data() {
    let cwrun = Cwrun::with_own_cache();
    let root = cwrun.path("rootfs");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(bed().busybox())
            .arg(&root)
            .status()
            .unwrap()
            .success()
    );
    fs::create_dir(root.join("data")).unwrap();
    for (number, size) in [0, 1, 100, 4095, 4096, 4097, 70_000, 1_000_000, 3_000_000]
        .into_iter()
        .enumerate()
    {
        fs::write(root.join(format!("data/{number}")), bytes(size)).unwrap();
    }
    for number in 0..300 {
        fs::write(root.join(format!("data/many-{number}")), number.to_string()).unwrap();
    }
    let bundle = Bundle::on(&root, ["sh", "-c", READ_ALL]).annotation("krun.ram_mib", "256");
    let good = cwrun.run("tampered", &bundle).finish().ok().text();
    let lines: BTreeSet<&str> = good.lines().collect();
    assert!(lines.len() > 600, "{}", lines.len());
    let disk = Disk::in_cache(&cwrun);

    let mut choices = Choices::new();
    let first = [
        0,
        1024,
        disk.superblock - 1,
        disk.superblock + 10,
        disk.superblock + 4096,
        disk.end - 4096,
    ];
    let random = rounds(4, 400);
    let (mut refused, mut erred) = (0, 0);
    for round in 0..first.len() + random {
        let position = first
            .get(round)
            .copied()
            .unwrap_or_else(|| choices.below(disk.end));
        let mask = 1 << choices.below(8);
        disk.flip(position, mask);
        let done = cwrun.run("tampered", &bundle).finish();
        disk.flip(position, mask);
        let text = done.text();
        let what = format!(
            "position {position} of {}, mask {mask:#x}, exit code {}",
            disk.end, done.code
        );
        // What dies may leave a line unfinished.
        let (whole, rest) = text.rsplit_once('\n').unwrap_or(("", &text));
        let wrong: Vec<_> = whole.lines().filter(|line| !lines.contains(line)).collect();
        assert!(wrong.is_empty(), "{what}: wrong data: {wrong:?}");
        assert!(
            lines.iter().any(|line| line.starts_with(rest)),
            "{what}: wrong data: {rest:?}"
        );
        if disk.is_unread(position) {
            assert_eq!(text, good, "{what}: {}", done.stderr);
            continue;
        }
        assert!(text != good, "{what}: nobody noticed");
        assert!(
            done.code != 0 || !done.stderr.is_empty(),
            "{what}: nobody said so"
        );
        if text.is_empty() { refused += 1 } else { erred += 1 }
    }
    eprintln!("{refused} refused to start, {erred} saw errors");
    assert_eq!(
        cwrun.run("tampered", &bundle).finish().ok().text(),
        good,
        "all flips have been undone"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_disk_that_is_not_what_its_record_says() {
    let cwrun = Cwrun::with_own_cache();
    let bundle = Bundle::busybox(["cat", "/etc/passwd"]);
    let good = cwrun.run("damaged", &bundle).finish().ok().text();
    let disk = Disk::in_cache(&cwrun);
    let write = |name: &str, bytes: &[u8]| {
        let path = disk.image.with_file_name(name);
        let _ = fs::remove_file(&path);
        fs::write(path, bytes).unwrap();
    };
    // Whatever is damaged beyond use is made anew.
    for (name, bytes) in [
        ("image", &b"short"[..]),
        ("image", b""),
        ("record.json", b"{}"),
        ("record.json", b""),
        ("key", b"short"),
        // Both halves the same, which is no key for XTS.
        ("key", &[7; 64]),
    ] {
        write(name, bytes);
        assert_eq!(
            cwrun.run("damaged", &bundle).finish().ok().text(),
            good,
            "{name} replaced by {} bytes",
            bytes.len()
        );
    }
    // A key of the right length that is the wrong one can't be told from the outside: the guest refuses the disk.
    write("key", &bytes(64));
    let done = cwrun.run("damaged", &bundle).finish().expect(1);
    assert!(
        done.text().is_empty() && done.stderr.starts_with("cwrun: "),
        "{}",
        done.stderr
    );
}
