use super::*;
use proptest::prelude::*;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: u32,
    pub arch: u32,
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let argument = |offset: u32| {
            let value = self.arguments[(offset / 8) as usize];
            if offset.is_multiple_of(8) {
                value as u32
            } else {
                (value >> 32) as u32
            }
        };
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(4) => argument(offset - 16),
            _ => panic!("the kernel refuses a load from {offset}"),
        }
    }
}

/// Runs a program as the kernel does, with its checks: jumps stay inside and there is always a return.
pub fn interpret(program: &[Instruction], call: &Call) -> Verdict {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump_if = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            LOAD => accumulator = call.word(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQ => jump_if(accumulator == k),
            JUMP_GT => jump_if(accumulator > k),
            JUMP_GE => jump_if(accumulator >= k),
            RETURN => return Verdict(k),
            _ => panic!("no instruction {code:#x}"),
        }
    }
}

/// No path of a program leaves it, and none reads what is not there: what the kernel checks when it loads one.
pub fn check(program: &[Instruction]) {
    for (at, instruction) in program.iter().enumerate() {
        let rest = program.len() - at - 1;
        match instruction.code {
            LOAD => assert!(instruction.k < 64 && instruction.k.is_multiple_of(4)),
            JUMP => assert!((instruction.k as usize) < rest),
            JUMP_EQ | JUMP_GT | JUMP_GE => assert!(usize::from(instruction.jt.max(instruction.jf)) < rest),
            _ => {}
        }
    }
    assert_eq!(program.last().map(|last| last.code), Some(RETURN));
}

fn holds(check: &Check, width: Width, arguments: &[u64; 6]) -> bool {
    let low = |value: u64| match width {
        Width::Whole => value,
        Width::Lower => value & 0xffff_ffff,
    };
    let argument = low(arguments[usize::from(check.argument)]);
    match check.comparison {
        Comparison::Ne(value) => argument != low(value),
        Comparison::Lt(value) => argument < low(value),
        Comparison::Le(value) => argument <= low(value),
        Comparison::Eq(value) => argument == low(value),
        Comparison::Ge(value) => argument >= low(value),
        Comparison::Gt(value) => argument > low(value),
        Comparison::MaskedEq { mask, value } => argument & low(mask) == low(value) & low(mask),
    }
}

/// What a filter says, without compiling it.
fn decide(filter: &Filter, call: &Call) -> Verdict {
    if call.arch != ARCH_X86_64 {
        return filter.foreign;
    }
    match filter.entries.get(&call.number) {
        Some(Entry::Always(verdict)) => *verdict,
        Some(Entry::Cases(width, cases)) => cases
            .iter()
            .find(|(checks, _)| checks.iter().all(|check| holds(check, *width, &call.arguments)))
            .map_or(filter.default, |(_, verdict)| *verdict),
        None => match filter.stretch {
            Some((first, last, verdict)) if (first..=last).contains(&call.number) => verdict,
            _ => filter.default,
        },
    }
}

/// Values whose halves meet at the borders.
fn value() -> impl Strategy<Value = u64> {
    let half = prop_oneof![
        Just(0u32),
        Just(1),
        Just(2),
        Just(u32::MAX),
        Just(u32::MAX - 1),
        any::<u32>()
    ];
    (half.clone(), half).prop_map(|(low, high)| u64::from(low) | u64::from(high) << 32)
}

fn a_check() -> impl Strategy<Value = Check> {
    let comparison = (0..7, value(), value()).prop_map(|(kind, value, mask)| match kind {
        0 => Comparison::Ne(value),
        1 => Comparison::Lt(value),
        2 => Comparison::Le(value),
        3 => Comparison::Eq(value),
        4 => Comparison::Ge(value),
        5 => Comparison::Gt(value),
        _ => Comparison::MaskedEq { mask, value },
    });
    (0..6u8, comparison).prop_map(|(argument, comparison)| Check { argument, comparison })
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict(0)),
        Just(Verdict(0x7fff_0000)),
        (0..40u32).prop_map(|errno| Verdict(0x5_0000 | errno))
    ]
}

fn an_entry() -> impl Strategy<Value = Entry> {
    let width = prop_oneof![Just(Width::Whole), Just(Width::Lower)];
    let cases = prop::collection::vec((prop::collection::vec(a_check(), 0..=6), verdicts()), 0..5);
    prop_oneof![
        3 => verdicts().prop_map(Entry::Always),
        1 => (width, cases).prop_map(|(width, cases)| Entry::Cases(width, cases)),
    ]
}

fn a_filter() -> impl Strategy<Value = Filter> {
    let number = prop_oneof![8 => 0..500u32, 1 => Just(u32::MAX), 1 => 0x4000_0000..0x4000_0200u32];
    let entries = prop::collection::btree_map(number, an_entry(), 0..300);
    (entries, verdicts(), verdicts(), prop::option::of(verdicts())).prop_map(
        |(mut entries, default, foreign, stretch)| {
            let stretch = stretch.map(|verdict| (0x4000_0000, u32::MAX - 1, verdict));
            if let Some((first, last, _)) = stretch {
                entries.retain(|number, _| !(first..=last).contains(number));
            }
            Filter {
                foreign,
                default,
                entries,
                stretch,
            }
        },
    )
}

fn a_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        8 => 0..500u32,
        1 => any::<u32>(),
        1 => 0x3fff_fff0..0x4000_0210u32,
        1 => (u32::MAX - 3)..=u32::MAX,
    ];
    let arch = prop_oneof![9 => Just(ARCH_X86_64), 1 => Just(0x4000_0003), 1 => any::<u32>()];
    (number, arch, prop::array::uniform6(value())).prop_map(|(number, arch, arguments)| Call {
        number,
        arch,
        arguments,
    })
}

proptest! {
    #[test]
    fn a_program_says_what_its_filter_says(
        filter in a_filter(),
        calls in prop::collection::vec(a_call(), 200),
    ) {
        let program = filter.compile();
        check(&program);
        let numbers = filter.entries.keys().map(|number| Call { number: *number, ..calls[0] });
        for call in calls.iter().copied().chain(numbers) {
            prop_assert_eq!(interpret(&program, &call), decide(&filter, &call), "{:x?}", call);
        }
    }

    #[test]
    fn what_always_holds_is_no_check(check in a_check(), arguments in prop::array::uniform6(value())) {
        for width in [Width::Whole, Width::Lower] {
            let narrowed = check.narrowed(width).is_none_or(|narrowed| holds(&narrowed, width, &arguments));
            prop_assert_eq!(narrowed, holds(&check, width, &arguments));
        }
    }
}

#[test]
fn pieces_longer_than_a_conditional_jump_are_reached() {
    // Half of the calls need several hundred instructions to jump over.
    let cases = (0..12)
        .map(|value| {
            let checks = (0..6).map(|argument| Check {
                argument,
                comparison: Comparison::MaskedEq {
                    mask: 0xff_0000_00ff,
                    value: u64::from(argument) << 32 | value,
                },
            });
            (checks.collect(), Verdict(0x5_0000 + value as u32))
        })
        .collect::<Vec<_>>();
    let filter = Filter {
        foreign: Verdict(0),
        default: Verdict(0x7fff_0000),
        entries: (0..8)
            .map(|number| (2 * number, Entry::Cases(Width::Whole, cases.clone())))
            .collect(),
        stretch: None,
    };
    let program = filter.compile();
    check(&program);
    assert!(program.iter().any(|instruction| instruction.code == JUMP));
    for number in 0..20 {
        for value in 0..14 {
            let arguments = std::array::from_fn(|argument| (argument as u64) << 32 | value);
            let call = Call {
                number,
                arch: ARCH_X86_64,
                arguments,
            };
            assert_eq!(interpret(&program, &call), decide(&filter, &call), "{call:x?}");
        }
    }
}
