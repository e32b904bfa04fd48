//! The guest's half of a bundle: Workload and Environment.

use super::Bundle;
use super::devices::{self, Disk};
use super::mounts::{self, Placed, Sharing, Source};
use super::scheduling;
use super::seccomp;
use super::sizing::{Limits, Sizing};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Linux, LinuxCapabilities, LinuxNamespaceType, Process as OciProcess};
use std::collections::{BTreeMap, BTreeSet};
use workload::{
    Capabilities, Capability, Changes, Clock, Environment, Hook, Process, Rlimit, RootFs, RootPropagation,
    TimeOffset, User, Workload,
};

/// What of the host's a guest uses.
#[derive(Debug)]
pub struct Shared {
    /// Directories: those of the Environment's volumes, one by one.
    pub volumes: Vec<Source>,
    /// Block devices: those of the Workload's disks, by their numbers.
    pub disks: Vec<Disk>,
}

/// Splits off what the guest enforces. The Workload's root is left empty, for the caller to fill once the root file
/// system has been converted: what is wrong with a bundle is found before that. A confidential guest shares nothing with the host.
pub fn split(
    bundle: &Bundle,
    id: &str,
    sizing: &Sizing,
    confidential: bool,
) -> Result<(Workload, Environment, Shared)> {
    let spec = &bundle.spec;
    let process = spec
        .process()
        .as_ref()
        .context("config.json: process: missing, expected an object with args and cwd")?;
    refuse_unsupported(bundle, process)?;
    let linux = spec.linux().clone().unwrap_or_default();
    check_paths("maskedPaths", linux.masked_paths().as_deref())?;
    check_paths("readonlyPaths", linux.readonly_paths().as_deref())?;
    let (mut guest_mounts, mut files) = (Vec::new(), Vec::new());
    let (mut sources, mut volumes) = (Vec::new(), Vec::new());
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let sharing = Sharing::of(bundle, confidential)?;
    for placed in mounts::place(&bundle.dir, mounts, sharing)? {
        match placed {
            Placed::Guest(mount) => guest_mounts.push(mount),
            Placed::File(file) => files.push(file),
            Placed::Volume(source, volume) => {
                sources.push(source);
                volumes.push(volume);
            }
        }
    }
    let (devices, disks) = devices::devices(&linux, sharing)?;
    let workload = Workload {
        version: Workload::VERSION,
        root: RootFs::Layers { layers: Vec::new() },
        scratch: sizing.scratch.clone(),
        readonly_root: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        process: self::process(process, &linux)?,
        mounts: guest_mounts,
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        sysctl: linux
            .sysctl()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        time_offsets: time_offsets(&linux)?,
        devices,
        start_hooks: start_hooks(bundle)?,
        root_propagation: root_propagation(linux.rootfs_propagation().as_deref())?,
        tee: None,
        sealed: None,
    };
    let environment = Environment {
        id: id.to_owned(),
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        files,
        volumes,
        console_size: console_size(process),
        limits: limits(&linux, sizing)?,
        state: String::new(),
        changes: Changes::default(),
        interfaces: Vec::new(), // known when the network namespace is
    };
    environment
        .check()
        .map_err(|problem| anyhow::anyhow!("config.json: {problem}"))?;
    let shared = Shared {
        volumes: sources,
        disks,
    };
    Ok((workload, environment, shared))
}

/// `hooks.startContainer`, which run in the guest.
fn start_hooks(bundle: &Bundle) -> Result<Vec<Hook>> {
    let hooks = bundle.spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.start_container().as_deref());
    let hooks = hooks.unwrap_or_default().iter().enumerate();
    let inherited = bundle
        .spec
        .process()
        .as_ref()
        .and_then(|process| process.env().as_deref());
    hooks
        .map(|(index, hook)| {
            start_hook(hook, inherited.unwrap_or_default())
                .with_context(|| format!("config.json: hooks.startContainer[{index}]"))
        })
        .collect()
}

/// Path and timeout have been checked with those of the host's hooks. One that says nothing of its environment has the container's
/// (`inherited`), as with runc: it is a process of the container.
fn start_hook(hook: &oci_spec::runtime::Hook, inherited: &[String]) -> Result<Hook> {
    let path = hook.path().to_str().context("path: not UTF-8")?;
    let (args, env) = (
        hook.args().clone().unwrap_or_default(),
        hook.env().clone().unwrap_or_else(|| inherited.to_vec()),
    );
    let nul = args
        .iter()
        .chain(&env)
        .map(String::as_str)
        .chain([path])
        .any(|text| text.contains('\0'));
    ensure!(!nul, "a string contains a NUL byte");
    let timeout = hook.timeout();
    Ok(Hook {
        path: path.to_owned(),
        args,
        env,
        timeout: timeout.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
    })
}

/// What the container's processes may use together, as far as it is the guest that sees to it.
fn limits(linux: &Linux, sizing: &Sizing) -> Result<workload::Limits> {
    match linux.resources() {
        Some(resources) => Ok(Limits::of(resources).context("config.json")?.inside(sizing)),
        None => Ok(workload::Limits::default()),
    }
}

/// OCI `process`, of a container or of one more process in it. Both are under the container's `linux.seccomp`.
pub fn process(process: &OciProcess, linux: &Linux) -> Result<Process> {
    let args = process.args().clone().unwrap_or_default();
    ensure!(
        args.first().is_some_and(|arg| !arg.is_empty()),
        "config.json: process.args: missing or empty, expected a program to run"
    );
    let cwd = process
        .cwd()
        .to_str()
        .context("config.json: process.cwd: not UTF-8")?;
    ensure!(
        cwd.starts_with('/'),
        "config.json: process.cwd: {cwd:?} is not an absolute path"
    );
    let env = process.env().clone().unwrap_or_default();
    let nul = args
        .iter()
        .chain(&env)
        .map(String::as_str)
        .chain([cwd])
        .any(|text| text.contains('\0'));
    ensure!(!nul, "config.json: process: a string contains a NUL byte");
    let rlimits = process.rlimits().iter().flatten();
    let rlimits = rlimits
        .map(|r| Rlimit {
            resource: r.typ().to_string(),
            soft: r.soft(),
            hard: r.hard(),
        })
        .collect::<Vec<_>>();
    let names: BTreeSet<_> = rlimits.iter().map(|limit| &limit.resource).collect();
    ensure!(
        names.len() == rlimits.len(),
        "config.json: process.rlimits: a resource is named twice"
    );
    let user = process.user();
    Ok(Process {
        args,
        env,
        cwd: cwd.to_owned(),
        user: User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        terminal: process.terminal().unwrap_or(false),
        capabilities: process.capabilities().as_ref().map(capabilities),
        rlimits,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
        oom_score_adj: process.oom_score_adj(),
        scheduler: process
            .scheduler()
            .as_ref()
            .map(scheduling::scheduler)
            .transpose()?,
        io_priority: process
            .io_priority()
            .as_ref()
            .map(scheduling::io_priority)
            .transpose()?,
        personality: linux
            .personality()
            .as_ref()
            .map(scheduling::personality)
            .transpose()?,
    })
}

/// `linux.maskedPaths` and `linux.readonlyPaths`.
fn check_paths(field: &str, paths: Option<&[String]>) -> Result<()> {
    let relative = |path: &&String| !path.starts_with('/');
    match paths.unwrap_or_default().iter().find(relative) {
        Some(path) => bail!("config.json: linux.{field}: {path:?} is not an absolute path"),
        None => Ok(()),
    }
}

/// `linux.rootfsPropagation`, also with the `r` that engines put in front.
fn root_propagation(value: Option<&str>) -> Result<Option<RootPropagation>> {
    let value = value.unwrap_or_default();
    match value.strip_prefix('r').unwrap_or(value) {
        "" if value.is_empty() => Ok(None),
        "private" | "slave" => Ok(None),
        "shared" => Ok(Some(RootPropagation::Shared)),
        "unbindable" => Ok(Some(RootPropagation::Unbindable)),
        _ => bail!(
            "config.json: linux.rootfsPropagation: {value:?} is unknown, expected shared, slave, private or unbindable"
        ),
    }
}

/// They are those of a namespace that the container has for itself, as with other runtimes: without one, or in one that it joins, they
/// would be somebody else's.
fn time_offsets(linux: &Linux) -> Result<BTreeMap<Clock, TimeOffset>> {
    let offsets = linux.time_offsets().iter().flatten();
    let offsets: BTreeMap<_, _> = offsets
        .map(|(name, offset)| {
            let clock = match name.as_str() {
                "monotonic" => Clock::Monotonic,
                "boottime" => Clock::Boottime,
                _ => bail!("config.json: linux.timeOffsets: {name:?} is no clock of a time namespace"),
            };
            let offset = TimeOffset {
                seconds: offset.secs().unwrap_or_default(),
                nanoseconds: offset.nanosecs().unwrap_or_default(),
            };
            ensure!(
                offset.nanoseconds < 1_000_000_000,
                "config.json: linux.timeOffsets.{name}: {} nanoseconds are more than a second",
                offset.nanoseconds
            );
            Ok((clock, offset))
        })
        .collect::<Result<_>>()?;
    let own = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Time && namespace.path().is_none());
    ensure!(
        own || offsets.is_empty(),
        "config.json: linux.timeOffsets: there is no new time namespace in linux.namespaces that could have them"
    );
    Ok(offsets)
}

/// Capabilities that the guest kernel does not have are logged and left out.
fn capabilities(sets: &LinuxCapabilities) -> Capabilities {
    let set = |names: &Option<oci_spec::runtime::Capabilities>| -> BTreeSet<Capability> {
        let names = names.iter().flatten();
        names
            .filter_map(|name| {
                let name = format!("CAP_{}", name.to_string().trim_start_matches("CAP_"));
                let capability = Capability::by_name(&name);
                if capability.is_none() {
                    tracing::warn!(
                        "config.json: process.capabilities: {name} is unknown to the guest and left out"
                    );
                }
                capability
            })
            .collect()
    };
    let [bounding, effective, inheritable, permitted, ambient] = [
        sets.bounding(),
        sets.effective(),
        sets.inheritable(),
        sets.permitted(),
        sets.ambient(),
    ]
    .map(set);
    Capabilities {
        bounding,
        effective,
        inheritable,
        permitted,
        ambient,
    }
}

/// `process.consoleSize` as rows and columns.
pub fn console_size(process: &OciProcess) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    Some((
        u16::try_from(size.height()).ok()?,
        u16::try_from(size.width()).ok()?,
    ))
}

/// Fields that neither side can honour. (Those of other operating systems are none of a Linux runtime's business.)
fn refuse_unsupported(bundle: &Bundle, process: &OciProcess) -> Result<()> {
    let refuse = |field: &str| bail!("config.json: {field}: not supported");
    refuse_unsupported_process(process)?;
    if bundle.spec.vm().is_some() {
        return refuse("vm");
    }
    let labels = [
        ("process.apparmorProfile", process.apparmor_profile()),
        ("process.selinuxLabel", process.selinux_label()),
    ];
    for (field, label) in labels {
        if label.as_ref().is_some_and(|label| !label.is_empty()) {
            tracing::warn!("config.json: {field}: labels of the host mean nothing inside the guest, ignored");
        }
    }
    let Some(linux) = bundle.spec.linux() else {
        return Ok(());
    };
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt");
    }
    if linux.memory_policy().is_some() {
        return refuse("linux.memoryPolicy");
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return refuse("linux.netDevices");
    }
    Ok(())
}

/// Fields of `process` that neither side can honour.
pub fn refuse_unsupported_process(process: &OciProcess) -> Result<()> {
    let refuse = |field: &str| bail!("config.json: {field}: not supported");
    if process.exec_cpu_affinity().is_some() {
        return refuse("process.execCPUAffinity");
    }
    Ok(())
}
