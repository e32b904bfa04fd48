//! Nothing that the image holds or the workload writes is readable on the host, outside of the guest's memory.

use e2e::pattern::find;
use e2e::{Bundle, Cwrun, bed, host};
use rustix::fs::SeekFrom;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const BLOCK: u64 = 4 << 20;

/// Whether a regular file holds the bytes anywhere. Holes, which a sparse file may have terabytes of, are skipped.
fn holds(file: &File, needle: &[u8]) -> bool {
    let mut overlap = Vec::new();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let Ok(hole) = rustix::fs::seek(file, SeekFrom::Hole(data)) else {
            break;
        };
        let mut position = data;
        overlap.clear();
        while position < hole {
            rustix::fs::seek(file, SeekFrom::Start(position)).expect("a regular file has positions");
            let mut block = std::mem::take(&mut overlap);
            let read = file
                .take(BLOCK.min(hole - position))
                .read_to_end(&mut block)
                .expect("the file can be read");
            if read == 0 {
                break;
            }
            if find(&block, needle).is_some() {
                return true;
            }
            position += read as u64;
            overlap = block.split_off(block.len().saturating_sub(needle.len() - 1));
        }
        at = hole;
    }
    false
}

/// Files below the directories, and those without a name on the same file system that these processes hold open.
pub(crate) fn searched(dirs: &[&Path], pids: &[i32]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = dirs
        .iter()
        .flat_map(|dir| host::tree(dir))
        .filter(|path| path.is_file())
        .collect();
    let devices: Vec<u64> = dirs
        .iter()
        .filter_map(|dir| Some(fs::metadata(dir).ok()?.dev()))
        .collect();
    for pid in pids {
        let entries = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let files = entries.map(|entry| entry.path()).filter(|path| {
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && devices.contains(&meta.dev()))
        });
        found.extend(files);
    }
    found
}

pub(crate) fn found_in(files: &[PathBuf], needle: &[u8]) -> Vec<PathBuf> {
    let holding = files.iter().filter(|path| {
        holds(
            &File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
            needle,
        )
    });
    holding.cloned().collect()
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn no_byte_of_image_or_workload_is_readable_on_the_host() {
    let cwrun = Cwrun::with_own_cache();
    let planted = b"PLANTED-f4b8c1-in-the-image";
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
    // In a small file (which a packed file system may put beside its inode), in a large one, in a name and in a link.
    let planted_text = String::from_utf8_lossy(planted);
    fs::write(root.join("etc/small"), planted).unwrap();
    fs::write(root.join("etc/large"), planted.repeat(40_000)).unwrap();
    fs::write(root.join(format!("etc/{planted_text}")), "").unwrap();
    std::os::unix::fs::symlink(format!("/{planted_text}"), root.join("etc/link")).unwrap();

    // The workload's own secret exists as a whole only in the guest, and there is more of it than the guest has memory.
    let written = b"WRITTEN-93ad70-by-the-workload";
    let script = r#"
        secret="WRITTEN-93ad70-by"; secret="$secret-the-workload"
        yes "$secret" | dd of=/tmp/secrets bs=1M count=400 iflag=fullblock 2>/dev/null
        grep -c PLANTED /etc/small
        trap 'exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done
    "#;
    let bundle = Bundle::on(&root, ["sh", "-c", script]).annotation("krun.ram_mib", "256");
    let container = cwrun.create("secret", &bundle);
    cwrun.ok(["start", "secret"]);
    e2e::process::eventually("the workload has written", 120, || {
        container.output().contains("ready").then_some(())
    });
    let output = container.output();
    assert!(
        output.starts_with("1\n"),
        "the workload reads what was planted: {output}"
    );

    let (state, cache) = (cwrun.root(), cwrun.cache().to_owned());
    let dirs = [state.as_path(), cache.as_path()];
    let pids: Vec<i32> = host::processes().into_iter().map(|(pid, _)| pid).collect();
    assert!(pids.contains(&container.pid));
    let files = searched(&dirs, &pids);
    // It is no proof if what should hold the secrets was not among what was searched.
    let blocks = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let image = files
        .iter()
        .find(|path| path.ends_with("image"))
        .expect("the image is searched");
    assert!(blocks(image) > 1 << 20);
    let nameless = files
        .iter()
        .filter(|path| path.starts_with("/proc") && fs::metadata(path).is_ok_and(|meta| meta.nlink() == 0));
    let scratch: u64 = nameless.map(blocks).sum();
    assert!(
        scratch > 100 << 20,
        "the scratch file is searched and holds what memory could not: {scratch} bytes"
    );
    assert_eq!(found_in(&files, planted), Vec::<PathBuf>::new());
    assert_eq!(found_in(&files, written), Vec::<PathBuf>::new());
    let pipes: Vec<_> = dirs
        .iter()
        .flat_map(|dir| host::tree(dir))
        .filter(|path| fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()))
        .collect();
    assert!(pipes.is_empty(), "{pipes:?}");

    prove_the_search(&dirs);
    cwrun.ok(["kill", "secret", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "secret"]);
    let files = searched(&dirs, &[]);
    assert_eq!(found_in(&files, planted), Vec::<PathBuf>::new());
}

/// The same search finds what is there: in a file, across blocks, behind a hole, and in a file without a name.
fn prove_the_search(dirs: &[&Path]) {
    use std::os::unix::fs::FileExt;
    let needle = b"DECOY-77";
    let named = dirs[1].join("decoy");
    let file = File::create(&named).unwrap();
    file.write_all_at(&[b'x'; 100], (1 << 30) - 100).unwrap();
    file.write_all_at(needle, (1 << 30) + BLOCK - 104).unwrap();
    let fd = rustix::fs::open(
        dirs[1],
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR,
    )
    .unwrap();
    File::from(fd.try_clone().unwrap())
        .write_all_at(needle, 12_345)
        .unwrap();
    let own = std::process::id() as i32;
    let found = found_in(&searched(dirs, &[own]), needle);
    assert!(found.contains(&named), "{found:?}");
    assert!(
        found
            .iter()
            .any(|path| path.starts_with("/proc") && fs::metadata(path).is_ok_and(|meta| meta.nlink() == 0)),
        "{found:?}"
    );
    fs::remove_file(named).unwrap();
}
