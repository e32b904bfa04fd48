use super::*;
use std::io::{Read, Write};

fn pump(from: impl Into<OwnedFd>, to: impl Into<OwnedFd>, direction: Direction) -> thread::JoinHandle<()> {
    let pump = Pump {
        from: from.into(),
        to: to.into(),
        direction,
    };
    thread::spawn(move || pump.run())
}

#[test]
fn everything_arrives_and_then_the_end() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let input = pump(reader, ours, Direction::ToGuest);
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = data.clone();
    let sender = thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = Vec::new();
    guest.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    input.join().unwrap();
    assert!(received == data);
}

#[test]
fn a_reader_that_goes_away_reaches_the_guest_as_a_broken_stream() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let output = pump(ours, writer, Direction::FromGuest);
    drop(reader);
    guest.write_all(b"lost").unwrap();
    output.join().unwrap();
    let error = guest.write_all(&[0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_non_blocking_descriptor_is_waited_for() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let input = pump(reader, ours, Direction::ToGuest);
    thread::sleep(std::time::Duration::from_millis(20));
    writer.write_all(b"late").unwrap();
    drop(writer);
    let mut received = String::new();
    guest.read_to_string(&mut received).unwrap();
    assert_eq!(received, "late");
    input.join().unwrap();
}
