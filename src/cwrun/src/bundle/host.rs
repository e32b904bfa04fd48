//! The host's half of a bundle: what confines the VMM.

use super::Bundle;
use super::sizing::Sizing;
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Hook, LinuxNamespaceType, LinuxResources};
use std::path::PathBuf;

/// A namespace of the VMM process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Which kind.
    pub kind: Kind,
    /// The one to join, or none for a new one.
    pub path: Option<PathBuf>,
}

/// Kinds of namespaces, namespaces(7). The mount namespace is missing: the VMM always has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Entered first: it owns the others.
    User,
    /// Cgroup root.
    Cgroup,
    /// System V IPC and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Network: the one namespace whose content matters to a VMM.
    Net,
    /// Process IDs.
    Pid,
    /// Clocks.
    Time,
}

/// One line of a user namespace's map, user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First ID inside.
    pub inside: u32,
    /// First ID outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Hooks that run on the host, OCI runtime-spec config.md#posix-platform-hooks.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Hooks {
    /// `prestart` and then `createRuntime`: in the runtime's namespaces, once the container's exist.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root changes.
    pub create_container: Vec<Hook>,
    /// After the workload has been started.
    pub poststart: Vec<Hook>,
    /// After the container has been deleted.
    pub poststop: Vec<Hook>,
}

/// What confines the VMM process.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// In the order in which they are entered.
    pub namespaces: Vec<Namespace>,
    /// Map of user IDs for a new user namespace.
    pub uid_map: Vec<IdMap>,
    /// Map of group IDs for a new user namespace.
    pub gid_map: Vec<IdMap>,
    /// `linux.cgroupsPath`.
    pub cgroup_path: Option<PathBuf>,
    /// Limits on the VMM's cgroup.
    pub resources: Option<LinuxResources>,
    /// Hooks on the host.
    pub hooks: Hooks,
}

/// Splits off what confines the VMM.
pub fn split(bundle: &Bundle, sizing: &Sizing) -> Result<HostSpec> {
    let linux = bundle.spec.linux().clone().unwrap_or_default();
    let mut namespaces = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        if let Some(kind) = kind(namespace.typ()) {
            namespaces.push(Namespace {
                kind,
                path: namespace.path().clone(),
            });
        }
    }
    namespaces.sort_by_key(|namespace| namespace.kind);
    if let Some(pair) = namespaces.windows(2).find(|pair| pair[0].kind == pair[1].kind) {
        bail!(
            "config.json: linux.namespaces: {:?} is listed twice",
            pair[0].kind
        );
    }
    let new_user = namespaces
        .iter()
        .any(|n| n.kind == Kind::User && n.path.is_none());
    let map = |mappings: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| -> Vec<IdMap> {
        let line = |m: &oci_spec::runtime::LinuxIdMapping| IdMap {
            inside: m.container_id(),
            outside: m.host_id(),
            count: m.size(),
        };
        mappings.iter().flatten().map(line).collect()
    };
    let (uid_map, gid_map) = (map(linux.uid_mappings()), map(linux.gid_mappings()));
    ensure!(
        !new_user || !(uid_map.is_empty() || gid_map.is_empty()),
        "config.json: linux.uidMappings and linux.gidMappings: missing, a new user namespace needs both"
    );
    let resources = linux
        .resources()
        .clone()
        .map(|resources| adjust(resources, sizing))
        .transpose()?;
    Ok(HostSpec {
        namespaces,
        uid_map,
        gid_map,
        cgroup_path: linux.cgroups_path().clone(),
        resources,
        hooks: hooks(bundle),
    })
}

fn kind(typ: LinuxNamespaceType) -> Option<Kind> {
    match typ {
        LinuxNamespaceType::User => Some(Kind::User),
        LinuxNamespaceType::Cgroup => Some(Kind::Cgroup),
        LinuxNamespaceType::Ipc => Some(Kind::Ipc),
        LinuxNamespaceType::Uts => Some(Kind::Uts),
        LinuxNamespaceType::Network => Some(Kind::Net),
        LinuxNamespaceType::Pid => Some(Kind::Pid),
        LinuxNamespaceType::Time => Some(Kind::Time),
        LinuxNamespaceType::Mount => None,
    }
}

/// Limits meant for a workload, made to fit the VMM that carries it: the memory limit is the guest's memory, so the cgroup
/// gets the VMM's own on top; device rules are left out, because the VMM has an empty root and only the devices it opened.
fn adjust(mut resources: LinuxResources, sizing: &Sizing) -> Result<LinuxResources> {
    resources.set_devices(None);
    if let Some(mut memory) = *resources.memory() {
        let headroom = i64::try_from(sizing.headroom).context("headroom")?;
        let least = i64::try_from(sizing.memory_mib << 20)
            .context("config.json: linux.resources.memory.limit: too large")?;
        let raise = |limit: Option<i64>| {
            limit.map(|limit| {
                if limit > 0 {
                    limit.max(least).saturating_add(headroom)
                } else {
                    limit
                }
            })
        };
        let (limit, swap) = (raise(memory.limit()), raise(memory.swap()));
        memory.set_limit(limit).set_swap(swap);
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}

fn hooks(bundle: &Bundle) -> Hooks {
    let Some(hooks) = bundle.spec.hooks() else {
        return Hooks::default();
    };
    #[allow(deprecated, reason = "engines still write prestart")]
    let prestart = hooks.prestart().iter().flatten();
    Hooks {
        create_runtime: prestart
            .chain(hooks.create_runtime().iter().flatten())
            .cloned()
            .collect(),
        create_container: hooks.create_container().clone().unwrap_or_default(),
        poststart: hooks.poststart().clone().unwrap_or_default(),
        poststop: hooks.poststop().clone().unwrap_or_default(),
    }
}
