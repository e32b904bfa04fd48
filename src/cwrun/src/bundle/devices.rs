//! `linux.devices`: the guest makes those that its kernel has, wherever they are to be. One that only the host has is an error that names it;
//! but a privileged container, for which engines list all that the host has, gets all that the guest has. One that neither has is a node with
//! nothing behind it, there as here.

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use std::path::Path;
use workload::{Device, DeviceKind};

/// Character devices of a guest's kernel: major, minor. `null`, `zero`, `full`, `random`, `urandom`, `kmsg`, `tty`, `net/tun`, `fuse`.
const DEVICES: [(i64, i64); 9] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (10, 200),
    (10, 229),
];

/// Devices that are not files of their own: a container's terminal is its `console`, and `ptmx` is that of its own devpts.
const MADE_ELSEWHERE: [(&str, i64, i64); 2] = [("/dev/console", 5, 1), ("/dev/ptmx", 5, 2)];

/// Permissions where none are given, as in crun.
const DEFAULT_MODE: u32 = 0o666;

/// Those that the guest is to make.
pub fn devices(linux: &Linux) -> Result<Vec<Device>> {
    devices_beside(linux, host_has)
}

fn devices_beside(linux: &Linux, host_has: impl Fn(&str, i64, i64) -> bool) -> Result<Vec<Device>> {
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let privileged = rules.unwrap_or_default().iter().any(allows_all);
    let mut made = Vec::new();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        match one(device, &host_has) {
            Ok(device) => made.extend(device),
            Err(error) if privileged => tracing::debug!("linux.devices[{index}] is left out: {error:#}"),
            Err(error) => return Err(error.context(format!("config.json: linux.devices[{index}]"))),
        }
    }
    Ok(made)
}

/// Whether a rule allows everything with every device, which engines write for privileged containers alone.
fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number == -1);
    rule.allow()
        && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
        && any(rule.major())
        && any(rule.minor())
        && rule.access().as_deref() == Some("rwm")
}

/// Whether the host's kernel has a device (`/sys/dev`, sysfs(5)); where that can't be seen, it may have it.
fn host_has(directory: &str, major: i64, minor: i64) -> bool {
    let directory = Path::new("/sys/dev").join(directory);
    !directory.is_dir() || directory.join(format!("{major}:{minor}")).exists()
}

fn one(device: &LinuxDevice, host_has: impl Fn(&str, i64, i64) -> bool) -> Result<Option<Device>> {
    let path = device.path().to_str().context("path: not UTF-8")?;
    ensure!(
        path.starts_with('/') && Path::new(path).file_name().is_some() && !path.contains('\0'),
        "path: {path:?} is not the absolute path of a file"
    );
    let (major, minor) = (device.major(), device.minor());
    let numbers = || -> Result<(u32, u32)> { Ok((u32::try_from(major)?, u32::try_from(minor)?)) };
    let kind = match device.typ() {
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U if MADE_ELSEWHERE.contains(&(path, major, minor)) => {
            return Ok(None);
        }
        LinuxDeviceType::C | LinuxDeviceType::U
            if DEVICES.contains(&(major, minor)) || !host_has("char", major, minor) =>
        {
            let (major, minor) = numbers()?;
            DeviceKind::Character { major, minor }
        }
        LinuxDeviceType::B if !host_has("block", major, minor) => {
            let (major, minor) = numbers()?;
            DeviceKind::Block { major, minor }
        }
        _ => bail!("{path} ({major}:{minor}) does not exist in a guest"),
    };
    Ok(Some(Device {
        path: path.trim_end_matches('/').to_owned(),
        kind,
        // Some engines leave the bits of the type in.
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Beside a host that has every device.
    fn made(device: Value) -> Result<Vec<Device>> {
        let linux = serde_json::from_value(json!({"devices": [device]})).unwrap();
        devices_beside(&linux, |_, _, _| true)
    }

    #[test]
    fn what_neither_has_is_a_node() {
        for (letter, block) in [("b", true), ("c", false)] {
            let device = json!({"path": "/dev/none", "type": letter, "major": 8, "minor": 666});
            let linux = serde_json::from_value(json!({"devices": [device]})).unwrap();
            let asked = |directory: &str, major, minor| {
                assert_eq!((directory == "block", major, minor), (block, 8, 666));
                false
            };
            let made = devices_beside(&linux, asked).unwrap();
            let expected = match block {
                true => DeviceKind::Block { major: 8, minor: 666 },
                false => DeviceKind::Character { major: 8, minor: 666 },
            };
            assert_eq!(made[0].kind, expected);
        }
    }

    #[test]
    fn a_privileged_container_gets_what_the_guest_has() {
        let made = |rule: Value| {
            let listed = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
            let linux = json!({"devices": listed, "resources": {"devices": [rule]}});
            devices_beside(&serde_json::from_value(linux).unwrap(), |_, _, _| true)
        };
        for all in [
            json!({"allow": true, "access": "rwm"}),
            json!({"allow": true, "type": "a", "major": -1, "minor": -1, "access": "rwm"}),
        ] {
            let made = made(all).unwrap();
            assert_eq!((made.len(), made[0].path.as_str()), (1, "/dev/fuse"));
        }
        for not_all in [
            json!({"allow": false, "access": "rwm"}),
            json!({"allow": true, "type": "b", "access": "rwm"}),
            json!({"allow": true, "major": 8, "access": "rwm"}),
            json!({"allow": true, "access": "rm"}),
        ] {
            made(not_all).unwrap_err();
        }
    }

    #[test]
    fn what_the_guest_has_is_made_where_it_is_wanted() {
        let device = &made(json!({"path": "/srv/nothing", "type": "c", "major": 1, "minor": 3, "fileMode": 0o20_640, "uid": 5, "gid": 6}))
            .unwrap()[0];
        assert_eq!(device.kind, DeviceKind::Character { major: 1, minor: 3 });
        assert_eq!(
            (device.path.as_str(), device.mode, device.uid, device.gid),
            ("/srv/nothing", 0o640, 5, 6)
        );
        let device = &made(json!({"path": "/pipe", "type": "p"})).unwrap()[0];
        assert_eq!(
            (device.kind, device.mode, device.uid),
            (DeviceKind::Fifo, 0o666, 0)
        );
        for own in ["/dev/ptmx", "/dev/console"] {
            let minor = if own == "/dev/ptmx" { 2 } else { 1 };
            assert!(
                made(json!({"path": own, "type": "c", "major": 5, "minor": minor}))
                    .unwrap()
                    .is_empty()
            );
        }
    }

    #[test]
    fn what_it_does_not_have_is_refused_by_name() {
        for (device, expected) in [
            (
                json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}),
                "linux.devices[0]: /dev/sda (8:0) does not exist",
            ),
            (
                json!({"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}),
                "/dev/mem (1:1) does not exist",
            ),
            (
                json!({"path": "/dev/null", "type": "b", "major": 1, "minor": 3}),
                "/dev/null (1:3) does not exist",
            ),
            (
                json!({"path": "/my/ptmx", "type": "c", "major": 5, "minor": 2}),
                "/my/ptmx (5:2) does not exist",
            ),
            (
                json!({"path": "dev/null", "type": "c", "major": 1, "minor": 3}),
                "linux.devices[0]: path: \"dev/null\"",
            ),
            (json!({"path": "/dev/..", "type": "p"}), "path: \"/dev/..\""),
        ] {
            let error = format!("{:#}", made(device).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
