use super::*;
use oci_spec::runtime::Mount as OciMount;
use serde_json::{Value, json};

fn mounts(value: Value) -> Vec<OciMount> {
    serde_json::from_value(value).unwrap()
}

fn place_in(dir: &Path, value: Value) -> Result<Vec<Placed>> {
    place(dir, &mounts(value), Sharing::Untrusted)
}

#[test]
fn guest_file_systems_keep_flags_and_options() {
    let value = json!([{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "defaults", "silent", "context=\"system_u:x\""]}]);
    let placed = place_in(Path::new("/"), value).unwrap();
    let expected = Mount {
        destination: "/dev".into(),
        filesystem: Filesystem::Tmpfs,
        flags: [MountFlag::Nosuid, MountFlag::Strictatime].into(),
        options: vec!["mode=755".into(), "size=65536k".into()],
    };
    assert_eq!(placed, [Placed::Guest(expected)]);
}

#[test]
fn a_bound_file_is_copied_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hosts"), "127.0.0.1 me\n").unwrap();
    let value =
        json!([{"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["bind", "ro"]}]);
    let placed = place_in(dir.path(), value).unwrap();
    let [Placed::File(file)] = &placed[..] else {
        panic!("{placed:?}")
    };
    assert_eq!(
        (file.destination.as_str(), file.readonly, &file.content.0[..]),
        ("/etc/hosts", true, &b"127.0.0.1 me\n"[..])
    );
    assert_eq!(file.mode & 0o600, 0o600);
}

#[test]
fn a_bound_file_is_without_what_its_options_forbid() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tool");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
    for (options, readonly, mode) in [
        (json!(["rbind", "rprivate", "lazytime"]), false, 0o4755),
        (json!(["bind", "nosuid", "rro"]), true, 0o755),
        (json!(["bind", "noexec", "ro", "rw"]), false, 0o4644),
    ] {
        let value = json!([{"destination": "/tool", "type": "bind", "source": "tool", "options": options}]);
        let placed = place_in(dir.path(), value).unwrap();
        let [Placed::File(file)] = &placed[..] else {
            panic!("{placed:?}")
        };
        assert_eq!((file.readonly, file.mode), (readonly, mode), "{options}");
    }
}

#[test]
fn every_option_is_of_one_kind() {
    let flags = FLAG_OPTIONS.iter().map(|(name, _, _)| *name);
    let mut all: Vec<_> = flags
        .chain(BIND_OPTIONS)
        .chain(GUEST_OPTIONS)
        .chain(NEUTRAL_OPTIONS)
        .collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn shared_memory_keeps_its_size() {
    let value =
        json!([{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["bind"]}]);
    let placed = place_in(Path::new("/"), value).unwrap();
    let [Placed::Guest(mount)] = &placed[..] else {
        panic!("{placed:?}")
    };
    assert_eq!(mount.filesystem, Filesystem::Tmpfs);
    assert!(
        mount.options.iter().any(|option| option.starts_with("size=")),
        "{mount:?}"
    );
}

#[test]
fn a_directory_is_a_volume_in_its_place_among_the_mounts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let value = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro", "rslave", "noexec", "lazytime"]},
        {"destination": "/file", "type": "bind", "source": "file", "options": ["bind"]},
        {"destination": "/data/tmp", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/data/tmp/all", "type": "bind", "source": "/", "options": ["nodev"]},
    ]);
    let placed = place_in(dir.path(), value).unwrap();
    let [_, Placed::Volume(first, data), _, _, Placed::Volume(second, all)] = &placed[..] else {
        panic!("{placed:?}")
    };
    let expected = Source {
        path: dir.path().join("data"),
        overlay: Vec::new(),
        readonly: true,
        recursive: true,
    };
    assert_eq!(*first, expected);
    assert_eq!((second.readonly, second.recursive), (false, false));
    assert_eq!((data.tag.as_str(), data.after), ("volume0", 1));
    assert_eq!((all.tag.as_str(), all.after), ("volume1", 2));
    assert_eq!(data.flags, [MountFlag::Ro, MountFlag::Noexec].into());
    assert_eq!(data.propagation, ["rslave"]);
}

#[test]
fn an_overlay_is_a_volume_that_the_host_makes() {
    let overlay = |options: Value| {
        let mount = json!({"destination": "/o", "type": "overlay", "source": "/merged", "options": options});
        let mut placed = place_in(Path::new("/"), json!([mount]))?;
        match placed.remove(0) {
            Placed::Volume(source, volume) => anyhow::Ok((source, volume)),
            other => panic!("{other:?}"),
        }
    };
    let options = json!([
        "lowerdir=/a:/b",
        "upperdir=/u",
        "workdir=/w",
        "private",
        "volatile"
    ]);
    let (source, volume) = overlay(options).unwrap();
    let value = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    let expected = [
        value("lowerdir", "/a:/b"),
        value("upperdir", "/u"),
        value("workdir", "/w"),
        ("volatile".to_owned(), None),
    ];
    assert_eq!((&source.overlay[..], source.readonly), (&expected[..], false));
    assert_eq!(volume.propagation, ["private"]);
    assert!(
        overlay(json!(["lowerdir=/a:/b"])).unwrap().0.readonly,
        "nowhere to write to"
    );
    for (options, expected) in [
        (
            json!(["upperdir=/u"]),
            "options: lowerdir: missing (overlay on /o)",
        ),
        (
            json!(["lowerdir=a"]),
            "options: lowerdir: expected an absolute path (/o)",
        ),
        (
            json!(["lowerdir"]),
            "options: lowerdir: expected an absolute path (/o)",
        ),
        (
            json!(["lowerdir=/a", "default_permissions"]),
            "\"default_permissions\" is not supported on an overlay (/o)",
        ),
        (
            json!(["lowerdir=/a", "remount"]),
            "\"remount\" is not supported on an overlay (/o)",
        ),
    ] {
        let error = format!("{:#}", overlay(options).unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_guest_may_be_denied_directories() {
    let value = json!([{"destination": "/data", "type": "bind", "source": "/", "options": ["rbind"]}]);
    let error = place(Path::new("/"), &mounts(value), Sharing::Deny).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "config.json: mounts[0]: source: / on /data is a directory, and none may be shared with this guest (annotation io.cwrun.volumes is \"deny\", or it is confidential)"
    );
}

#[test]
fn options_of_a_file_system_have_no_effect_on_a_bind_mount() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let options = json!([
        "nosuid", "mode=755", "size=1k", "nonsense", "rbind", "rshared", "lazytime"
    ]);
    let value = json!([
        {"destination": "/data", "type": "bind", "source": "data", "options": options},
        {"destination": "/file", "source": "file", "options": options},
    ]);
    let placed = place_in(dir.path(), value).unwrap();
    let [Placed::Volume(_, volume), Placed::File(_)] = &placed[..] else {
        panic!("{placed:?}")
    };
    assert_eq!(volume.flags, [MountFlag::Nosuid].into());
    assert_eq!(volume.propagation, ["rshared"]);
}

#[test]
fn a_remount_with_bind_replaces_the_flags_of_what_is_mounted_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let value = json!([
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "nosuid", "rslave"]},
        {"destination": "/file", "type": "bind", "source": "file", "options": ["bind", "ro"]},
        {"destination": "/tmp", "type": "tmpfs", "options": ["nosuid", "sync", "size=1m"]},
        {"destination": "data/", "type": "none", "options": ["remount", "bind", "ro", "noexec", "shared", "mode=700"]},
        {"destination": "/file", "options": ["bind", "remount"]},
        {"destination": "/tmp", "options": ["bind", "remount", "ro", "sync", "size=2m"]},
    ]);
    let placed = place_in(dir.path(), value).unwrap();
    let [
        Placed::Volume(source, volume),
        Placed::File(file),
        Placed::Guest(_),
        Placed::Guest(changed),
    ] = &placed[..]
    else {
        panic!("{placed:?}")
    };
    assert!(source.readonly && source.recursive);
    assert_eq!(volume.flags, [MountFlag::Ro, MountFlag::Noexec].into());
    assert_eq!(volume.propagation, ["rslave", "shared"]);
    assert!(!file.readonly);
    assert_eq!(
        (changed.destination.as_str(), changed.filesystem),
        ("/tmp", Filesystem::Tmpfs)
    );
    assert_eq!(changed.flags, [MountFlag::Ro].into());
    assert_eq!(changed.options, ["remount"]);
}

#[test]
fn what_cant_be_shared_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    std::fs::File::create(dir.path().join("big"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    for (value, expected) in [
        (
            json!({"destination": "/data", "type": "bind", "source": "/", "options": ["rbind", "tmpcopyup"]}),
            "options: \"tmpcopyup\" is not supported on a bind mount (/data)",
        ),
        (
            json!({"destination": "/s", "type": "bind", "source": "socket", "options": ["rbind"]}),
            "socket on /s is a socket, which can't be shared with a guest",
        ),
        (
            json!({"destination": "/dev/x", "type": "bind", "source": "/dev/null", "options": ["bind"]}),
            "is a device",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "/does/not/exist"}),
            "mounts[0]: source: /does/not/exist",
        ),
        (json!({"destination": "/x", "type": "bind"}), "source: missing"),
        (
            json!({"destination": "/x", "type": "nfs", "source": "x"}),
            "type: file system \"nfs\"",
        ),
        (json!({"destination": "/x"}), "type: missing"),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
            "ID-mapped",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "uidMappings: ID-mapped mounts are not supported (/x)",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "big", "options": ["bind", "nosymfollow"]}),
            "options: \"nosymfollow\" is not supported on a bind mount (/x)",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "big", "options": ["bind", "remount", "ro"]}),
            "mounts[0]: options: \"remount\": nothing is mounted on /x before",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "big"}),
            "5242880 bytes",
        ),
    ] {
        let error = format!("{:#}", place_in(dir.path(), json!([value])).unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
