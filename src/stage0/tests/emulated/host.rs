//! The host: how it answers VMGEXIT, and what it does behind the guest's back. By default it is friendly.

use stage0::abi::{LARGE_PAGE, PAGE};

use crate::machine::{End, Machine};

/// When the host gets to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The guest is about to touch a page at this virtual address for the first time.
    Access(u64),
    /// The guest is about to execute PVALIDATE for this address.
    Pvalidate(u64),
    /// The guest goes on after VMGEXIT.
    AfterExit,
}

/// Changes a page-state change while it is served: gets the machine and the address of the shared buffer.
pub type OnPageStateChange = fn(&mut Machine, u64);

/// What the host does at any moment.
pub type Act = Box<dyn FnMut(&mut Machine, Moment)>;

/// What the host says and does.
pub struct Host {
    /// The MSR's value; not even the host can choose it for a real guest.
    pub sev_status: u64,
    /// Protocol versions, least and most.
    pub versions: (u64, u64),
    /// The C-bit's position in the answer to the information request.
    pub c_bit: u64,
    /// Hypervisor features.
    pub features: u64,
    /// Contents of the CPUID page.
    pub cpuid_page: Vec<u8>,
    /// Contents of the hash page, if not the right ones.
    pub hash_page: Option<Vec<u8>>,
    /// Backs large pages by small ones.
    pub small_pages: bool,
    /// Answers a request of the MSR protocol otherwise: gets the request, returns the answer.
    pub msr: Option<fn(u64) -> Option<u64>>,
    /// Instead of serving a page-state change.
    pub page_state: Option<OnPageStateChange>,
    /// After serving a page-state change.
    pub after_page_state: Option<OnPageStateChange>,
    /// Serves this many entries of a page-state change a call.
    pub entries_per_call: usize,
    /// Whatever else.
    pub act: Option<Act>,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            sev_status: 7,
            versions: (1, 2),
            c_bit: 51,
            features: 3,
            cpuid_page: cpuid_page(&[
                [7, 0, 0, 1 << 5, 0, 0],
                [0x8000_001f, 0, 0x1a, 51 | 1 << 6, 100, 0],
            ]),
            hash_page: None,
            small_pages: false,
            msr: None,
            page_state: None,
            after_page_state: None,
            entries_per_call: 253,
            act: None,
        }
    }
}

/// A CPUID page with entries of function, subfunction, EAX, EBX, ECX, EDX.
pub fn cpuid_page(entries: &[[u32; 6]]) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    page[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    for (index, [function, subfunction, registers @ ..]) in entries.iter().enumerate() {
        let at = 16 + index * 48;
        page[at..at + 4].copy_from_slice(&function.to_le_bytes());
        page[at + 4..at + 8].copy_from_slice(&subfunction.to_le_bytes());
        for (register, value) in registers.iter().enumerate() {
            page[at + 24 + register * 4..at + 28 + register * 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    page
}

impl Machine {
    pub fn host_moment(&mut self, moment: Moment) {
        if let Some(mut act) = self.host.act.take() {
            act(self, moment);
            self.host.act.get_or_insert(act);
        }
    }

    /// VMGEXIT: the MSR says whether the request is in itself or in the GHCB.
    pub fn vmgexit(&mut self) {
        let request = self.ghcb_msr;
        if let Some(answer) = self.host.msr.and_then(|msr| msr(request)) {
            self.ghcb_msr = answer;
            return;
        }
        match request & 0xfff {
            0 => self.ghcb_exit(request),
            0x002 => {
                let (min, max) = self.host.versions;
                self.ghcb_msr = max << 48 | min << 32 | self.host.c_bit << 24 | 1;
            }
            0x006 => self.finish(End::Broken("parked".into())),
            0x012 => {
                self.registered = Some(request & !0xfff);
                self.ghcb_msr = request & !0xfff | 0x013;
            }
            0x014 => {
                let gpa = request & 0x000f_ffff_ffff_f000;
                let valid = self.rmp_at(gpa).is_some_and(|(_, entry)| entry.valid);
                assert!(!valid, "{gpa:#x} changes hands while it is valid");
                self.rmp_update(gpa, false, request >> 52 & 0xf == 1);
                self.processor.flush_tlb();
                self.ghcb_msr = 0x015;
            }
            0x080 => self.ghcb_msr = self.host.features << 12 | 0x081,
            0x100 => self.finish(End::Terminated(request)),
            _ => self.broken(&format!("MSR request {request:#x}")),
        }
    }

    fn ghcb_exit(&mut self, ghcb: u64) {
        assert_eq!(self.registered, Some(ghcb), "an unregistered GHCB");
        assert!(
            !self.rmp_at(ghcb).is_some_and(|(_, entry)| entry.private),
            "a private GHCB"
        );
        let field = |offset| self.read_shared(ghcb + offset);
        assert_eq!(field(0xff8), 2 << 16, "protocol version 2, usage 0");
        // SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2, SW_SCRATCH are quadwords 114 to 117.
        assert_eq!(
            [field(0x3f0), field(0x3f8)],
            [0, 0b1111 << (114 - 64)],
            "valid bitmap"
        );
        assert_eq!(field(0x390), 0x8000_0010, "page-state change");
        let buffer = field(0x3a8);
        assert_eq!(buffer, ghcb + 0x800, "the shared buffer");
        self.write_shared(ghcb + 0x398, &0u64.to_le_bytes());
        match self.host.page_state {
            Some(otherwise) => otherwise(self, buffer),
            None => self.page_state_change(buffer),
        }
        if let Some(after) = self.host.after_page_state {
            after(self, buffer);
        }
    }

    pub fn page_state_change(&mut self, buffer: u64) {
        let header = self.read_shared(buffer);
        let (current, end) = ((header & 0xffff) as usize, (header >> 16 & 0xffff) as usize);
        assert!(
            header >> 32 == 0 && current <= end && end < 253,
            "header {header:#x}"
        );
        self.log.page_state_calls.push(end + 1 - current);
        let served = self.host.entries_per_call.min(end + 1 - current);
        for index in current..current + served {
            let entry = self.read_shared(buffer + 8 + index as u64 * 8);
            self.assign(entry);
        }
        self.write_shared(buffer, &((end << 16 | (current + served)) as u64).to_le_bytes());
    }

    /// Writes a field of the GHCB.
    pub fn write_ghcb(&self, offset: u64, value: u64) {
        self.write_shared(self.ghcb_msr + offset, &value.to_le_bytes());
    }

    /// Changes current and last entry in a page-state change's header.
    pub fn set_header(&self, buffer: u64, change: fn(u64, u64) -> (u64, u64)) {
        let header = self.read_shared(buffer);
        let (current, end) = change(header & 0xffff, header >> 16 & 0xffff);
        self.write_shared(buffer, &(end << 16 | current).to_le_bytes());
    }

    fn assign(&mut self, entry: u64) {
        let (gpa, large) = (entry & 0x000f_ffff_ffff_f000, entry >> 56 & 1 == 1);
        assert_eq!(entry & 0xfff, 0, "current page");
        assert_eq!(entry >> 52 & 0xf, 1, "to private");
        assert!(
            !large || gpa.is_multiple_of(LARGE_PAGE),
            "{gpa:#x} is no large page"
        );
        match large && self.host.small_pages {
            true => (gpa..gpa + LARGE_PAGE)
                .step_by(PAGE as usize)
                .for_each(|page| self.rmp_update(page, false, true)),
            false => self.rmp_update(gpa, large, true),
        }
    }
}
