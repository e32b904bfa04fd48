//! An SNP guest around an emulated processor: memory with a C-bit, the RMP, PVALIDATE, the GHCB MSR and VMGEXIT.
//!
//! ```text
//! stage0's instructions ─► Unicorn ─┬─ TLB miss ────────► walk the measured page tables; private view: RMP entry must be valid
//!                                   ├─ pvalidate ───────► RMP
//!                                   ├─ rdmsr, wrmsr ────► GHCB MSR, SEV_STATUS
//!                                   ├─ vmgexit ─────────► Host (friendly or not)
//!                                   └─ kernel's entry ──► the end
//! physical memory of the emulator: guest-physical address for private pages, from SHARED on for shared ones
//! ```

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::panic::AssertUnwindSafe;

use stage0::abi::{HashPage, LARGE_PAGE, PAGE, STAGING_END, STAGING_START, Staging, segment};

use crate::host::{Host, Moment};
use crate::image::Elf;
use crate::unicorn::{Handle, Processor, Register, TlbEntry};

/// Shared pages are here in the emulator's memory, by their guest-physical address.
pub const SHARED: u64 = 1 << 40;
/// Where stage0 has its shared view of memory.
pub const SHARED_VIEW: u64 = 1 << 39;
const KERNEL_ENTRY: u64 = 0x100_0200;
const MSR_GHCB: u64 = 0xc001_0130;
const MSR_SEV_STATUS: u64 = 0xc001_0131;
const C_BIT: u64 = 1 << 51;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000 & !C_BIT;
const CARRY: u64 = 1;
/// Private RAM that the emulator has behind it: PVALIDATE needs none, and stage0 writes only below 2 GiB.
const BACKED: u64 = 2 << 30;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At the kernel's entry, with this in RSI.
    Kernel { boot_params: u64 },
    /// With a termination request: the GHCB MSR's value.
    Terminated(u64),
    /// With something that a real guest would not survive or not leave.
    Broken(String),
}

/// One RMP entry, of 4 KiB or 2 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RmpEntry {
    /// Assigned to the guest.
    pub private: bool,
    /// Validated by the guest.
    pub valid: bool,
    /// How often it became valid by PVALIDATE.
    pub validations: u32,
    /// Made valid by the launch.
    pub launched: bool,
}

/// What happened, for the tests to look at.
#[derive(Debug, Default)]
pub struct Log {
    /// Page-state change calls through the GHCB, with their number of entries.
    pub page_state_calls: Vec<usize>,
    /// Exceptions that the processor raised: vector and RIP.
    pub exceptions: Vec<(u32, u64)>,
    /// PVALIDATE instructions.
    pub pvalidates: u64,
    /// Instructions, where they are counted; a repeated one counts once.
    pub instructions: u64,
    last: u64,
    /// Reads of each byte of the staging window, where they are counted.
    pub staging_reads: HashMap<u64, u32>,
}

/// The guest.
pub struct Machine {
    pub processor: Processor,
    pub image: &'static Elf,
    pub host: Host,
    /// By (address, is large).
    pub rmp: HashMap<(u64, bool), RmpEntry>,
    pub log: Log,
    pub ghcb_msr: u64,
    pub registered: Option<u64>,
    pub end: Option<End>,
    tables: u64,
}

impl Machine {
    /// A guest as the launch leaves it, with the files staged.
    pub fn new(
        image: &'static Elf,
        hashes: &HashPage,
        staging: &Staging,
        files: &[(u64, &[u8])],
        host: Host,
    ) -> Box<Self> {
        let processor = Processor::new();
        let (start, end) = image.extent();
        processor.map(0, BACKED);
        processor.map(SHARED + start, end - start);
        processor.map(SHARED + STAGING_START, STAGING_END - STAGING_START);
        let mut machine = Box::new(Machine {
            processor,
            image,
            tables: image.segment(segment::LOAD).gpa,
            rmp: HashMap::new(),
            log: Log::default(),
            ghcb_msr: 0,
            registered: None,
            end: None,
            host,
        });
        // What RAM holds before the guest writes to it is the host's choice.
        for page in [0, 0x7000, 0x8000, 0x9000, 0x9f000] {
            machine.processor.write(page, &[0xa5; PAGE as usize]);
        }
        machine.launch(hashes);
        machine.write_shared(STAGING_START, &staging.encode());
        for (gpa, contents) in files {
            machine.write_shared(*gpa, contents);
        }
        machine.hook();
        machine
    }

    fn launch(&mut self, hashes: &HashPage) {
        for segment in &self.image.segments {
            let contents = match segment.kind {
                segment::HASHES => self.host.hash_page.clone().unwrap_or(hashes.encode().to_vec()),
                segment::CPUID => self.host.cpuid_page.clone(),
                segment::SECRETS => vec![0x5e; PAGE as usize],
                _ => segment.contents.clone(),
            };
            self.processor.write(segment.gpa, &contents);
            for gpa in (segment.gpa..segment.gpa + contents.len() as u64).step_by(PAGE as usize) {
                let entry = RmpEntry {
                    private: true,
                    valid: true,
                    launched: true,
                    validations: 0,
                };
                self.rmp.insert((gpa, false), entry);
            }
        }
    }

    /// Stops at each place of the code where the bytes of an instruction that we model begin.
    fn hook(&mut self) {
        let user = (&raw mut *self).cast::<c_void>();
        let code = self.image.segment(segment::LOAD);
        for (offset, bytes) in code.contents.windows(4).enumerate() {
            let hook = match bytes {
                [0xf2, 0x0f, 0x01, 0xff] => on_pvalidate,
                [0xf3, 0x0f, 0x01, 0xd9] => on_vmgexit,
                [0x0f, 0x30, ..] => on_wrmsr,
                [0x0f, 0x32, ..] => on_rdmsr,
                [0x0f, 0xa2, ..] => on_cpuid,
                _ => continue,
            };
            let gpa = code.gpa + offset as u64;
            // SAFETY: the machine is boxed and outlives its processor's runs; hooks are called within `run` alone.
            unsafe { self.processor.hook_code(hook, user, gpa, gpa) };
        }
        // SAFETY: as above.
        unsafe {
            self.processor
                .hook_code(on_kernel, user, KERNEL_ENTRY, KERNEL_ENTRY);
            self.processor.hook_tlb(on_tlb_miss, user);
            self.processor
                .hook_exceptions(on_exception, on_invalid_instruction, user);
        }
    }

    /// Counts instructions from now on, which takes time.
    pub fn count_instructions(&mut self) {
        let user = (&raw mut *self).cast::<c_void>();
        // SAFETY: as in `hook`.
        unsafe { self.processor.hook_code(on_instruction, user, 1, 0) };
    }

    /// Counts how often each byte of the staging window is read from now on.
    pub fn count_staging_reads(&mut self) {
        let user = (&raw mut *self).cast::<c_void>();
        let (first, last) = (SHARED + STAGING_START, SHARED + STAGING_END - 1);
        // SAFETY: as in `hook`. The emulator gives the physical address.
        unsafe { self.processor.hook_reads(on_staging_read, user, first, last) };
    }

    /// Runs from the entry to the end.
    pub fn run(&mut self) -> End {
        let entry = self.image.entry;
        self.run_from(entry)
    }

    /// Runs a processor that starts at `rip`.
    pub fn run_from(&mut self, rip: u64) -> End {
        self.end = None;
        let outcome = self.processor.run(rip, 600);
        self.end.take().unwrap_or_else(|| {
            let at = self.processor.register(Register::Rip);
            End::Broken(format!("emulator stopped with {outcome:?} at {at:#x}"))
        })
    }

    pub fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.processor.stop();
    }

    pub fn broken(&mut self, why: &str) {
        self.finish(End::Broken(why.into()));
    }

    pub fn write_shared(&self, gpa: u64, bytes: &[u8]) {
        self.processor.write(SHARED + gpa, bytes);
    }

    pub fn read_shared(&self, gpa: u64) -> u64 {
        self.processor.read_u64(SHARED + gpa)
    }

    /// The RMP entry for an address and its key, if there is one.
    pub fn rmp_at(&self, gpa: u64) -> Option<((u64, bool), RmpEntry)> {
        let keys = [(gpa & !(PAGE - 1), false), (gpa & !(LARGE_PAGE - 1), true)];
        keys.into_iter()
            .find_map(|key| self.rmp.get(&key).map(|entry| (key, *entry)))
    }

    /// The host assigns a page to the guest, or takes it back: RMPUPDATE. A page that changes hands loses its validity.
    pub fn rmp_update(&mut self, gpa: u64, large: bool, private: bool) {
        let entry = self.rmp.entry((gpa, large)).or_default();
        *entry = RmpEntry {
            private,
            valid: false,
            ..*entry
        };
    }

    fn pvalidate(&mut self, gpa: u64, large: bool, valid: bool) -> (u64, bool) {
        const FAIL_INPUT: u64 = 1;
        const FAIL_SIZEMISMATCH: u64 = 6;
        let size = if large { LARGE_PAGE } else { PAGE };
        if !gpa.is_multiple_of(size) {
            return (FAIL_INPUT, false);
        }
        let Some((key, entry)) = self.rmp_at(gpa) else {
            self.broken(&format!("PVALIDATE of {gpa:#x}, which is not the guest's"));
            return (FAIL_INPUT, false);
        };
        if !entry.private {
            self.broken(&format!("PVALIDATE of {gpa:#x}, which is the host's"));
        }
        if large != key.1 {
            return (FAIL_SIZEMISMATCH, false);
        }
        let entry = self.rmp.get_mut(&key).expect("it was there");
        let unchanged = entry.valid == valid;
        if !unchanged && valid {
            entry.validations += 1;
        }
        entry.valid = valid;
        if !valid {
            self.processor.flush_tlb();
        }
        (0, unchanged)
    }

    /// Walks the guest's page tables, which are always private.
    fn translate(&mut self, address: u64) -> Result<u64, String> {
        let entry = |table: u64, shift: u32| self.processor.read_u64(table + (address >> shift & 511) * 8);
        let top = entry(self.tables, 39);
        if top & 1 == 0 || top & C_BIT == 0 {
            return Err(format!("no page table for {address:#x}"));
        }
        let leaf = entry(top & ADDRESS, 30);
        if leaf & 0x81 != 0x81 {
            return Err(format!("no page of 1 GiB for {address:#x}"));
        }
        let gpa = (leaf & ADDRESS) + (address & ((1 << 30) - 1));
        let rmp = self.rmp_at(gpa).map(|(_, entry)| entry).unwrap_or_default();
        match leaf & C_BIT != 0 {
            true if rmp.private && rmp.valid => Ok(gpa),
            true => Err(format!("private access to {gpa:#x}, which is not valid: #VC")),
            false if rmp.private => Err(format!("shared access to {gpa:#x}, which is private")),
            false => Ok(SHARED + gpa),
        }
    }

    /// The host injects an exception: what the processor does with stage0's interrupt table.
    pub fn inject(&mut self, vector: u64) {
        let table = self.processor.interrupts();
        if (vector * 16 + 15) > table.limit.into() {
            return self.broken("triple fault");
        }
        let [low, high] = [0, 8].map(|half| self.processor.read_u64(table.base + vector * 16 + half));
        assert_eq!(low >> 40 & 0x8f, 0x8e, "present, interrupt gate of privilege 0");
        assert_eq!(low >> 16 & 0xffff, 0x10);
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let frame = self.processor.register(Register::Rsp) & !15;
        self.processor.set(Register::Rsp, frame - 48);
        self.processor.set(Register::Rip, offset);
    }
}

/// # Safety
/// For the hooks: `user` is the machine, and nobody else looks at it while its processor is in a hook.
unsafe fn machine<'m>(user: *mut c_void) -> &'m mut Machine {
    // SAFETY: by the caller.
    unsafe { &mut *user.cast() }
}

unsafe extern "C" fn on_tlb_miss(
    _: Handle,
    address: u64,
    _: c_int,
    result: *mut TlbEntry,
    user: *mut c_void,
) -> bool {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    // The emulator itself looks up where it was told to stop: nowhere.
    if address >= u64::MAX - PAGE {
        return false;
    }
    machine.host_moment(Moment::Access(address));
    match machine.translate(address) {
        Ok(physical) => {
            // SAFETY: the emulator gives an entry to fill in.
            unsafe {
                *result = TlbEntry {
                    physical: physical & !(PAGE - 1),
                    permissions: 7,
                }
            };
            true
        }
        Err(why) => {
            machine.broken(&why);
            false
        }
    }
}

unsafe extern "C" fn on_exception(_: Handle, vector: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    machine
        .log
        .exceptions
        .push((vector, machine.processor.register(Register::Rip)));
    if machine.end.is_none() {
        machine.inject(vector.into());
    }
}

unsafe extern "C" fn on_invalid_instruction(handle: Handle, user: *mut c_void) -> bool {
    const INVALID_OPCODE: u32 = 6;
    // SAFETY: `hook` gave the machine.
    unsafe { on_exception(handle, INVALID_OPCODE, user) };
    true
}

unsafe extern "C" fn on_pvalidate(_: Handle, at: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    let [gpa, size, valid] =
        [Register::Rax, Register::Rcx, Register::Rdx].map(|register| machine.processor.register(register));
    machine.log.pvalidates += 1;
    machine.host_moment(Moment::Pvalidate(gpa));
    let (status, unchanged) = machine.pvalidate(gpa, size as u32 == 1, valid as u32 & 1 == 1);
    let flags = machine.processor.register(Register::Rflags) & !CARRY;
    machine
        .processor
        .set(Register::Rflags, flags | u64::from(unchanged));
    machine.processor.set(Register::Rax, status);
    if machine.end.is_none() {
        machine.processor.set(Register::Rip, at + 4);
    }
}

unsafe extern "C" fn on_wrmsr(_: Handle, at: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    let [number, low, high] =
        [Register::Rcx, Register::Rax, Register::Rdx].map(|register| machine.processor.register(register));
    match number {
        MSR_GHCB => machine.ghcb_msr = high << 32 | low & 0xffff_ffff,
        _ => machine.broken(&format!("write of MSR {number:#x}")),
    }
    machine.processor.set(Register::Rip, at + 2);
}

unsafe extern "C" fn on_rdmsr(_: Handle, at: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    let value = match machine.processor.register(Register::Rcx) {
        MSR_GHCB => machine.ghcb_msr,
        MSR_SEV_STATUS => machine.host.sev_status,
        number => return machine.broken(&format!("read of MSR {number:#x}")),
    };
    machine.processor.set(Register::Rax, value & 0xffff_ffff);
    machine.processor.set(Register::Rdx, value >> 32);
    machine.processor.set(Register::Rip, at + 2);
}

unsafe extern "C" fn on_vmgexit(_: Handle, at: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    // The host's model asserts what a request must be. A panic can't leave a hook.
    if std::panic::catch_unwind(AssertUnwindSafe(|| machine.vmgexit())).is_err() {
        machine.broken("the host took a request for wrong");
    }
    if machine.end.is_none() {
        machine.processor.set(Register::Rip, at + 4);
        machine.host_moment(Moment::AfterExit);
    }
}

unsafe extern "C" fn on_cpuid(_: Handle, _: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    unsafe { machine(user) }.broken("CPUID would raise #VC");
}

unsafe extern "C" fn on_kernel(_: Handle, _: u64, _: u32, user: *mut c_void) {
    // SAFETY: `hook` gave the machine.
    let machine = unsafe { machine(user) };
    let boot_params = machine.processor.register(Register::Rsi);
    machine.finish(End::Kernel { boot_params });
}

unsafe extern "C" fn on_staging_read(_: Handle, _: c_int, at: u64, len: c_int, _: i64, user: *mut c_void) {
    // SAFETY: `count_staging_reads` gave the machine.
    let machine = unsafe { machine(user) };
    for byte in at..at + len as u64 {
        *machine.log.staging_reads.entry(byte - SHARED).or_default() += 1;
    }
}

unsafe extern "C" fn on_instruction(_: Handle, at: u64, _: u32, user: *mut c_void) {
    // SAFETY: `count_instructions` gave the machine.
    let machine = unsafe { machine(user) };
    machine.log.instructions += u64::from(at != machine.log.last);
    machine.log.last = at;
}
