use super::*;
use crate::bundle::parse_json;
use serde_json::json;
use workload::Scratch;

const MIB: i64 = 1 << 20;
const HEADROOM: i64 = 64 * MIB;

fn resources(value: Value) -> LinuxResources {
    parse_json(value.to_string().as_bytes()).unwrap()
}

/// A guest of 512 MiB and 2 processors.
fn sizing() -> Sizing {
    Sizing {
        memory_mib: 512,
        headroom: HEADROOM.unsigned_abs(),
        vcpus: 2,
        scratch: Scratch::Disk { bytes: 1 << 30 },
    }
}

fn planned(current: Value, asked: Value) -> Result<Plan> {
    plan(&resources(current), &resources(asked), &sizing())
}

#[test]
fn what_is_not_asked_for_stays() {
    let current = json!({"memory": {"limit": 512 * MIB, "swap": 1024 * MIB}, "cpu": {"shares": 100, "quota": 50_000, "cpus": "0"},
        "pids": {"limit": 100}, "unified": {"cpu.max": "1 2", "memory.high": "5"}});
    let asked = json!({"memory": {"limit": 0, "swap": 0}, "cpu": {"quota": 100_000, "period": 0, "shares": 0, "cpus": ""},
        "blockIO": {"weight": 0}, "pids": {"limit": 0}});
    let plan = planned(current, asked).unwrap();
    let expected = json!({"memory": {"limit": 512 * MIB, "swap": 1024 * MIB}, "cpu": {"shares": 100, "quota": 100_000, "cpus": "0"},
        "blockIO": {}, "pids": {"limit": 100}, "unified": {"memory.high": "5"}});
    assert_eq!(serde_json::to_value(&plan.resources).unwrap(), expected);
    assert!(!plan.guest_changes && plan.notes.is_empty(), "{plan:?}");
}

#[test]
fn less_memory_is_the_guests_to_keep_and_the_vmm_stays() {
    let current = json!({"memory": {"limit": 512 * MIB, "swap": 1024 * MIB}});
    let plan = planned(current, json!({"memory": {"limit": 100 * MIB}})).unwrap();
    assert_eq!(plan.guest.memory, Some(100 << 20));
    assert!(plan.guest_changes);
    let memory = plan.host.memory().unwrap();
    assert_eq!(memory.limit(), Some(512 * MIB + HEADROOM));
    assert_eq!(memory.swap(), Some(1024 * MIB + HEADROOM));
    // And back.
    let current = serde_json::to_value(&plan.resources).unwrap();
    let plan = planned(current, json!({"memory": {"limit": 512 * MIB}})).unwrap();
    assert_eq!(plan.guest.memory, None);
    assert!(plan.guest_changes);
    // In the words of version 2.
    let plan = planned(json!({}), json!({"unified": {"memory.max": "100M"}})).unwrap();
    assert_eq!(plan.guest.memory, Some(100 << 20));
    let file = &plan.host.unified().as_ref().unwrap()["memory.max"];
    assert_eq!(file, &(512 * MIB + HEADROOM).to_string());
}

#[test]
fn memory_without_swap_stays_so() {
    let asked = json!({"memory": {"limit": 100 * MIB, "swap": 100 * MIB}});
    let plan = planned(json!({"memory": {"limit": 512 * MIB, "swap": 512 * MIB}}), asked).unwrap();
    let memory = plan.host.memory().unwrap();
    assert_eq!(memory.swap(), memory.limit());
}

#[test]
fn what_a_running_guest_cant_have_is_refused() {
    let refused = |current, asked| format!("{:#}", planned(current, asked).unwrap_err());
    let error = refused(json!({}), json!({"memory": {"limit": 513 * MIB}}));
    assert_eq!(
        error,
        "linux.resources.memory.limit: 513 MiB is more than the 512 MiB that the guest was booted with, which can't grow while it runs"
    );
    let error = refused(json!({}), json!({"unified": {"memory.max": "1G"}}));
    assert!(error.contains("memory.max: 1024 MiB is more than"), "{error}");
    let error = refused(
        json!({"memory": {"swap": 200 * MIB}}),
        json!({"memory": {"limit": 300 * MIB}}),
    );
    assert!(error.contains("memory.swap"), "{error}");
    let error = refused(json!({}), json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}));
    assert!(error.contains("rdma"), "{error}");
    // A limit that the guest was never up to may stay.
    planned(
        json!({"memory": {"limit": 2048 * MIB}}),
        json!({"memory": {"limit": 1024 * MIB}}),
    )
    .unwrap();
}

#[test]
fn more_processors_than_the_guest_has_are_said() {
    let notes = |asked| planned(json!({}), asked).unwrap().notes;
    assert_eq!(
        notes(json!({"cpu": {"quota": 200_000, "cpus": "0,5"}})),
        Vec::<String>::new()
    );
    let more = notes(json!({"cpu": {"quota": 200_001, "cpus": "0-3"}}));
    assert!(more[0].contains("quota is enough for 3 processors"), "{more:?}");
    assert!(more[1].contains("set is enough for 4 processors"), "{more:?}");
    assert_eq!(
        planned(
            json!({"memory": {"limit": 512 * MIB}}),
            json!({"memory": {"limit": -1}})
        )
        .unwrap()
        .notes
        .len(),
        1
    );
}

#[test]
fn processes_are_counted_in_the_guest() {
    let tasks = |asked| {
        planned(json!({"pids": {"limit": 100}}), asked)
            .unwrap()
            .guest
            .tasks
    };
    assert_eq!(tasks(json!({"pids": {"limit": 7}})), Some(7));
    assert_eq!(tasks(json!({"pids": {"limit": -1}})), None);
    assert_eq!(tasks(json!({"unified": {"pids.max": "9"}})), Some(9));
    assert_eq!(tasks(json!({})), Some(100));
    let plan = planned(json!({}), json!({"unified": {"pids.max": "9"}})).unwrap();
    let threads: u64 = plan.host.unified().as_ref().unwrap()["pids.max"].parse().unwrap();
    assert!(threads > 9 + 2, "{threads}");
}

#[test]
fn a_wrong_field_is_named() {
    for (text, expected) in [
        (r#"{"memory": {"limit": "1g"}}"#, "memory.limit"),
        (r#"{"cpu": 5}"#, "cpu"),
        ("", "EOF"),
        (r#"{} {}"#, "trailing"),
    ] {
        let error = format!("{:#}", parse_json::<LinuxResources>(text.as_bytes()).unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }
}
