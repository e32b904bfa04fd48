//! `linux.devices`: the guest makes those that its kernel has, wherever they are to be. A block device of the host becomes a disk of the
//! guest, as far as the rules in `linux.resources.devices` let it be read and written. Any other that only the host has is an error that names
//! it; but a privileged container, for which engines list all that the host has, gets all that the guest has and nothing of the host's. One
//! that neither has is a node with nothing behind it, there as here.

use super::annotations;
use super::mounts::Sharing;
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
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

/// A block device of the host that becomes a disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its path in the container, by which errors name it.
    pub path: String,
    /// Its number on the host.
    pub major: u32,
    /// Its number on the host.
    pub minor: u32,
    /// Whether the guest may write.
    pub writable: bool,
}

impl Disk {
    /// Opens it. The second value is whether it can be written: one that is read-only on the host is so in the guest.
    pub fn open(&self) -> Result<(File, bool)> {
        let Self {
            path, major, minor, ..
        } = self;
        let node = host_node(*major, *minor).with_context(|| {
            format!("config.json: linux.devices: {path}: the host's block device {major}:{minor}")
        })?;
        // The kernel lets one that is read-only be opened to write, and then refuses each write.
        let readonly = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
        let writable = self.writable && !readonly.is_ok_and(|text| text.trim_end() == "1");
        let file = File::options()
            .read(true)
            .write(writable)
            .open(&node)
            .with_context(|| format!("config.json: linux.devices: {path}: opening {}", node.display()))?;
        let meta = file.metadata()?;
        let number = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        ensure!(
            meta.file_type().is_block_device() && number == (*major, *minor),
            "config.json: linux.devices: {path}: {} is not the block device {major}:{minor}",
            node.display()
        );
        Ok((file, writable))
    }
}

/// Where the host has the node of a block device, by what its kernel says of it (`DEVNAME`).
fn host_node(major: u32, minor: u32) -> io::Result<PathBuf> {
    let said = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = said.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("it has no name there"))?;
    Ok(Path::new("/dev").join(name))
}

/// What the guest is to make, and the disks that are among that, in their order.
pub fn devices(linux: &Linux, sharing: Sharing) -> Result<(Vec<Device>, Vec<Disk>)> {
    devices_beside(linux, sharing, host_has)
}

fn devices_beside(
    linux: &Linux,
    sharing: Sharing,
    host_has: impl Fn(&str, i64, i64) -> bool,
) -> Result<(Vec<Device>, Vec<Disk>)> {
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let privileged = rules.unwrap_or_default().iter().any(allows_all);
    let (mut made, mut disks) = (Vec::new(), Vec::new());
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let one = match device.typ() {
            LinuxDeviceType::B if !privileged && host_has("block", device.major(), device.minor()) => {
                disk(device, rules, sharing, disks.len()).map(|(device, disk)| {
                    disks.push(disk);
                    Some(device)
                })
            }
            _ => one(device, &host_has),
        };
        match one {
            Ok(device) => made.extend(device),
            Err(error) if privileged => tracing::debug!("linux.devices[{index}] is left out: {error:#}"),
            Err(error) => return Err(error.context(format!("config.json: linux.devices[{index}]"))),
        }
    }
    Ok((made, disks))
}

/// A block device of the host: the guest's disk of this number.
fn disk(
    device: &LinuxDevice,
    rules: Option<&[LinuxDeviceCgroup]>,
    sharing: Sharing,
    number: usize,
) -> Result<(Device, Disk)> {
    let node = node(
        device,
        DeviceKind::Disk {
            number: u32::try_from(number)?,
        },
    )?;
    let path = &node.path;
    ensure!(
        sharing == Sharing::Untrusted,
        "{path} is a block device of the host, and the annotation {} says that nothing may be shared with this guest",
        annotations::VOLUMES
    );
    let may = |letter| rules.is_none_or(|rules| allowed(rules, device, letter));
    ensure!(
        may('r'),
        "{path}: no rule in linux.resources.devices lets block device {}:{} be read",
        device.major(),
        device.minor()
    );
    let disk = Disk {
        path: path.clone(),
        major: u32::try_from(device.major())?,
        minor: u32::try_from(device.minor())?,
        writable: may('w'),
    };
    Ok((node, disk))
}

/// What the rules, the last of which counts, say of one kind of access to a block device. Without one that matches it is denied.
fn allowed(rules: &[LinuxDeviceCgroup], device: &LinuxDevice, access: char) -> bool {
    let is = |number: Option<i64>, own| number.is_none_or(|number| number == -1 || number == own);
    let matches = |rule: &&LinuxDeviceCgroup| {
        rule.typ()
            .is_none_or(|kind| matches!(kind, LinuxDeviceType::A | LinuxDeviceType::B))
            && is(rule.major(), device.major())
            && is(rule.minor(), device.minor())
            && rule
                .access()
                .as_ref()
                .is_none_or(|kinds| kinds.is_empty() || kinds.contains(access))
    };
    rules.iter().rfind(matches).is_some_and(LinuxDeviceCgroup::allow)
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
    let (major, minor) = (device.major(), device.minor());
    let numbers = || -> Result<(u32, u32)> { Ok((u32::try_from(major)?, u32::try_from(minor)?)) };
    let own = |path: &Path| {
        let is = |&(own, a, b): &(&str, i64, i64)| (path, major, minor) == (Path::new(own), a, b);
        MADE_ELSEWHERE.iter().any(is)
    };
    let kind = match device.typ() {
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U if own(device.path()) => return Ok(None),
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
        _ => bail!(
            "{} ({major}:{minor}) does not exist in a guest",
            device.path().display()
        ),
    };
    node(device, kind).map(Some)
}

/// Where and how the guest makes it.
fn node(device: &LinuxDevice, kind: DeviceKind) -> Result<Device> {
    let path = device.path().to_str().context("path: not UTF-8")?;
    ensure!(
        path.starts_with('/') && Path::new(path).file_name().is_some() && !path.contains('\0'),
        "path: {path:?} is not the absolute path of a file"
    );
    Ok(Device {
        path: path.trim_end_matches('/').to_owned(),
        kind,
        // Some engines leave the bits of the type in.
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Beside a host that has every device.
    fn made(device: Value) -> Result<Vec<Device>> {
        let linux = serde_json::from_value(json!({"devices": [device]})).unwrap();
        devices_beside(&linux, Sharing::Untrusted, |_, _, _| true).map(|(made, _)| made)
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
            let (made, disks) = devices_beside(&linux, Sharing::Untrusted, asked).unwrap();
            assert!(disks.is_empty());
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
            devices_beside(
                &serde_json::from_value(linux).unwrap(),
                Sharing::Untrusted,
                |_, _, _| true,
            )
        };
        for all in [
            json!({"allow": true, "access": "rwm"}),
            json!({"allow": true, "type": "a", "major": -1, "minor": -1, "access": "rwm"}),
        ] {
            let (made, disks) = made(all).unwrap();
            assert_eq!((made.len(), made[0].path.as_str()), (1, "/dev/fuse"));
            assert!(disks.is_empty(), "none of the host's");
        }
        for not_all in [
            json!({"allow": true, "type": "b", "access": "rwm"}),
            json!({"allow": true, "major": 8, "access": "rwm"}),
            json!({"allow": true, "access": "rm"}),
        ] {
            assert_eq!(made(not_all).unwrap().1.len(), 1);
        }
        made(json!({"allow": false, "access": "rwm"})).unwrap_err();
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
                json!({"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}),
                "linux.devices[0]: /dev/mem (1:1) does not exist",
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
    #[test]
    fn a_block_device_is_a_disk_with_what_access_the_rules_give() {
        let disk = |rules: Value, sharing| {
            let listed =
                json!([{"path": "/dev/data", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640}]);
            let linux = json!({"devices": listed, "resources": {"devices": rules}});
            let linux = serde_json::from_value(linux).unwrap();
            devices_beside(&linux, sharing, |_, _, _| true)
        };
        let none = json!({"allow": false, "access": "rwm"});
        let rule = |access| json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": access});
        for (rules, writable) in [
            (json!([none, rule("rwm")]), true),
            (
                json!([none, rule("rw"), {"allow": false, "type": "b", "major": 7, "access": "w"}]),
                false,
            ),
            (json!([none, rule("r")]), false),
            (
                json!([none, {"allow": true, "type": "b", "major": -1, "access": "r"}]),
                false,
            ),
        ] {
            let (made, disks) = disk(rules, Sharing::Untrusted).unwrap();
            assert_eq!(made[0].kind, DeviceKind::Disk { number: 0 });
            assert_eq!((made[0].path.as_str(), made[0].mode), ("/dev/data", 0o640));
            let expected = Disk {
                path: "/dev/data".into(),
                major: 7,
                minor: 3,
                writable,
            };
            assert_eq!(disks, [expected]);
        }
        for (rules, sharing, expected) in [
            (
                json!([none]),
                Sharing::Untrusted,
                "no rule in linux.resources.devices lets block device 7:3",
            ),
            (
                json!([rule("rw"), none]),
                Sharing::Untrusted,
                "/dev/data: no rule",
            ),
            (json!([none, rule("w")]), Sharing::Untrusted, "/dev/data: no rule"),
            (
                json!([none, rule("rw")]),
                Sharing::Deny,
                "the annotation io.cwrun.volumes says",
            ),
        ] {
            let error = format!("{:#}", disk(rules, sharing).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_disk_that_cant_be_opened_is_named() {
        let disk = Disk {
            path: "/dev/data".into(),
            major: 4095,
            minor: 7,
            writable: true,
        };
        let error = format!("{:#}", disk.open().unwrap_err());
        assert!(
            error.contains("/dev/data: the host's block device 4095:7"),
            "{error}"
        );
    }
}
