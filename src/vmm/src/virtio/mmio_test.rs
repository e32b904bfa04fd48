//! The driver's way through the registers, and every way off it.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::{COMMON_FEATURES, Inbox, command_channel};
use vmm_sys_util::eventfd::EventFd;

const FEATURE: u64 = 1 << 5;

struct Machine {
    transport: Transport,
    inbox: Option<Inbox>,
    line: EventFd,
    interrupt: Interrupt,
    driver: Driver,
}

fn machine() -> Machine {
    let memory = memory();
    let eventfd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (outbox, inbox) = command_channel(eventfd());
    let line = eventfd();
    let interrupt = Interrupt::new(line.try_clone().unwrap());
    let device = Description {
        kind: 2,
        features: COMMON_FEATURES | FEATURE,
        queue_sizes: &[64, 16],
        config: vec![1, 2, 3, 4, 5],
    };
    let transport = Transport::new(device, interrupt.clone(), outbox, Arc::clone(&memory)).unwrap();
    Machine {
        transport,
        inbox: Some(inbox),
        line,
        interrupt,
        driver: Driver::new(&memory, 0x10_0000, 16),
    }
}

impl Machine {
    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    fn negotiate(&mut self, features: u64) {
        self.write(register::STATUS, 1);
        self.write(register::STATUS, 3);
        self.accept(features);
        self.write(register::STATUS, 11);
    }

    fn set_queue(&mut self, index: u32, addresses: [u64; 3]) {
        self.write(register::QUEUE_SEL, index);
        self.write(register::QUEUE_NUM, 16);
        for (offset, address) in [0x80, 0x90, 0xa0].into_iter().zip(addresses) {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    fn run(&mut self) {
        self.negotiate(F_VERSION_1 | F_EVENT_IDX);
        let addresses = self.driver.addresses();
        self.set_queue(0, addresses);
        self.set_queue(1, addresses.map(|address| address + 0x10000));
        self.write(register::STATUS, 15);
    }

    fn command(&self) -> Option<Command> {
        self.inbox.as_ref().unwrap().next()
    }
}

#[test]
fn the_registers_name_the_device() {
    let mut machine = machine();
    assert_eq!(machine.read(0), 0x7472_6976);
    assert_eq!((machine.read(4), machine.read(8)), (2, 2));
    assert_eq!(machine.read(0x34), 64);
    machine.write(0x30, 1);
    assert_eq!(machine.read(0x34), 16);
    machine.write(0x30, 2);
    assert_eq!((machine.read(0x34), machine.read(0x44)), (0, 0));
    assert_eq!(
        u64::from(machine.read(0x10)),
        (COMMON_FEATURES | FEATURE) & 0xffff_ffff
    );
    machine.write(0x14, 1);
    assert_eq!(machine.read(0x10), 1);
    machine.write(0x14, 2);
    assert_eq!(machine.read(0x10), 0);
    assert_eq!(machine.read(0xb0), u32::MAX);
}

#[test]
fn the_configuration_space_is_read_in_any_width() {
    let machine = machine();
    assert_eq!(machine.read(0x100), 0x0403_0201);
    assert_eq!(machine.read(0x104), 5);
    let mut data = [9; 3];
    machine.transport.read(0x103, &mut data);
    assert_eq!(data, [4, 5, 0]);
    let mut word = [9; 8];
    machine.transport.read(0xffff_ffff_ffff_fff8, &mut word);
    assert_eq!(word, [0; 8]);
    machine.transport.read(2, &mut data);
    assert_eq!(data, [0; 3]);
}

#[test]
fn a_correct_driver_gets_its_device_running() {
    let mut machine = machine();
    machine.run();
    assert_eq!(machine.status(), 15);
    match machine.command() {
        Some(Command::Activate { queues, .. }) => assert_eq!(queues.len(), 2),
        other => panic!("{other:?}"),
    }
    // What was set up can't be changed while the device runs.
    machine.write(register::QUEUE_READY, 0);
    machine.accept(0);
    assert_eq!(machine.read(register::QUEUE_READY), 1);
    machine.write(register::STATUS, 11);
    assert_eq!(machine.status(), 15);
    assert!(machine.command().is_none());
}

#[test]
fn features_that_do_not_fit_are_refused() {
    for features in [0, F_VERSION_1 | 1 << 6, FEATURE, F_VERSION_1 | 1 << 63] {
        let mut machine = machine();
        machine.negotiate(features);
        assert_eq!(machine.status(), 3, "{features:#x}");
        machine.accept(F_VERSION_1);
        machine.write(register::STATUS, 11);
        assert_eq!(machine.status(), 11);
    }
}

#[test]
fn steps_can_not_be_left_out_or_taken_back() {
    for step in [2, 3, 4, 8, 11, 15, 16, 0x100, 0x101, !0x80] {
        let mut machine = machine();
        machine.write(register::STATUS, step);
        assert_eq!(machine.status(), 0, "{step:#x}");
    }
    let mut machine = machine();
    machine.negotiate(F_VERSION_1);
    for step in [1, 2, 3, 9, 10] {
        machine.write(register::STATUS, step);
        assert_eq!(machine.status(), 11, "{step}");
    }
}

#[test]
fn a_failed_driver_stays_failed_until_reset() {
    let mut machine = machine();
    machine.negotiate(F_VERSION_1);
    machine.write(register::STATUS, 0x80 | 11);
    assert_eq!(machine.status(), 0x8b);
    let addresses = machine.driver.addresses();
    machine.set_queue(0, addresses);
    assert_eq!(machine.read(register::QUEUE_READY), 0);
    machine.write(register::STATUS, 15);
    assert_eq!(machine.status(), 0x8b);
    machine.write(register::STATUS, 0);
    assert_eq!(machine.status(), 0);
}

#[test]
fn queues_outside_memory_make_the_device_ask_for_a_reset() {
    for broken in 0..3 {
        let mut machine = machine();
        machine.negotiate(F_VERSION_1);
        let good = machine.driver.addresses();
        let mut bad = good;
        bad[broken] = 0xffff_ffff_ffff_f000;
        machine.set_queue(0, good);
        machine.set_queue(1, bad);
        machine.write(register::STATUS, 15);
        assert_eq!(machine.status(), 0x4f);
        assert_eq!(machine.read(register::INTERRUPT_STATUS), 2);
        assert_eq!(machine.line.read().unwrap(), 1);
        assert!(machine.command().is_none());
    }
}

#[test]
fn an_unready_queue_makes_the_device_ask_for_a_reset() {
    let mut machine = machine();
    machine.negotiate(F_VERSION_1);
    let addresses = machine.driver.addresses();
    machine.set_queue(0, addresses);
    machine.write(register::STATUS, 15);
    assert_eq!(machine.status(), 0x4f);
    assert!(machine.command().is_none());
}

#[test]
fn a_reset_waits_for_the_device_thread() {
    let mut machine = machine();
    machine.run();
    let inbox = machine.inbox.take().unwrap();
    let thread = std::thread::spawn(move || {
        let mut resets = 0;
        while resets == 0 {
            match inbox.next() {
                Some(Command::Reset(done)) => {
                    std::thread::sleep(Duration::from_millis(20));
                    resets += 1;
                    done.send(()).unwrap();
                }
                _ => std::thread::yield_now(),
            }
        }
    });
    machine.write(register::STATUS, 0);
    assert_eq!(machine.status(), 0);
    assert_eq!(machine.read(register::QUEUE_READY), 0);
    thread.join().unwrap();
    // With the thread gone, another round and reset do not hang.
    machine.run();
    machine.write(register::STATUS, 0);
    assert_eq!(machine.status(), 0);
}

#[test]
fn interrupt_bits_stay_until_acknowledged() {
    let mut machine = machine();
    machine.interrupt.used_buffer();
    machine.interrupt.used_buffer();
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 1);
    assert_eq!(machine.line.read().unwrap(), 2);
    machine.write(register::INTERRUPT_ACK, 2);
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 1);
    machine.write(register::INTERRUPT_ACK, 1);
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any sequence of accesses: no panic, no hang, and only queues that lie in memory reach the device.
    #[test]
    fn any_accesses_are_harmless(accesses in prop::collection::vec(
        (prop_oneof![0u64..0x120, Just(0x70), Just(0x44), Just(0x30)], prop_oneof![any::<u32>(), 0u32..16], 1usize..9), 0..200)
    ) {
        let mut machine = machine();
        // Without a thread a reset does not wait.
        machine.inbox = None;
        for (offset, value, width) in accesses {
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            machine.transport.write(offset, &data[..width]);
            machine.transport.write(offset & !3, &data[..4]);
            machine.transport.read(offset, &mut data[..width]);
        }
    }
}

#[test]
fn in_a_confidential_guest_the_driver_must_take_the_platforms_way_to_memory() {
    const NEEDED: u64 = F_VERSION_1 | F_ACCESS_PLATFORM;
    let confidential = || {
        let mut machine = machine();
        let transport = machine.transport;
        machine.transport = transport.for_confidential_guest(None);
        machine
    };
    let mut offered = confidential();
    offered.write(register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(offered.read(register::DEVICE_FEATURES), 0b11);
    for (features, status) in [
        (NEEDED, 11),
        (F_VERSION_1, 3),
        (F_ACCESS_PLATFORM, 3),
        (NEEDED | 1 << 40, 3),
    ] {
        let mut machine = confidential();
        machine.negotiate(features);
        assert_eq!(machine.status(), status, "{features:#x}");
    }
    // Elsewhere it is not on offer.
    let mut plain = machine();
    plain.negotiate(NEEDED);
    assert_eq!(plain.status(), 3);
}

#[test]
fn a_model_of_page_states_is_told_what_a_device_touches() {
    #[derive(Debug)]
    struct Nothing;
    impl crate::snp::Backing for Nothing {
        fn set_private(&self, _: u64, _: u64, _: bool) -> std::io::Result<()> {
            Ok(())
        }
        fn discard_shared(&self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
        fn discard_private(&self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }
    let pages = Arc::new(Pages::new(&[(0, 1 << 26)], Box::new(Nothing)));
    pages.convert(0, 1 << 26, true).unwrap();
    let mut machine = machine();
    let transport = machine.transport;
    machine.transport = transport.for_confidential_guest(Some(Arc::clone(&pages)));
    machine.negotiate(F_VERSION_1 | F_ACCESS_PLATFORM);
    let addresses = machine.driver.addresses();
    machine.set_queue(0, addresses);
    machine.set_queue(1, addresses.map(|address| address + 0x10000));
    assert_eq!(pages.statistics().shared_pages, 0);
    machine.write(register::STATUS, 15);
    assert!(addresses.iter().all(|address| pages.are_shared(*address, 1)));
    assert!(!pages.are_shared(0x20_0000, 1));
}

#[test]
fn a_place_without_a_device_says_so() {
    let read = |offset| {
        let mut data = [9; 4];
        read_placeholder(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!([read(0), read(4), read(8)], [0x7472_6976, 2, 0]);
    assert_eq!(read(0x10), 0);
    let mut byte = [9];
    read_placeholder(0, &mut byte);
    assert_eq!(byte, [0]);
}
