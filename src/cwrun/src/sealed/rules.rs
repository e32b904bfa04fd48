//! What of an engine's config.json a sealed Workload lets differ.
//!
//! ```text
//!   config.json ── bundle::guest ──► Workload as the engine has it ┐
//!                                                                   ├─ compare ──► Changes, or the field that may not differ
//!   /.cwrun/workload.json ─────────► Workload as its owner has it  ┘
//! ```
//!
//! The owner's Workload is what runs. Engines add things to every container that nobody asked for; those are named here, and left out.
//! Limits (rlimits, seccomp, capabilities, masked paths, flags of mounts) are the Workload's, whatever the engine says: the guest is the
//! owner's, and the host is protected from it by the VM.

use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;
use workload::sealed::{FILE_MODE, name_of};
use workload::{Allow, Changes, Device, DeviceKind, Environment, Mount, Process, Scratch, Workload};

/// Variables that engines set in every container. They are not passed on.
const CUSTOMARY_VARIABLES: [&str; 4] = ["container", "TERM", "HOSTNAME", "HOME"];

/// Parameters of the network that engines set in every container of a kind, for programs without privileges.
const CUSTOMARY_SYSCTL: [&str; 2] = ["net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"];

/// Devices that every container has (config-linux.md, "Default Devices"), which some engines list.
const CUSTOMARY_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Compares what the engine wants to run with what the owner sealed, which is returned, and puts what may differ into the environment. The
/// error names the field of config.json that may not.
pub fn apply(engine: &Workload, sealed: &Workload, environment: &mut Environment) -> Result<Workload> {
    let process_of_engine = match sealed.root.is_mkcw() {
        true => &beside_mkcw(&engine.process, &sealed.process),
        false => &engine.process,
    };
    process(process_of_engine, sealed, &mut environment.changes)?;
    ensure!(
        sealed.readonly_root || !engine.readonly_root,
        "config.json: root.readonly: the sealed workload can write to its root file system, which no rule lets the host change"
    );
    mounts(&engine.mounts, &sealed.mounts)?;
    devices(&engine.devices, &sealed.devices)?;
    sysctl(&engine.sysctl, &sealed.sysctl)?;
    ensure!(
        engine.time_offsets.is_empty() || engine.time_offsets == sealed.time_offsets,
        "config.json: linux.timeOffsets: not as the sealed workload has it, which no rule lets the host change"
    );
    ensure!(
        engine.start_hooks.is_empty() || engine.start_hooks == sealed.start_hooks,
        "config.json: hooks.startContainer: programs in the container that the sealed workload does not run, which no rule can allow"
    );
    scratch(&engine.scratch, &sealed.scratch)?;
    for file in &mut environment.files {
        file.mode &= FILE_MODE;
    }
    // The guest does the same, so that what is refused there has a name here.
    sealed
        .clone()
        .admit(environment)
        .map_err(|error| anyhow::anyhow!("config.json: {error}"))?;
    Ok(sealed.clone())
}

/// What a disk of mkcw says itself is not looked at, as krun does not look at it.
fn beside_mkcw(engine: &Process, owner: &Process) -> Process {
    Process {
        args: owner.args.clone(),
        env: owner.env.clone(),
        cwd: owner.cwd.clone(),
        user: owner.user.clone(),
        ..engine.clone()
    }
}

fn process(engine: &Process, sealed: &Workload, changes: &mut Changes) -> Result<()> {
    let owner = &sealed.process;
    if engine.args != owner.args {
        allow(sealed, Allow::Args, "process.args", &engine.args, &owner.args)?;
        changes.args = Some(engine.args.clone());
    }
    if engine.cwd != owner.cwd {
        allow(sealed, Allow::Cwd, "process.cwd", &engine.cwd, &owner.cwd)?;
        changes.cwd = Some(engine.cwd.clone());
    }
    if engine.terminal != owner.terminal {
        allow(
            sealed,
            Allow::Terminal,
            "process.terminal",
            engine.terminal,
            owner.terminal,
        )?;
        changes.terminal = Some(engine.terminal);
    }
    changes.env = variables(&engine.env, sealed)?;
    user(engine, owner)?;
    let never = [
        (
            "process.scheduler",
            engine.scheduler.is_some() && engine.scheduler != owner.scheduler,
        ),
        (
            "process.ioPriority",
            engine.io_priority.is_some() && engine.io_priority != owner.io_priority,
        ),
        (
            "linux.personality",
            engine.personality.is_some() && engine.personality != owner.personality,
        ),
    ];
    match never.iter().find(|(_, differs)| *differs) {
        Some((field, _)) => {
            bail!("config.json: {field}: not as the sealed workload has it, and no rule can allow it")
        }
        None => Ok(()),
    }
}

/// Whether a rule lets a field differ.
fn allow(
    sealed: &Workload,
    rule: Allow,
    field: &str,
    engine: impl std::fmt::Debug,
    owner: impl std::fmt::Debug,
) -> Result<()> {
    let rules = sealed.sealed.as_ref().map(|sealed| &sealed.allow);
    ensure!(
        rules.is_some_and(|rules| rules.contains(&rule)),
        "config.json: {field}: {engine:?} is not what the sealed workload has, {owner:?}, and it has no rule {:?}",
        rule.to_string()
    );
    Ok(())
}

/// The last of a name counts, as for every program that reads its environment by name.
fn by_name(env: &[String]) -> BTreeMap<&str, &str> {
    env.iter()
        .map(|variable| (name_of(variable), variable.as_str()))
        .collect()
}

/// The variables of the engine that are to be set.
fn variables(engine: &[String], workload: &Workload) -> Result<Vec<String>> {
    let (theirs, ours) = (by_name(engine), by_name(&workload.process.env));
    let customary = |name: &str| CUSTOMARY_VARIABLES.contains(&name);
    let allowed = |name: &str| {
        workload
            .sealed
            .as_ref()
            .is_some_and(|sealed| sealed.allows_variable(name))
    };
    for name in ours.keys() {
        ensure!(
            theirs.contains_key(name) || customary(name),
            "config.json: process.env: {name} is missing, which the sealed workload sets"
        );
    }
    let mut changed = Vec::new();
    for (name, variable) in &theirs {
        match ours.get(name) {
            Some(same) if same == variable => {}
            _ if allowed(name) => changed.push((*variable).to_owned()),
            _ if customary(name) => {}
            // Its value may be anything, so it is not repeated.
            Some(_) => bail!(
                "config.json: process.env: {name} is not what the sealed workload sets, and it has no rule \"env:{name}\""
            ),
            None => bail!(
                "config.json: process.env: {name} is not set by the sealed workload, and it has no rule \"env:{name}\""
            ),
        }
    }
    Ok(changed)
}

/// In a sealed image there is no `/etc/group` to look groups up in, so an engine has less of them than the owner, or its own group alone.
fn user(engine: &Process, owner: &Process) -> Result<()> {
    let (theirs, ours) = (&engine.user, &owner.user);
    ensure!(
        (theirs.uid, theirs.gid) == (ours.uid, ours.gid),
        "config.json: process.user: {}:{} is not the user of the sealed workload, {}:{}, which no rule lets the host change",
        theirs.uid,
        theirs.gid,
        ours.uid,
        ours.gid
    );
    let known = |gid: &&u32| **gid == ours.gid || ours.additional_gids.contains(gid);
    if let Some(gid) = theirs.additional_gids.iter().find(|gid| !known(gid)) {
        bail!(
            "config.json: process.user.additionalGids: {gid} is not a group of the sealed workload, which no rule lets the host change"
        );
    }
    const DEFAULT: u32 = 0o022;
    ensure!(
        theirs.umask.unwrap_or(DEFAULT) == ours.umask.unwrap_or(DEFAULT),
        "config.json: process.user.umask: {:#o} is not that of the sealed workload, which no rule lets the host change",
        theirs.umask.unwrap_or(DEFAULT)
    );
    Ok(())
}

/// Options are the Workload's: engines have different ones for the same purpose.
fn mounts(engine: &[Mount], owner: &[Mount]) -> Result<()> {
    let known = |mount: &&Mount| {
        owner
            .iter()
            .any(|other| (&other.destination, other.filesystem) == (&mount.destination, mount.filesystem))
    };
    match engine.iter().find(|mount| !known(mount)) {
        Some(mount) => bail!(
            "config.json: mounts: {} on {} is not in the sealed workload, and no rule can allow it",
            mount.filesystem.name(),
            mount.destination
        ),
        None => Ok(()),
    }
}

fn devices(engine: &[Device], owner: &[Device]) -> Result<()> {
    let customary = |device: &Device| {
        CUSTOMARY_DEVICES.iter().any(|(path, major, minor)| {
            let kind = DeviceKind::Character {
                major: *major,
                minor: *minor,
            };
            device.path == *path && device.kind == kind
        })
    };
    match engine
        .iter()
        .find(|device| !owner.contains(device) && !customary(device))
    {
        Some(device) => bail!(
            "config.json: linux.devices: {} is not in the sealed workload, and no rule can allow it",
            device.path
        ),
        None => Ok(()),
    }
}

fn sysctl(engine: &BTreeMap<String, String>, owner: &BTreeMap<String, String>) -> Result<()> {
    let same = |(name, value): &(&String, &String)| {
        owner.get(*name) == Some(value) || CUSTOMARY_SYSCTL.contains(&name.as_str())
    };
    match engine.iter().find(|parameter| !same(parameter)) {
        Some((name, _)) => bail!(
            "config.json: linux.sysctl: {name} is not as the sealed workload has it, which no rule lets the host change"
        ),
        None => Ok(()),
    }
}

/// The file behind the writable layer is this host's, which decides how large it may become.
fn scratch(engine: &Scratch, owner: &Scratch) -> Result<()> {
    let (Scratch::Disk { bytes: most } | Scratch::Ram { bytes: most }) = engine;
    match owner {
        Scratch::Disk { bytes } if bytes > most => bail!(
            "the sealed workload wants a writable layer of {bytes} bytes, more than the {most} that this host gives it: annotation {} \
             or vm.default_scratch in cwrun.toml can raise that",
            crate::bundle::annotations::SCRATCH
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod tests;
