//! Hostile hosts. Each does one thing that a friendly one does not, and the guest must end with the termination that says so.

use stage0::Termination as T;
use stage0::abi::{HashPage, PAGE, STAGING_END, STAGING_START, segment};

use crate::fixture::{Guest, RAM, caught, ends_with, expected, kernel, put};
use crate::host::{Moment, cpuid_page};
use crate::image::Elf;
use crate::machine::{End, Machine, SHARED_VIEW};

/// The RMP entry of a page of RAM that every guest has.
const VICTIM: u64 = 0x40_0000;
/// The leaf that says where the C-bit is.
const ENCRYPTION: [u32; 6] = [0x8000_001f, 0, 0x1a, 51 | 1 << 6, 100, 0];

/// Calls `act` at the first moment for which `when` holds.
fn once(
    when: impl Fn(&Machine, Moment) -> bool + 'static,
    act: impl Fn(&mut Machine) + 'static,
) -> crate::host::Act {
    let mut done = false;
    Box::new(move |machine, moment| {
        if !done && when(machine, moment) {
            done = true;
            act(machine);
        }
    })
}

// ---- Is this SNP? -------------------------------------------------------------------------------------------------------

#[test]
fn a_guest_without_snp_ends() {
    for status in [0, 1, 3, 5, 6] {
        caught(T::NotSnp, |guest| guest.host.sev_status = status);
    }
}

#[test]
fn features_that_move_the_line_between_private_and_shared_are_refused() {
    for bit in 3..7 {
        caught(T::SevFeatures, |guest| guest.host.sev_status |= 1 << bit);
    }
}

// ---- GHCB protocol ------------------------------------------------------------------------------------------------------

#[test]
fn hosts_of_other_protocol_versions_are_refused() {
    for versions in [(1, 1), (3, 4), (0, 0), (2, 1), (0xffff, 0)] {
        caught(T::GhcbVersion, |guest| guest.host.versions = versions);
    }
}

#[test]
fn an_answer_to_another_request_is_refused() {
    caught(T::GhcbProtocol, |guest| {
        guest.host.msr = Some(|request| (request == 2).then_some(0x0002_0001_3300_0005))
    });
    caught(T::GhcbProtocol, |guest| {
        guest.host.msr = Some(|request| (request == 0x80).then_some(0x3013))
    });
    caught(T::GhcbProtocol, |guest| {
        guest.host.msr = Some(|request| (request & 0xfff == 0x14).then_some(request));
    });
}

#[test]
fn a_host_that_answers_nothing_is_refused() {
    caught(T::GhcbProtocol, |guest| {
        guest.host.msr = Some(|request| (request & 0xfff != 0x100).then_some(request))
    });
}

#[test]
fn a_host_without_snp_features_is_refused() {
    for features in [0, 1, 2, !3 & 0xffff] {
        caught(T::HostFeatures, |guest| guest.host.features = features);
    }
}

#[test]
fn a_ghcb_registered_elsewhere_is_refused() {
    caught(T::GhcbRegistration, |guest| {
        guest.host.msr = Some(|request| (request & 0xfff == 0x12).then_some((request & !0xfff) + 0x1013));
    });
    // The specification's answer of a host that does not like the address.
    caught(T::GhcbRegistration, |guest| {
        guest.host.msr = Some(|request| (request & 0xfff == 0x12).then_some(0x000f_ffff_ffff_f013));
    });
}

#[test]
fn a_host_that_does_not_share_the_ghcb_is_refused() {
    caught(T::GhcbPage, |guest| {
        guest.host.msr = Some(|request| (request & 0xfff == 0x14).then_some(1 << 32 | 0x15));
    });
}

#[test]
fn a_ghcb_page_that_was_never_validated_is_refused() {
    let mut guest = Guest::new(RAM);
    guest.host.act = Some(once(
        |machine, moment| moment == Moment::Pvalidate(machine.image.ghcb()),
        |machine| machine.rmp_update(machine.image.ghcb(), false, true),
    ));
    ends_with(guest, T::GhcbPage);
}

// ---- C-bit and CPUID page -------------------------------------------------------------------------------------------------

#[test]
fn a_c_bit_elsewhere_is_refused_whoever_says_so() {
    for bit in [0, 47, 50, 52, 255] {
        caught(T::CBit, |guest| guest.host.c_bit = bit);
    }
    for ebx in [0, 47, 50, 63] {
        caught(T::CBit, |guest| {
            guest.host.cpuid_page = cpuid_page(&[[0x8000_001f, 0, 0x1a, ebx, 0, 0]]);
        });
    }
}

#[test]
fn a_cpuid_page_with_an_impossible_count_is_refused() {
    for count in [0, 65, 85, 86, 0x8000_0000, u32::MAX] {
        caught(T::CpuidCount, |guest| {
            put(&mut guest.host.cpuid_page, 0, &count.to_le_bytes())
        });
    }
}

#[test]
fn a_full_cpuid_page_is_taken() {
    let mut entries = vec![[1, 0, 0, 0, 0, 0]; 63];
    entries.push(ENCRYPTION);
    let mut guest = Guest::new(RAM);
    guest.host.cpuid_page = cpuid_page(&entries);
    assert!(matches!(guest.machine().run(), End::Kernel { .. }));
}

#[test]
fn a_forged_cpuid_page_is_refused() {
    // The leaf is absent, of another subfunction, or beyond the count.
    caught(T::CpuidContents, |guest| {
        guest.host.cpuid_page = cpuid_page(&[[7, 0, 0, 0, 0, 0]])
    });
    caught(T::CpuidContents, |guest| {
        guest.host.cpuid_page = cpuid_page(&[[0x8000_001f, 1, 0x1a, 51, 0, 0]])
    });
    caught(T::CpuidContents, |guest| {
        guest.host.cpuid_page = cpuid_page(&[[7, 0, 0, 0, 0, 0], ENCRYPTION]);
        guest.host.cpuid_page[0] = 1;
    });
    // It denies SEV, SEV-ES or SNP.
    for bit in [1, 3, 4] {
        caught(T::CpuidContents, |guest| {
            guest.host.cpuid_page = cpuid_page(&[[0x8000_001f, 0, 0x1a & !(1 << bit), 51, 0, 0]]);
        });
    }
    // A reserved field is set.
    caught(T::CpuidContents, |guest| {
        put(&mut guest.host.cpuid_page, 16 + 40, &[1])
    });
}

#[test]
fn a_processor_that_lacks_the_sha_extensions_its_cpuid_page_has_ends_the_guest() {
    // The emulated processor has none, so the instruction is unknown to it.
    caught(T::Exception, |guest| {
        guest.host.cpuid_page = cpuid_page(&[[7, 0, 0, 1 << 29, 0, 0], ENCRYPTION]);
    });
}

// ---- Page-state changes -----------------------------------------------------------------------------------------------------

#[test]
fn a_refused_page_state_change_ends_the_guest() {
    // Invalid header, invalid entry, and "try again" without having done anything.
    let errors: [crate::host::OnPageStateChange; 4] = [
        |machine, _| machine.write_ghcb(0x3a0, 1 << 32),
        |machine, _| machine.write_ghcb(0x3a0, 2 << 32 | 3),
        |machine, _| machine.write_ghcb(0x3a0, 0x100 << 32),
        |machine, _| machine.write_ghcb(0x3a0, 1),
    ];
    for error in errors {
        caught(T::PageStateChange, |guest| guest.host.page_state = Some(error));
    }
}

#[test]
fn a_host_that_asks_for_an_exception_instead_is_refused() {
    caught(T::HostException, |guest| {
        guest.host.page_state = Some(|machine, _| {
            machine.write_ghcb(0x398, 1);
            machine.write_ghcb(0x3a0, 0x8000_000d);
        });
    });
}

#[test]
fn a_host_that_never_completes_ends_the_guest() {
    caught(T::PageStateProgress, |guest| {
        guest.host.page_state = Some(|_, _| ())
    });
}

#[test]
fn a_host_that_goes_back_ends_the_guest() {
    caught(T::PageStateProgress, |guest| {
        guest.host.entries_per_call = 50;
        guest.host.after_page_state = Some(|machine, buffer| {
            if machine.log.page_state_calls.len() == 2 {
                machine.set_header(buffer, |current, end| (current - 60, end));
            }
        });
    });
}

#[test]
fn a_host_that_lies_about_the_index_is_caught() {
    caught(T::PageStateHeader, |guest| {
        guest.host.after_page_state =
            Some(|machine, buffer| machine.set_header(buffer, |current, end| (current + 1, end)));
    });
    caught(T::PageStateHeader, |guest| {
        guest.host.after_page_state =
            Some(|machine, buffer| machine.set_header(buffer, |_, end| (0xffff, end)));
    });
}

#[test]
fn a_host_that_shortens_the_change_is_caught() {
    caught(T::PageStateHeader, |guest| {
        guest.host.after_page_state =
            Some(|machine, buffer| machine.set_header(buffer, |_, end| (1, end - 252)));
    });
}

#[test]
fn a_host_that_says_done_and_did_nothing_gets_no_further() {
    // PVALIDATE of a page that is not the guest's exits to the host, which has nothing to answer but to assign it.
    let mut guest = Guest::new(RAM);
    guest.host.page_state = Some(|machine, buffer| machine.set_header(buffer, |_, end| (end + 1, end)));
    let end = guest.machine().run();
    assert!(
        matches!(&end, End::Broken(why) if why.starts_with("PVALIDATE of 0x0,")),
        "{end:?}"
    );
}

#[test]
fn a_host_that_rewrites_the_entries_changes_nothing() {
    // The entries are the host's to read; what is validated comes from stage0's own list.
    let mut guest = Guest::new(RAM);
    guest.host.after_page_state = Some(|machine, buffer| {
        for index in 0..253 {
            machine.write_shared(
                buffer + 8 + index * 8,
                &(VICTIM | 1 << 52 | 1 << 56).to_le_bytes(),
            );
        }
    });
    assert!(matches!(guest.machine().run(), End::Kernel { .. }));
}

// ---- The RMP ------------------------------------------------------------------------------------------------------------------

#[test]
fn memory_that_is_valid_already_is_an_attack() {
    // The host maps a page that the guest has validated at another address, with its large page or with a small one.
    for (gpa, large) in [(VICTIM, true), (0x3000, false)] {
        let mut guest = Guest::new(RAM);
        guest.host.act = Some(once(
            move |_, moment| moment == Moment::Pvalidate(gpa),
            move |machine| machine.rmp.get_mut(&(gpa, large)).expect("assigned").valid = true,
        ));
        ends_with(guest, T::AlreadyValid);
    }
}

#[test]
fn one_valid_small_page_among_those_of_a_large_one_is_an_attack() {
    let mut guest = Guest::new(RAM);
    guest.host.small_pages = true;
    guest.host.act = Some(once(
        |_, moment| moment == Moment::Pvalidate(VICTIM),
        |machine| {
            machine
                .rmp
                .get_mut(&(VICTIM + 17 * PAGE, false))
                .expect("assigned")
                .valid = true
        },
    ));
    ends_with(guest, T::AlreadyValid);
}

#[test]
fn a_small_page_in_a_large_mapping_is_refused() {
    // The host merges what the guest asked for as small pages: PVALIDATE says that sizes differ and there is nothing smaller.
    let mut guest = Guest::new(RAM);
    guest.host.act = Some(once(
        |_, moment| moment == Moment::Pvalidate(0),
        |machine| {
            machine
                .rmp
                .retain(|&(gpa, _), entry| entry.launched || gpa >= 0x20_0000);
            machine.rmp_update(0, true, true);
        },
    ));
    ends_with(guest, T::PageNotValidated);
}

#[test]
fn a_validated_page_that_the_host_takes_back_is_noticed_at_the_next_use() {
    // The kernel's place is given to the host after it was validated: the first private access raises #VC.
    let mut guest = Guest::new(RAM);
    guest.host.act = Some(once(
        |_, moment| moment == Moment::Pvalidate(RAM - 0x20_0000),
        |machine| machine.rmp_update(0x100_0000, true, true),
    ));
    let end = guest.machine().run();
    assert!(
        matches!(&end, End::Broken(why) if why.contains("private access to 0x1000000")),
        "{end:?}"
    );
}

#[test]
fn an_injected_exception_ends_the_guest() {
    // #VC as WeSee injects it, #HV, a page fault, NMI, a divide error.
    for vector in [29, 28, 14, 2, 0] {
        let mut guest = Guest::new(RAM);
        guest.host.act = Some(once(
            |_, moment| moment == Moment::AfterExit,
            move |machine| machine.inject(vector),
        ));
        ends_with(guest, T::Exception);
    }
}

#[test]
fn an_injected_interrupt_finds_no_entry() {
    // int 0x80 as Heckler injects it: there is no such entry, which ends the guest by a triple fault.
    let mut guest = Guest::new(RAM);
    guest.host.act = Some(once(
        |_, moment| moment == Moment::AfterExit,
        |machine| machine.inject(0x80),
    ));
    assert_eq!(guest.machine().run(), End::Broken("triple fault".into()));
}

// ---- What was measured ----------------------------------------------------------------------------------------------------------

#[test]
fn another_kernel_is_refused() {
    caught(T::KernelHash, |guest| {
        let last = guest.kernel.len() - 1;
        guest.kernel[last] ^= 1;
    });
    caught(T::KernelHash, |guest| guest.kernel[0x202] ^= 1);
    caught(T::KernelHash, |guest| guest.kernel.fill(0));
}

#[test]
fn another_initrd_is_refused() {
    caught(T::InitrdHash, |guest| guest.initrd[5000] ^= 0x80);
}

#[test]
fn another_command_line_is_refused() {
    caught(T::CmdlineHash, |guest| guest.cmdline[0] = b'C');
}

#[test]
fn swapped_files_are_refused() {
    caught(T::InitrdLength, |guest| {
        guest.staging.initrd.len = guest.staging.cmdline.len
    });
    caught(T::InitrdHash, |guest| {
        // An initrd of another release, as long as this one.
        guest.initrd = guest.initrd.iter().rev().copied().collect();
    });
}

#[test]
fn other_lengths_than_the_measured_are_refused() {
    for change in [1, u64::MAX] {
        caught(T::KernelLength, |guest| {
            guest.staging.kernel.len = guest.staging.kernel.len.wrapping_add(change)
        });
        caught(T::InitrdLength, |guest| {
            guest.staging.initrd.len = guest.staging.initrd.len.wrapping_add(change)
        });
        caught(T::CmdlineLength, |guest| {
            guest.staging.cmdline.len = guest.staging.cmdline.len.wrapping_add(change)
        });
    }
    caught(T::KernelLength, |guest| guest.staging.kernel.len = 0);
}

#[test]
fn another_hash_page_is_refused() {
    for page in [vec![0; 4096], vec![0xff; 4096]] {
        caught(T::HashPage, |guest| guest.host.hash_page = Some(page));
    }
    caught(T::HashPage, |guest| {
        let mut page = guest.hashes.encode().to_vec();
        page[4095] = 1;
        guest.host.hash_page = Some(page);
    });
    // One that is well-formed changes the launch digest; here it just does not fit the files.
    caught(T::KernelLength, |guest| {
        guest.host.hash_page = Some(HashPage::default().encode().to_vec())
    });
}

#[test]
fn a_file_that_changes_after_it_was_copied_changes_nothing() {
    // As soon as stage0 reads the initrd, the kernel's staging is overwritten: the private copy is what is entered.
    let mut guest = Guest::new(RAM);
    let code = guest.kernel[crate::fixture::SETUP..].to_vec();
    guest.host.act = Some(once(
        |_, moment| moment == Moment::Access(SHARED_VIEW + STAGING_START + 2048 * PAGE),
        |machine| machine.write_shared(STAGING_START + PAGE, &[0xcc; 4096]),
    ));
    let mut machine = guest.machine();
    assert!(matches!(machine.run(), End::Kernel { .. }));
    assert_eq!(machine.processor.read(0x100_0000, code.len()), code);
}

// ---- Staging descriptor -----------------------------------------------------------------------------------------------------------

#[test]
fn staging_outside_its_window_is_refused() {
    let image = Elf::confidential();
    let secrets = image.segment(segment::SECRETS).gpa;
    let places = [
        0,
        0x10_0000,
        image.entry,
        secrets,
        0x100_0000,
        STAGING_START - PAGE,
        STAGING_START,
        STAGING_START + 71,
    ];
    for gpa in places.into_iter().chain([
        STAGING_END - PAGE,
        STAGING_END,
        0xfee0_0000,
        4 << 30,
        u64::MAX - 100,
    ]) {
        caught(T::StagingRange, |guest| guest.staging.kernel.gpa = gpa);
    }
    caught(T::StagingRange, |guest| guest.staging.initrd.gpa = secrets);
    caught(T::StagingRange, |guest| guest.staging.cmdline.gpa = secrets);
}

#[test]
fn overlapping_staging_is_refused() {
    caught(T::StagingOverlap, |guest| {
        guest.staging.initrd.gpa = guest.staging.kernel.gpa + 100
    });
    caught(T::StagingOverlap, |guest| {
        guest.staging.cmdline.gpa = guest.staging.initrd.gpa
    });
    caught(T::StagingOverlap, |guest| {
        guest.staging.kernel.gpa = guest.staging.cmdline.gpa - 10
    });
}

#[test]
fn a_descriptor_of_another_format_is_refused() {
    for at in [0, 7, 8, 11] {
        let mut guest = Guest::new(RAM);
        guest.host.act = Some(once(
            |_, moment| moment == Moment::Access(SHARED_VIEW + STAGING_START),
            move |machine| machine.write_shared(STAGING_START + at, &[0xee]),
        ));
        ends_with(guest, T::StagingFormat);
    }
}

#[test]
fn lies_about_ram_are_refused() {
    // Nothing, less than the image, its end within the image, no whole pages, too much, and overflowing.
    for ram in [
        0,
        PAGE,
        0x10_0000,
        0x10_8000,
        RAM - PAGE,
        RAM + 1,
        (511 << 30) + PAGE,
        1 << 40,
        u64::MAX,
        !0xfff,
    ] {
        caught(T::RamSize, |guest| guest.staging.ram = ram);
    }
}

#[test]
fn more_ram_than_there_is_ends_the_guest() {
    caught(T::PageStateChange, |guest| {
        guest.staging.ram = 4 << 30;
        guest.host.page_state = Some(|machine, buffer| {
            // The host has 1 GiB: it refuses the first entry beyond.
            let beyond = machine.read_shared(buffer + 8 + 252 * 8) & 0x000f_ffff_ffff_f000 >= 1 << 30;
            match beyond {
                true => machine.write_ghcb(0x3a0, 2 << 32),
                false => machine.page_state_change(buffer),
            }
        });
    });
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    for vcpus in [0, 255, 256, u32::MAX] {
        caught(T::VcpuCount, |guest| guest.staging.vcpus = vcpus);
    }
}

#[test]
fn a_descriptor_that_changes_while_it_is_used_is_used_as_it_was() {
    // Once the first page-state change comes, the descriptor has been read: from then on it lies.
    let mut guest = Guest::new(RAM);
    guest.host.after_page_state = Some(|machine, _| machine.write_shared(STAGING_START, &[0xff; 72]));
    let mut machine = guest.machine();
    assert!(matches!(machine.run(), End::Kernel { .. }));
}

// ---- The kernel's header: whoever measured it made a mistake -------------------------------------------------------------------

/// Measures a kernel in which `change` was done, and boots it.
#[track_caller]
fn refused_kernel(termination: T, change: impl FnOnce(&mut Vec<u8>)) {
    let mut file = kernel();
    change(&mut file);
    ends_with(Guest::with_kernel(RAM, file), termination);
}

#[test]
fn what_is_no_bzimage_is_refused() {
    refused_kernel(T::KernelFormat, |file| put(file, 0x1fe, &[0, 0]));
    refused_kernel(T::KernelFormat, |file| put(file, 0x202, b"HdrT"));
    refused_kernel(T::KernelFormat, |file| file.truncate(0x263));
    refused_kernel(T::KernelFormat, Vec::clear);
    refused_kernel(T::KernelFormat, |file| {
        file.splice(..0x206, *b"\x7fELF").for_each(drop)
    });
    // The header's end runs over boot_params' next field, or lies before its own last one.
    refused_kernel(T::KernelFormat, |file| put(file, 0x201, &[0x90]));
    refused_kernel(T::KernelFormat, |file| put(file, 0x201, &[0x10]));
}

#[test]
fn kernels_without_the_64_bit_entry_are_refused() {
    refused_kernel(T::KernelProtocol, |file| {
        put(file, 0x206, &0x20bu16.to_le_bytes())
    });
    refused_kernel(T::KernelProtocol, |file| put(file, 0x236, &[0x3e]));
    refused_kernel(T::KernelProtocol, |file| put(file, 0x211, &[0]));
}

#[test]
fn truncated_kernels_are_refused() {
    refused_kernel(T::KernelTruncated, |file| file.truncate(file.len() - 16));
    refused_kernel(T::KernelTruncated, |file| {
        put(file, 0x1f4, &u32::MAX.to_le_bytes())
    });
    refused_kernel(T::KernelTruncated, |file| put(file, 0x1f1, &[0xff]));
    refused_kernel(T::KernelTruncated, |file| {
        file.truncate(crate::fixture::SETUP + 0x200)
    });
}

#[test]
fn kernels_for_other_addresses_are_refused() {
    refused_kernel(T::KernelAddress, |file| {
        put(file, 0x258, &0x200_0000u64.to_le_bytes())
    });
    refused_kernel(T::KernelAddress, |file| put(file, 0x258, &u64::MAX.to_le_bytes()));
    refused_kernel(T::KernelAddress, |file| {
        put(file, 0x230, &0x400_0000u32.to_le_bytes())
    });
    refused_kernel(T::KernelAddress, |file| put(file, 0x230, &0u32.to_le_bytes()));
    refused_kernel(T::KernelAddress, |file| {
        put(file, 0x230, &0x30_0000u32.to_le_bytes())
    });
    refused_kernel(T::KernelAddress, |file| {
        put(file, 0x234, &[0]);
        put(file, 0x258, &0x10_0000u64.to_le_bytes());
    });
}

#[test]
fn kernels_that_need_more_memory_than_there_is_are_refused() {
    for size in [u32::MAX, 0x8000_0000, (RAM - 0x100_0000) as u32] {
        refused_kernel(T::KernelInitSize, |file| put(file, 0x260, &size.to_le_bytes()));
    }
    refused_kernel(T::KernelInitSize, |file| put(file, 0x260, &0u32.to_le_bytes()));
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    refused_kernel(T::KernelCmdline, |file| put(file, 0x238, &10u32.to_le_bytes()));
}

#[test]
fn a_command_line_longer_than_a_page_is_refused() {
    let mut guest = Guest::new(RAM);
    guest.cmdline = vec![b'x'; 4096];
    guest.hashes.cmdline = expected(&guest.cmdline);
    guest.staging.cmdline.len = 4096;
    ends_with(guest, T::CmdlineLength);
}

#[test]
fn files_that_do_not_fit_into_ram_are_refused() {
    for (kernel, initrd) in [
        (10_000, RAM),
        (10_000, RAM - 0x100_0000),
        (RAM, 10_000),
        (0x180_0000, 0x180_1000),
    ] {
        let mut guest = Guest::new(RAM);
        (guest.hashes.kernel.len, guest.hashes.initrd.len) = (kernel, initrd);
        guest.staging.kernel.len = kernel;
        guest.staging.initrd.gpa = STAGING_START + PAGE + kernel;
        guest.staging.initrd.len = initrd;
        guest.staging.cmdline.gpa = guest.staging.initrd.gpa + initrd;
        ends_with(guest, T::NoRoom);
    }
    // The kernel can't reach an initrd at the end of RAM.
    refused_kernel(T::NoRoom, |file| put(file, 0x22c, &0x37f_ffffu32.to_le_bytes()));
}
