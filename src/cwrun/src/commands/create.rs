//! `create`: from a bundle to a booted guest whose workload has not been started.

use crate::broker::{self, Upstream};
use crate::bundle::devices::Disk;
use crate::bundle::host::HostSpec;
use crate::bundle::sizing::Sizing;
use crate::bundle::{Bundle, guest, host};
use crate::cli::{Create, Global};
use crate::infra::{self, Infra};
use crate::launch::{self, Role};
use crate::logging::phase;
use crate::machine::stdio::Stdio;
use crate::machine::{Machine, terminal};
use crate::mkcw_disk;
use crate::network::passt::Passt;
use crate::root_disk;
use crate::sealed::{self, rules};
use crate::settings::Settings;
use crate::state::{Container, ProcessId, Record, Root, Status};
use crate::{cgroup, control, guest_files, tee};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::RawFd;
use std::path::Path;
use workload::{Environment, RootFs, Workload};

/// How the container's terminal is reached, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Through `--console-socket`, as engines do.
    Socket,
    /// It is the caller's own terminal, as in a foreground `run`.
    Foreground,
}

/// A container that has just been created.
pub struct Created {
    /// Its state.
    pub container: Container,
    /// Its VMM process, a child of ours.
    pub vmm: Pid,
    /// Whether its workload has a terminal.
    pub terminal: bool,
}

/// The command.
pub fn run(global: &Global, settings: &Settings, args: &Create, inherited: &[RawFd]) -> Result<()> {
    create(global, settings, args, inherited, Console::Socket).map(drop)
}

/// Creates the container.
pub fn create(
    global: &Global,
    settings: &Settings,
    args: &Create,
    inherited: &[RawFd],
    console: Console,
) -> Result<Created> {
    ensure!(
        args.preserve_fds == 0,
        "--preserve-fds {}: descriptors can't be passed into a virtual machine",
        args.preserve_fds
    );
    let bundle = phase("bundle", || Bundle::load(&args.bundle, args.config.as_deref()))?;
    let sizing = match infra::is_infra(&bundle) {
        true => None,
        false => Some(Sizing::of(&bundle, settings)?),
    };
    let host = match &sizing {
        None => host::split_without_vm(&bundle)?,
        Some(sizing) => host::split(&bundle, sizing)?,
    };
    let root = Root::new(global.root.clone())?;
    let mut container = root.reserve(Record {
        cache: match sizing {
            None => None,
            Some(_) => Some(root_disk::cache_dir(&settings.cache)?),
        },
        infra: sizing.is_none(),
        sizing: sizing.clone(),
        ..record(args, &bundle, &host)?
    })?;
    let cgroup = cgroup::Location::new(global.cgroups(), host.cgroup_path.as_deref(), &args.id);
    let result = claim(&mut container, cgroup)
        .and_then(|()| container.save_config(&bundle.spec))
        .and_then(|()| match &sizing {
            None => prepare_infra(&bundle, &container).map(|infra| Role::Infra(Box::new(infra))),
            Some(sizing) => prepare(&bundle, &host, sizing, settings, &container, args, console)
                .map(|machine| Role::Vmm(Box::new(machine))),
        });
    let result = result.and_then(|role| {
        let terminal = matches!(&role, Role::Vmm(machine) if !matches!(machine.stdio, Stdio::Inherited));
        let vmm = launch::launch(&mut container, &host, role, inherited)?;
        write_pid_file(args.pid_file.as_deref(), vmm)?;
        Ok((vmm, terminal))
    });
    match result {
        Ok((vmm, terminal)) => Ok(Created {
            container,
            vmm,
            terminal,
        }),
        Err(error) => {
            if let Err(left) = super::delete::destroy(&container) {
                tracing::warn!(
                    "container {:?} could not be removed after the failure: {left:#}",
                    args.id
                );
            }
            Err(error)
        }
    }
}

/// Records the cgroup as the container's, if it is nobody else's: from then on, whatever is in it ends with the container.
fn claim(container: &mut Container, cgroup: Option<cgroup::Location>) -> Result<()> {
    if let Some(cgroup) = &cgroup {
        cgroup.expect_empty()?;
    }
    container.record.cgroup = cgroup;
    container.save()
}

fn record(args: &Create, bundle: &Bundle, host: &HostSpec) -> Result<Record> {
    let created = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339)?;
    Ok(Record {
        id: args.id.clone(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        annotations: bundle
            .spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        created,
        owner: rustix::process::geteuid().as_raw(),
        creator: ProcessId::own()?,
        vmm: None,
        cgroup: None,
        network: host.network_path().map(Path::to_owned),
        hooks: host.hooks.clone(),
        sizing: None,
        cache: None,
        infra: false,
    })
}

/// Opens and builds everything that the VM is made of. What is cheap and may fail comes first.
fn prepare(
    bundle: &Bundle,
    host: &HostSpec,
    sizing: &Sizing,
    settings: &Settings,
    container: &Container,
    args: &Create,
    console: Console,
) -> Result<Machine> {
    let image = match sealed::find(&bundle.rootfs)? {
        None => mkcw_disk::of_broker(bundle, || tee::of_mkcw(bundle, settings))?,
        image => image,
    };
    let chosen = match &image {
        None => tee::choose(bundle, settings)?,
        Some(image) => Some(tee::of_sealed(bundle, settings, &image.contents)?),
    };
    let (mut workload, mut environment, shared) = describe(bundle, &args.id, sizing, chosen)?;
    let mut terminal = workload.process.terminal;
    if let Some(image) = &image {
        workload = rules::apply(&workload, &image.contents.workload, &mut environment)?;
        terminal = environment.changes.terminal.unwrap_or(workload.process.terminal);
        ensure!(
            shared.disks.is_empty(),
            "config.json: linux.devices: no disk of the host is shared with a sealed workload"
        );
    }
    let broker = match &image {
        None => broker::refuse_unused(bundle).map(|()| None)?,
        Some(image) => {
            let hint = image.contents.broker.as_ref();
            let hint = hint.map(|hint| (hint.url.as_str(), image.named_by));
            Some(Upstream::choose(bundle, &settings.broker, hint)?)
        }
    };
    if !workload.start_hooks.is_empty() {
        environment.state = state_inside(container).to_string();
    }
    let passt = Passt::find(bundle, host)?;
    let disks = shared.disks.iter().map(Disk::open).collect::<Result<_>>()?;
    let kvm = crate::kvm::open()?;
    guest_files::find()?;
    let stdio = stdio(terminal, args.console_socket.as_deref(), console)?;
    let disk = match image {
        None => phase("convert", || root_disk::obtain(bundle, settings))?,
        Some(image) => image.into(),
    };
    set_root(&mut workload, disk.root)?;
    let debug = tracing::enabled!(target: "cwrun", tracing::Level::DEBUG);
    let start = phase("measure", || {
        tee::start(&workload, sizing.memory_mib, sizing.vcpus, &settings.tee, debug)
    })?;
    Ok(Machine {
        kvm,
        start,
        images: disk.images,
        keys: disk.keys,
        scratch: root_disk::scratch(&workload.scratch, &settings.cache)?,
        workload,
        environment,
        memory_mib: sizing.memory_mib,
        vcpus: sizing.vcpus,
        stdio,
        control: control::bind(container)?,
        status: container.status_file()?,
        nics: Vec::new(),
        vhost_net: settings.vm.vhost_net,
        passt,
        broker,
        line: None,
        watch: None,
        volumes: shared.volumes,
        disks,
        debug,
    })
}

/// What runs in the guest, but for its root file system; what the engine wants of it; what of the host's it uses.
pub fn describe(
    bundle: &Bundle,
    id: &str,
    sizing: &Sizing,
    tee: Option<workload::Tee>,
) -> Result<(Workload, Environment, guest::Shared)> {
    let (mut workload, environment, shared) = guest::split(bundle, id, sizing, tee.is_some())?;
    workload.tee = tee;
    Ok((workload, environment, shared))
}

/// Completes a Workload.
pub fn set_root(workload: &mut Workload, root: RootFs) -> Result<()> {
    ensure!(
        workload.start_hooks.is_empty() || !root.is_mkcw(),
        "config.json: hooks.startContainer: not possible with a disk of mkcw, which says itself what runs"
    );
    workload.root = root;
    Ok(())
}

/// What an infra container needs. Its root file system, its mounts and the rest of its process mean nothing, because it runs no program.
fn prepare_infra(bundle: &Bundle, container: &Container) -> Result<Infra> {
    let spec = &bundle.spec;
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|linux| linux.sysctl().as_ref().is_some_and(|sysctl| !sysctl.is_empty())) {
        tracing::warn!(
            "config.json: linux.sysctl: ignored for an infra container, the containers of its pod have kernels of their own"
        );
    }
    let environment = Environment {
        id: container.record.id.clone(),
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        ..Environment::default()
    };
    environment
        .check()
        .map_err(|problem| anyhow::anyhow!("config.json: {problem}"))?;
    Ok(Infra {
        environment,
        oom_score_adj: spec
            .process()
            .as_ref()
            .and_then(|process| process.oom_score_adj()),
        control: control::bind(container)?,
        status: container.status_file()?,
    })
}

/// The state for hooks in the guest, where the container's process is the first.
fn state_inside(container: &Container) -> serde_json::Value {
    let mut state = container.oci_state(Status::Created);
    state["pid"] = 1.into();
    state
}

/// Where the streams of a process lead.
pub fn stdio(terminal: bool, console_socket: Option<&Path>, console: Console) -> Result<Stdio> {
    match (terminal, console_socket, console) {
        (false, _, _) => Ok(Stdio::Inherited),
        (true, Some(socket), _) => terminal::open_for(socket).map(Stdio::Terminal),
        (true, None, Console::Foreground) => Ok(Stdio::Foreground),
        (true, None, Console::Socket) => {
            bail!("config.json: process.terminal: a container with a terminal needs --console-socket")
        }
    }
}

/// Writes the number aside and renames, so that a reader never sees half of it.
pub fn write_pid_file(path: Option<&Path>, vmm: Pid) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut name = path
        .file_name()
        .with_context(|| format!("--pid-file {}: not a file name", path.display()))?
        .to_owned();
    name.push(".cwrun-new");
    let aside = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        File::create(&aside)?.write_all(vmm.as_raw_pid().to_string().as_bytes())?;
        fs::rename(&aside, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&aside)))
        .with_context(|| format!("--pid-file {}", path.display()))
}
