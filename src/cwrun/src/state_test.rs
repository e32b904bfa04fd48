use super::*;

fn record(id: &str) -> Record {
    Record {
        id: id.into(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        annotations: BTreeMap::new(),
        created: "2026-01-01T00:00:00Z".into(),
        owner: 0,
        creator: ProcessId::own().unwrap(),
        vmm: None,
        cgroup: None,
        hooks: Hooks::default(),
        sizing: None,
        cache: None,
        infra: false,
        network: None,
    }
}

#[test]
fn unsafe_ids_are_refused() {
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        ".hidden",
        "a b",
        "ä",
        "a\0b",
        "x\n",
        &"x".repeat(256),
    ] {
        assert!(check_id(bad).is_err(), "{bad:?}");
    }
    for good in ["a", "A-1_b.c+d", &"f".repeat(64)] {
        assert!(check_id(good).is_ok(), "{good:?}");
    }
}

#[test]
fn an_id_can_be_reserved_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(Some(dir.path().join("state"))).unwrap();
    let container = root.reserve(record("c1")).unwrap();
    assert_eq!(
        root.reserve(record("c1")).unwrap_err().to_string(),
        "container \"c1\" already exists"
    );
    assert_eq!(container.status(), Status::Creating);
    assert_eq!(root.list().unwrap().len(), 1);
    container.remove().unwrap();
    assert!(root.find("c1").unwrap().is_none());
    assert!(root.get("c1").unwrap_err().to_string().contains("does not exist"));
}

#[test]
fn a_reused_process_number_is_not_the_process() {
    let own = ProcessId::own().unwrap();
    assert!(own.is_alive());
    assert!(
        !ProcessId {
            start_time: own.start_time + 1,
            ..own
        }
        .is_alive()
    );
    assert!(!ProcessId { pid: i32::MAX, ..own }.is_alive());
}

#[test]
fn the_status_follows_the_vmm() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(Some(dir.path().to_owned())).unwrap();
    let mut container = root.reserve(record("c1")).unwrap();
    container.record.vmm = Some(ProcessId::own().unwrap());
    let status = container.status_file().unwrap();
    assert_eq!(container.status(), Status::Creating);
    status.set(Status::Created);
    assert_eq!(container.status(), Status::Created);
    status.set(Status::Running);
    assert_eq!(container.status(), Status::Running);
    container.record.vmm = Some(ProcessId {
        pid: i32::MAX,
        start_time: 1,
    });
    assert_eq!(container.status(), Status::Stopped);
}

#[test]
fn removal_takes_only_the_directory_it_saw() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(Some(dir.path().to_owned())).unwrap();
    let old = root.reserve(record("c1")).unwrap();
    let lock = old.lock().unwrap();
    assert!(lock.is_some());
    old.remove().unwrap();
    assert!(old.lock().unwrap().is_none());
}
