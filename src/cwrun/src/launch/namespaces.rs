//! Entering the namespaces of the bundle: joining those with a path, making the others, a mount namespace always.

use crate::bundle::host::{HostSpec, IdMap, Kind, Namespace};
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs;
use std::process::Command;
use workload::Environment;

/// What the kernel shows as domain name where none was set.
const NO_DOMAIN: &str = "(none)";

/// Moves this process into them. `map_users` asks the creator to write the maps of a new user namespace.
pub fn enter(host: &HostSpec, mut map_users: impl FnMut() -> Result<()>) -> Result<()> {
    for namespace in &host.namespaces {
        let (flag, link, name) = types(namespace.kind);
        match &namespace.path {
            Some(path) => {
                let context = || format!("config.json: linux.namespaces: {name}: {}", path.display());
                let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .with_context(context)?;
                move_into_link_name_space(rustix::fd::AsFd::as_fd(&fd), Some(link)).with_context(context)?;
            }
            None => unshare(flag).with_context(|| format!("new {name} namespace"))?,
        }
        if namespace.kind == Kind::User {
            if namespace.path.is_none() {
                map_users()?;
            }
            become_root().context("becoming root of the user namespace")?;
        }
    }
    unshare(UnshareFlags::NEWNS).context("new mount namespace")
}

/// Names of host and domain, once the namespaces are entered. A new UTS namespace gets the container's, for those that will join it;
/// a container without names of its own has those of its namespace, as it would without a VM.
pub fn name(host: &HostSpec, environment: &mut Environment) -> Result<()> {
    let new = |namespace: &Namespace| namespace.kind == Kind::Uts && namespace.path.is_none();
    if host.namespaces.iter().any(new) {
        if let Some(name) = &environment.hostname {
            rustix::system::sethostname(name.as_bytes()).context("config.json: hostname")?;
        }
        if let Some(name) = &environment.domainname {
            rustix::system::setdomainname(name.as_bytes()).context("config.json: domainname")?;
        }
    }
    let names = rustix::system::uname();
    let set = |name: &std::ffi::CStr| Some(name.to_str().ok()?.to_owned()).filter(|name| !name.is_empty());
    environment.hostname = environment.hostname.take().or_else(|| set(names.nodename()));
    let domain = || set(names.domainname()).filter(|name| name != NO_DOMAIN);
    environment.domainname = environment.domainname.take().or_else(domain);
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: no flag that this function gets shares or unshares file descriptors (CLONE_FILES).
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

fn become_root() -> Result<()> {
    // Groups can't be dropped where the map was written without privileges; none of them counts inside.
    let _ = rustix::thread::set_thread_groups(&[]);
    rustix::thread::set_thread_res_gid(
        rustix::fs::Gid::ROOT,
        rustix::fs::Gid::ROOT,
        rustix::fs::Gid::ROOT,
    )?;
    rustix::thread::set_thread_res_uid(
        rustix::fs::Uid::ROOT,
        rustix::fs::Uid::ROOT,
        rustix::fs::Uid::ROOT,
    )?;
    Ok(())
}

fn types(kind: Kind) -> (UnshareFlags, LinkNameSpaceType, &'static str) {
    match kind {
        Kind::User => (UnshareFlags::NEWUSER, LinkNameSpaceType::User, "user"),
        Kind::Cgroup => (UnshareFlags::NEWCGROUP, LinkNameSpaceType::ControlGroup, "cgroup"),
        Kind::Ipc => (
            UnshareFlags::NEWIPC,
            LinkNameSpaceType::InterProcessCommunication,
            "ipc",
        ),
        Kind::Uts => (
            UnshareFlags::NEWUTS,
            LinkNameSpaceType::HostNameAndNISDomainName,
            "uts",
        ),
        Kind::Net => (UnshareFlags::NEWNET, LinkNameSpaceType::Network, "network"),
        Kind::Pid => (UnshareFlags::NEWPID, LinkNameSpaceType::ProcessID, "pid"),
        Kind::Time => (UnshareFlags::NEWTIME, LinkNameSpaceType::Time, "time"),
    }
}

/// Writes the maps of process `pid`, which has just entered a new user namespace.
pub fn write_maps(pid: Pid, host: &HostSpec) -> Result<()> {
    write_map(pid, "uid_map", "newuidmap", &host.uid_map).context("config.json: linux.uidMappings")?;
    write_map(pid, "gid_map", "newgidmap", &host.gid_map).context("config.json: linux.gidMappings")
}

/// As root the kernel takes any map; otherwise the setuid helpers of shadow-utils check it against `/etc/sub?id`.
fn write_map(pid: Pid, file: &str, helper: &str, map: &[IdMap]) -> Result<()> {
    let pid = pid.as_raw_pid();
    let lines: Vec<[String; 3]> = map
        .iter()
        .map(|line| {
            [
                line.inside.to_string(),
                line.outside.to_string(),
                line.count.to_string(),
            ]
        })
        .collect();
    let path = format!("/proc/{pid}/{file}");
    let text: String = lines.iter().map(|line| line.join(" ") + "\n").collect();
    let Err(error) = fs::write(&path, text) else {
        return Ok(());
    };
    if rustix::process::geteuid().is_root() {
        return Err(error).context(path);
    }
    let output = Command::new(helper)
        .arg(pid.to_string())
        .args(lines.iter().flatten())
        .output()
        .context(helper.to_owned())?;
    anyhow::ensure!(
        output.status.success(),
        "{helper}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
