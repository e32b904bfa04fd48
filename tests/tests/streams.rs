//! Standard streams: kept apart, binary clean, complete, and with back-pressure.

use e2e::pattern::{bytes, sha256};
use e2e::process::{code, wait};
use e2e::{Bundle, Cwrun};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MB: usize = 1_000_000;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn binary_input_comes_back_on_both_outputs() {
    let cwrun = Cwrun::new();
    let input = bytes(MB);
    // Through files, so that not even the harness has a say in what a line or a character is.
    let [out, err] = ["both.out", "both.err"].map(|name| cwrun.path(name));
    let bundle = Bundle::script("tee /dev/stderr");
    let mut command = cwrun.run("both", &bundle).command();
    command
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    assert_eq!(code(wait(&mut child, Duration::from_secs(60), "tee")), 0);
    assert!(fs::read(&out).unwrap() == input, "standard output differs");
    assert!(fs::read(&err).unwrap() == input, "standard error differs");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_hundred_megabytes_in() {
    let cwrun = Cwrun::new();
    let input = bytes(100 * MB);
    let sum = sha256(&input);
    let done = cwrun
        .run("in", &Bundle::busybox(["sha256sum"]))
        .stdin(input)
        .deadline(180)
        .finish()
        .ok();
    eprintln!("100 MB in: {:?}", done.took);
    assert_eq!(done.text(), format!("{sum}  -\n"));
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_hundred_megabytes_out() {
    let cwrun = Cwrun::new();
    let line = "0123456789abcdefghijklmnopqrstuvwxyz";
    // head(1) of busybox copies byte by byte; this is about the stream and not about that.
    let chunk = format!("yes {line} | dd of=/chunk bs=37000 count=300 iflag=fullblock 2>/dev/null");
    let copies = "i=0; while [ $i -lt 10 ]; do cat /chunk; i=$((i + 1)); done";
    let bundle = Bundle::script(&format!("{chunk}; {copies}"));
    let done = cwrun.run("out", &bundle).deadline(180).finish().ok();
    eprintln!("111 MB out: {:?}", done.took);
    assert_eq!(done.stdout.len(), 111 * MB);
    let line = format!("{line}\n");
    let wrong = done
        .stdout
        .chunks(line.len())
        .position(|chunk| !line.as_bytes().starts_with(chunk));
    assert_eq!(wrong, None, "a line differs");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_hundred_megabytes_in_and_out_at_once() {
    let cwrun = Cwrun::new();
    let input = bytes(100 * MB);
    let done = cwrun
        .run("through", &Bundle::busybox(["cat"]))
        .stdin(input.clone())
        .deadline(240)
        .finish()
        .ok();
    eprintln!("100 MB in and out: {:?}", done.took);
    assert_eq!(done.stdout.len(), input.len());
    assert!(done.stdout == input, "what came back differs");
}

/// Physical memory of a process in bytes, without guest memory that it only lends.
fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS in status");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_reader_that_stalls_loses_nothing_and_nothing_grows() {
    let cwrun = Cwrun::new();
    const LINES: usize = 800_000;
    let bundle = Bundle::script(&format!("seq 1 {LINES}; echo end >&2"));
    let mut command = cwrun
        .run("stalled", &bundle)
        .arg("--pid-file")
        .arg(cwrun.path("stalled.pid"))
        .command();
    let err = cwrun.path("stalled.err");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "1\n");

    let pid: i32 = fs::read_to_string(cwrun.path("stalled.pid"))
        .unwrap()
        .parse()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let before = resident(pid);
    std::thread::sleep(Duration::from_secs(3));
    let grown = resident(pid).saturating_sub(before);
    assert!(
        grown < 4 << 20,
        "the VMM grew by {grown} bytes in 3 s although nobody reads"
    );
    assert_eq!(
        fs::read_to_string(&err).unwrap(),
        "",
        "the workload can't have come to its end"
    );

    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(code(wait(&mut child, Duration::from_secs(60), "seq")), 0);
    let mut expected = 2..=LINES;
    for line in rest.lines() {
        assert_eq!(
            line.parse().ok(),
            expected.next(),
            "the lines are not consecutive"
        );
    }
    assert_eq!(expected.next(), None, "lines are missing at the end");
    assert_eq!(fs::read_to_string(&err).unwrap(), "end\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_writer_that_is_not_read_waits() {
    // The workload never reads: the pipe to it must fill up and the VMM not take everything in.
    let cwrun = Cwrun::new();
    let bundle = Bundle::script("trap 'exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done");
    let (reader, writer) = std::io::pipe().unwrap();
    let container = cwrun.create_with("unread", &bundle, &[], Stdio::from(OwnedFd::from(reader)));
    cwrun.ok(["start", "unread"]);
    container.expect_output("ready");
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let (block, mut taken, start) = (bytes(65_536), 0, Instant::now());
    while start.elapsed() < Duration::from_secs(3) {
        match (&writer).write(&block) {
            Ok(count) => taken += count,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    assert!(taken < 4 << 20, "{taken} bytes were taken that nobody reads");
    cwrun.ok(["kill", "unread", "TERM"]);
    assert_eq!(cwrun.wait(&container), 0);
    cwrun.ok(["delete", "unread"]);
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_reader_that_goes_away_ends_the_writer() {
    let cwrun = Cwrun::new();
    let bundle = Bundle::busybox(["yes"]);
    let mut command = cwrun.run("broken", &bundle).command();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    drop(output);
    let status = code(wait(
        &mut child,
        Duration::from_secs(30),
        "yes with nobody to read",
    ));
    assert!(
        line == "y\n" && [1, 141].contains(&status),
        "{line:?}, status {status}"
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn the_end_of_input_arrives_and_is_not_waited_for() {
    let cwrun = Cwrun::new();
    // Nothing at all, then something without a line end.
    assert_eq!(
        cwrun
            .run("empty", &Bundle::busybox(["wc", "-c"]))
            .finish()
            .ok()
            .text()
            .trim(),
        "0"
    );
    assert_eq!(
        cwrun
            .run("some", &Bundle::busybox(["cat"]))
            .stdin("no newline")
            .finish()
            .ok()
            .text(),
        "no newline"
    );

    // Input that stays open does not keep a container whose workload has ended.
    let (_kept, writer) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    let bundle = Bundle::busybox(["true"]);
    let mut command = cwrun.run("open", &bundle).command();
    command.stdin(Stdio::from(OwnedFd::from(writer)));
    let mut child = command.spawn().unwrap();
    assert_eq!(
        code(wait(
            &mut child,
            Duration::from_secs(30),
            "true with its input open"
        )),
        0
    );

    // Closed descriptors are no reason to fail.
    let script = "exec \"$@\" <&- 2>&-";
    let bundle = Bundle::script("echo still here");
    let inner = cwrun.run("closed", &bundle).command();
    let outer = e2e::Run::new("bash")
        .arg("-c")
        .arg(script)
        .arg("bash")
        .arg(inner.get_program())
        .args(inner.get_args());
    let outer = inner.get_envs().fold(outer, |run, (name, value)| {
        run.env(&name.to_string_lossy(), value.unwrap_or_default())
    });
    assert_eq!(outer.finish().ok().text(), "still here\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn output_written_just_before_the_end_arrives_whole() {
    let cwrun = Cwrun::new();
    let done = cwrun
        .run(
            "last",
            &Bundle::busybox(["dd", "if=/dev/zero", "bs=1000000", "count=10"]),
        )
        .finish()
        .ok();
    assert_eq!(done.stdout.len(), 10 * MB);
    assert!(done.stdout.iter().all(|byte| *byte == 0));

    // And with a reader that begins long after the workload's last write.
    let bundle = Bundle::script("head -c 100000 /dev/zero; echo on stderr >&2; exit 3");
    let mut command = cwrun.run("late", &bundle).command();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut out, mut err) = (Vec::new(), String::new());
    // A byte comes when all of standard output, which the guest's pipes have no room for, has left the workload.
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_exact(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    assert_eq!(
        (
            code(wait(&mut child, Duration::from_secs(30), "late")),
            out.len(),
            err.as_str()
        ),
        (3, 100_000, "n stderr\n")
    );
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_a_background_process_writes_is_not_waited_for() {
    let cwrun = Cwrun::new();
    let done = cwrun
        .run("orphan", &Bundle::script("sleep 1000 & echo done"))
        .deadline(30)
        .finish()
        .ok();
    assert_eq!(done.text(), "done\n");
}
