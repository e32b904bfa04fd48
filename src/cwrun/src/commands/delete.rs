//! `delete`: frees everything that a container holds, from any state.

use crate::cli::{Delete, Global};
use crate::launch::hooks;
use crate::settings::Settings;
use crate::state::{Container, Root, Status};
use crate::{network, root_disk, signal};
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long processes that were killed may take to leave the cgroup.
const GONE: Duration = Duration::from_secs(10);

/// The command.
pub fn run(global: &Global, args: &Delete) -> Result<()> {
    let root = Root::new(global.root.clone())?;
    if !args.force {
        let container = root.get(&args.id)?;
        let status = container.status();
        ensure!(
            status == Status::Stopped,
            "container {:?} is {status}: stop it first, or use --force",
            args.id
        );
        return destroy(&container);
    }
    let mut used = None;
    match root.find(&args.id) {
        Ok(Some(container)) => {
            destroy(&container)?;
            used = container.record.cache;
        }
        Ok(None) => root.remove_unrecorded(&args.id)?,
        Err(error) => {
            tracing::warn!("container {:?} is removed without its record: {error:#}", args.id);
            root.remove_unrecorded(&args.id)?;
        }
    }
    // Whoever uses force may have killed a create in the middle of a conversion. The container is gone by now, and neither settings
    // that can't be read nor a cache that can't be written shall make it look otherwise.
    if let Err(error) = tidy(used) {
        tracing::warn!("the cache is not tidied: {error:#}");
    }
    Ok(())
}

/// Clears up in the cache that the container used, since an engine may call this with less of an environment than `create`; else in
/// that of this user.
fn tidy(used: Option<PathBuf>) -> Result<()> {
    let mut settings = Settings::load()?;
    settings.cache.directory = used.or(settings.cache.directory);
    root_disk::tidy(&settings.cache)
}

/// Ends the container's processes and removes its cgroup and directory.
pub fn destroy(container: &Container) -> Result<()> {
    let Some(_lock) = container.lock()? else {
        return Ok(());
    };
    let record = &container.record;
    let own = rustix::process::getpid().as_raw_pid();
    if record.creator.pid != own && container.status() == Status::Creating {
        signal::kill_and_wait(record.creator)?;
    }
    if let Some(vmm) = record.vmm {
        signal::kill_and_wait(vmm)?;
    }
    if let Some(cgroup) = &record.cgroup {
        remove_cgroup(cgroup)?;
    }
    // An infra container has touched nothing there.
    if let (Some(path), false) = (&record.network, record.infra)
        && let Err(error) = network::release(path)
    {
        tracing::warn!(
            "container {:?}: what it has set up in its network stays: {error:#}",
            record.id
        );
    }
    let state = container.oci_state(Status::Stopped);
    container.remove()?;
    hooks::run_all_logging("poststop", &record.hooks.poststop, &state);
    Ok(())
}

/// Ends whatever is left in the cgroup, which is what a `create` killed between two steps leaves, and removes it.
fn remove_cgroup(cgroup: &crate::cgroup::Location) -> Result<()> {
    let own = rustix::process::getpid().as_raw_pid();
    for pid in cgroup.processes().into_iter().filter(|pid| *pid != own) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // It may have ended since it was listed.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    // They leave it when the kernel has taken them down, which takes a busy machine its time.
    let deadline = Instant::now() + GONE;
    loop {
        let result = cgroup.remove();
        if result.is_ok() || Instant::now() >= deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
