use super::*;
use serde_json::{Value, json};

/// Files below a directory of its own, by path and content.
fn files(list: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in list {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn shape(usage: &Usage) -> Value {
    serde_json::to_value(usage).unwrap()
}

#[test]
fn version_2_has_the_shape_of_runc() {
    let dir = files(&[
        ("cgroup.procs", ""),
        ("a/b/cgroup.controllers", "cpu memory pids io"),
        (
            "a/b/cpu.stat",
            "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 5\nnr_throttled 2\nthrottled_usec 9\n",
        ),
        ("a/b/memory.current", "1000\n"),
        ("a/b/memory.max", "4000\n"),
        ("a/b/memory.peak", "2000\n"),
        ("a/b/memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
        ("a/b/memory.stat", "anon 600\nfile 400\n"),
        ("a/b/memory.swap.current", "7\n"),
        ("a/b/memory.swap.max", "max\n"),
        ("a/b/pids.current", "12\n"),
        ("a/b/pids.max", "max\n"),
        (
            "a/b/io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n",
        ),
    ]);
    let groups = Groups::below(dir.path(), "1:name=systemd:/x\n0::/a/b\n");
    assert_eq!(groups.unified().unwrap(), dir.path().join("a/b"));
    assert_eq!(groups.oom_kills(), 1);
    let nothing = json!({"limit": 0, "failcnt": 0});
    assert_eq!(
        shape(&groups.usage()),
        json!({
            "cpu": {"usage": {"total": 30_000, "kernel": 20_000, "user": 10_000},
                "throttling": {"periods": 5, "throttledPeriods": 2, "throttledTime": 9000}},
            "memory": {"cache": 400, "usage": {"limit": 4000, "usage": 1000, "max": 2000, "failcnt": 3},
                "swap": {"limit": u64::MAX, "usage": 1007, "failcnt": 0},
                "kernel": nothing, "kernelTCP": nothing, "raw": {"anon": 600, "file": 400}},
            "pids": {"current": 12},
            "blkio": {
                "ioServiceBytesRecursive": [{"major": 8, "op": "Read", "value": 10}, {"major": 8, "op": "Write", "value": 20}],
                "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 1}, {"major": 8, "op": "Write", "value": 2}]}
        })
    );
}

#[test]
fn version_1_has_the_same_shape() {
    let dir = files(&[
        ("unified/cgroup.procs", ""),
        ("cpuacct/c/cpuacct.usage", "30\n"),
        ("cpuacct/c/cpuacct.usage_percpu", "10 20 \n"),
        ("cpuacct/c/cpuacct.stat", "user 1\nsystem 2\n"),
        (
            "cpu/c/cpu.stat",
            "nr_periods 5\nnr_throttled 2\nthrottled_time 9\n",
        ),
        ("memory/m/memory.usage_in_bytes", "1000\n"),
        ("memory/m/memory.limit_in_bytes", "4000\n"),
        ("memory/m/memory.max_usage_in_bytes", "2000\n"),
        ("memory/m/memory.failcnt", "3\n"),
        ("memory/m/memory.memsw.limit_in_bytes", "5000\n"),
        ("memory/m/memory.stat", "cache 400\n"),
        (
            "memory/m/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
        ("pids/c/pids.current", "12\n"),
        ("pids/c/pids.max", "40\n"),
        (
            "blkio/c/blkio.throttle.io_service_bytes_recursive",
            "8:1 Read 10\n8:1 Total 10\nTotal 10\n",
        ),
    ]);
    let text = "5:memory:/m\n4:blkio:/c\n3:pids:/c\n2:cpu,cpuacct:/c\n1:name=systemd:/x\n0::/u\n";
    let groups = Groups::below(dir.path(), text);
    assert_eq!(groups.oom_kills(), 2);
    let usage = shape(&groups.usage());
    assert_eq!(
        usage["cpu"],
        json!({"usage": {"total": 30, "percpu": [10, 20], "kernel": 20_000_000, "user": 10_000_000},
            "throttling": {"periods": 5, "throttledPeriods": 2, "throttledTime": 9}})
    );
    let memory = &usage["memory"];
    assert_eq!(
        memory["usage"],
        json!({"limit": 4000, "usage": 1000, "max": 2000, "failcnt": 3})
    );
    assert_eq!(
        (&memory["swap"]["limit"], &memory["cache"]),
        (&json!(5000), &json!(400))
    );
    assert_eq!(usage["pids"], json!({"current": 12, "limit": 40}));
    assert_eq!(
        usage["blkio"]["ioServiceBytesRecursive"],
        json!([{"major": 8, "minor": 1, "op": "Read", "value": 10}, {"major": 8, "minor": 1, "op": "Total", "value": 10}])
    );
}

#[test]
fn files_that_are_missing_or_broken_leave_numbers_out() {
    let dir = files(&[
        ("cgroup.procs", ""),
        ("cgroup.controllers", ""),
        ("cpu.stat", "usage_usec\nx y z\n"),
    ]);
    let groups = Groups::below(dir.path(), "0::/\nnonsense\n:\n");
    assert_eq!(groups.usage(), Usage::default());
    assert_eq!(groups.oom_kills(), 0);
    assert!(Groups::below(Path::new("/nowhere"), "0::/a").unified().is_err());
}
