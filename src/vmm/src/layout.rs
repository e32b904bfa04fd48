//! Where everything lies in the guest's physical address space.
//!
//! ```text
//!          0 ┌───────────────────────────────┐
//!      0x500 │ GDT                           │  read by the vCPU once, at its first segment load
//!     0x7000 │ boot_params ("zero page")     │
//!     0x8ff0 │ boot stack (grows down)       │
//!     0x9000 │ PML4, PDPT, page directory    │  identity map of the first GiB
//!    0x20000 │ kernel command line           │
//!    0x9fc00 ├───────────────────────────────┤  end of conventional RAM in the e820 map
//!    0xf0000 │ MP floating pointer and table │  not RAM for the guest's allocator; found by its scan
//!   0x100000 ├───────────────────────────────┤
//!            │ RAM: kernel at its own        │
//!            │ addresses, initrd at the end  │
//! 0xc0000000 ├───────────────────────────────┤  3 GiB, or the end of RAM if that is lower
//!            │ nothing                       │
//! 0xd0000000 │ virtio-mmio, 4 KiB per device │
//! 0xfec00000 │ I/O APIC                      │
//! 0xfee00000 │ local APIC                    │
//! 0xfffbd000 │ TSS for KVM (3 pages)         │
//!      4 GiB ├───────────────────────────────┤
//!            │ the rest of RAM               │
//!            └───────────────────────────────┘
//! ```

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// Linux' `boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// First stack pointer of the boot vCPU.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top level of the boot page tables.
pub const PML4: u64 = 0x9000;
/// Second level of the boot page tables.
pub const PDPT: u64 = 0xa000;
/// Third level of the boot page tables: 512 pages of 2 MiB.
pub const PAGE_DIRECTORY: u64 = 0xb000;
/// The kernel command line, with a zero byte at its end.
pub const CMDLINE: u64 = 0x20000;
/// Room for the command line with its zero byte, in bytes (Linux' `COMMAND_LINE_SIZE` on x86).
pub const CMDLINE_SIZE: usize = 2048;
/// End of conventional RAM, where a BIOS would have its extended data area.
pub const CONVENTIONAL_END: u64 = 0x9fc00;
/// The Intel MP tables.
pub const MP_TABLE: u64 = 0xf0000;
/// Room for the MP tables, in bytes.
pub const MP_TABLE_SIZE: usize = 0x10000;
/// First address of RAM above the first MiB.
pub const HIGH_RAM: u64 = 0x10_0000;
/// What the boot page tables map: the kernel must lie below.
pub const IDENTITY_MAP_END: u64 = 1 << 30;
/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_MAX: u64 = 3 << 30;
/// RAM that has no room below [`LOW_RAM_MAX`] goes on here.
pub const ABOVE_4G: u64 = 4 << 30;
/// The first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of a virtio-mmio device's window, in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The I/O APIC of KVM.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Interrupt line of the serial port COM1.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt line of the first virtio-mmio device; the others follow.
pub const FIRST_VIRTIO_GSI: u32 = 5;
/// The last input of the I/O APIC.
pub const LAST_GSI: u32 = 23;
/// How many virtio-mmio devices have an interrupt line.
pub const MAX_VIRTIO_DEVICES: usize = (LAST_GSI - FIRST_VIRTIO_GSI + 1) as usize;

/// The last input of the I/O APIC that a guest finds without a table of its own for it: those of a PC's 16 interrupt lines.
pub const LAST_LEGACY_GSI: u32 = 15;
/// How many virtio-mmio devices a guest that starts in a firmware has places for.
pub const FIRMWARE_VIRTIO_DEVICES: usize = (LAST_LEGACY_GSI - FIRST_VIRTIO_GSI + 1) as usize;

/// Size of a page, in bytes.
pub const PAGE: u64 = 4096;
