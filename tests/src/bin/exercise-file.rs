//! `exercise-file FILE ROUNDS SEED`: writes, reads, maps, cuts and grows a file by chance, and compares it with what it should be.
//! At the end it prints the SHA-256 of that.

use e2e::pattern::{self, Choices};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest file, in bytes.
const MOST: u64 = 1 << 20;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, path, rounds, seed] = &arguments[..] else {
        panic!("usage: exercise-file FILE ROUNDS SEED")
    };
    let mut choices = Choices::seeded(seed.parse().expect("a seed"));
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    };
    let (mut file, mut model) = (open()?, Vec::new());
    for round in 0..rounds.parse::<u64>().expect("a number") {
        let offset = choices.below(MOST);
        let length = choices.below(70_000.min(MOST - offset)) as usize;
        let (start, end) = (offset as usize, offset as usize + length);
        let inside = start.min(model.len())..end.min(model.len());
        let what = choices.below(9);
        match what {
            0 | 1 => {
                let bytes = fresh(&mut choices, length);
                file.write_all_at(&bytes, offset)?;
                if !bytes.is_empty() {
                    model.resize(model.len().max(end), 0);
                    model[start..end].copy_from_slice(&bytes);
                }
            }
            2 | 3 => {
                let mut bytes = vec![0; inside.len()];
                file.read_exact_at(&mut bytes, inside.start as u64)?;
                assert!(
                    bytes == model[inside],
                    "round {round}: read at {offset}, {length}"
                );
            }
            4 => {
                file.set_len(offset)?;
                model.resize(start, 0);
            }
            5 if !inside.is_empty() => {
                let bytes = fresh(&mut choices, inside.len());
                mapped(&file, model.len(), |map| {
                    map[inside.clone()].copy_from_slice(&bytes)
                })?;
                model[inside].copy_from_slice(&bytes);
            }
            6 if !model.is_empty() => {
                mapped(&file, model.len(), |map| {
                    assert!(
                        map[inside.clone()] == model[inside],
                        "round {round}: mapped at {offset}, {length}"
                    );
                })?;
            }
            7 if !inside.is_empty() => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, flags, inside.start as u64, inside.len() as u64)?;
                model[inside].fill(0);
            }
            8 => {
                file.sync_all()?;
                file = open()?;
            }
            _ => {}
        }
        assert_eq!(
            file.metadata()?.len(),
            model.len() as u64,
            "round {round}: length after {what}"
        );
    }
    println!("{}", pattern::sha256(&model));
    Ok(())
}

fn fresh(choices: &mut Choices, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(choices.next_number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Has `work` done with the file's bytes in shared memory.
fn mapped(file: &File, length: usize, work: impl FnOnce(&mut [u8])) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping of a file of that length, which nobody makes shorter while it lasts, and nobody else writes to; it is
    // used through this one slice and unmapped after that.
    unsafe {
        let map = mmap(
            std::ptr::null_mut(),
            length,
            protection,
            MapFlags::SHARED,
            file,
            0,
        )?;
        work(std::slice::from_raw_parts_mut(map.cast(), length));
        msync(map, length, MsyncFlags::SYNC)?;
        munmap(map, length)?;
    }
    Ok(())
}
