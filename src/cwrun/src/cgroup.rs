//! The cgroup of a VMM: limits on the machine as a whole. Limits inside it are the guest's.

pub mod usage;

use crate::user;
use anyhow::{Context, Result, ensure};
use libcgroups::common::{
    AnyCgroupManager, AnyManagerError, CgroupConfig, CgroupManager, CgroupSetup, ControllerOpt,
    WrappedIoError, create_cgroup_manager, get_cgroup_setup,
};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::error::Error as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Who manages cgroups, `--cgroup-manager`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Manager {
    /// Directories in the cgroup file system.
    Cgroupfs,
    /// Scopes made by systemd.
    Systemd,
    /// None: the VMM stays in the caller's cgroup.
    Disabled,
}

/// Where a container's cgroup is; enough to find it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Location {
    path: PathBuf,
    systemd: bool,
    id: String,
}

impl Location {
    /// The cgroup for container `id`, at `path` (`linux.cgroupsPath`) if the bundle names one. `None` when disabled, and for users
    /// whose engine names none, because they have no place of their own in the hierarchy.
    pub fn new(manager: Manager, path: Option<&Path>, id: &str) -> Option<Self> {
        let systemd = match manager {
            Manager::Disabled => return None,
            Manager::Cgroupfs => false,
            Manager::Systemd => true,
        };
        let default = || {
            if systemd {
                PathBuf::from(format!(":cwrun:{id}"))
            } else {
                PathBuf::from(format!("/cwrun/{id}"))
            }
        };
        // An empty path is what some engines write for "none given".
        let path = path.filter(|path| !path.as_os_str().is_empty());
        if path.is_none() && !systemd && !user::is_system() {
            return None;
        }
        let path = path.map_or_else(default, Path::to_owned);
        Some(Self {
            path,
            systemd,
            id: id.to_owned(),
        })
    }

    /// Refuses a cgroup that has processes. It is somebody else's: they would be under this container's limits, and end with it.
    pub fn expect_empty(&self) -> Result<()> {
        let others = self.processes().len();
        ensure!(
            others == 0,
            "config.json: linux.cgroupsPath: {}: the cgroup has processes already ({others})",
            self.path.display()
        );
        Ok(())
    }

    /// Makes the cgroup, moves process `pid` into it and sets the limits.
    pub fn enter(&self, pid: i32, resources: Option<&LinuxResources>) -> Result<()> {
        let manager = self.manager()?;
        let mut entered = manager.add_task(Pid::from_raw(pid));
        // Another container's `create` may make the same parent between libcgroups' look for it and its own making: one try for each.
        for _ in self.path.components() {
            if !entered.as_ref().is_err_and(is_taken) {
                break;
            }
            entered = manager.add_task(Pid::from_raw(pid));
        }
        entered.with_context(|| format!("cgroup {}", self.path.display()))?;
        match resources {
            Some(resources) => self.limit(pid, resources),
            None => Ok(()),
        }
    }

    /// Sets the limits of the cgroup, in which process `pid` is.
    pub fn limit(&self, pid: i32, resources: &LinuxResources) -> Result<()> {
        let manager = self.manager()?;
        let context = || format!("cgroup {}", self.path.display());
        let version_2 = matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified));
        match version_2 {
            true => refuse_version_1(resources)?,
            false => refuse_version_2(resources)?,
        }
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&options).with_context(context)?;
        if version_2 && allows_no_swap(resources) {
            forbid_swap(pid).with_context(context)?;
        }
        Ok(())
    }

    /// Removes the cgroup, if it is there.
    pub fn remove(&self) -> Result<()> {
        self.manager()?
            .remove()
            .with_context(|| format!("cgroup {}", self.path.display()))
    }

    /// Processes in the cgroup; none if it is gone.
    pub fn processes(&self) -> Vec<i32> {
        let pids = self
            .manager()
            .and_then(|manager| Ok(manager.get_all_pids()?))
            .unwrap_or_default();
        pids.into_iter().map(Pid::as_raw).collect()
    }

    fn manager(&self) -> Result<AnyCgroupManager> {
        let config = CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: self.systemd,
            container_name: self.id.clone(),
        };
        create_cgroup_manager(config).with_context(|| format!("cgroup {}", self.path.display()))
    }
}

/// Whether this is about a directory that is there already.
fn is_taken(error: &AnyManagerError) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref());
    io.is_some_and(|error: &WrappedIoError| error.inner().kind() == ErrorKind::AlreadyExists)
}

/// Whether the limit on memory with swap is the limit on memory. libcgroups takes the difference of 0 for "not given".
fn allows_no_swap(resources: &LinuxResources) -> bool {
    let memory = resources.memory().unwrap_or_default();
    let unified = resources.unified().as_ref();
    memory.limit().is_some_and(|limit| limit > 0)
        && memory.swap() == memory.limit()
        && unified.is_none_or(|files| !files.contains_key("memory.swap.max"))
}

/// Sets the swap limit of the cgroup that process `pid` is in to 0. A kernel without swap space has no such file.
fn forbid_swap(pid: i32) -> Result<()> {
    let file = usage::Groups::of(pid)?.unified()?.join("memory.swap.max");
    match fs::write(&file, "0") {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(file.display().to_string()),
        _ => Ok(()),
    }
}

/// What version 2 of cgroups has no file for, and libcgroups passes over. As in crun, it is an error.
fn refuse_version_1(resources: &LinuxResources) -> Result<()> {
    let memory = resources.memory().unwrap_or_default();
    let network = resources.network().as_ref();
    let network = network.is_some_and(|network| {
        network.class_id().is_some() || network.priorities().as_ref().is_some_and(|list| !list.is_empty())
    });
    let block_io = resources.block_io().as_ref();
    let leaf_weight = block_io.is_some_and(|block_io| {
        let mut devices = block_io.weight_device().iter().flatten();
        block_io.leaf_weight().is_some() || devices.any(|device| device.leaf_weight().is_some())
    });
    for (field, set) in [
        ("blockIO.leafWeight", leaf_weight),
        ("memory.kernel", memory.kernel().is_some()),
        ("memory.kernelTCP", memory.kernel_tcp().is_some()),
        ("memory.swappiness", memory.swappiness().is_some()),
        (
            "memory.disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
        ),
        ("network", network),
    ] {
        ensure!(
            !set,
            "linux.resources.{field}: not possible with version 2 of cgroups, which this host has"
        );
    }
    Ok(())
}

/// What version 1 has no place for, and libcgroups passes over.
fn refuse_version_2(resources: &LinuxResources) -> Result<()> {
    let unified = resources.unified().as_ref();
    ensure!(
        unified.is_none_or(|files| files.is_empty()),
        "linux.resources.unified: not possible with version 1 of cgroups, which this host has"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_limits_mean_no_swap() {
        let check = |value| allows_no_swap(&serde_json::from_value(value).unwrap());
        assert!(check(json!({"memory": {"limit": 5, "swap": 5}})));
        for value in [
            json!({}),
            json!({"memory": {"limit": 5}}),
            json!({"memory": {"limit": 5, "swap": 6}}),
            json!({"memory": {"limit": -1, "swap": -1}}),
            json!({"memory": {"limit": 5, "swap": 5}, "unified": {"memory.swap.max": "1"}}),
        ] {
            assert!(!check(value.clone()), "{value}");
        }
    }

    #[test]
    fn what_version_1_does_not_have_is_refused_by_name() {
        let check = |value| refuse_version_2(&serde_json::from_value(value).unwrap());
        check(json!({"memory": {"limit": 1, "swappiness": 0}})).unwrap();
        check(json!({"unified": {}})).unwrap();
        let error = check(json!({"unified": {"memory.high": "1"}})).unwrap_err();
        assert!(
            error.to_string().starts_with("linux.resources.unified: "),
            "{error}"
        );
    }

    #[test]
    fn what_version_2_does_not_have_is_refused_by_name() {
        let check = |value| refuse_version_1(&serde_json::from_value(value).unwrap());
        check(json!({})).unwrap();
        check(json!({"memory": {"limit": 1, "disableOOMKiller": false}, "network": {}})).unwrap();
        for (value, field) in [
            (
                json!({"memory": {"swappiness": 0}}),
                "linux.resources.memory.swappiness:",
            ),
            (json!({"memory": {"kernel": 1}}), "linux.resources.memory.kernel:"),
            (
                json!({"memory": {"kernelTCP": 1}}),
                "linux.resources.memory.kernelTCP:",
            ),
            (
                json!({"memory": {"disableOOMKiller": true}}),
                "linux.resources.memory.disableOOMKiller:",
            ),
            (json!({"network": {"classID": 1}}), "linux.resources.network:"),
            (
                json!({"blockIO": {"leafWeight": 10}}),
                "linux.resources.blockIO.leafWeight:",
            ),
            (
                json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}),
                "linux.resources.blockIO.leafWeight:",
            ),
        ] {
            let error = format!("{:#}", check(value).unwrap_err());
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
