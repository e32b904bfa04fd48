//! What the workload finds around itself: our kernel, an encrypted and verified root, and the settings of its bundle.

use e2e::{Bundle, Cwrun, Facts, bed, rounds};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_root_is_our_kernel_over_an_encrypted_and_verified_disk() {
    let cwrun = Cwrun::new();
    let script = r#"
        echo "kernel=$(uname -r)"
        echo "root=$(awk '$2 == "/" {print $1, $3}' /proc/mounts)"
        for dm in /sys/block/dm-*/dm; do echo "dm-$(cat $dm/name)=$(ls $dm/../slaves | tr '\n' ' ')"; done
        for disk in /sys/block/vd*; do echo "disk-${disk##*/}=$(cat $disk/ro)"; done
        echo "pid=$$"
        echo "hidden=$(ls /dev/vd* /dev/dm-* /dev/mapper 2>/dev/null | wc -l)"
        echo "modules=$(cat /proc/modules 2>/dev/null | wc -l)"
        echo "net=$(ls /sys/class/net | tr '\n' ' ')"
        echo "clock=$(date +%s)"
    "#;
    let done = cwrun.run("root", &Bundle::script(script)).finish().ok();
    let facts = Facts::of(&done.text());
    let release = facts.get("kernel");
    assert!(release.ends_with("-cwrun"), "{release}");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(release, host.trim());
    assert_eq!(facts.get("root"), "overlay overlay");
    // The layer's mappings, one on the other, on the first disk; beside them only the scratch space's.
    let mappings: Vec<_> = facts.0.iter().filter(|(key, _)| key.starts_with("dm-")).collect();
    let name = |at: &str| {
        mappings
            .iter()
            .find(|(key, _)| key.as_str() == at)
            .map(|(_, below)| below.as_str())
    };
    assert_eq!(name("dm-layer0-crypt"), Some("vda"), "{mappings:?}");
    assert!(
        name("dm-layer0").is_some_and(|below| below.starts_with("dm-")),
        "{mappings:?}"
    );
    facts.expect(&[
        ("disk-vda", "1"),
        ("pid", "1"),
        ("hidden", "0"),
        ("modules", "0"),
        ("net", "lo"),
    ]);
    let clock: i64 = facts.get("clock").parse().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    assert!(
        (now - clock).abs() <= 60,
        "the guest's clock says {clock}, the host's {now}"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_process_is_what_the_bundle_says() {
    let cwrun = Cwrun::new();
    let script = r#"
        echo "args=$0,$1,$2"
        echo "uid=$(id -u) gid=$(id -g) groups=$(id -G)"
        echo "cwd=$(pwd)"
        echo "umask=$(umask)"
        echo "files=$(ulimit -Sn) $(ulimit -Hn)"
        echo "core=$(ulimit -Sc) $(ulimit -Hc)"
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr ':' '='
        echo "oom=$(cat /proc/self/oom_score_adj)"
        env | sed 's/^/env-/'
        echo "host=$(hostname)"
        echo "domain=$(cat /proc/sys/kernel/domainname)"
        echo "sysctl=$(cat /proc/sys/net/ipv4/ip_default_ttl) $(cat /proc/sys/kernel/shm_rmid_forced)"
        touch /tmp/by-user && echo "created=$(stat -c '%u %g %a' /tmp/by-user)"
    "#;
    let bundle = Bundle::busybox(["sh", "-c", script, "name", "two words", "*"]).with(|config| {
        let process = &mut config["process"];
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [10, 20], "umask": 0o027});
        process["cwd"] = "/usr/bin".into();
        process["env"] = json!(["PATH=/bin:/usr/bin", "EMPTY=", "WITH=equals = and spaces", "TWICE=first", "TWICE=second"]);
        process["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}
        ]);
        let few = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
        process["capabilities"] = json!({"bounding": few, "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"], "effective": ["CAP_KILL"]});
        process["noNewPrivileges"] = true.into();
        process["oomScoreAdj"] = 321.into();
        config["hostname"] = "my-host".into();
        config["domainname"] = "example.org".into();
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "63", "kernel.shm_rmid_forced": "1"});
    });
    let done = cwrun.run("process", &bundle).finish().ok();
    Facts::of(&done.text()).expect(&[
        ("args", "name,two words,*"),
        ("uid", "1000 gid=1001 groups=1001 10 20"),
        ("cwd", "/usr/bin"),
        ("umask", "0027"),
        ("files", "512 1024"),
        ("core", "0 0"),
        ("CapBnd", "0000000000000420"),
        ("CapPrm", "0000000000000020"),
        ("CapEff", "0000000000000020"),
        ("CapInh", "0000000000000020"),
        ("CapAmb", "0000000000000020"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "0"),
        ("oom", "321"),
        ("env-EMPTY", ""),
        ("env-WITH", "equals = and spaces"),
        ("env-TWICE", "second"),
        ("host", "my-host"),
        ("domain", "example.org"),
        ("sysctl", "63 1"),
        ("created", "1000 1001 640"),
    ]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn file_systems_devices_and_hidden_paths() {
    let cwrun = Cwrun::new();
    let script = r#"
        fs() { awk -v at="$1" '$2 == at {print $3; exit}' /proc/mounts; }
        has() { awk -v at="$1" '$2 == at {print $4; exit}' /proc/mounts; }
        try() { if "$@" 2>/dev/null >&2; then echo yes; else echo no; fi; }
        for at in /proc /sys /dev /dev/pts /dev/shm /dev/mqueue /sys/fs/cgroup /data; do echo "fs-$at=$(fs $at)"; done
        echo "data-options=$(has /data)"
        echo "data-size=$(df -k /data | awk 'NR == 2 {print $2}')"
        echo "data-mode=$(stat -c %a /data)"
        for node in null zero full random urandom tty; do echo "dev-$node=$(stat -c '%F %a %t:%T' /dev/$node)"; done
        for link in fd stdin stdout stderr ptmx; do echo "link-$link=$(readlink /dev/$link)"; done
        echo "zeros=$(head -c 4096 /dev/zero | wc -c)"
        echo "full=$(try sh -c 'echo x >/dev/full')"
        echo "tmp=$(try sh -c 'echo x >/tmp/x && mkdir /run/y && echo x >/run/y/z')"
        echo "shm=$(try sh -c 'echo x >/dev/shm/x')"
        echo "masked-file=$(cat /proc/kcore | wc -c)"
        echo "masked-dir=$(ls -A /usr/sbin | wc -l)"
        echo "readonly-write=$(try sh -c 'echo x >/etc/new')"
        echo "readonly-read=$(try cat /etc/passwd)"
        echo "sys-write=$(try sh -c 'echo 1 >/sys/kernel/mm/transparent_hugepage/enabled')"
        echo "processes=$(ls /proc | grep -c '^[0-9]*$')"
    "#;
    let bundle = Bundle::script(script).with(|config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "noexec", "mode=1770", "size=8m"]
        }));
        config["linux"]["maskedPaths"] = json!(["/proc/kcore", "/usr/sbin", "/does/not/exist"]);
        config["linux"]["readonlyPaths"] = json!(["/etc", "/does/not/exist"]);
    });
    let done = cwrun.run("files", &bundle).finish().ok();
    let facts = Facts::of(&done.text());
    facts.expect(&[
        ("fs-/proc", "proc"),
        ("fs-/sys", "sysfs"),
        ("fs-/dev", "tmpfs"),
        ("fs-/dev/pts", "devpts"),
        ("fs-/dev/shm", "tmpfs"),
        ("fs-/dev/mqueue", "mqueue"),
        ("fs-/sys/fs/cgroup", "cgroup2"),
        ("fs-/data", "tmpfs"),
        ("data-size", "8192"),
        ("data-mode", "1770"),
        ("dev-null", "character special file 666 1:3"),
        ("dev-zero", "character special file 666 1:5"),
        ("dev-full", "character special file 666 1:7"),
        ("dev-random", "character special file 666 1:8"),
        ("dev-urandom", "character special file 666 1:9"),
        ("dev-tty", "character special file 666 5:0"),
        ("link-fd", "/proc/self/fd"),
        ("link-stdin", "/proc/self/fd/0"),
        ("link-stdout", "/proc/self/fd/1"),
        ("link-stderr", "/proc/self/fd/2"),
        ("link-ptmx", "pts/ptmx"),
        ("zeros", "4096"),
        ("full", "no"),
        ("tmp", "yes"),
        ("shm", "yes"),
        ("masked-file", "0"),
        ("masked-dir", "0"),
        ("readonly-write", "no"),
        ("readonly-read", "yes"),
        ("sys-write", "no"),
    ]);
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(
            facts.get("data-options").split(',').any(|option| option == flag),
            "{flag}"
        );
    }
    let processes: u32 = facts.get("processes").parse().unwrap();
    assert!(
        processes < 10,
        "the workload sees {processes} processes, so not only its own"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_read_only_root_and_files_that_the_engine_injects() {
    let cwrun = Cwrun::new();
    let script = r#"
        try() { if "$@" 2>/dev/null >&2; then echo yes; else echo no; fi; }
        echo "root-write=$(try touch /new)"
        echo "tmpfs-write=$(try touch /run/new)"
        echo "hosts=$(cat /etc/hosts)"
        echo "hosts-mode=$(stat -c '%a %u' /etc/hosts)"
        echo "hosts-write=$(try sh -c 'echo 1.1.1.1 more >>/etc/hosts')"
        echo "secret=$(cat /run/secrets/token)"
        echo "secret-write=$(try sh -c 'echo more >>/run/secrets/token')"
        echo "binary=$(sha256sum </opt/blob | cut -c1-64)"
    "#;
    let bundle = Bundle::script(script);
    let (hosts, token, blob) = (bundle.join("hosts"), bundle.join("token"), bundle.join("blob"));
    fs::write(&hosts, "127.0.0.1 injected\n").unwrap();
    fs::set_permissions(&hosts, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(&token, "hunter2").unwrap();
    let content = e2e::pattern::bytes(1_000_000);
    fs::write(&blob, &content).unwrap();
    let bundle = bundle.with(|config| {
        config["root"]["readonly"] = true.into();
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}));
        mounts.push(json!({"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["bind", "rprivate"]}));
        mounts.push(json!({"destination": "/run/secrets/token", "source": token, "options": ["rbind", "ro"]}));
        // A relative source is relative to the bundle.
        mounts.push(json!({"destination": "/opt/blob", "type": "bind", "source": "blob", "options": ["bind", "ro"]}));
    });
    let done = cwrun.run("readonly", &bundle).finish().ok();
    Facts::of(&done.text()).expect(&[
        ("root-write", "no"),
        ("tmpfs-write", "yes"),
        ("hosts", "127.0.0.1 injected"),
        ("hosts-mode", "640 0"),
        ("hosts-write", "yes"),
        ("secret", "hunter2"),
        ("secret-write", "no"),
        ("binary", &e2e::pattern::sha256(&content)),
    ]);
    assert_eq!(
        fs::read_to_string(&hosts).unwrap(),
        "127.0.0.1 injected\n",
        "changes stay in the guest"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_writable_layer_is_fresh_for_each_container() {
    let cwrun = Cwrun::new();
    let script = "ls /etc/mark 2>/dev/null; cat /etc/passwd | head -n 1; echo changed >/etc/passwd; rm -r /var; ln -s passwd /etc/mark; ls -d /var /etc/mark; mv /home /moved; chmod 700 /usr; stat -c %a /usr";
    for round in 0..2 {
        let done = cwrun.run("fresh", &Bundle::script(script)).finish().ok();
        assert_eq!(
            done.text(),
            "root:x:0:0:root:/root:/bin/sh\n/etc/mark\n700\n",
            "round {round}"
        );
    }
    assert!(
        fs::read_to_string(bed().busybox().join("etc/passwd"))
            .unwrap()
            .starts_with("root:"),
        "the source is untouched"
    );

    // In memory alone, and with a limit that is enforced.
    for scratch in ["ram", "16MiB"] {
        let script = "dd if=/dev/zero of=/small bs=1M count=8 2>/dev/null; dd if=/dev/zero of=/large bs=1M count=2000; \
            echo $?; rm /large; sync; stat -c %s /small";
        let bundle = Bundle::script(script)
            .annotation("io.cwrun.scratch", scratch)
            .annotation("krun.ram_mib", "256");
        let done = cwrun.run("limited", &bundle).finish().ok();
        assert_eq!(done.text(), "1\n8388608\n", "{scratch}: {}", done.stderr);
        assert!(
            done.stderr.contains("No space left"),
            "{scratch}: {}",
            done.stderr
        );
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn many_processes_and_zombies() {
    let cwrun = Cwrun::new();
    let script = r#"
        mkfifo /tmp/go; exec 3<>/tmp/go # each waits there for a line
        i=0; while [ $i -lt 200 ]; do (read _ <&3; echo "$i" >/tmp/$i) & i=$((i + 1)); done
        echo "running=$(ls /proc | grep -c '^[0-9]*$')"
        i=0; while [ $i -lt 200 ]; do echo; i=$((i + 1)); done >&3
        wait
        echo "finished=$(ls /tmp | grep -c '^[0-9]*$')"
        # Orphans of orphans become the first process's children; their ends must not pile up outside its sight either.
        i=0; while [ $i -lt 50 ]; do (setsid sh -c 'true & true &' &) ; i=$((i + 1)); done
        wait
        left() { set -- /proc/[0-9]*; left=$#; }
        i=0; while left; [ $left -gt 1 ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
        echo "left=$left"
    "#;
    let done = cwrun.run("many", &Bundle::script(script)).finish().ok();
    let facts = Facts::of(&done.text());
    let number = |key: &str| facts.get(key).parse::<u32>().unwrap();
    assert!(number("running") >= 200, "{}", number("running"));
    assert_eq!(number("finished"), 200);
    assert_eq!(number("left"), 1);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn debian_runs_real_programs() {
    let cwrun = Cwrun::new();
    // Prints `name=ok` or the end of what went wrong; all of it in one VM.
    let script = r##"
        check() { name=$1; shift; if out=$("$@" 2>&1); then echo "$name=ok"; else echo "$name=failed: $(echo "$out" | tail -n 3 | tr '\n' '|')"; fi; }
        echo "packages=$(dpkg -l | grep -c ^ii)"
        check audit dpkg --audit
        check verify sh -c '! dpkg --verify coreutils libc6 perl-base | grep -v " c "'
        check perl perl -MDigest::SHA=sha256_hex -e 'die unless sha256_hex("abc") =~ /^ba7816bf/; print join(",", sort { $a <=> $b } map { $_ ** 2 } 1..9)'
        check perl-fork perl -e 'for (1..20) { defined(my $p = fork) or die; exit 0 unless $p } 1 while wait > 0'
        check python python3 -c 'import hashlib, threading; t = [threading.Thread(target=lambda: hashlib.sha256(b"x" * 10**6).digest()) for _ in range(8)]; [x.start() for x in t]; [x.join() for x in t]'
        check apt-version apt-get --version
        check apt-check apt-get check
        check apt-simulate apt-get -s install perl-base
        check apt-config apt-config dump
        check segfault perl -e 'my $s = system $^X, "-e", "kill SEGV => \$\$"; exit(($s & 127) != 11)'
        check tar sh -c 'tar -C /usr/share -cf - doc | tar -tf - | wc -l | grep -q ...'
        check getent getent passwd root
        check mapped sh -c 'sha256sum /usr/lib/x86_64-linux-gnu/libc.so.6 >/tmp/1; echo 3 >/proc/sys/vm/drop_caches; sha256sum /usr/lib/x86_64-linux-gnu/libc.so.6 | cmp - /tmp/1'
    "##;
    let bundle = Bundle::on(&bed().debian(), ["sh", "-c", script]);
    let done = cwrun.run("debian", &bundle).deadline(300).finish().ok();
    eprintln!("Debian: {:?}", done.took);
    let facts = Facts::of(&done.text());
    let failed: Vec<_> = facts
        .0
        .iter()
        .filter(|(key, value)| *key != "packages" && *value != "ok")
        .collect();
    assert!(
        failed.is_empty() && facts.0.len() == 14,
        "{failed:#?}\n{}",
        done.text()
    );
    assert!(facts.get("packages").parse::<u32>().unwrap() > 80);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn more_than_memory_holds_in_the_writable_layer() {
    let cwrun = Cwrun::new();
    // Twice the guest's memory, so that most of it goes to the disk and comes back from it.
    let (parts, memory) = (rounds(16, 100), rounds(80, 512));
    let script = r#"
        yes "a line of what goes to the writable layer" | dd of=/chunk bs=1M count=10 iflag=fullblock 2>/dev/null
        i=0; while [ $i -lt $PARTS ]; do echo "part $i"; cat /chunk; i=$((i + 1)); done >/big
        echo "size=$(stat -c %s /big)"
        echo "sum=$(sha256sum </big | cut -c1-64)"
        rm /big
    "#
    .replace("$PARTS", &parts.to_string());
    let line = "a line of what goes to the writable layer\n";
    let chunk: Vec<u8> = line.bytes().cycle().take(10 << 20).collect();
    let mut expected = Vec::new();
    for part in 0..parts {
        expected.extend_from_slice(format!("part {part}\n").as_bytes());
        expected.extend_from_slice(&chunk);
    }
    let bundle = Bundle::script(&script).annotation("krun.ram_mib", &memory.to_string());
    let done = cwrun.run("big", &bundle).deadline(600).finish().ok();
    eprintln!("{parts} times 10 MiB written and read: {:?}", done.took);
    let facts = Facts::of(&done.text());
    facts.expect(&[
        ("size", &expected.len().to_string()),
        ("sum", &e2e::pattern::sha256(&expected)),
    ]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_bundle_decides_how_large_the_machine_is() {
    let cwrun = Cwrun::new();
    let script = "echo mib=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024)); echo cpus=$(grep -c ^processor /proc/cpuinfo)";
    let limited = Bundle::script(script).with(|config| {
        config["linux"]["resources"] =
            json!({"memory": {"limit": 384 << 20}, "cpu": {"quota": 100_000, "period": 100_000}});
    });
    let annotated = Bundle::script(script)
        .annotation("krun.ram_mib", "640")
        .annotation("krun.cpus", "3");
    // The smallest guest, on one or two processors: as many as the host has.
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get().min(2));
    let small = Bundle::script(script).with(|config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "cpu": {"cpus": format!("0-{}", processors - 1)},
        });
    });
    let root = cwrun.path("image");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(bed().busybox())
        .arg(&root)
        .status();
    assert!(copied.expect("cp runs").success());
    fs::write(root.join(".krun_vm.json"), r#"{"cpus": 2, "ram_mib": 200}"#).unwrap();
    let by_image = Bundle::on(&root, ["sh", "-c", script]);
    for (bundle, mib, cpus) in [
        (limited, 384, 1),
        (annotated, 640, 3),
        (small, 64, processors),
        (by_image, 200, 2),
    ] {
        let done = cwrun.run("sized", &bundle).finish().ok();
        let facts = Facts::of(&done.text());
        let seen: u64 = facts.get("mib").parse().unwrap();
        assert!(
            (mib - 64..=mib).contains(&seen),
            "{seen} MiB, expected nearly {mib}"
        );
        assert_eq!(facts.get("cpus"), cpus.to_string());
    }

    // The guest has all of the limit, because the VMM's own memory is on top of it.
    let bundle = Bundle::busybox(["true"]).with(|config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 256 << 20, "swap": 256 << 20}});
    });
    let container = cwrun.create("limits", &bundle);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    let group = group
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("cgroup2");
    let file = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup{group}/{name}")).unwrap();
    assert_eq!(file("memory.max").trim(), ((256_u64 + 64) << 20).to_string());
    // A kernel that counts no swap space has no such file.
    if Path::new(&format!("/sys/fs/cgroup{group}/memory.swap.max")).exists() {
        assert_eq!(file("memory.swap.max").trim(), "0");
    }
    cwrun.ok(["delete", "--force", "limits"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn devices_are_made_where_they_are_wanted() {
    let cwrun = Cwrun::new();
    let script = r#"
        for at in /srv/zeros /dev/null /run/pipe /dev/net/tun /dev/full /dev/none; do echo "$at=$(stat -c '%F %a %t:%T %u:%g' $at)"; done
        echo "zeros=$(head -c 4096 /srv/zeros | wc -c)"
        echo "ptmx=$(readlink /dev/ptmx)"
        echo "pipe=$( (echo through >/run/pipe &) ; cat /run/pipe)"
    "#;
    let bundle = Bundle::script(script).with(|config| {
        config["linux"]["devices"] = json!([
            {"path": "/srv/zeros", "type": "c", "major": 1, "minor": 5, "fileMode": 0o620, "uid": 7, "gid": 8},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o644},
            {"path": "/run/pipe", "type": "p", "fileMode": 0o600, "uid": 0, "gid": 5},
            {"path": "/dev/net/tun", "type": "u", "major": 10, "minor": 200},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
            // Of no kernel.
            {"path": "/dev/none", "type": "b", "major": 8, "minor": 666},
        ]);
    });
    let done = cwrun.run("devices", &bundle).finish().ok();
    Facts::of(&done.text()).expect(&[
        ("/srv/zeros", "character special file 620 1:5 7:8"),
        ("/dev/null", "character special file 644 1:3 0:0"),
        ("/run/pipe", "fifo 600 0:0 0:5"),
        ("/dev/net/tun", "character special file 666 a:c8 0:0"),
        ("/dev/full", "character special file 666 1:7 0:0"),
        ("/dev/none", "block special file 666 8:29a 0:0"),
        ("zeros", "4096"),
        ("ptmx", "pts/ptmx"),
        ("pipe", "through"),
    ]);
    let bundle = Bundle::script("echo ran").with(|config| {
        config["linux"]["devices"] = json!([{"path": "/bin/sh", "type": "c", "major": 1, "minor": 3}]);
    });
    let refused = cwrun.run("devices", &bundle).finish();
    assert_eq!((refused.code, refused.text().as_str()), (1, ""));
    let expected = "linux.devices: /bin/sh: something else is there already";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_process_is_scheduled_as_it_asks_and_shown_the_system_it_asks_for() {
    let cwrun = Cwrun::new();
    let script = r#"
        look() { echo "$1machine=$(uname -m)"; echo "$1scheduler=$(awk '{print $19, $40, $41}' /proc/self/stat)"; echo "$1io=$(ionice)"; }
        look
        [ "$1" = more ] || { trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done; }
    "#;
    let bundle = Bundle::busybox(["sh", "-c", script]).with(|config| {
        config["process"]["user"] = json!({"uid": 5, "gid": 5});
        config["process"]["scheduler"] = json!({"policy": "SCHED_RR", "priority": 3});
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let expected = "machine=i686\nscheduler=0 3 2\nio=idle\n";
    let container = cwrun.create("scheduled", &bundle);
    cwrun.ok(["start", "scheduled"]);
    container.expect_output(expected);
    // One more process is as the first, but for what it asks for itself.
    let more = cwrun
        .command(["exec", "scheduled", "sh", "-c", script, "sh", "more"])
        .finish()
        .ok();
    assert_eq!(more.text(), expected);
    let file = cwrun.path("process.json");
    let process = json!({"args": ["sh", "-c", script, "sh", "more"], "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": {"uid": 0, "gid": 0},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 4}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}});
    fs::write(&file, process.to_string()).unwrap();
    let more = cwrun
        .command(["exec", "--process", file.to_str().unwrap(), "scheduled"])
        .finish()
        .ok();
    assert_eq!(
        more.text(),
        "machine=i686\nscheduler=4 0 3\nio=best-effort: prio 6\n"
    );
    cwrun.ok(["delete", "--force", "scheduled"]);
}
