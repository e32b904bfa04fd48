//! Good chains, and every kind of bad one.

use proptest::prelude::*;

use crate::virtio::testing::{Driver, INDIRECT, NEXT, WRITE, memory};

const BASE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

fn driver() -> Driver {
    Driver::new(&memory(), BASE, 16)
}

fn first_error(driver: &Driver) -> String {
    driver.queue().pop(&driver.memory).unwrap_err().to_string()
}

#[test]
fn a_chain_comes_as_its_readable_and_writable_parts() {
    let mut driver = driver();
    let mut queue = driver.queue();
    assert!(queue.pop(&driver.memory).unwrap().is_none());
    driver.write(DATA, b"hello world");
    driver.add(&[(DATA, 5, false), (DATA + 5, 6, false), (DATA + 0x1000, 8, true)]);
    let memory = driver.memory.clone();
    let mut chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (11, 8));
    assert_eq!(&chain.readable.read::<7>().unwrap(), b"hello w");
    assert_eq!(chain.readable.len(), 4);
    assert!(chain.readable.read::<5>().is_none());
    assert_eq!(chain.writable.write(b"0123456789"), 8);
    assert_eq!(driver.read(DATA + 0x1000, 9), b"01234567\0");
    queue.push(&memory, chain.head, 8).unwrap();
    assert_eq!(driver.used(), [(0, 8)]);
    assert!(queue.pop(&memory).unwrap().is_none());
}

#[test]
fn buffers_can_be_cut_anywhere() {
    let mut driver = driver();
    driver.write(DATA, b"abcdefgh");
    driver.add(&[
        (DATA, 3, false),
        (DATA + 3, 0, false),
        (DATA + 3, 5, false),
        (DATA, 2, true),
        (DATA, 0, true),
    ]);
    let memory = driver.memory.clone();
    let mut chain = driver.queue().pop(&memory).unwrap().unwrap();
    let mut front = chain.readable.split_front(4);
    assert_eq!((&front.read::<4>().unwrap(), chain.readable.len()), (b"abcd", 4));
    assert_eq!(
        chain
            .readable
            .first(2)
            .iter()
            .map(|piece| piece.len())
            .sum::<usize>(),
        2
    );
    chain.readable.truncate(3);
    chain.readable.skip(1);
    assert_eq!(
        (&chain.readable.read::<2>().unwrap(), chain.readable.len()),
        (b"fg", 0)
    );
    let mut last = chain.writable.split_last_byte().unwrap();
    assert_eq!((last.write(b"xy"), chain.writable.len()), (1, 1));
    assert_eq!(driver.read(DATA, 3), b"axc");
    chain.writable.split_last_byte().unwrap();
    assert!(chain.writable.split_last_byte().is_none());
}

#[test]
fn indirect_tables_are_followed_once() {
    let mut driver = driver();
    let table = DATA + 0x1000;
    driver.put_descriptor(0, (table, 32, INDIRECT, 0));
    driver.put_descriptor_at(table, (DATA, 4, NEXT, 1));
    driver.put_descriptor_at(table + 16, (DATA, 4, WRITE, 0));
    driver.offer(0);
    let memory = driver.memory.clone();
    let chain = driver.queue().pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (4, 4));
    driver.put_descriptor_at(table + 16, (table, 16, INDIRECT, 0));
    assert!(first_error(&driver).contains("broken"));
}

#[test]
fn broken_chains_are_errors() {
    let mut driver = driver();
    driver.offer(0);
    let broken = |descriptor, word: &str| {
        driver.put_descriptor(0, descriptor);
        let error = first_error(&driver);
        assert!(error.contains(word), "{descriptor:?}: {error}");
    };
    broken((DATA, 4, NEXT, 0), "broken");
    broken((DATA, 4, NEXT, 16), "broken");
    broken((DATA, 4, NEXT, u16::MAX), "broken");
    broken((u64::MAX, 4, 0, 0), "outside");
    broken((64 << 20, 1, 0, 0), "outside");
    broken(((64 << 20) - 1, 2, 0, 0), "outside");
    broken((0, u32::MAX, 0, 0), "outside");
    broken((DATA, 17, INDIRECT, 0), "broken");
    broken((u64::MAX - 8, 32, INDIRECT, 0), "broken");
}

#[test]
fn readable_after_writable_is_an_error() {
    let mut driver = driver();
    driver.add(&[(DATA, 4, true), (DATA, 4, false)]);
    assert!(first_error(&driver).contains("readable part after"));
}

#[test]
fn impossible_ring_positions_are_errors() {
    let mut driver = driver();
    driver.set_available(17);
    assert!(first_error(&driver).contains("available ring"));
    driver.set_available(0);
    driver.offer(16);
    assert!(first_error(&driver).contains("broken"));
}

#[test]
fn a_request_can_be_left_for_later() {
    let mut driver = driver();
    driver.add(&[(DATA, 4, true)]);
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    assert!(queue.pop(&memory).unwrap().is_some());
    assert!(queue.pop(&memory).unwrap().is_none());
    queue.undo_pop();
    assert!(!queue.is_empty(&memory).unwrap());
    assert!(queue.pop(&memory).unwrap().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any bytes in table and rings: each pop ends, with a request inside memory or an error.
    #[test]
    fn no_ring_contents_hang_or_panic(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        near in prop::collection::vec(any::<bool>(), 16),
        heads in prop::collection::vec(0u16..20, 0..16),
    ) {
        let mut driver = driver();
        for (index, (&(address, len, flags, next), near)) in (0..).zip(table.iter().zip(near)) {
            let address = if near { DATA + address % 0x1000 } else { address };
            let len = if near { len % 0x2000 } else { len };
            driver.put_descriptor(index, (address, len, flags, next));
        }
        heads.iter().for_each(|&head| driver.offer(head));
        let memory = driver.memory.clone();
        let mut queue = driver.queue();
        for _ in 0..=heads.len() {
            match queue.pop(&memory) {
                Ok(Some(mut chain)) => {
                    let total = chain.readable.len() + chain.writable.len();
                    prop_assert!(total < 1 << 32);
                    chain.readable.skip(total + 1);
                    chain.writable.write(&[1; 100]);
                }
                Ok(None) => break,
                Err(_) => break,
            }
        }
    }
}

/// Requests that arrive at any moment of a `pop` are found by it or by the next one.
#[test]
fn a_driver_that_adds_while_the_device_looks_is_no_error() {
    const REQUESTS: usize = 20_000;
    let mut driver = driver();
    let mut queue = driver.queue();
    let memory = driver.memory.clone();
    let device = std::thread::spawn(move || {
        let mut served = 0;
        while served < REQUESTS {
            if let Some(chain) = queue.pop(&memory).unwrap() {
                queue.push(&memory, chain.head, 0).unwrap();
                served += 1;
            }
        }
    });
    for _ in 0..REQUESTS {
        driver.add(&[(DATA, 4, true)]);
        while driver.used().is_empty() && !device.is_finished() {
            std::hint::spin_loop();
        }
    }
    device.join().unwrap();
}
