//! The host's half of a bundle: what confines the VMM.

use super::Bundle;
use super::sizing::{Sizing, unified_bytes, unified_tasks};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Hook, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxResources};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

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

impl HostSpec {
    /// The network namespace that is to be joined.
    pub fn network_path(&self) -> Option<&Path> {
        let network = self
            .namespaces
            .iter()
            .find(|namespace| namespace.kind == Kind::Net)?;
        network.path.as_deref()
    }
}

/// Splits off what confines the VMM.
pub fn split(bundle: &Bundle, sizing: &Sizing) -> Result<HostSpec> {
    split_with(bundle, |resources| adjust(resources, sizing))
}

/// The same for a process without a VM, whose limits are those of the bundle.
pub fn split_without_vm(bundle: &Bundle) -> Result<HostSpec> {
    split_with(bundle, without_devices)
}

fn split_with(
    bundle: &Bundle,
    limits: impl FnOnce(LinuxResources) -> Result<LinuxResources>,
) -> Result<HostSpec> {
    let linux = bundle.spec.linux().clone().unwrap_or_default();
    let namespaces = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
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
        .map(|resources| limits(resources).context("config.json"))
        .transpose()?;
    Ok(HostSpec {
        namespaces,
        uid_map,
        gid_map,
        cgroup_path: linux.cgroups_path().as_deref().map(cgroup_path).transpose()?,
        resources,
        hooks: hooks(bundle)?,
    })
}

/// `linux.namespaces`, in the order in which they are entered.
fn namespaces(listed: &[LinuxNamespace]) -> Result<Vec<Namespace>> {
    let mut namespaces = Vec::new();
    for (index, namespace) in listed.iter().enumerate() {
        let (typ, path) = (namespace.typ(), namespace.path());
        ensure!(
            listed[..index].iter().all(|earlier| earlier.typ() != typ),
            "config.json: linux.namespaces: {typ} is listed twice"
        );
        let absolute = path.as_ref().is_none_or(|path| path.is_absolute());
        ensure!(
            absolute,
            "config.json: linux.namespaces[{index}].path: not an absolute path"
        );
        match (kind(typ), path) {
            (Some(kind), path) => namespaces.push(Namespace {
                kind,
                path: path.clone(),
            }),
            (None, None) => {}
            (None, Some(path)) => bail!(
                "config.json: linux.namespaces[{index}]: the {typ} namespace {} can't be joined: a VMM has an empty root of its own",
                path.display()
            ),
        }
    }
    namespaces.sort_by_key(|namespace| namespace.kind);
    Ok(namespaces)
}

/// `linux.cgroupsPath`, which must not lead out of the hierarchy.
fn cgroup_path(path: &Path) -> Result<PathBuf> {
    ensure!(
        !path.components().any(|part| part == Component::ParentDir),
        "config.json: linux.cgroupsPath: {} has a component \"..\"",
        path.display()
    );
    Ok(path.to_owned())
}

/// Types of `linux.namespaces`, and what the VMM gets.
pub const NAMESPACES: [(LinuxNamespaceType, Option<Kind>); 8] = [
    (LinuxNamespaceType::User, Some(Kind::User)),
    (LinuxNamespaceType::Cgroup, Some(Kind::Cgroup)),
    (LinuxNamespaceType::Ipc, Some(Kind::Ipc)),
    (LinuxNamespaceType::Uts, Some(Kind::Uts)),
    (LinuxNamespaceType::Network, Some(Kind::Net)),
    (LinuxNamespaceType::Pid, Some(Kind::Pid)),
    (LinuxNamespaceType::Time, Some(Kind::Time)),
    (LinuxNamespaceType::Mount, None),
];

/// Names of the hooks that run: [`Hooks`], and in the guest `startContainer`.
pub const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn kind(typ: LinuxNamespaceType) -> Option<Kind> {
    NAMESPACES.iter().find(|(known, _)| *known == typ)?.1
}

/// Files of cgroup version 2 whose value counts the VMM's memory too.
const UNIFIED_MEMORY: [&str; 4] = ["memory.min", "memory.low", "memory.high", "memory.max"];
/// Threads of a VMM beside those of its vCPUs, generously.
const VMM_THREADS: u64 = 32;

/// Limits meant for a workload, made to fit the VMM that carries it. The memory limit is the guest's memory, so the cgroup gets
/// the VMM's own on top, and so does what it may use with swap (which includes the memory) and what is reserved for it. A guest gives
/// no memory back, so a limit below its memory (which an update can set) is the guest's to keep, and the cgroup stays at its memory.
/// Tasks in the cgroup are threads of the VMM.
pub fn adjust(resources: LinuxResources, sizing: &Sizing) -> Result<LinuxResources> {
    let mut resources = without_devices(resources)?;
    if let Some(memory) = *resources.memory() {
        resources.set_memory(Some(adjust_memory(memory, sizing)?));
    }
    let threads = VMM_THREADS + u64::from(sizing.vcpus);
    if let Some(mut pids) = *resources.pids() {
        // As crun does: what some engines write for "none given" is 0.
        let with_threads = |limit: i64| limit.saturating_add_unsigned(threads);
        let limit = pids.limit();
        pids.set_limit(if limit > 0 { with_threads(limit) } else { limit });
        resources.set_pids((limit != 0).then_some(pids));
    }
    if let Some(mut files) = resources.unified().clone() {
        if let Some(name) = files
            .keys()
            .find(|name| name.is_empty() || name.contains(['/', '\0']))
        {
            bail!("config.json: linux.resources.unified: {name:?} is not the name of a file");
        }
        for name in UNIFIED_MEMORY {
            let Some(text) = files.get_mut(name) else { continue };
            let bytes = unified_bytes(text).with_context(|| format!("linux.resources.unified: {name}"))?;
            // Without a minimum nothing is promised, to the VMM neither.
            if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
                let least = if name == "memory.max" { sizing.memory() } else { 0 };
                *text = bytes.max(least).saturating_add(sizing.headroom).to_string();
            }
        }
        if let Some(text) = files.get_mut("pids.max")
            && let Some(tasks) = unified_tasks(text).context("linux.resources.unified: pids.max")?
        {
            *text = tasks.saturating_add(threads).to_string();
        }
        resources.set_unified(Some(files));
    }
    Ok(resources)
}

/// Device rules are left out, because the process has an empty root and only the devices that it opened.
fn without_devices(mut resources: LinuxResources) -> Result<LinuxResources> {
    ensure!(
        resources.rdma().as_ref().is_none_or(HashMap::is_empty),
        "linux.resources.rdma: not supported"
    );
    resources.set_devices(None);
    Ok(resources)
}

fn adjust_memory(mut memory: LinuxMemory, sizing: &Sizing) -> Result<LinuxMemory> {
    let headroom = i64::try_from(sizing.headroom).context("headroom")?;
    let guest = i64::try_from(sizing.memory()).context("guest memory")?;
    // What some engines write for "none given" is 0, which systemd would refuse.
    let given = |limit: Option<i64>| limit.filter(|limit| *limit != 0);
    let raise = |limit: Option<i64>, least: i64| {
        given(limit).map(|limit| match limit {
            1.. => limit.max(least).saturating_add(headroom),
            unlimited => unlimited,
        })
    };
    let below = memory.limit().is_some_and(|limit| (1..guest).contains(&limit));
    let least = if below { guest } else { 0 };
    let (limit, swap) = (raise(memory.limit(), least), raise(memory.swap(), least));
    let reservation = raise(memory.reservation(), 0);
    memory
        .set_limit(limit)
        .set_swap(swap)
        .set_reservation(reservation);
    Ok(memory)
}

fn hooks(bundle: &Bundle) -> Result<Hooks> {
    let Some(hooks) = bundle.spec.hooks() else {
        return Ok(Hooks::default());
    };
    #[allow(deprecated, reason = "engines still write prestart")]
    let prestart = hooks.prestart();
    let (create_runtime, create_container) = (hooks.create_runtime(), hooks.create_container());
    let (poststart, poststop) = (hooks.poststart(), hooks.poststop());
    let lists = [
        prestart,
        create_runtime,
        create_container,
        hooks.start_container(), // the guest's to run
        poststart,
        poststop,
    ];
    for (name, list) in HOOKS.into_iter().zip(lists) {
        for (index, hook) in list.iter().flatten().enumerate() {
            check_hook(hook).with_context(|| format!("config.json: hooks.{name}[{index}]"))?;
        }
    }
    Ok(Hooks {
        create_runtime: prestart.iter().chain(create_runtime).flatten().cloned().collect(),
        create_container: create_container.clone().unwrap_or_default(),
        poststart: poststart.clone().unwrap_or_default(),
        poststop: poststop.clone().unwrap_or_default(),
    })
}

/// What config.md#posix-platform-hooks demands of a hook.
fn check_hook(hook: &Hook) -> Result<()> {
    ensure!(
        hook.path().is_absolute(),
        "path: {:?} is not an absolute path",
        hook.path()
    );
    if let Some(timeout) = hook.timeout() {
        ensure!(timeout > 0, "timeout: {timeout} is not greater than 0");
    }
    Ok(())
}
