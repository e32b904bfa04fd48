//! Frames both ways, peers that take their time, and peers that talk nonsense.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{Driver, memory};

const DATA: u64 = 0x100_0000;

fn pair() -> (Stream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (Stream::new(near), far)
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// Sends a packet as the guest does, in two pieces.
fn send(stream: &mut Stream, packet: &[u8]) {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x10_0000, 16);
    driver.write(DATA, packet);
    let cut = packet.len() as u32 / 3;
    driver.add(&[
        (DATA, cut, false),
        (DATA + u64::from(cut), packet.len() as u32 - cut, false),
    ]);
    let mut chain = driver.queue().pop(&memory).unwrap().unwrap();
    stream.send(&mut chain.readable);
}

#[test]
fn what_the_guest_sends_has_its_length_in_front() {
    let (mut stream, mut far) = pair();
    let packet = [&[0xff; HEADER][..], &bytes(100, 1)].concat();
    send(&mut stream, &packet);
    // Too short for a frame.
    send(&mut stream, &packet[..HEADER + 13]);
    stream.flush();
    let mut got = vec![0; 1000];
    let length = far.read(&mut got).unwrap();
    assert_eq!(got[..length], prefixed(&bytes(100, 1)));
}

#[test]
fn a_peer_that_reads_nothing_stops_the_flow_and_loses_nothing() {
    let (mut stream, mut far) = pair();
    let packet = [&[0; HEADER][..], &bytes(60_000, 7)].concat();
    let mut count = 0;
    while stream.has_room() {
        send(&mut stream, &packet);
        stream.flush();
        count += 1;
        assert!(count < 1000, "the buffer has no end");
    }
    let mut got: Vec<u8> = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        stream.flush();
        match far.read(&mut piece) {
            Ok(length) => got.extend(&piece[..length]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    assert!(stream.has_room());
    assert_eq!(got, prefixed(&bytes(60_000, 7)).repeat(count));
}

#[test]
fn a_frame_is_seen_when_all_of_it_has_come() {
    let (mut stream, mut far) = pair();
    let sent = [prefixed(&bytes(LONGEST, 1)), prefixed(&bytes(14, 2))].concat();
    for piece in sent[..sent.len() - 1].chunks(1000) {
        far.write_all(piece).unwrap();
        if let Some(frame) = stream.frame() {
            assert_eq!(frame, bytes(LONGEST, 1));
        }
    }
    stream.drop_frame();
    assert!(stream.frame().is_none());
    far.write_all(&sent[sent.len() - 1..]).unwrap();
    assert_eq!(stream.frame(), Some(&bytes(14, 2)[..]));
    stream.drop_frame();
    assert!(stream.frame().is_none());
}

#[test]
fn a_dead_link_takes_what_is_sent_and_gives_nothing() {
    let (mut stream, far) = pair();
    drop(far);
    assert!(stream.frame().is_none());
    for _ in 0..100 {
        send(&mut stream, &[0; 60_000]);
        stream.flush();
        assert!(stream.has_room());
    }
    for length in [0u32, 13, LONGEST as u32 + 1, u32::MAX] {
        let (mut stream, mut far) = pair();
        far.write_all(&length.to_be_bytes()).unwrap();
        far.write_all(&[0; 100]).unwrap();
        assert!(stream.frame().is_none(), "{length}");
        stream.drop_frame();
        assert!(stream.socket.is_none(), "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_arrive_whole_and_in_order_however_they_are_cut(
        lengths in proptest::collection::vec(SHORTEST..9000, 1..20),
        cuts in proptest::collection::vec(1usize..20_000, 1..40),
    ) {
        let (mut stream, mut far) = pair();
        let frames: Vec<_> = lengths.iter().zip(0..).map(|(length, seed)| bytes(*length, seed)).collect();
        let all: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
        let mut got = Vec::new();
        let mut rest = all.as_slice();
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            far.write_all(now).unwrap();
            rest = later;
            while let Some(frame) = stream.frame() {
                got.push(frame.to_vec());
                stream.drop_frame();
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn whatever_a_peer_sends_is_a_frame_or_the_end(junk in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let (mut stream, mut far) = pair();
        far.write_all(&junk).unwrap();
        drop(far);
        while let Some(frame) = stream.frame() {
            prop_assert!((SHORTEST..=LONGEST).contains(&frame.len()));
            stream.drop_frame();
        }
        prop_assert!(stream.socket.is_none());
    }
}
