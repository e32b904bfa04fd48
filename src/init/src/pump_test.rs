use super::*;
use rustix::event::{Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::pipe;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::thread;

fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn end(fd: OwnedFd, kind: Kind) -> End {
    End::new(fd, kind).unwrap()
}

/// Runs until `done`; panics if nothing happens for five seconds.
fn run(pump: &mut Pump, done: impl Fn(&Pump) -> bool) {
    while !done(pump) {
        let mut fds: Vec<_> = pump.interests().collect();
        let limit = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        assert_ne!(poll(&mut fds, Some(&limit)).unwrap(), 0, "stuck");
        pump.work();
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn a_hundred_megabytes_arrive_whole_and_the_end_with_them() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    let data = pattern(1 << 20);
    let expected = data.clone();
    let writer = thread::spawn(move || {
        let mut pipe = File::from(write);
        (0..100).for_each(|_| pipe.write_all(&data).unwrap());
    });
    let reader = thread::spawn(move || {
        let mut host = File::from(host);
        let mut block = vec![0; expected.len()];
        for _ in 0..100 {
            host.read_exact(&mut block).unwrap();
            assert!(block == expected);
        }
        assert_eq!(host.read(&mut block).unwrap(), 0);
    });
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    run(&mut pump, Pump::is_finished);
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(pump.delivery(), Delivery::Confirmed);
}

#[test]
fn what_is_written_after_the_mark_is_not_waited_for() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    let mut pipe = File::from(write);
    pipe.write_all(b"before").unwrap();
    pump.mark();
    pump.end();
    assert!(!pump.is_finished(), "nothing of it has been read");
    run(&mut pump, |pump| pump.read == 6);
    pump.work();
    pump.end();
    assert!(pump.is_finished());
    let mut text = String::new();
    File::from(host).read_to_string(&mut text).unwrap();
    assert_eq!(text, "before");
    assert_eq!(
        pipe.write_all(b"after").unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

#[test]
fn a_writer_without_end_does_not_keep_a_marked_pump() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    let mut pipe = File::from(write);
    pipe.write_all(b"first").unwrap();
    let writer = thread::spawn(move || while pipe.write_all(&[7; 4096]).is_ok() {});
    let reader = thread::spawn(move || File::from(host).read_to_end(&mut Vec::new()).unwrap());
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    pump.mark();
    while !pump.is_finished() {
        pump.work();
        pump.end();
    }
    writer.join().unwrap();
    assert!(reader.join().unwrap() >= 5);
}

#[test]
fn a_stalled_reader_stops_the_writer_and_loses_nothing() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    let mut sent = Vec::new();
    let mut pipe = File::from(write);
    // Until the pipe, the pump and the socket are full; a pump without a bound would never let that happen.
    while sent.len() < 64 << 20 {
        match pipe.write(&pattern(4096)) {
            Ok(count) => sent.extend_from_slice(&pattern(4096)[..count]),
            Err(_) => {
                let before = pump.start..pump.end;
                pump.work();
                if before == (pump.start..pump.end)
                    && pipe.write(&[]).is_ok()
                    && pump.interests().count() == 1
                {
                    break;
                }
            }
        }
    }
    assert!(sent.len() < 8 << 20, "{} bytes went nowhere", sent.len());
    drop(pipe);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        File::from(host).read_to_end(&mut all).unwrap();
        all
    });
    run(&mut pump, Pump::is_finished);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn the_host_s_half_close_is_the_end_of_input() {
    let (ours, host) = sockets();
    let (read, write) = pipe().unwrap();
    let mut host = File::from(host);
    host.write_all(b"last words").unwrap();
    rustix::net::shutdown(&host, Shutdown::Write).unwrap();
    let mut pump = Pump::new(end(ours, Kind::Socket), end(write, Kind::Pipe));
    run(&mut pump, Pump::is_finished);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert_eq!(pump.delivery(), Delivery::Confirmed);
}

#[test]
fn a_reader_that_is_gone_breaks_the_workload_s_pipe() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    drop(host);
    // Seen without a byte being written.
    run(&mut pump, Pump::is_finished);
    let error = File::from(write).write(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_workload_that_closes_its_input_is_told_to_the_host() {
    let (ours, host) = sockets();
    let (read, write) = pipe().unwrap();
    let mut pump = Pump::new(end(ours, Kind::Socket), end(write, Kind::Pipe));
    drop(read);
    run(&mut pump, Pump::is_finished);
    assert!(File::from(host).write(b"x").is_err());
}

#[test]
fn bytes_that_nobody_has_read_are_not_delivered() {
    let (read, write) = pipe().unwrap();
    let (ours, host) = sockets();
    File::from(write).write_all(b"x").unwrap();
    let mut pump = Pump::new(end(read, Kind::Pipe), end(ours, Kind::Socket));
    run(&mut pump, Pump::is_finished);
    assert_eq!(pump.delivery(), Delivery::Under);
    let mut host = File::from(host);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 1);
    assert_eq!(pump.delivery(), Delivery::Taken);
    drop(host);
    assert_eq!(pump.delivery(), Delivery::Confirmed);
}
