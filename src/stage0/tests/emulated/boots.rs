//! Friendly hosts.

use stage0::abi::{LARGE_PAGE, PAGE, STAGING_START, Staging, segment};

use crate::fixture::{Guest, RAM, SETUP};
use crate::image::Elf;
use crate::machine::{End, Machine};
use crate::unicorn::Register;

const BOOT_PARAMS: u64 = 0x7000;
const GIB: u64 = 1 << 30;

fn boot(guest: Guest) -> Box<Machine> {
    let mut machine = guest.machine();
    assert_eq!(
        machine.run(),
        End::Kernel {
            boot_params: BOOT_PARAMS
        }
    );
    machine
}

/// The ranges that a guest of `ram` bytes has to validate, from the definition of the memory map and nothing of stage0's.
fn ram_ranges(ram: u64) -> Vec<(u64, u64)> {
    let (start, end) = Elf::confidential().extent();
    let mut ranges = vec![
        (0, 0xa_0000),
        (0x10_0000, start),
        (end, ram.min(3 * GIB)),
        (4 * GIB, (ram + GIB).max(4 * GIB)),
    ];
    ranges.retain(|(start, end)| start < end);
    ranges
}

/// Each byte of RAM became valid exactly once, and nothing else did.
fn assert_validated_once(machine: &Machine, ram: u64) {
    let mut pages: Vec<_> = machine.rmp.iter().filter(|(_, entry)| !entry.launched).collect();
    pages.sort_by_key(|(key, _)| **key);
    let mut found: Vec<(u64, u64)> = vec![];
    for (&(gpa, large), entry) in pages {
        assert!(
            entry.private && entry.valid && entry.validations == 1,
            "{gpa:#x} {entry:?}"
        );
        let end = gpa + if large { LARGE_PAGE } else { PAGE };
        match found.last_mut() {
            Some((_, last)) if *last == gpa => *last = end,
            _ => found.push((gpa, end)),
        }
    }
    assert_eq!(found, ram_ranges(ram), "{found:x?}");
    for (key, entry) in machine.rmp.iter().filter(|(_, entry)| entry.launched) {
        let is_ghcb = key.0 == machine.image.ghcb();
        assert_eq!(
            (entry.private, entry.valid, entry.validations),
            (!is_ghcb, !is_ghcb, 0),
            "{key:x?}"
        );
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn every_byte_of_ram_is_validated_exactly_once() {
    for ram in [
        RAM,
        RAM + PAGE,
        100 << 20,
        GIB,
        3 * GIB,
        3 * GIB + PAGE,
        4 * GIB,
        64 * GIB,
        511 * GIB,
    ] {
        assert_validated_once(&boot(Guest::new(ram)), ram);
    }
}

#[test]
fn every_byte_is_validated_once_where_the_host_has_small_pages_only() {
    for ram in [RAM, 130 << 20] {
        let mut guest = Guest::new(ram);
        guest.host.small_pages = true;
        assert_validated_once(&boot(guest), ram);
    }
}

#[test]
fn a_host_that_serves_page_state_changes_piece_by_piece_is_called_again() {
    let mut guest = Guest::new(GIB);
    guest.host.entries_per_call = 100;
    let machine = boot(guest);
    assert_validated_once(&machine, GIB);
    assert!(
        machine.log.page_state_calls.contains(&153),
        "{:?}",
        machine.log.page_state_calls
    );
}

#[test]
fn page_state_changes_come_in_full_batches() {
    let machine = boot(Guest::new(64 * GIB));
    let (last, full) = machine.log.page_state_calls.split_last().unwrap();
    assert!(full.iter().all(|&entries| entries == 253), "{full:?}");
    assert!((1..=253).contains(last));
}

#[test]
fn boot_params_say_what_the_kernel_needs() {
    let guest = Guest::new(5 * GIB);
    let kernel = guest.kernel.clone();
    let initrd = guest.initrd.clone();
    let machine = boot(guest);
    let page = machine.processor.read(BOOT_PARAMS, 4096);
    // The setup header is the kernel's, but for what the loader fills in.
    let mut header = kernel[0x1f1..0x202 + 0x6a].to_vec();
    let mut fill =
        |at: usize, bytes: &[u8]| header[at - 0x1f1..at - 0x1f1 + bytes.len()].copy_from_slice(bytes);
    fill(0x210, &[0xff]);
    fill(0x214, &0x100_0000u32.to_le_bytes());
    fill(0x218, &0x7fff_d000u32.to_le_bytes());
    fill(0x21c, &(initrd.len() as u32).to_le_bytes());
    fill(0x228, &0x9000u32.to_le_bytes());
    fill(0x250, &0x8000u64.to_le_bytes());
    assert_eq!(&page[0x1f1..0x202 + 0x6a], header);
    assert_eq!(u64_at(&page, 0x70), 0x9f000, "acpi_rsdp_addr");
    assert_eq!(u32_at(&page, 0x13c), 0x8018, "cc_blob_address");
    let (start, end) = machine.image.extent();
    let map = [
        (0, 0x9f000, 1),
        (0x9f000, 0xa0000, 3),
        (start, end, 2),
        (end, 3 * GIB, 1),
        (4 * GIB, 6 * GIB, 1),
    ];
    assert_eq!(start, 0x10_0000);
    assert_eq!(page[0x1e8], map.len() as u8);
    for (index, (start, end, kind)) in map.into_iter().enumerate() {
        let at = 0x2d0 + index * 20;
        assert_eq!(
            (u64_at(&page, at), u64_at(&page, at + 8), u32_at(&page, at + 16)),
            (start, end - start, kind)
        );
    }
    // All else is zero.
    let set = [
        0x70..0x78,
        0x13c..0x140,
        0x1e8..0x1e9,
        0x1f1..0x26c,
        0x2d0..0x2d0 + 5 * 20,
    ];
    for (at, &byte) in page.iter().enumerate() {
        assert!(
            byte == 0 || set.iter().any(|range| range.contains(&at)),
            "{at:#x}"
        );
    }
}

#[test]
fn kernel_initrd_and_command_line_are_where_boot_params_say() {
    let guest = Guest::new(RAM);
    let (kernel, initrd, cmdline) = (guest.kernel.clone(), guest.initrd.clone(), guest.cmdline.clone());
    let machine = boot(guest);
    assert_eq!(
        machine.processor.read(0x100_0000, kernel.len() - SETUP),
        kernel[SETUP..]
    );
    let start = (RAM - initrd.len() as u64) & !(PAGE - 1);
    assert_eq!(machine.processor.read(start, initrd.len()), initrd);
    let mut line = machine.processor.read(0x9000, 4096);
    assert!(line.drain(cmdline.len()..).all(|byte| byte == 0));
    assert_eq!(line, cmdline);
}

#[test]
fn the_cc_blob_names_the_launched_secrets_and_cpuid_pages() {
    let machine = boot(Guest::new(RAM));
    let page = machine.processor.read(0x8000, 4096);
    assert_eq!(
        (u64_at(&page, 0), u32_at(&page, 8), u32_at(&page, 12)),
        (0, 7, 48),
        "setup_data"
    );
    assert_eq!(u64_at(&page, 16), 0x8018);
    let blob = &page[0x18..];
    assert_eq!(
        (u32_at(blob, 0), u32_at(blob, 4)),
        (0x4544_4d41, 0),
        "magic, version"
    );
    assert_eq!(
        (u64_at(blob, 8), u32_at(blob, 16)),
        (machine.image.segment(segment::SECRETS).gpa, 4096)
    );
    assert_eq!(
        (u64_at(blob, 24), u32_at(blob, 32)),
        (machine.image.segment(segment::CPUID).gpa, 4096)
    );
    assert!(blob[36..].iter().all(|&byte| byte == 0));
    // The kernel takes keys from the secrets page: it must be as the firmware left it.
    assert_eq!(
        machine
            .processor
            .read(machine.image.segment(segment::SECRETS).gpa, 4096),
        [0x5e; 4096]
    );
}

#[test]
fn the_bios_data_area_is_empty() {
    let machine = boot(Guest::new(RAM));
    assert_eq!(machine.processor.read(0x400, 0x100), [0; 0x100]);
}

#[test]
fn the_acpi_tables_name_every_vcpu() {
    let machine = boot(Guest::new(RAM));
    let page = machine.processor.read(0x9f000, 4096);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    assert_eq!(&page[..8], b"RSD PTR ");
    assert_eq!((sum(&page[..20]), sum(&page[..36])), (0, 0));
    let xsdt = (u64_at(&page, 24) - 0x9f000) as usize;
    assert_eq!(
        (&page[xsdt..xsdt + 4], sum(&page[xsdt..xsdt + 44])),
        (&b"XSDT"[..], 0)
    );
    let madt = (u64_at(&page, xsdt + 36) - 0x9f000) as usize;
    let len = u32_at(&page, madt + 4) as usize;
    assert_eq!(
        (&page[madt..madt + 4], sum(&page[madt..madt + len])),
        (&b"APIC"[..], 0)
    );
    let mut entries = &page[madt + 44..madt + len];
    let mut processors = vec![];
    while let [kind, len, ..] = *entries {
        if kind == 0 {
            assert_eq!(u32_at(entries, 4), 1, "enabled");
            processors.push(entries[3]);
        }
        entries = &entries[usize::from(len)..];
    }
    assert_eq!(processors, [0, 1, 2]);
}

#[test]
fn the_processor_enters_the_kernel_as_the_boot_protocol_says() {
    let machine = boot(Guest::new(RAM));
    let [cs, ds, flags] =
        [Register::Cs, Register::Ds, Register::Rflags].map(|register| machine.processor.register(register));
    assert_eq!((cs, ds), (0x10, 0x18), "__BOOT_CS, __BOOT_DS");
    assert_eq!(flags & (1 << 9 | 1 << 10), 0, "interrupts off, direction up");
}

#[test]
fn a_guest_without_an_initrd_boots() {
    let mut guest = Guest::new(RAM);
    guest.initrd.clear();
    guest.hashes.initrd = crate::fixture::expected(&[]);
    guest.staging.initrd.len = 0;
    let machine = boot(guest);
    let page = machine.processor.read(BOOT_PARAMS, 4096);
    assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0, 0));
}

#[test]
fn a_second_processor_at_the_entry_is_parked() {
    let mut machine = boot(Guest::new(RAM));
    let before = machine.processor.read(BOOT_PARAMS, 4096);
    let entry = machine.image.entry;
    assert_eq!(machine.run_from(entry), End::Broken("parked".into()));
    assert_eq!(machine.processor.read(BOOT_PARAMS, 4096), before);
}

#[test]
fn every_staged_byte_is_read_exactly_once() {
    let guest = Guest::new(RAM);
    let (staging, descriptor) = (guest.staging, STAGING_START..STAGING_START + Staging::LEN as u64);
    let files = [staging.kernel, staging.initrd, staging.cmdline].map(|file| file.gpa..file.gpa + file.len);
    let mut machine = guest.machine();
    machine.count_staging_reads();
    assert_eq!(
        machine.run(),
        End::Kernel {
            boot_params: BOOT_PARAMS
        }
    );
    let mut read: Vec<(u64, u32)> = machine.log.staging_reads.drain().collect();
    read.sort();
    let expected: Vec<(u64, u32)> = [descriptor]
        .into_iter()
        .chain(files)
        .flatten()
        .map(|byte| (byte, 1))
        .collect();
    assert!(
        read == expected,
        "{} bytes instead of {}",
        read.len(),
        expected.len()
    );
}

#[test]
fn instructions_grow_with_pages_and_no_faster() {
    let count = |ram, small| {
        let mut guest = Guest::new(ram);
        guest.host.small_pages = small;
        let mut machine = guest.machine();
        machine.count_instructions();
        assert_eq!(
            machine.run(),
            End::Kernel {
                boot_params: BOOT_PARAMS
            }
        );
        (machine.log.instructions, machine.log.pvalidates)
    };
    let [(small, small_pages), (middle, middle_pages), (large, large_pages)] =
        [RAM, GIB, 64 * GIB].map(|ram| count(ram, false));
    let (split, split_pages) = count(RAM, true);
    println!(
        "64 MiB: {small} instructions, {small_pages} PVALIDATE; with 4 KiB pages only: {split}, {split_pages}"
    );
    println!("1 GiB: {middle} instructions, {middle_pages} PVALIDATE");
    println!("64 GiB: {large} instructions, {large_pages} PVALIDATE");
    // What a page costs from 1 GiB to 64 GiB is not more than from 64 MiB to 1 GiB, give or take a batch.
    let per_page = |more: (u64, u64), less: (u64, u64)| (more.0 - less.0) as f64 / (more.1 - less.1) as f64;
    let first = per_page((middle, middle_pages), (small, small_pages));
    let second = per_page((large, large_pages), (middle, middle_pages));
    println!("instructions for each page more: {first:.1}, then {second:.1}");
    assert!(second <= first * 1.1 && second < 100.0);
    assert!(large_pages <= 64 * 512 + 1024);
}
