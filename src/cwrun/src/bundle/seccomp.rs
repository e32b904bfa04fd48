//! `linux.seccomp`: from the rules of config.json to the program that the guest's kernel runs at each system call.
//!
//! The rules mean what crun and runc make of them with libseccomp:
//!
//! - A rule whose action is the default one is left out, and so is a name that x86-64 doesn't have.
//! - All conditions of a rule must hold; if two of them look at the same argument each is a rule of its own.
//! - Rules for one call are alternatives. One without conditions is in place of all others, the first such if there are more.
//! - The process dies if it calls through another architecture's interface. x32, which is x86-64 with a bit in the number and 32-bit
//!   arguments, is another one unless `architectures` names it; then it has the same rules under its own numbers.
//!
//! Two rules whose conditions both hold but whose actions differ have no defined order in libseccomp. Here the stricter one applies, as
//! it does in the kernel between filters (seccomp(2)). The same conditions with different actions are an error, as there.
//!
//! The guest's kernel has no 32-bit interface, so that `SCMP_ARCH_X86` and all other architectures change nothing.

mod bpf;
mod syscalls;

use anyhow::{Context, Result, bail, ensure};
use bpf::{Check, Comparison, Entry, Filter, Verdict, Width};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use std::collections::{BTreeMap, BTreeSet};
use workload::{Blob, Seccomp, SeccompFlag};

/// Actions that the guest can take. `SCMP_ACT_NOTIFY` is none: whom it would ask is on the host.
pub const ACTIONS: [Action; 8] = [
    Action::ScmpActAllow,
    Action::ScmpActErrno,
    Action::ScmpActKill,
    Action::ScmpActKillProcess,
    Action::ScmpActKillThread,
    Action::ScmpActLog,
    Action::ScmpActTrace,
    Action::ScmpActTrap,
];

/// Comparisons of an argument.
pub const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpMaskedEq,
    Operator::ScmpCmpNe,
];

/// Architectures that a guest's calls can have.
pub const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX32, Arch::ScmpArchX86, Arch::ScmpArchX86_64];

/// Flags of the filter.
pub const FLAGS: [Flag; 4] = [
    Flag::SeccompFilterFlagLog,
    Flag::SeccompFilterFlagSpecAllow,
    Flag::SeccompFilterFlagTsync,
    Flag::SeccompFilterFlagWaitKillableRecv,
];

/// `SECCOMP_RET_KILL_THREAD`, libseccomp's action for other architectures.
const KILL: Verdict = Verdict(0);

/// `EPERM`: what `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE` give if the profile doesn't say.
const DEFAULT_ERRNO: u32 = 1;

/// Compiles the rules.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Seccomp> {
    let field = |field: &str| format!("config.json: linux.seccomp.{field}");
    for (name, given) in [
        ("listenerPath", seccomp.listener_path().is_some()),
        ("listenerMetadata", seccomp.listener_metadata().is_some()),
    ] {
        ensure!(!given, "{}: not supported", field(name));
    }
    let filter = filter(seccomp)?;
    let program = filter.compile();
    ensure!(
        program.len() <= Seccomp::MAX_INSTRUCTIONS,
        "{}: the rules need a program of {} instructions, the kernel takes {}",
        field("syscalls"),
        program.len(),
        Seccomp::MAX_INSTRUCTIONS
    );
    Ok(Seccomp {
        program: Blob(
            program
                .iter()
                .flat_map(|instruction| instruction.to_bytes())
                .collect(),
        ),
        flags: seccomp
            .flags()
            .iter()
            .flatten()
            .copied()
            .filter_map(flag)
            .collect(),
    })
}

fn filter(seccomp: &LinuxSeccomp) -> Result<Filter> {
    let default = verdict(seccomp.default_action(), seccomp.default_errno_ret())
        .context("config.json: linux.seccomp.defaultAction")?;
    let x32 = seccomp
        .architectures()
        .iter()
        .flatten()
        .any(|arch| *arch == Arch::ScmpArchX32);
    let mut native = Rules::new(Width::Whole);
    let mut compatible = Rules::new(Width::Lower);
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        let at = || format!("config.json: linux.seccomp.syscalls[{index}]");
        let verdict = verdict(rule.action(), rule.errno_ret()).with_context(at)?;
        let alternatives = alternatives(rule).with_context(at)?;
        ensure!(
            !rule.names().is_empty(),
            "config.json: linux.seccomp.syscalls[{index}].names: empty, expected at least one name"
        );
        if verdict == default {
            continue;
        }
        for name in rule.names() {
            let numbers = (syscalls::x86_64(name), syscalls::x32(name));
            if numbers == (None, None) {
                tracing::debug!(
                    "config.json: linux.seccomp.syscalls[{index}]: {name:?} is no call of x86-64"
                );
            }
            for checks in &alternatives {
                if let Some(number) = numbers.0 {
                    native.add(number, checks, verdict).with_context(at)?;
                }
                if let Some(number) = numbers.1.filter(|_| x32) {
                    compatible.add(number, checks, verdict).with_context(at)?;
                }
            }
        }
    }
    let mut entries = native.entries();
    entries.extend(compatible.entries());
    Ok(Filter {
        foreign: KILL,
        default,
        entries,
        // The last number of all is no call: it is what a tracer sets to skip one.
        stretch: (!x32).then_some((syscalls::X32_BIT, u32::MAX - 1, KILL)),
    })
}

/// The sets of checks of a rule, any of which is enough.
fn alternatives(rule: &LinuxSyscall) -> Result<Vec<Vec<Check>>> {
    let checks = rule
        .args()
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, arg)| check(arg).with_context(|| format!("args[{index}]")))
        .collect::<Result<Vec<_>>>()?;
    let arguments: BTreeSet<_> = checks.iter().map(|check| check.argument).collect();
    if arguments.len() < checks.len() {
        return Ok(checks.into_iter().map(|check| vec![check]).collect());
    }
    Ok(vec![checks])
}

fn check(arg: &LinuxSeccompArg) -> Result<Check> {
    let value = arg.value();
    let comparison = match arg.op() {
        Operator::ScmpCmpNe => Comparison::Ne(value),
        Operator::ScmpCmpLt => Comparison::Lt(value),
        Operator::ScmpCmpLe => Comparison::Le(value),
        Operator::ScmpCmpEq => Comparison::Eq(value),
        Operator::ScmpCmpGe => Comparison::Ge(value),
        Operator::ScmpCmpGt => Comparison::Gt(value),
        Operator::ScmpCmpMaskedEq => Comparison::MaskedEq {
            mask: value,
            value: arg.value_two().unwrap_or(0) & value,
        },
    };
    let argument = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
    Ok(Check {
        argument: argument.with_context(|| format!("index: {} is not between 0 and 5", arg.index()))?,
        comparison,
    })
}

fn verdict(action: Action, errno: Option<u32>) -> Result<Verdict> {
    let takes_errno = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    ensure!(
        takes_errno || errno.is_none(),
        "{action}: an error number has no meaning with this action"
    );
    let data = errno.unwrap_or(DEFAULT_ERRNO);
    ensure!(
        data <= 0xffff,
        "{action}: the error number {data} does not fit 16 bits"
    );
    Ok(Verdict(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => KILL.0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x0003_0000,
        Action::ScmpActErrno => 0x0005_0000 | data,
        Action::ScmpActTrace => 0x7ff0_0000 | data,
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
        Action::ScmpActNotify => bail!("{action}: not supported"),
    }))
}

/// What is left of a flag in the guest. The process has one thread when the filter comes, so that there is nothing to synchronise, and
/// `WAIT_KILLABLE_RECV` is about notifications.
fn flag(flag: Flag) -> Option<SeccompFlag> {
    match flag {
        Flag::SeccompFilterFlagLog => Some(SeccompFlag::Log),
        Flag::SeccompFilterFlagSpecAllow => Some(SeccompFlag::SpecAllow),
        Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => None,
    }
}

/// The rules of one interface, as they come in.
struct Rules {
    width: Width,
    by_number: BTreeMap<u32, Entry>,
}

impl Rules {
    fn new(width: Width) -> Self {
        Self {
            width,
            by_number: BTreeMap::new(),
        }
    }

    fn add(&mut self, number: u32, checks: &[Check], verdict: Verdict) -> Result<()> {
        let width = self.width;
        let mut checks: Vec<_> = checks.iter().filter_map(|check| check.narrowed(width)).collect();
        checks.sort();
        let entry = self
            .by_number
            .entry(number)
            .or_insert_with(|| Entry::Cases(width, Vec::new()));
        let Entry::Cases(_, cases) = entry else {
            return Ok(());
        };
        if checks.is_empty() {
            *entry = Entry::Always(verdict);
            return Ok(());
        }
        match cases.iter().find(|(earlier, _)| *earlier == checks) {
            Some((_, same)) if *same == verdict => {}
            Some(_) => bail!("the same conditions have another action in an earlier rule"),
            None => cases.push((checks, verdict)),
        }
        Ok(())
    }

    /// With the strictest case first.
    fn entries(self) -> BTreeMap<u32, Entry> {
        let mut entries = self.by_number;
        for entry in entries.values_mut() {
            if let Entry::Cases(_, cases) = entry {
                cases.sort_by_key(|(_, verdict)| verdict.strictness());
            }
        }
        entries
    }
}

#[cfg(test)]
#[path = "seccomp_test.rs"]
mod tests;
