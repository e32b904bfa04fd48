//! Classic BPF for seccomp(2): which verdict for which system call.
//!
//! ```text
//!   architecture not x86-64 ─────────────► foreign
//!   number ── binary search over ranges ─┬► verdict
//!                                        └► case, case, …: all checks hold ─► verdict
//!                                                          none holds      ─► otherwise
//! ```
//!
//! A program is put together from pieces that only jump forward and within themselves, so pieces can be concatenated in any order. A
//! conditional jump reaches 255 instructions; where a piece is longer, an unconditional one with its 32 bits carries on.

use std::collections::BTreeMap;

/// `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does, a combination of `BPF_*`.
    pub code: u16,
    /// How many instructions to skip if the condition holds.
    pub jt: u8,
    /// How many if it doesn't.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

impl Instruction {
    /// As the kernel reads it, on a little-endian machine.
    pub fn to_bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_le_bytes();
        let [k0, k1, k2, k3] = self.k.to_le_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// `BPF_LD | BPF_W | BPF_ABS`: a word of `struct seccomp_data` into the accumulator.
pub const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
pub const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub const JUMP_EQ: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub const JUMP_GT: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub const JUMP_GE: u16 = 0x35;
/// `BPF_RET | BPF_K`.
pub const RETURN: u16 = 0x06;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub const ARCH_X86_64: u32 = 0xc000_003e;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What the kernel does with a call: a `SECCOMP_RET_*` of linux/seccomp.h with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verdict(pub u32);

impl Verdict {
    /// Sorts the verdict that the kernel prefers first (`SECCOMP_RET_ACTION_FULL`, a signed number).
    pub fn strictness(self) -> i32 {
        (self.0 & 0xffff_0000).cast_signed()
    }
}

/// How an argument is compared with a value, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comparison {
    /// Different.
    Ne(u64),
    /// Less.
    Lt(u64),
    /// Less or the same.
    Le(u64),
    /// The same.
    Eq(u64),
    /// The same or greater.
    Ge(u64),
    /// Greater.
    Gt(u64),
    /// The same in the bits of the mask.
    MaskedEq {
        /// Which bits count.
        mask: u64,
        /// Their value.
        value: u64,
    },
}

/// How much of an argument is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// All 64 bits.
    Whole,
    /// The lower 32, of the argument and of the values it is compared with: registers of 32-bit interfaces hold no more.
    Lower,
}

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// What has to hold.
    pub comparison: Comparison,
}

/// What happens to one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Whatever the arguments.
    Always(Verdict),
    /// The first case whose checks all hold; the filter's default if there is none.
    Cases(Width, Vec<(Vec<Check>, Verdict)>),
}

/// Everything a program is made from.
#[derive(Debug, Clone)]
pub struct Filter {
    /// For calls through another architecture's interface.
    pub foreign: Verdict,
    /// For numbers in no entry.
    pub default: Verdict,
    /// By the number as the kernel sees it.
    pub entries: BTreeMap<u32, Entry>,
    /// A stretch of numbers with an entry of its own: first, last, verdict. None of `entries` lies in it.
    pub stretch: Option<(u32, u32, Verdict)>,
}

impl Filter {
    /// The program, however long.
    pub fn compile(&self) -> Vec<Instruction> {
        let mut program = vec![
            load(ARCH),
            branch(JUMP_EQ, ARCH_X86_64, 1, 0),
            give(self.foreign),
            load(NUMBER),
        ];
        let ranges: Vec<_> = self
            .ranges()
            .into_iter()
            .map(|(first, entry)| (first, self.entry(&entry)))
            .collect();
        program.extend(search(&ranges));
        program
    }

    /// All numbers from 0 on, cut where the entry changes: the first number of each piece.
    fn ranges(&self) -> Vec<(u32, Entry)> {
        let mut marks: BTreeMap<u32, Entry> = BTreeMap::from([(0, Entry::Always(self.default))]);
        let singles = self.entries.iter().map(|(n, entry)| (*n, *n, entry.clone()));
        let stretch = self
            .stretch
            .map(|(first, last, verdict)| (first, last, Entry::Always(verdict)));
        for (first, last, entry) in singles.chain(stretch) {
            marks.insert(first, entry);
            if let Some(next) = last.checked_add(1)
                && !self.entries.contains_key(&next)
                && self.stretch.is_none_or(|(first, ..)| first != next)
            {
                marks.insert(next, Entry::Always(self.default));
            }
        }
        let mut ranges: Vec<(u32, Entry)> = Vec::with_capacity(marks.len());
        for (first, entry) in marks {
            if ranges.last().is_none_or(|(_, previous)| *previous != entry) {
                ranges.push((first, entry));
            }
        }
        ranges
    }

    /// The number is known: decides, and returns.
    fn entry(&self, entry: &Entry) -> Vec<Instruction> {
        match entry {
            Entry::Always(verdict) => vec![give(*verdict)],
            Entry::Cases(width, cases) => {
                let mut code = Vec::new();
                for (checks, verdict) in cases {
                    // From the last check to the first: each needs to know how much lies behind it.
                    let mut case = vec![give(*verdict)];
                    for check in checks.iter().rev() {
                        let mut longer = check.compile(*width, case.len());
                        longer.append(&mut case);
                        case = longer;
                    }
                    code.append(&mut case);
                }
                code.push(give(self.default));
                code
            }
        }
    }
}

/// Finds the piece for the number in the accumulator: the last whose first number is not greater.
fn search(pieces: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    let (lower, upper) = match pieces {
        [] => return Vec::new(),
        [(_, only)] => return only.clone(),
        _ => pieces.split_at(pieces.len() / 2),
    };
    let first = upper.first().map_or(0, |(first, _)| *first);
    let (lower, mut upper) = (search(lower), search(upper));
    let mut code = match u8::try_from(lower.len()) {
        Ok(length) => vec![branch(JUMP_GE, first, length, 0)],
        // A program is far shorter than 2^32 instructions.
        Err(_) => vec![branch(JUMP_GE, first, 0, 1), jump(lower.len() as u32)],
    };
    code.extend(lower);
    code.append(&mut upper);
    code
}

impl Check {
    /// The same as far as this width shows it; `None` if it always holds.
    pub fn narrowed(self, width: Width) -> Option<Self> {
        let low = |value: u64| match width {
            Width::Whole => value,
            Width::Lower => value & u64::from(u32::MAX),
        };
        let comparison = match self.comparison {
            Comparison::Ne(value) => Comparison::Ne(low(value)),
            Comparison::Lt(value) => Comparison::Lt(low(value)),
            Comparison::Le(value) => Comparison::Le(low(value)),
            Comparison::Eq(value) => Comparison::Eq(low(value)),
            Comparison::Ge(value) => Comparison::Ge(low(value)),
            Comparison::Gt(value) => Comparison::Gt(low(value)),
            Comparison::MaskedEq { mask, .. } if low(mask) == 0 => return None,
            Comparison::MaskedEq { mask, value } => Comparison::MaskedEq {
                mask: low(mask),
                value: low(value),
            },
        };
        Some(Self { comparison, ..self })
    }

    /// Code that goes on behind itself if the check holds, and skips the `rest` instructions there if it doesn't.
    ///
    /// `rest` is at most five checks of six instructions and a verdict, so that every sum below fits a conditional jump.
    fn compile(&self, width: Width, rest: usize) -> Vec<Instruction> {
        let rest = u8::try_from(rest).expect("a case has at most six checks");
        let word = ARGUMENTS + 8 * u32::from(self.argument);
        let (low, high) = (load(word), load(word + 4));
        let halves = |value: u64| (value as u32, (value >> 32) as u32);
        let skip = |code, value, jt, jf| branch(code, value, jt, jf);
        if width == Width::Lower {
            return match self.comparison {
                Comparison::Eq(v) => vec![low, skip(JUMP_EQ, v as u32, 0, rest)],
                Comparison::Ne(v) => vec![low, skip(JUMP_EQ, v as u32, rest, 0)],
                Comparison::Gt(v) => vec![low, skip(JUMP_GT, v as u32, 0, rest)],
                Comparison::Ge(v) => vec![low, skip(JUMP_GE, v as u32, 0, rest)],
                Comparison::Lt(v) => vec![low, skip(JUMP_GE, v as u32, rest, 0)],
                Comparison::Le(v) => vec![low, skip(JUMP_GT, v as u32, rest, 0)],
                Comparison::MaskedEq { mask, value } => masked(low, mask as u32, value as u32, rest),
            };
        }
        // Greater if the upper half is; if it is the same the lower half decides.
        let greater = |code, value| {
            let (l, h) = halves(value);
            vec![
                high,
                skip(JUMP_GT, h, 3, 0),
                skip(JUMP_EQ, h, 0, 2 + rest),
                low,
                skip(code, l, 0, rest),
            ]
        };
        let not_greater = |code, value| {
            let (l, h) = halves(value);
            vec![
                high,
                skip(JUMP_GT, h, 3 + rest, 0),
                skip(JUMP_EQ, h, 0, 2),
                low,
                skip(code, l, rest, 0),
            ]
        };
        match self.comparison {
            Comparison::Eq(value) => {
                let (l, h) = halves(value);
                let upper = skip(JUMP_EQ, h, 0, 2 + rest);
                vec![high, upper, low, skip(JUMP_EQ, l, 0, rest)]
            }
            Comparison::Ne(value) => {
                let (l, h) = halves(value);
                vec![high, skip(JUMP_EQ, h, 0, 2), low, skip(JUMP_EQ, l, rest, 0)]
            }
            Comparison::Gt(value) => greater(JUMP_GT, value),
            Comparison::Ge(value) => greater(JUMP_GE, value),
            Comparison::Lt(value) => not_greater(JUMP_GE, value),
            Comparison::Le(value) => not_greater(JUMP_GT, value),
            Comparison::MaskedEq { mask, value } => {
                let ((ml, mh), (vl, vh)) = (halves(mask), halves(value));
                let mut code = masked(low, ml, vl, rest);
                let mut upper = masked(high, mh, vh, rest + code.len() as u8);
                upper.append(&mut code);
                upper
            }
        }
    }
}

/// Compares the bits of one half; nothing at all if there are none to compare.
fn masked(load: Instruction, mask: u32, value: u32, rest: u8) -> Vec<Instruction> {
    match mask {
        0 => Vec::new(),
        u32::MAX => vec![load, branch(JUMP_EQ, value, 0, rest)],
        _ => {
            let and = Instruction {
                code: AND,
                jt: 0,
                jf: 0,
                k: mask,
            };
            vec![load, and, branch(JUMP_EQ, value & mask, 0, rest)]
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

fn branch(code: u16, value: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code,
        jt,
        jf,
        k: value,
    }
}

fn jump(length: u32) -> Instruction {
    Instruction {
        code: JUMP,
        jt: 0,
        jf: 0,
        k: length,
    }
}

fn give(verdict: Verdict) -> Instruction {
    Instruction {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: verdict.0,
    }
}

#[cfg(test)]
#[path = "bpf_test.rs"]
pub(super) mod tests;
