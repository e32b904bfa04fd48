//! Throughput in a guest, side by side in one run: what a container reads and writes against a raw disk of the same VMM, on the same
//! host file system.
//!
//! ```text
//!   read     raw     /dev/vdc: virtio-blk alone          write    raw      /dev/vdd
//!            crypt   vda under dm-crypt                           scratch  a file on ext4 on dm-crypt on dm-integrity
//!            verity  that under dm-verity
//!            layer   a file on EROFS on that, through overlayfs
//! ```
//!
//! Rounds are interleaved. Reads begin with an empty page cache in the guest; the host's has everything. Writes overwrite what a round
//! before them has written, so that neither side pays for new pages of the host, and end with a sync. Times are the host's.
//!
//! Prints one JSON document. `benches/io` runs it. usage: io [ROUNDS [MIB]]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "tests of guests use the rest")]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{MIB, Machine, convert, rootfs};
use vmm::Access;
use workload::Scratch;
use workload::protocol::Status;

/// What is read, then what is written; each list begins with what the others are compared with.
const READS: [&str; 4] = ["raw", "crypt", "verity", "layer"];
const WRITES: [&str; 2] = ["raw", "scratch"];

/// Says what it is about to do, does it, and says that it is done. `$1`: rounds, `$2`: MiB.
const SCRIPT: &str = r#"
node() { mknod "/dev/$1" b $(tr : ' ' <"$2/dev"); }
node raw /sys/class/block/vdc
node raw-write /sys/class/block/vdd
for dm in /sys/class/block/dm-*; do
    case $(cat "$dm/dm/name") in
        layer0-crypt) node crypt "$dm" ;;
        layer0) node verity "$dm" ;;
    esac
done
fresh() { sync; echo 3 >/proc/sys/vm/drop_caches || exit 1; }
read_from() { fresh; echo "read $1"; dd if="$2" of=/dev/null bs=1M count="$mib" 2>/dev/null || exit 1; echo done; }
write_to() { fresh; echo "write $1"; dd if=/dev/zero of="$2" bs=1M count="$mib" conv=notrunc 2>/dev/null && sync || exit 1; echo done; }
round() {
    read_from raw /dev/raw
    read_from layer /data
    write_to raw /dev/raw-write
    write_to scratch /written
    read_from crypt /dev/crypt
    read_from verity /dev/verity
}
mib=$2
for i in $(seq "$1"); do round; done
"#;

/// A file of bytes that no layer below could store in less.
fn noise(mut file: File, bytes: u64) -> File {
    let mut random = File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut file).unwrap();
    file
}

/// Milliseconds of each thing done, in the order of rounds; the first round is left out, which meets pages that the host has never
/// backed.
fn measure(output: UnixStream) -> BTreeMap<String, Vec<f64>> {
    let mut times = BTreeMap::<String, Vec<f64>>::new();
    let mut begun = None;
    for line in BufReader::new(output).lines() {
        let line = line.unwrap();
        match begun.take() {
            None => begun = Some((line, Instant::now())),
            Some((what, start)) => {
                assert_eq!(line, "done");
                times
                    .entry(what)
                    .or_default()
                    .push(start.elapsed().as_secs_f64() * 1000.0);
            }
        }
    }
    times.values_mut().for_each(|list| {
        list.remove(0);
    });
    times
}

fn median(list: &[f64]) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn panel(kind: &str, names: &[&str], times: &BTreeMap<String, Vec<f64>>, mib: u64) -> Value {
    let row = |name: &&str| {
        let ms = &times[&format!("{kind} {name}")];
        let round = |value: f64| (value * 10.0).round() / 10.0;
        let median = median(ms);
        json!({
            "name": name,
            "median_ms": round(median),
            "ms": ms.iter().copied().map(round).collect::<Vec<_>>(),
            "mib_per_s": round(mib as f64 / median * 1000.0),
        })
    };
    names.iter().map(row).collect()
}

fn main() {
    // Cargo's own options say nothing here.
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(7);
    let mib = numbers.get(1).copied().unwrap_or(128);
    let vcpus = 2;

    let root = rootfs(|root| {
        noise(File::create(root.join("data")).unwrap(), mib * MIB);
    });
    let mut machine = Machine::new(vec![convert(root.path())], SCRIPT);
    drop(root);
    machine.workload.readonly_paths.clear();
    machine.memory_mib = 512 + 2 * mib;
    let (rounds_word, mib_word) = ((rounds + 1).to_string(), mib.to_string());
    machine
        .workload
        .process
        .args
        .extend(["io".into(), rounds_word, mib_word]);
    let scratch = tempfile::tempfile().unwrap();
    let room = 2 * mib * MIB;
    scratch.set_len(room + room / 8 + 64 * MIB).unwrap();
    machine.workload.scratch = Scratch::Disk { bytes: room };
    machine.scratch = Some(scratch);
    machine.raw = vec![
        (noise(tempfile::tempfile().unwrap(), mib * MIB), Access::ReadOnly),
        (noise(tempfile::tempfile().unwrap(), mib * MIB), Access::Scratch),
    ];

    let mut guest = machine.boot();
    guest.ready();
    let [_, output, error] = guest.stdio();
    output.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
    guest.start();
    let times = measure(output);
    let errors = support::read(error);
    assert_eq!(guest.exited(), Status::Code { code: 0 }, "{errors}");

    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let ratio = |kind: &str, name: &str| {
        let of = |name: &str| median(&times[&format!("{kind} {name}")]);
        (of("raw") / of(name) * 1000.0).round() / 1000.0
    };
    let document = json!({
        "testbed": std::env::var("CWRUN_TESTBED").unwrap_or_else(|_| "native".into()),
        "mib": mib,
        "vcpus": vcpus,
        "load_after": load,
        "read": panel("read", &READS, &times, mib),
        "write": panel("write", &WRITES, &times, mib),
        "ratios": {
            "layer_to_raw_read": ratio("read", "layer"),
            "verity_to_raw_read": ratio("read", "verity"),
            "crypt_to_raw_read": ratio("read", "crypt"),
            "scratch_to_raw_write": ratio("write", "scratch"),
        },
    });
    println!("{document:#}");
}
