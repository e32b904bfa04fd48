//! The cgroup of a VMM: limits on the machine as a whole. Limits inside it are the guest's.

use anyhow::{Context, Result};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
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
    /// The cgroup for container `id`, at `path` (`linux.cgroupsPath`) if the bundle names one. `None` when disabled.
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
        let path = path
            .filter(|path| !path.as_os_str().is_empty())
            .map_or_else(default, Path::to_owned);
        Some(Self {
            path,
            systemd,
            id: id.to_owned(),
        })
    }

    /// Makes the cgroup, moves process `pid` into it and sets the limits.
    pub fn enter(&self, pid: i32, resources: Option<&LinuxResources>) -> Result<()> {
        let manager = self.manager()?;
        let context = || format!("cgroup {}", self.path.display());
        manager.add_task(Pid::from_raw(pid)).with_context(context)?;
        let Some(resources) = resources else { return Ok(()) };
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&options).with_context(context)
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
