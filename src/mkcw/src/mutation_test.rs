//! Ten thousand damaged documents of each kind: refused, or read as something within the limits. Never a panic, a hang or
//! an allocation that a document asks for.

use std::io;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::header::HEADER_LEN;
use crate::header::tests::{END, sample};
use crate::{BLOCK, Error, Footer, Header, InnerConfig, MAX_ITERATIONS, ReadAt, WorkloadConfig};

const WORKLOAD: &str = r#"{"tee":"snp","tee_data":"{\"gen\":\"milan\"}","workload_id":"sample","cpus":2,"ram_mib":512,"attestation_url":"https://broker"}"#;
const INNER: &str = r#"{"created":"2026-11-22T06:18:55Z","architecture":"amd64","os":"linux","config":{"User":"nobody","Env":["PATH=/bin","A=\u00e4"],"Entrypoint":["/bin/busybox"],"Cmd":["echo"],"WorkingDir":"/home"},"history":[{}]}"#;

/// What to do to some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Flip(usize, u32),
    /// A 32-bit field, big endian.
    Number(usize, u32),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let numbers = prop_oneof![
        any::<u32>(),
        0..20_000u32,
        Just(u32::MAX),
        Just(0x00ac_71f3),
        Just(0xdead)
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<usize>(), 0..8u32).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (any::<usize>(), numbers).prop_map(|(at, number)| Change::Number(at, number)),
        (any::<usize>(), 1..40usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (
            any::<usize>(),
            prop_oneof![vec(any::<u8>(), 1..20), vec(0x20..0x7fu8, 1..20)]
        )
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<usize>(), 1..40usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

/// Changes that keep every field in its place.
fn change_in_place() -> impl Strategy<Value = Change> {
    change().prop_filter("moves fields", |change| {
        matches!(change, Change::Set(..) | Change::Flip(..) | Change::Number(..))
    })
}

fn apply(bytes: &mut Vec<u8>, changes: &[Change]) {
    for change in changes {
        let length = bytes.len().max(1);
        match change {
            Change::Set(at, byte) => bytes
                .iter_mut()
                .skip(at % length)
                .take(1)
                .for_each(|b| *b = *byte),
            Change::Flip(at, bit) => bytes
                .iter_mut()
                .skip(at % length)
                .take(1)
                .for_each(|b| *b ^= 1 << bit),
            Change::Number(at, number) => bytes
                .iter_mut()
                .skip(at % length / 4 * 4)
                .zip(number.to_be_bytes())
                .for_each(|(b, byte)| *b = byte),
            Change::Remove(at, n) => drop(bytes.drain((at % length).min(bytes.len())..).take(*n).count()),
            Change::Insert(at, new) => {
                let at = (at % length).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Repeat(at, n) => {
                let at = (at % length).min(bytes.len());
                let again: Vec<u8> = bytes.iter().skip(at).take(*n).copied().collect();
                bytes.splice(at..at, again);
            }
        }
    }
}

/// A header on an endless disk of zeros.
struct Endless<'a>(&'a [u8]);

impl ReadAt for Endless<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = self.0.iter().skip(offset as usize).chain(std::iter::repeat(&0));
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// An accepted header lies within its disk and says what it must, whatever was done to it.
    #[test]
    fn headers(changes in vec(change_in_place(), 1..6), end in prop_oneof![Just(END), 0..2 * END]) {
        let mut bytes = sample().to_vec();
        apply(&mut bytes, &changes);
        prop_assert_eq!(bytes.len(), HEADER_LEN);
        if let Ok(header) = Header::read(&*bytes, end) {
            prop_assert_eq!(&bytes[8..12], b"aes\0");
            prop_assert_eq!(&bytes[40..52], b"xts-plain64\0");
            let payload = header.payload();
            prop_assert!(payload.start < payload.end && payload.end <= end);
            prop_assert!(payload.start.is_multiple_of(BLOCK) && payload.end.is_multiple_of(BLOCK));
            prop_assert!((2000..=u64::from(MAX_ITERATIONS)).contains(&header.iterations()));
            prop_assert!(header.slots.iter().all(|slot| slot.offset + 256_000 <= payload.start));
        }
    }

    /// Other ciphers are refused wherever else the header was damaged.
    #[test]
    fn null_ciphers(
        changes in vec(change_in_place(), 0..4),
        name in prop_oneof![Just("cipher_null"), Just("null"), Just("")],
        mode in prop_oneof![Just("ecb"), Just("xts-plain64"), Just("")],
    ) {
        let mut bytes = sample().to_vec();
        apply(&mut bytes, &changes);
        bytes[8..72].fill(0);
        bytes[8..8 + name.len()].copy_from_slice(name.as_bytes());
        bytes[40..40 + mode.len()].copy_from_slice(mode.as_bytes());
        prop_assert!(Header::read(&*bytes, END).is_err());
    }

    #[test]
    fn header_noise(bytes in vec(any::<u8>(), 0..700)) {
        prop_assert!(Header::read(&*bytes, END).is_err());
    }

    #[test]
    fn footers(changes in vec(change(), 1..6), length in any::<u64>(), true_length in any::<bool>()) {
        let mut json = WORKLOAD.as_bytes().to_vec();
        apply(&mut json, &changes);
        let mut disk = vec![0; 300];
        disk.extend(&json);
        disk.extend(b"KRUN");
        disk.extend(if true_length { json.len() as u64 } else { length }.to_le_bytes());
        if let Ok(Some(footer)) = Footer::read(&*disk) {
            prop_assert!(footer.offset < disk.len() as u64 - 12);
            prop_assert!((1..=255).contains(&footer.workload.workload_id.len()));
            prop_assert!(footer.workload.cpus > 0 && footer.workload.memory_mib > 0);
        }
        apply(&mut disk, &changes);
        let _ = Footer::read(&*disk);
        let _ = WorkloadConfig::parse(&json);
    }

    #[test]
    fn inner_configs(changes in vec(change(), 1..6)) {
        let mut json = INNER.as_bytes().to_vec();
        apply(&mut json, &changes);
        if let Ok(config) = InnerConfig::parse(&json) {
            prop_assert!(config.working_dir.starts_with('/'));
            prop_assert!(config.env.iter().all(|variable| variable.contains('=')));
            prop_assert!(!config.args().iter().any(|text| text.contains('\0')));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Opening a damaged disk ends with an error. (Only those that take few rounds: the rest would just take longer.)
    #[test]
    fn opening(changes in vec(change_in_place(), 1..4)) {
        let mut bytes = sample().to_vec();
        apply(&mut bytes, &changes);
        let disk = Endless(&bytes);
        if let Ok(header) = Header::read(&disk, END)
            && header.iterations() < 50_000
        {
            prop_assert!(matches!(header.unlock(&disk, b"x"), Err(Error::WrongPassphrase)));
        }
    }
}
