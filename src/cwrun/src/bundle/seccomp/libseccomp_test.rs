//! The same rules through libseccomp, as crun feeds it, where this machine has it.

use super::*;
use proptest::test_runner::RngSeed;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;

/// `struct scmp_arg_cmp`.
#[repr(C)]
struct Comparison {
    argument: c_uint,
    operator: c_int,
    a: u64,
    b: u64,
}

struct Library {
    init: unsafe extern "C" fn(u32) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
    arch_add: unsafe extern "C" fn(*mut c_void, u32) -> c_int,
    resolve: unsafe extern "C" fn(u32, *const c_char) -> c_int,
    rule_add: unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
    export: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
}

impl Library {
    fn open() -> Option<Self> {
        // SAFETY: the library's initialisers do nothing that a test process could mind, and the functions have these types by
        // its header (seccomp.h).
        unsafe {
            let library = libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW);
            if library.is_null() {
                return None;
            }
            let symbol = |name: &std::ffi::CStr| {
                let symbol = libc::dlsym(library, name.as_ptr());
                assert!(!symbol.is_null(), "{name:?}");
                symbol
            };
            Some(Self {
                init: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32) -> *mut c_void>(symbol(
                    c"seccomp_init",
                )),
                release: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(
                    c"seccomp_release",
                )),
                arch_add: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, u32) -> c_int>(
                    symbol(c"seccomp_arch_add"),
                ),
                resolve: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32, *const c_char) -> c_int>(
                    symbol(c"seccomp_syscall_resolve_name_arch"),
                ),
                rule_add: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
                >(symbol(c"seccomp_rule_add_array")),
                export: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, c_int) -> c_int>(
                    symbol(c"seccomp_export_bpf"),
                ),
            })
        }
    }

    /// Numbers of calls that are newer than the library: it leaves out their rules.
    fn too_new(&self) -> BTreeSet<u32> {
        let unknown = |arch: Arch, name: &str| {
            let name = CString::new(name).unwrap();
            // SAFETY: the string outlives the call.
            unsafe { (self.resolve)(arch as u32, name.as_ptr()) < 0 }
        };
        let names = syscalls::TABLE.iter().map(|(name, ..)| *name);
        names
            .flat_map(|name| {
                let native = syscalls::x86_64(name).filter(|_| unknown(Arch::ScmpArchX86_64, name));
                let x32 = syscalls::x32(name).filter(|_| unknown(Arch::ScmpArchX32, name));
                [native, x32]
            })
            .flatten()
            .collect()
    }

    /// The program that crun would load; `None` if libseccomp refuses a rule.
    fn compile(&self, rules: &LinuxSeccomp) -> Option<Vec<Instruction>> {
        // libseccomp's number of the action that kills the process is the kernel's.
        let default = verdict(rules.default_action(), rules.default_errno_ret()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        // SAFETY: the context lives from init to release, and every pointer outlives its call.
        unsafe {
            let context = (self.init)(default.0);
            assert!(!context.is_null());
            for arch in rules.architectures().iter().flatten() {
                // The native one is there already.
                (self.arch_add)(context, *arch as u32);
            }
            let mut refused = false;
            for rule in rules.syscalls().iter().flatten() {
                let verdict = verdict(rule.action(), rule.errno_ret()).unwrap();
                if verdict == default {
                    continue;
                }
                let args: Vec<_> = rule.args().iter().flatten().map(comparison).collect();
                let arguments: BTreeSet<_> = args.iter().map(|arg| arg.argument).collect();
                let size = if arguments.len() < args.len() {
                    1
                } else {
                    args.len()
                };
                for name in rule.names() {
                    let name = CString::new(name.as_str()).unwrap();
                    let number = (self.resolve)(Arch::ScmpArchX86_64 as u32, name.as_ptr());
                    if number == -1 {
                        continue;
                    }
                    if args.is_empty() {
                        refused |= (self.rule_add)(context, verdict.0, number, 0, std::ptr::null()) < 0;
                    }
                    for part in args.chunks(size.max(1)) {
                        refused |=
                            (self.rule_add)(context, verdict.0, number, part.len() as c_uint, part.as_ptr())
                                < 0;
                    }
                }
            }
            let exported = (self.export)(context, file.as_raw_fd());
            (self.release)(context);
            if refused {
                return None;
            }
            assert_eq!(exported, 0);
        }
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let flags = BTreeSet::new();
        Some(program(&Seccomp {
            program: Blob(bytes),
            flags,
        }))
    }
}

fn comparison(arg: &LinuxSeccompArg) -> Comparison {
    Comparison {
        argument: arg.index() as c_uint,
        operator: arg.op() as c_int,
        a: arg.value(),
        b: arg.value_two().unwrap_or(0),
    }
}

/// Rules whose outcome libseccomp defines and gets right: conditional ones for one call have one action, and those that compare for
/// less or greater are alone. (2.5.4 says that 0xadfeb539 is `<= 0` or `>= 1 << 32` if both are alternatives for one argument.)
fn defined_rules() -> impl Strategy<Value = LinuxSeccomp> {
    let rule = (
        // With a call of another architecture among the rules, 2.5.4 kills calls that other rules name.
        prop::sample::select(
            NAMES
                .iter()
                .copied()
                .filter(|name| *name != "socketcall")
                .collect::<Vec<_>>(),
        ),
        prop_oneof![args(), Just(json!([]))],
        actions(),
    );
    let rules = prop::collection::vec(rule, 0..10);
    (actions(), rules, architectures(), any::<bool>()).prop_map(|(default, mut rules, archs, alone)| {
        if alone {
            let mut seen = BTreeSet::new();
            rules.retain(|(name, ..)| seen.insert(*name));
        }
        let rules: Vec<_> = rules
            .into_iter()
            .map(|(name, mut args, action)| {
                let list = args.as_array_mut().unwrap();
                let mut seen = BTreeSet::new();
                list.retain(|arg| !alone || seen.insert(arg["index"].as_u64()));
                for arg in list.iter_mut().filter(|_| !alone) {
                    let equal = ["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"].map(Value::from);
                    if !equal.contains(&arg["op"]) {
                        arg["op"] = "SCMP_CMP_EQ".into();
                    }
                }
                let action = if list.is_empty() {
                    action
                } else {
                    Action::ScmpActErrno
                };
                json!({"names": [name], "action": action, "args": args})
            })
            .collect();
        seccomp(json!({"defaultAction": default, "architectures": archs, "syscalls": rules}))
    })
}

/// The same rules in each run, but for a soak: what libseccomp does with rules that nobody writes is not ours to find out in
/// every test of ours.
fn config() -> ProptestConfig {
    let soak = std::env::var_os("CWRUN_SOAK").is_some();
    ProptestConfig {
        rng_seed: if soak { RngSeed::Random } else { RngSeed::Fixed(2) },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn libseccomp_makes_the_same_of_rules(rules in defined_rules(), calls in prop::collection::vec(calls(), 300)) {
        let Some(library) = Library::open() else {
            return Ok(());
        };
        let Some(theirs) = library.compile(&rules) else {
            return Ok(());
        };
        let too_new = library.too_new();
        let ours = program(&compile(&rules).unwrap());
        for call in calls.iter().filter(|call| call.arch == ARCH_X86_64 && !too_new.contains(&call.number)) {
            prop_assert_eq!(interpret(&ours, call), interpret(&theirs, call), "{:x?}", call);
        }
    }
}

#[test]
fn libseccomp_makes_the_same_of_profiles() {
    let Some(library) = Library::open() else {
        return;
    };
    let too_new = library.too_new();
    for rules in profiles() {
        let theirs = library.compile(&rules).unwrap();
        let ours = program(&compile(&rules).unwrap());
        for call in every_call().filter(|call| !too_new.contains(&call.number)) {
            assert_eq!(interpret(&ours, &call), interpret(&theirs, &call), "{call:x?}");
        }
    }
}
