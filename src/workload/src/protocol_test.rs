use super::*;
use proptest::prelude::*;

#[test]
fn stdio_ports_are_distinct_and_reversible() {
    for process in [0, 1, 77, MAX_PROCESS] {
        for stream in 0..3 {
            assert_eq!(stdio_of(stdio(process, stream)), Some((process, stream)));
        }
    }
    assert_eq!(stdio_of(CONTROL), None);
    assert_eq!(stdio_of(stdio(0, 3)), None);
    assert_eq!(stdio_of(u32::MAX), None);
}

#[test]
fn a_request_round_trips() {
    let setup = Setup {
        workload: Blob(b"{}".to_vec()),
        environment: Environment {
            id: "c1".into(),
            ..Environment::default()
        },
        keys: Keys::Layers {
            keys: vec![VolumeKey::from_bytes([9; VolumeKey::LEN])],
        },
        unix_time_ns: 5,
        debug: false,
    };
    let bytes = encode(&ToGuest {
        id: 1,
        request: Request::Setup(Box::new(setup)),
    })
    .unwrap();
    let mut decoder = Decoder::<ToGuest>::default();
    decoder.push(&bytes);
    let back = decoder.next_message().unwrap().unwrap();
    let Request::Setup(setup) = back.request else {
        panic!("not a Setup")
    };
    let Keys::Layers { keys } = &setup.keys else {
        panic!("other keys")
    };
    assert_eq!(
        (back.id, setup.environment.id.as_str(), keys[0].as_bytes()),
        (1, "c1", &[9; 64])
    );
    assert!(decoder.next_message().unwrap().is_none());
}

#[test]
fn an_announced_giant_is_refused_before_it_arrives() {
    let mut decoder = Decoder::<ToHost>::default();
    decoder.push(&u32::MAX.to_le_bytes());
    assert!(matches!(decoder.next_message(), Err(Error::TooLong(_))));
}

#[test]
fn exit_codes_are_counted_as_shells_do() {
    assert_eq!(Status::Code { code: 7 }.exit_code(), 7);
    assert_eq!(Status::Signal { signal: 9 }.exit_code(), 137);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut decoder = Decoder::<ToGuest>::default();
        for piece in pieces {
            decoder.push(&piece);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }

    #[test]
    fn messages_survive_any_fragmentation(sizes in prop::collection::vec(1usize..30, 1..60)) {
        let messages = [
            ToHost::Hello { version: VERSION, kernel: "6.12".into(), kernel_ms: 300 },
            ToHost::Reply { id: 3, outcome: Outcome::Failed { kind: FailureKind::NotFound, message: "no \"x\"".into() } },
            ToHost::Exited { status: Status::Signal { signal: 15 } },
        ];
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap().to_vec()).collect();
        let mut decoder = Decoder::<ToHost>::default();
        let (mut rest, mut seen, mut sizes) = (&stream[..], Vec::new(), sizes.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            rest = tail;
            decoder.push(piece);
            while let Some(message) = decoder.next_message().unwrap() {
                seen.push(message);
            }
        }
        prop_assert_eq!(&seen[..], &messages[..]);
    }
}
