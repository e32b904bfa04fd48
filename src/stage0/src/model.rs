//! A platform for unit tests: shared memory as words, a host that is a closure, and a record of PVALIDATE. Private memory it has
//! none: what works on that is tested with the real image (`tests/emulated`).

use std::collections::HashMap;

use crate::platform::{PageSize, Platform, Pvalidate};

/// What the host does at VMGEXIT: gets the words of shared memory and the number of calls before this one.
type OnExit<'a> = Box<dyn FnMut(&mut HashMap<u64, u64>, usize) + 'a>;

/// The platform.
pub struct Model<'a> {
    /// Shared memory, by address.
    pub shared: HashMap<u64, u64>,
    /// Page-state changes and PVALIDATE, in order.
    pub assigned: Vec<(u64, PageSize)>,
    pub validated: Vec<(u64, PageSize)>,
    /// Answers PVALIDATE.
    pub pvalidate: Box<dyn FnMut(u64, PageSize) -> Pvalidate + 'a>,
    /// Serves VMGEXIT.
    pub on_exit: OnExit<'a>,
    pub exits: usize,
    /// Answers the MSR protocol.
    pub msr: Box<dyn FnMut(u64) -> u64 + 'a>,
}

pub const GHCB: u64 = 0x10_8000;
const BUFFER: u64 = GHCB + 0x800;

/// Serves a page-state change to its end.
pub fn serve(shared: &mut HashMap<u64, u64>) {
    let end = shared[&BUFFER] >> 16;
    shared.insert(BUFFER, end << 16 | (end + 1));
}

impl Default for Model<'_> {
    fn default() -> Self {
        Model {
            shared: HashMap::new(),
            assigned: vec![],
            validated: vec![],
            pvalidate: Box::new(|_, _| Pvalidate::Changed),
            on_exit: Box::new(|shared, _| serve(shared)),
            exits: 0,
            msr: Box::new(|request| request),
        }
    }
}

impl Platform for Model<'_> {
    fn sev_status(&mut self) -> u64 {
        7
    }

    fn msr_protocol(&mut self, request: u64) -> u64 {
        (self.msr)(request)
    }

    fn vmgexit(&mut self, ghcb: u64) {
        assert_eq!(ghcb, GHCB);
        let header = self.shared[&BUFFER];
        for index in header & 0xffff..=header >> 16 {
            let entry = self.shared[&(BUFFER + 8 + index * 8)];
            let size = if entry >> 56 == 1 {
                PageSize::Large
            } else {
                PageSize::Small
            };
            self.assigned.push((entry & 0x000f_ffff_ffff_f000, size));
        }
        (self.on_exit)(&mut self.shared, self.exits);
        self.exits += 1;
    }

    fn pvalidate(&mut self, gpa: u64, size: PageSize, valid: bool) -> Pvalidate {
        assert!(valid);
        let outcome = (self.pvalidate)(gpa, size);
        if outcome == Pvalidate::Changed {
            self.validated.push((gpa, size));
        }
        outcome
    }

    fn read_shared(&mut self, gpa: u64) -> u64 {
        self.shared.get(&gpa).copied().unwrap_or(0)
    }

    fn write_shared(&mut self, gpa: u64, value: u64) {
        self.shared.insert(gpa, value);
    }

    fn copy_from_shared(&mut self, _: u64, _: u64, _: u64) {
        unreachable!("no private memory")
    }

    fn move_private(&mut self, _: u64, _: u64, _: u64) {
        unreachable!("no private memory")
    }

    fn private(&mut self, _: u64, _: usize) -> &mut [u8] {
        unreachable!("no private memory")
    }
}
