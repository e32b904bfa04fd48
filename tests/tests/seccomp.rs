//! `linux.seccomp` of the bundle decides on the system calls of what runs in the guest.

use e2e::{Bundle, Cwrun};
use serde_json::{Value, json};
use std::fs;

/// A bundle that runs a script under a filter.
fn filtered(script: &str, seccomp: Value) -> Bundle {
    Bundle::script(script).with(|config| config["linux"]["seccomp"] = seccomp)
}

/// Everything is allowed but for these rules.
fn denying(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_call_fails_with_the_errno_of_its_rule() {
    let cwrun = Cwrun::new();
    let rules = denying(json!([
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122},
        {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["no_such_call"], "action": "SCMP_ACT_KILL"},
        {"names": ["write"], "action": "SCMP_ACT_ALLOW"}
    ]));
    let script = "mkdir /tmp/a 2>&1; ln -s a /tmp/b 2>&1; echo end; grep Seccomp: /proc/self/status";
    let text = cwrun.run("errno", &filtered(script, rules)).finish().ok().text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].ends_with("Disk quota exceeded"), "{text}");
    assert!(lines[1].ends_with("Operation not permitted"), "{text}");
    assert_eq!(lines[2..], ["end", "Seccomp:\t2"], "{text}");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_call_can_end_its_process() {
    let cwrun = Cwrun::new();
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let rules = denying(json!([{"names": ["sync"], "action": action}]));
        let child = filtered("sync; echo $?", rules.clone());
        assert_eq!(
            cwrun.run("child", &child).finish().ok().text(),
            "159\n",
            "{action}"
        );
        let first = Bundle::busybox(["sync"]).with(|config| config["linux"]["seccomp"] = rules);
        cwrun.run("first", &first).finish().expect(128 + 31);
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn conditions_look_at_arguments() {
    let cwrun = Cwrun::new();
    let set_id =
        |index| json!([{"index": index, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ"}]);
    let rules = denying(json!([
        {"names": ["chmod", "fchmod"], "action": "SCMP_ACT_ERRNO", "args": set_id(1)},
        {"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO", "args": set_id(2)},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
    ]));
    let script = r#"
        try() { if "$@" >/dev/null 2>&1; then echo yes; else echo no; fi; }
        touch /tmp/f
        echo $(try chmod 755 /tmp/f) $(try chmod 4755 /tmp/f) $(try linux64 true) $(try linux32 true)
    "#;
    let text = cwrun.run("args", &filtered(script, rules)).finish().ok().text();
    assert_eq!(text, "yes no yes no\n");
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn init_itself_needs_next_to_nothing_behind_the_filter() {
    let cwrun = Cwrun::new();
    // What init does before the start, which a filter that was there already would stop. The workload does without.
    let names = [
        "close_range",
        "faccessat",
        "faccessat2",
        "mount",
        "pivot_root",
        "recvfrom",
        "recvmsg",
        "sendmsg",
        "sendto",
        "setgroups",
        "setresgid",
        "setresuid",
        "setsid",
        "unshare",
    ];
    // PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT
    let operations = [8, 38, 47].map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"}));
    let rules = denying(json!([
        {"names": names, "action": "SCMP_ACT_KILL"},
        {"names": ["prctl"], "action": "SCMP_ACT_KILL", "args": operations}
    ]));
    let script = "echo $(grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2)";
    for no_new_privileges in [false, true] {
        for uid in [0, 1000] {
            let bundle = filtered(script, rules.clone()).with(|config| {
                let kill = json!(["CAP_KILL"]);
                let process = &mut config["process"];
                process["user"] = json!({"uid": uid, "gid": uid});
                process["capabilities"] = json!({"bounding": kill, "permitted": kill, "effective": kill, "inheritable": kill, "ambient": kill});
                process["noNewPrivileges"] = no_new_privileges.into();
            });
            // CAP_SYS_ADMIN, which loading took, is gone.
            let kill = "0000000000000020";
            let expected = format!("{kill} {kill} {kill} {} 2\n", i32::from(no_new_privileges));
            assert_eq!(
                cwrun.run("init", &bundle).finish().ok().text(),
                expected,
                "{no_new_privileges} {uid}"
            );
        }
    }
    // Without any capability sets a user other than root has none, and root all.
    for (uid, permitted) in [(1000, "0000000000000000"), (0, "000001ffffffffff")] {
        let rules = denying(json!([{"names": ["sync"], "action": "SCMP_ACT_KILL"}]));
        let script = "echo $(grep CapPrm /proc/self/status | cut -f 2)";
        let bundle = filtered(script, rules).with(|config| {
            let process = config["process"].as_object_mut().unwrap();
            process["user"] = json!({"uid": uid, "gid": uid});
            process.remove("capabilities");
        });
        assert_eq!(
            cwrun.run("sets", &bundle).finish().ok().text(),
            format!("{permitted}\n")
        );
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn a_filter_that_forbids_execve_is_no_container() {
    let cwrun = Cwrun::new();
    let rules = denying(json!([{"names": ["execve"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]));
    let done = cwrun.run("execve", &filtered("true", rules)).finish();
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("Permission denied"), "{}", done.stderr);
}

/// containers-common's profile, as podman turns it into rules for a container with podman's capabilities.
fn podmans_profile() -> Value {
    let text =
        fs::read_to_string("/usr/share/containers/seccomp.json").expect("podman's profile is installed");
    let profile: Value = serde_json::from_str(&text).unwrap();
    let capabilities = ["CAP_SYS_CHROOT"];
    let named = |rule: &Value, list: &str, key: &str, ours: &[&str]| -> Option<bool> {
        let names = rule[list][key].as_array()?;
        Some(
            names
                .iter()
                .any(|name| ours.contains(&name.as_str().unwrap_or_default())),
        )
    };
    let rules = profile["syscalls"].as_array().unwrap().iter().filter(|rule| {
        named(rule, "includes", "caps", &capabilities).unwrap_or(true)
            && named(rule, "includes", "arches", &["amd64"]).unwrap_or(true)
            && !named(rule, "excludes", "caps", &capabilities).unwrap_or(false)
            && !named(rule, "excludes", "arches", &["amd64"]).unwrap_or(false)
    });
    let rules = rules.map(|rule| {
        let mut rule = rule.as_object().unwrap().clone();
        rule.retain(|key, value| {
            ["names", "action", "errnoRet", "args"].contains(&key.as_str()) && !value.is_null()
        });
        Value::from(rule)
    });
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules.collect::<Vec<_>>()
    })
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn podmans_profile_lets_ordinary_programs_work() {
    let cwrun = Cwrun::new();
    let script = r#"
        mkdir /tmp/d && echo text >/tmp/d/f && cp -a /tmp/d /tmp/e && mv /tmp/e /tmp/g && rm -r /tmp/d
        chown 1:1 /tmp/g/f; chmod 640 /tmp/g/f
        (sleep 0.1; echo background) & wait
        seq 1000 | sort -rn | head -n 1
        tar -C /tmp -cf - g | tar -tf -
        kill -0 $$ && echo alive
        reboot -f 2>&1; swapoff -a 2>&1
        grep Seccomp: /proc/self/status
    "#;
    let text = cwrun
        .run("profile", &filtered(script, podmans_profile()))
        .finish()
        .ok()
        .text();
    for line in ["background", "1000", "g/f", "alive", "Seccomp:\t2"] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in {text}");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn what_asks_the_host_is_refused_by_name() {
    let cwrun = Cwrun::new();
    for (seccomp, expected) in [
        (
            denying(json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}])),
            "config.json: linux.seccomp.syscalls[0]: SCMP_ACT_NOTIFY: not supported",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent.sock"}),
            "config.json: linux.seccomp.listenerPath: not supported",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]}),
            "linux.seccomp.flags",
        ),
    ] {
        let bundle = filtered("true", seccomp);
        let refusal = cwrun.refused(["create", "--bundle", &bundle.path().to_string_lossy(), "refused"]);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn features_lists_what_a_filter_can_say() {
    let cwrun = Cwrun::new();
    let features: Value = serde_json::from_str(&cwrun.ok(["features"])).unwrap();
    let seccomp = &features["linux"]["seccomp"];
    assert_eq!(seccomp["enabled"], true);
    for (list, item) in [
        ("actions", "SCMP_ACT_KILL_PROCESS"),
        ("operators", "SCMP_CMP_MASKED_EQ"),
        ("archs", "SCMP_ARCH_X86_64"),
        ("knownFlags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"),
        ("supportedFlags", "SECCOMP_FILTER_FLAG_LOG"),
    ] {
        assert!(
            seccomp[list].as_array().unwrap().contains(&item.into()),
            "{seccomp}"
        );
    }
}
