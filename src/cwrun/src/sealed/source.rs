//! What is sealed: a root file system, and what runs in it.
//!
//! ```text
//!   BUNDLE              config.json, rootfs        as `create` reads it
//!   oci:, …-archive:    layers, configuration      as an engine would make a bundle of it
//!   DIRECTORY -- ARGS   a root file system         the same, of an image that says nothing else
//! ```

use crate::bundle::sizing::Sizing;
use crate::bundle::{Bundle, guest};
use crate::image::Reference;
use crate::settings::Settings;
use anyhow::{Context, Result, bail, ensure};
use disk::{Markers, Tree};
use mkcw::InnerConfig;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use workload::sealed::CUSTOMARY_FILES;
use workload::{
    Capabilities, Capability, Filesystem, Mount, MountFlag, Process, RootFs, Scratch, User, Workload, account,
};

/// Search path of images that set none, as engines have it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest list of users or groups that is read, in bytes.
const MAX_ACCOUNTS: usize = 1 << 20;

/// Capabilities that podman gives a container.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What engines hide of the kernel.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/dev/block",
];

/// What engines let nobody write.
const READONLY: [&str; 6] = [
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What an image's configuration says that an engine needs of a sealed one as well, because it acts on it outside of the container.
const KEPT: [&str; 2] = ["ExposedPorts", "StopSignal"];

/// A root file system and what runs in it.
pub struct Source {
    /// The root file system.
    pub tree: Tree,
    /// What runs, without root, TEE and seal.
    pub workload: Workload,
    /// Of the image that is made, the object `config` of its configuration (config.md): by it, engines write the process that the workload has.
    pub config: Map<String, Value>,
}

impl Source {
    /// Reads `name`. Layers that are compressed are unpacked into files without a name in the directory `scratch`.
    pub fn open(name: &str, args: &[String], scratch: &Path, settings: &Settings) -> Result<Self> {
        let source = match Reference::parse(name) {
            Some(image) => Self::of_image(&image, args, scratch, settings)?,
            None if Path::new(name).join("config.json").exists() => {
                ensure!(
                    args.is_empty(),
                    "{name}: a bundle's config.json says what runs: no arguments can be given"
                );
                Self::of_bundle(Path::new(name), settings)?
            }
            None => Self::of_directory(Path::new(name), args, settings)?,
        };
        let sealed = source.tree.find_file(super::WORKLOAD).is_some();
        ensure!(!sealed, "{name}: it is sealed already");
        Ok(source)
    }

    fn of_image(image: &Reference, args: &[String], scratch: &Path, settings: &Settings) -> Result<Self> {
        let stored = image.read(scratch)?;
        let tree = Tree::from_archives(stored.layers, Markers::Shown).with_context(|| image.to_string())?;
        let asked = Asked::parse(&stored.configuration).with_context(|| format!("{image}: configuration"))?;
        Self::of_engine(tree, asked, args, settings).with_context(|| image.to_string())
    }

    fn of_directory(path: &Path, args: &[String], settings: &Settings) -> Result<Self> {
        let what = || format!("root file system {}", path.display());
        let tree = Tree::scan_as(path, Markers::Shown).with_context(what)?;
        Self::of_engine(tree, Asked::default(), args, settings).with_context(what)
    }

    /// As engines have it: `args` take the place of `Cmd`.
    fn of_engine(tree: Tree, asked: Asked, args: &[String], settings: &Settings) -> Result<Self> {
        let Asked { process, mut config } = asked;
        let cmd = match args {
            [] => process.cmd,
            args => args.to_vec(),
        };
        let all: Vec<String> = process.entrypoint.iter().chain(&cmd).cloned().collect();
        ensure!(
            all.first().is_some_and(|program| !program.is_empty()),
            "it names no program to run: that and its arguments can be given behind --"
        );
        let read = |name: &str| -> Result<String> {
            let bytes = tree.read_file(name, MAX_ACCOUNTS)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let passwd = read("/etc/passwd")?;
        let user = account::look_up(&process.user, &passwd, &read("/etc/group")?)?;
        let mut env = process.env;
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.insert(0, DEFAULT_PATH.to_owned());
        }
        config.insert("Entrypoint".to_owned(), json!(process.entrypoint));
        config.insert("Cmd".to_owned(), json!(cmd));
        config.insert("Env".to_owned(), json!(env));
        describe(&mut config, &user, &process.working_dir);
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            env.push(format!(
                "HOME={}",
                account::home(user.uid, &passwd).unwrap_or("/")
            ));
        }
        let scratch = Scratch::Disk {
            bytes: settings.vm.default_scratch,
        };
        let workload = of_engine(all, env, process.working_dir, user, scratch);
        Ok(Self {
            tree,
            workload,
            config,
        })
    }

    fn of_bundle(path: &Path, settings: &Settings) -> Result<Self> {
        let bundle = Bundle::load(path, None)?;
        let sizing = Sizing::of(&bundle, settings)?;
        let (workload, environment, shared) = guest::split(&bundle, "sealed", &sizing, true)?;
        ensure!(
            shared.disks.is_empty() && shared.volumes.is_empty(),
            "config.json: nothing of the host can be sealed: neither linux.devices nor mounts may name it"
        );
        let customary = |path: &str| CUSTOMARY_FILES.contains(&path);
        if let Some(file) = environment
            .files
            .iter()
            .find(|file| !customary(&file.destination))
        {
            bail!(
                "config.json: mounts: the file {} is the host's: what is to be sealed has to be in the root file system",
                file.destination
            )
        }
        let tree = Tree::scan_as(&bundle.rootfs, Markers::Shown)
            .with_context(|| format!("root file system {}", bundle.rootfs.display()))?;
        let Process {
            args, env, cwd, user, ..
        } = &workload.process;
        let mut config = Map::new();
        config.insert("Entrypoint".to_owned(), json!(args));
        config.insert("Env".to_owned(), json!(env));
        describe(&mut config, user, cwd);
        Ok(Self {
            tree,
            workload,
            config,
        })
    }
}

/// The user in numbers: a sealed image has no `/etc/passwd` that an engine could read.
fn describe(config: &mut Map<String, Value>, user: &User, cwd: &str) {
    config.insert("User".to_owned(), json!(format!("{}:{}", user.uid, user.gid)));
    config.insert("WorkingDir".to_owned(), json!(cwd));
}

/// What an image's configuration asks for.
struct Asked {
    process: InnerConfig,
    /// Those of its members that are kept.
    config: Map<String, Value>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            process: InnerConfig {
                user: String::new(),
                env: Vec::new(),
                entrypoint: Vec::new(),
                cmd: Vec::new(),
                working_dir: "/".to_owned(),
            },
            config: Map::new(),
        }
    }
}

impl Asked {
    fn parse(configuration: &[u8]) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Image {
            config: Option<Map<String, Value>>,
        }
        let image: Image = serde_json::from_slice(configuration)?;
        let Some(mut config) = image.config else {
            return Ok(Self::default());
        };
        let process = InnerConfig::parse(configuration)?;
        config.retain(|name, value| KEPT.contains(&name.as_str()) && !value.is_null());
        Ok(Self { process, config })
    }
}

/// A workload as podman would write the bundle of an image, for a user's own machine.
pub fn of_engine(args: Vec<String>, env: Vec<String>, cwd: String, user: User, scratch: Scratch) -> Workload {
    let all = CAPABILITIES.iter().filter_map(|name| Capability::by_name(name));
    let all: std::collections::BTreeSet<_> = all.collect();
    let own = if user.uid == 0 {
        all.clone()
    } else {
        Default::default()
    };
    let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    Workload {
        version: Workload::VERSION,
        root: RootFs::Layers { layers: Vec::new() },
        scratch,
        readonly_root: false,
        process: Process {
            args,
            env,
            cwd,
            user,
            terminal: false,
            capabilities: Some(Capabilities {
                bounding: all,
                effective: own.clone(),
                permitted: own,
                ..Capabilities::default()
            }),
            rlimits: Vec::new(),
            no_new_privileges: false,
            seccomp: None,
            oom_score_adj: None,
            scheduler: None,
            io_priority: None,
            personality: None,
        },
        mounts: mounts(),
        masked_paths: strings(&MASKED),
        readonly_paths: strings(&READONLY),
        sysctl: BTreeMap::from([("net.ipv4.ping_group_range".to_owned(), "0 0".to_owned())]),
        time_offsets: BTreeMap::new(),
        devices: Vec::new(),
        start_hooks: Vec::new(),
        root_propagation: None,
        tee: None,
        sealed: None,
    }
}

/// Those of every container.
fn mounts() -> Vec<Mount> {
    use Filesystem::{Cgroup2, Devpts, Mqueue, Proc, Sysfs, Tmpfs};
    use MountFlag::{Nodev, Noexec, Nosuid, Relatime, Ro, Strictatime};
    let mount = |destination: &str, filesystem, flags: &[MountFlag], options: &[&str]| Mount {
        destination: destination.to_owned(),
        filesystem,
        flags: flags.iter().copied().collect(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    };
    let hardened = [Nosuid, Noexec, Nodev];
    vec![
        mount("/proc", Proc, &hardened, &[]),
        mount(
            "/dev",
            Tmpfs,
            &[Nosuid, Noexec, Strictatime],
            &["mode=755", "size=65536k"],
        ),
        mount("/sys", Sysfs, &[Nosuid, Noexec, Nodev, Ro], &[]),
        mount(
            "/dev/pts",
            Devpts,
            &[Nosuid, Noexec],
            &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", Mqueue, &hardened, &[]),
        mount("/dev/shm", Tmpfs, &hardened, &["mode=1777", "size=64000k"]),
        mount(
            "/sys/fs/cgroup",
            Cgroup2,
            &[Nosuid, Noexec, Nodev, Relatime, Ro],
            &[],
        ),
    ]
}

#[cfg(test)]
#[path = "source_test.rs"]
mod tests;
