use super::bpf::tests::{Call, check as check_program, interpret};
use super::bpf::{ARCH_X86_64, Instruction};
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;

/// `AUDIT_ARCH_I386`, which no guest has.
const ARCH_I386: u32 = 0x4000_0003;

fn seccomp(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn program(seccomp: &Seccomp) -> Vec<Instruction> {
    let (instructions, rest) = seccomp.program.0.as_chunks::<8>();
    assert!(rest.is_empty());
    instructions
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
            code: u16::from_le_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_le_bytes([k0, k1, k2, k3]),
        })
        .collect()
}

fn call(name: &str, arguments: [u64; 6]) -> Call {
    Call {
        number: syscalls::x86_64(name).unwrap(),
        arch: ARCH_X86_64,
        arguments,
    }
}

/// The verdict of compiled rules.
fn verdict_of(value: Value, call: &Call) -> u32 {
    interpret(&program(&compile(&seccomp(value)).unwrap()), call).0
}

fn refused(value: Value) -> String {
    format!("{:#}", compile(&seccomp(value)).unwrap_err())
}

fn rule(names: &[&str], action: &str, args: Value) -> Value {
    json!({"names": names, "action": action, "args": args})
}

/// What the rules say, read as they stand.
fn decide(seccomp: &LinuxSeccomp, call: &Call) -> Verdict {
    let default = verdict(seccomp.default_action(), seccomp.default_errno_ret()).unwrap();
    let x32_known = seccomp
        .architectures()
        .iter()
        .flatten()
        .any(|arch| *arch == Arch::ScmpArchX32);
    let x32 = call.number & syscalls::X32_BIT != 0 || call.number > syscalls::X32_BIT;
    if call.arch != ARCH_X86_64 {
        return KILL;
    }
    if call.number == u32::MAX {
        return default;
    }
    if x32 && !x32_known {
        return KILL;
    }
    let number = if x32 { syscalls::x32 } else { syscalls::x86_64 };
    let width = if x32 { u64::from(u32::MAX) } else { u64::MAX };
    let holds = |arg: &LinuxSeccompArg| {
        let (argument, value) = (call.arguments[arg.index()] & width, arg.value() & width);
        match arg.op() {
            Operator::ScmpCmpNe => argument != value,
            Operator::ScmpCmpLt => argument < value,
            Operator::ScmpCmpLe => argument <= value,
            Operator::ScmpCmpEq => argument == value,
            Operator::ScmpCmpGe => argument >= value,
            Operator::ScmpCmpGt => argument > value,
            Operator::ScmpCmpMaskedEq => argument & value == arg.value_two().unwrap_or(0) & value,
        }
    };
    let vacuous = |arg: &LinuxSeccompArg| arg.op() == Operator::ScmpCmpMaskedEq && arg.value() & width == 0;
    let mut found: Option<Verdict> = None;
    for rule in seccomp.syscalls().iter().flatten() {
        let verdict = verdict(rule.action(), rule.errno_ret()).unwrap();
        if verdict == default || !rule.names().iter().any(|name| number(name) == Some(call.number)) {
            continue;
        }
        let args: Vec<_> = rule.args().iter().flatten().collect();
        let twice = args
            .iter()
            .enumerate()
            .any(|(at, arg)| args[..at].iter().any(|a| a.index() == arg.index()));
        let (unconditional, matches) = if twice {
            (
                args.iter().any(|arg| vacuous(arg)),
                args.iter().any(|arg| holds(arg)),
            )
        } else {
            (
                args.iter().all(|arg| vacuous(arg)),
                args.iter().all(|arg| holds(arg)),
            )
        };
        if unconditional {
            return verdict;
        }
        if matches && found.is_none_or(|found| verdict.strictness() < found.strictness()) {
            found = Some(verdict);
        }
    }
    found.unwrap_or(default)
}

/// Names with one number, with a number of their own on x32, of one interface alone, and of none.
const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "socket",
    "ioctl",
    "execve",
    "clone",
    "uselib",
    "_sysctl",
    "preadv2",
    "mseal",
    "getpid",
    "socketcall",
    "no_such_call",
];

fn a_value() -> impl Strategy<Value = u64> {
    let half = || prop_oneof![4 => 0..3u32, 1 => Just(u32::MAX), 1 => any::<u32>()];
    (half(), prop_oneof![3 => Just(0u32), 1 => half()])
        .prop_map(|(low, high)| u64::from(low) | u64::from(high) << 32)
}

fn args() -> impl Strategy<Value = Value> {
    let arg = (
        0..4usize,
        a_value(),
        a_value(),
        prop::sample::select(OPERATORS.to_vec()),
    )
        .prop_map(
            |(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": op}),
        );
    prop::collection::vec(arg, 0..4).prop_map(Value::from)
}

fn actions() -> impl Strategy<Value = Action> {
    prop::sample::select(ACTIONS.to_vec())
}

fn errno_for(action: Action, errno: u32) -> Option<u32> {
    matches!(action, Action::ScmpActErrno | Action::ScmpActTrace).then_some(errno)
}

/// Any rules at all.
fn rules() -> impl Strategy<Value = LinuxSeccomp> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4);
    let rule = (names, actions(), 0..3u32, prop_oneof![args(), Just(json!([]))]).prop_map(
        |(names, action, errno, args)| {
            let mut rule = json!({"names": names, "action": action, "args": args});
            if let Some(errno) = errno_for(action, errno) {
                rule["errnoRet"] = errno.into();
            }
            rule
        },
    );
    (actions(), prop::collection::vec(rule, 0..12), architectures()).prop_map(|(default, syscalls, archs)| {
        seccomp(json!({"defaultAction": default, "architectures": archs, "syscalls": syscalls}))
    })
}

fn architectures() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!([]),
        json!(["SCMP_ARCH_X86_64"]),
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    ])
}

/// Calls of the names, and strange ones.
fn calls() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        6 => prop::sample::select(NAMES.to_vec()).prop_map(|name| syscalls::x86_64(name).unwrap_or(1000)),
        3 => prop::sample::select(NAMES.to_vec()).prop_map(|name| syscalls::x32(name).unwrap_or(1 << 30)),
        1 => prop_oneof![Just(u32::MAX), Just(u32::MAX - 1), any::<u32>(), 0..600u32],
    ];
    let arch = prop_oneof![20 => Just(ARCH_X86_64), 1 => Just(ARCH_I386)];
    (number, arch, prop::array::uniform6(a_value())).prop_map(|(number, arch, arguments)| Call {
        number,
        arch,
        arguments,
    })
}

proptest! {
    #[test]
    fn the_program_does_what_the_rules_say(rules in rules(), calls in prop::collection::vec(calls(), 200)) {
        // The one thing that makes rules invalid here: the same conditions twice, with different actions.
        if let Ok(compiled) = compile(&rules) {
            let program = program(&compiled);
            check_program(&program);
            for call in &calls {
                prop_assert_eq!(interpret(&program, call), decide(&rules, call), "{:x?}", call);
            }
        }
    }
}

#[test]
fn actions_and_their_numbers() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
        ("SCMP_ACT_TRAP", None, 0x0003_0000),
        ("SCMP_ACT_ERRNO", None, 0x0005_0001),
        ("SCMP_ACT_ERRNO", Some(38), 0x0005_0026),
        ("SCMP_ACT_TRACE", None, 0x7ff0_0001),
        ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
        ("SCMP_ACT_LOG", None, 0x7ffc_0000),
        ("SCMP_ACT_ALLOW", None, 0x7fff_0000),
    ] {
        let mut rule = json!({"names": ["getpid"], "action": action});
        let mut default = json!({"defaultAction": action});
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
            default["defaultErrnoRet"] = errno.into();
        }
        let other = if action == "SCMP_ACT_LOG" {
            "SCMP_ACT_TRAP"
        } else {
            "SCMP_ACT_LOG"
        };
        let rules = json!({"defaultAction": other, "syscalls": [rule]});
        assert_eq!(verdict_of(rules, &call("getpid", [0; 6])), expected, "{action}");
        assert_eq!(verdict_of(default, &call("getpid", [0; 6])), expected, "{action}");
    }
}

#[test]
fn what_no_guest_can_do_is_refused_by_name() {
    let allow = json!("SCMP_ACT_ALLOW");
    for (rules, expected) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY: not supported",
        ),
        (
            json!({"defaultAction": allow, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
            "linux.seccomp.syscalls[0]: SCMP_ACT_NOTIFY: not supported",
        ),
        (
            json!({"defaultAction": allow, "listenerPath": "/run/x"}),
            "linux.seccomp.listenerPath: not supported",
        ),
        (
            json!({"defaultAction": allow, "listenerMetadata": "x"}),
            "linux.seccomp.listenerMetadata: not supported",
        ),
        (
            json!({"defaultAction": allow, "defaultErrnoRet": 1}),
            "linux.seccomp.defaultAction: SCMP_ACT_ALLOW: an error number has no meaning with this action",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}),
            "linux.seccomp.defaultAction: SCMP_ACT_ERRNO: the error number 65536 does not fit 16 bits",
        ),
        (
            json!({"defaultAction": allow, "syscalls": [
                rule(&["read"], "SCMP_ACT_KILL", json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]))
            ]}),
            "linux.seccomp.syscalls[0]: args[0]: index: 6 is not between 0 and 5",
        ),
        (
            json!({"defaultAction": allow, "syscalls": [
                rule(&["read"], "SCMP_ACT_KILL", json!([{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}])),
                rule(&["read"], "SCMP_ACT_LOG", json!([{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]))
            ]}),
            "linux.seccomp.syscalls[1]: the same conditions have another action in an earlier rule",
        ),
    ] {
        assert_eq!(refused(rules), format!("config.json: {expected}"));
    }
}

#[test]
fn too_many_rules_for_a_program_are_refused() {
    let many: Vec<_> = (0..600u64)
        .map(|value| json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": value % 300,
            "args": (0..3).map(|index| json!({"index": index, "value": value << 31, "op": "SCMP_CMP_GT"})).collect::<Vec<_>>()}))
        .collect();
    let sentence = refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many}));
    assert!(
        sentence.starts_with("config.json: linux.seccomp.syscalls: the rules need a program of"),
        "{sentence}"
    );
}

#[test]
fn flags_keep_what_matters_to_one_thread() {
    let flags = json!(FLAGS);
    let compiled = compile(&seccomp(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}),
    ))
    .unwrap();
    assert_eq!(compiled.flags, [SeccompFlag::Log, SeccompFlag::SpecAllow].into());
    let unknown = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]});
    assert!(serde_json::from_value::<LinuxSeccomp>(unknown).is_err());
}

#[test]
fn conditions_are_joined_unless_they_share_an_argument() {
    let eq = |index, value| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rules = |args| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule(&["socket"], "SCMP_ACT_KILL", args)]});
    let both = rules(json!([eq(0, 16), eq(2, 9)]));
    assert_eq!(verdict_of(both.clone(), &call("socket", [16, 3, 9, 0, 0, 0])), 0);
    assert_eq!(
        verdict_of(both.clone(), &call("socket", [16, 3, 8, 0, 0, 0])),
        0x7fff_0000
    );
    // An int argument may come with anything in the upper half: all 64 bits count.
    assert_eq!(
        verdict_of(both, &call("socket", [16 | 1 << 32, 3, 9, 0, 0, 0])),
        0x7fff_0000
    );
    let either = rules(json!([eq(0, 16), eq(0, 17)]));
    for (family, expected) in [(16, 0), (17, 0), (18, 0x7fff_0000)] {
        assert_eq!(
            verdict_of(either.clone(), &call("socket", [family, 0, 0, 0, 0, 0])),
            expected
        );
    }
}

/// The profile of containers-common or Docker, as their engines turn it into OCI rules for a container with these capabilities.
fn from_profile(profile: &Value, capabilities: &[&str]) -> LinuxSeccomp {
    let has = |rule: &Value, list: &str, key: &str, ours: &[&str]| -> Option<bool> {
        let names = rule.get(list)?.get(key)?.as_array()?;
        let mut found = names
            .iter()
            .map(|name| ours.contains(&name.as_str().unwrap_or_default()));
        // All of `includes.caps`, any of the others.
        Some(if (list, key) == ("includes", "caps") {
            found.all(|is| is)
        } else {
            found.any(|is| is)
        })
    };
    let arches = ["amd64", "x32", "x86"];
    let wanted = |rule: &&Value| {
        has(rule, "includes", "caps", capabilities).unwrap_or(true)
            && has(rule, "includes", "arches", &arches).unwrap_or(true)
            && !has(rule, "excludes", "caps", capabilities).unwrap_or(false)
            && !has(rule, "excludes", "arches", &arches).unwrap_or(false)
    };
    let rules = profile["syscalls"].as_array().unwrap().iter().filter(wanted);
    let rules = rules.map(|rule| {
        let mut rule = rule.as_object().unwrap().clone();
        rule.retain(|key, value| {
            ["names", "action", "errnoRet", "args"].contains(&key.as_str()) && !value.is_null()
        });
        Value::from(rule)
    });
    let mut converted = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules.collect::<Vec<_>>(),
    });
    if let Some(errno) = profile.get("defaultErrnoRet") {
        converted["defaultErrnoRet"] = errno.clone();
    }
    seccomp(converted)
}

/// Profiles of engines, where this machine has them: containers-common's, and any that `CWRUN_SECCOMP_PROFILES` lists.
fn profiles() -> Vec<LinuxSeccomp> {
    let listed = std::env::var("CWRUN_SECCOMP_PROFILES").unwrap_or_default();
    let files = listed.split(':').chain(["/usr/share/containers/seccomp.json"]);
    let mut profiles = Vec::new();
    for file in files.filter_map(|file| fs::read(file).ok()) {
        let profile: Value = serde_json::from_slice(&file).unwrap();
        for capabilities in [
            &["CAP_CHOWN", "CAP_SYS_CHROOT"][..],
            &["CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"],
            &[],
        ] {
            profiles.push(from_profile(&profile, capabilities));
        }
    }
    profiles
}

#[test]
fn profiles_of_engines_say_the_same_compiled() {
    for rules in profiles() {
        let program = program(&compile(&rules).unwrap());
        check_program(&program);
        assert!(program.len() < 1500, "{} instructions", program.len());
        for call in every_call() {
            assert_eq!(interpret(&program, &call), decide(&rules, &call), "{call:x?}");
        }
    }
}

/// All numbers around those in use, on all interfaces, with arguments that occur in profiles.
fn every_call() -> impl Iterator<Item = Call> {
    let numbers = (0..560)
        .chain((0..560).map(|number| number | syscalls::X32_BIT))
        .chain([u32::MAX, 1 << 31]);
    let values = [
        0,
        1,
        2,
        8,
        9,
        16,
        38,
        39,
        40,
        0x20000,
        0x20008,
        0xffff_ffff,
        0x7e02_0000,
        1 << 28,
        1 << 32,
        u64::MAX,
    ];
    numbers.flat_map(move |number| {
        values.into_iter().flat_map(move |first| {
            [0, 9].map(|third| Call {
                number,
                arch: ARCH_X86_64,
                arguments: [first, 1, third, 0, 0, 0],
            })
        })
    })
}

#[test]
fn the_table_is_sorted_and_that_of_the_kernel() {
    assert!(syscalls::TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    for (name, number) in [
        ("read", libc::SYS_read),
        ("seccomp", libc::SYS_seccomp),
        ("clone3", libc::SYS_clone3),
        ("mseal", libc::SYS_mseal),
    ] {
        assert_eq!(syscalls::x86_64(name).map(i64::from), Some(number));
    }
    assert_eq!(syscalls::x32("execve"), Some(520 | syscalls::X32_BIT));
    assert_eq!(syscalls::x32("uselib"), None);
    // Against the headers of this machine's C library, which may be older.
    for (header, number, prefix) in [
        ("unistd_64.h", syscalls::x86_64 as fn(&str) -> Option<u32>, ""),
        ("unistd_x32.h", syscalls::x32, "(__X32_SYSCALL_BIT + "),
    ] {
        let text =
            fs::read_to_string(format!("/usr/include/x86_64-linux-gnu/asm/{header}")).unwrap_or_default();
        for line in text.lines().filter_map(|line| line.strip_prefix("#define __NR_")) {
            let (name, value) = line.split_once(' ').unwrap();
            let value = value.strip_prefix(prefix).unwrap().trim_end_matches(')');
            let bit = if prefix.is_empty() { 0 } else { syscalls::X32_BIT };
            assert_eq!(number(name), Some(value.parse::<u32>().unwrap() | bit), "{name}");
        }
    }
}

#[path = "seccomp/libseccomp_test.rs"]
mod libseccomp;
