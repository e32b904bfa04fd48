//! `mounts` of config.json: file systems that the guest makes, files that travel into it, directories that both sides use.
//!
//! ```text
//!   proc sysfs tmpfs devpts mqueue cgroup   ──► Workload.mounts      made in the guest
//!   bind of a regular file (resolv.conf, …) ──► Environment.files    copied at create
//!   bind on /dev/shm                        ──► Workload.mounts      a tmpfs of the same size
//!   bind of another directory, overlay      ──► Environment.volumes  shared live
//!                                               Source               what the VMM shares
//!   anything else                           ──► an error that names it
//! ```

use super::{Bundle, annotations};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use workload::{Blob, Environment, Filesystem, InjectedFile, Mount, MountFlag, Volume};

/// What a mount of config.json becomes.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// Made by the guest.
    Guest(Mount),
    /// Copied into the guest.
    File(InjectedFile),
    /// Shared with the guest.
    Volume(Source, Volume),
}

/// A directory of the host that a guest uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its absolute path; of an overlay only a name.
    pub path: PathBuf,
    /// Options of the overlay that is to be made of directories of the host, each with its value if it has one. None are of an overlay.
    pub overlay: Vec<(String, Option<String>)>,
    /// The guest can't change anything in it.
    pub readonly: bool,
    /// What is mounted below it belongs to it.
    pub recursive: bool,
}

impl Source {
    /// What it is called in the guest's device.
    pub fn name(&self) -> String {
        Volume::name(&self.path)
    }
}

/// `io.cwrun.volumes`: what a container may share with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing.
    Deny,
    /// Directories. The guest can't trust what is in them.
    Untrusted,
}

impl Sharing {
    /// What the annotation says; without it, that directories are shared, but not with a confidential guest, which has no device for
    /// it.
    pub fn of(bundle: &Bundle, confidential: bool) -> Result<Self> {
        match bundle.annotation(annotations::VOLUMES) {
            None if confidential => Ok(Self::Deny),
            Some("untrusted") if confidential => bail!(
                "config.json: annotation {}: \"untrusted\" is not possible in a TEE: nothing of the host is shared with a confidential guest",
                annotations::VOLUMES
            ),
            None | Some("untrusted") => Ok(Self::Untrusted),
            Some("deny") => Ok(Self::Deny),
            Some(other) => bail!(
                "config.json: annotation {}: {other:?} is neither \"deny\" nor \"untrusted\"",
                annotations::VOLUMES
            ),
        }
    }
}

/// Options of mount(8), sorted into what they mean here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    flags: BTreeSet<MountFlag>,
    data: Vec<String>,
    bind: bool,
    recursive: bool,
}

/// Places every mount of the bundle.
pub fn place(bundle: &Path, mounts: &[oci_spec::runtime::Mount], sharing: Sharing) -> Result<Vec<Placed>> {
    let mut placed = Vec::with_capacity(mounts.len());
    let (mut volumes, mut in_guest) = (0, 0);
    for (index, mount) in settle(mounts)? {
        let mut one =
            place_one(bundle, &mount, sharing).with_context(|| format!("config.json: mounts[{index}]"))?;
        match &mut one {
            Placed::Guest(_) => in_guest += 1,
            Placed::File(_) => {}
            Placed::Volume(_, volume) => {
                volume.tag = Volume::tag(volumes);
                volume.after = in_guest;
                volumes += 1;
            }
        }
        placed.push(one);
    }
    let injected = placed
        .iter()
        .map(|p| {
            if let Placed::File(file) = p {
                file.content.0.len()
            } else {
                0
            }
        })
        .sum::<usize>();
    ensure!(
        injected <= Environment::MAX_FILE_BYTES,
        "config.json: mounts: bind-mounted files of {injected} bytes together are more than the {} that can be copied into a guest",
        Environment::MAX_FILE_BYTES
    );
    Ok(placed)
}

/// The mounts with their places in the list. Each `remount` with `bind` has gone into the bind mount whose flags it replaces, since that
/// is made once; on a file system that the guest makes, it has become a `remount` that changes nothing but flags (mount(2)).
fn settle(mounts: &[oci_spec::runtime::Mount]) -> Result<Vec<(usize, oci_spec::runtime::Mount)>> {
    let place = |mount: &oci_spec::runtime::Mount| Path::new("/").join(mount.destination());
    let mut settled: Vec<(usize, oci_spec::runtime::Mount)> = Vec::with_capacity(mounts.len());
    for (index, mount) in mounts.iter().enumerate() {
        let mut mount = mount.clone();
        if is_bind(&mount) && options_of(&mount).iter().any(|option| option == "remount") {
            let at = place(&mount);
            let before = settled.iter_mut().rev().find(|(_, before)| place(before) == at);
            let (_, before) = before.with_context(|| {
                format!(
                    "config.json: mounts[{index}]: options: \"remount\": nothing is mounted on {} before",
                    at.display()
                )
            })?;
            if is_bind(before) {
                let kept = options_of(before).iter().filter(|option| !is_flag(option));
                let options = kept.chain(changes_of_a_mount(&mount)).cloned().collect();
                before.set_options(Some(options));
                continue;
            }
            let options = changes_of_a_mount(&mount)
                .cloned()
                .chain(["remount".to_owned()])
                .collect();
            mount.set_typ(before.typ().clone()).set_options(Some(options));
        }
        settled.push((index, mount));
    }
    Ok(settled)
}

fn options_of(mount: &oci_spec::runtime::Mount) -> &[String] {
    mount.options().as_deref().unwrap_or_default()
}

fn is_bind(mount: &oci_spec::runtime::Mount) -> bool {
    let kind = mount.typ().as_deref();
    kind.is_some_and(|kind| BIND_OPTIONS.contains(&kind))
        || options_of(mount)
            .iter()
            .any(|option| BIND_OPTIONS.contains(&option.as_str()))
}

fn is_flag(option: &str) -> bool {
    FLAG_OPTIONS.iter().any(|(name, _, _)| *name == option)
}

/// Of its options, those about a mount and not about a file system: flags but `sync` and `dirsync`, and propagation.
fn changes_of_a_mount(mount: &oci_spec::runtime::Mount) -> impl Iterator<Item = &String> {
    let of_file_system = [
        "sync",
        "async",
        "dirsync",
        "lazytime",
        "nolazytime",
        "remount",
        "tmpcopyup",
    ];
    let is_change = move |option: &&String| {
        let option = option.as_str();
        (is_flag(option) || GUEST_OPTIONS.contains(&option)) && !of_file_system.contains(&option)
    };
    options_of(mount).iter().filter(is_change)
}

fn place_one(bundle: &Path, mount: &oci_spec::runtime::Mount, sharing: Sharing) -> Result<Placed> {
    let destination = mount.destination().to_str().context("destination: not UTF-8")?;
    // Runtimes have always taken a relative destination as relative to the root.
    let destination = if destination.starts_with('/') {
        destination.to_owned()
    } else {
        format!("/{destination}")
    };
    ensure!(
        mount.uid_mappings().as_ref().is_none_or(Vec::is_empty)
            && mount.gid_mappings().as_ref().is_none_or(Vec::is_empty),
        "uidMappings: ID-mapped mounts are not supported ({destination})"
    );
    let options = parse_options(mount.options().as_deref().unwrap_or_default())
        .with_context(|| format!("options of {destination}"))?;
    let kind = mount
        .typ()
        .as_deref()
        .unwrap_or(if options.bind { "bind" } else { "" });
    let filesystem = match kind {
        _ if options.bind => return place_bind(bundle, mount, destination, options, sharing),
        "bind" | "rbind" => return place_bind(bundle, mount, destination, options, sharing),
        "overlay" => return place_overlay(destination, options, sharing),
        "proc" => Filesystem::Proc,
        "sysfs" => Filesystem::Sysfs,
        "tmpfs" => Filesystem::Tmpfs,
        "devpts" => Filesystem::Devpts,
        "mqueue" => Filesystem::Mqueue,
        "cgroup" | "cgroup2" => Filesystem::Cgroup2,
        "" => bail!("type: missing (destination {destination})"),
        other => {
            bail!("type: file system {other:?} (destination {destination}) is not supported in the guest")
        }
    };
    let mut data = options.data;
    if filesystem == Filesystem::Cgroup2 {
        // Options of version 1 hierarchies mean nothing to version 2, which is what every guest has.
        data.retain(|option| GUEST_OPTIONS.contains(&option.as_str()));
    }
    data.extend(source(mount, filesystem)?);
    Ok(Placed::Guest(Mount {
        destination,
        filesystem,
        flags: options.flags,
        options: data,
    }))
}

/// What `/proc/mounts` shows as the source, as an option (fsconfig(2) has one of this name). Without it, it is the file system's name.
fn source(mount: &oci_spec::runtime::Mount, filesystem: Filesystem) -> Result<Option<String>> {
    let Some(source) = mount.source() else {
        return Ok(None);
    };
    let source = source.to_str().context("source: not UTF-8")?;
    ensure!(!source.contains('\0'), "source: contains a NUL byte");
    let said = !source.is_empty() && source != filesystem.name();
    Ok(said.then(|| format!("{}{source}", Mount::SOURCE)))
}

fn place_bind(
    bundle: &Path,
    mount: &oci_spec::runtime::Mount,
    destination: String,
    options: Options,
    sharing: Sharing,
) -> Result<Placed> {
    let source = mount
        .source()
        .as_ref()
        .with_context(|| format!("source: missing (bind mount on {destination})"))?;
    if let Some(option) = options
        .data
        .iter()
        .find(|option| BIND_REFUSED.contains(&option.as_str()))
    {
        bail!("options: {option:?} is not supported on a bind mount ({destination})");
    }
    // Those of a file system reach mount(2) in other runtimes, which ignores them where nothing new is mounted.
    let (data, ignored): (Vec<_>, Vec<_>) = options
        .data
        .into_iter()
        .partition(|option| GUEST_OPTIONS.contains(&option.as_str()));
    let options = Options { data, ..options };
    for option in ignored {
        tracing::warn!("mounts: option {option:?} has no effect on a bind mount ({destination})");
    }
    let source: PathBuf = bundle.join(source);
    let meta = fs::metadata(&source)
        .with_context(|| format!("source: {} (bind mount on {destination})", source.display()))?;
    let kind = meta.file_type();
    if kind.is_file() {
        return inject(&source, &meta, destination, &options.flags).map(Placed::File);
    }
    if kind.is_dir() && destination == "/dev/shm" {
        return shm(&source, options.flags).map(Placed::Guest);
    }
    if kind.is_dir() {
        return share(source, Vec::new(), destination, options, sharing);
    }
    let what = match kind {
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "neither a file nor a directory",
    };
    bail!(
        "source: {} on {destination} is {what}, which can't be shared with a guest: only directories and regular files can",
        source.display()
    )
}

/// What engines make of a volume with the option `O`: the guest's changes go to a directory of the container's. The host mounts it.
fn place_overlay(destination: String, mut options: Options, sharing: Sharing) -> Result<Placed> {
    let (guest, overlay): (Vec<_>, Vec<_>) =
        std::mem::take(&mut options.data).into_iter().partition(|option| {
            !matches!(option.as_str(), "remount" | "tmpcopyup") && GUEST_OPTIONS.contains(&option.as_str())
        });
    options.data = guest;
    let overlay: Vec<_> = overlay
        .into_iter()
        .map(|option| match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (option, None),
        })
        .collect();
    for (key, value) in &overlay {
        let paths = ["lowerdir", "upperdir", "workdir"].contains(&key.as_str());
        ensure!(
            paths || OVERLAY_OPTIONS.contains(&key.as_str()),
            "options: {key:?} is not supported on an overlay ({destination})"
        );
        ensure!(
            !paths || value.as_ref().is_some_and(|value| value.starts_with('/')),
            "options: {key}: expected an absolute path ({destination})"
        );
    }
    let has = |key| overlay.iter().any(|(name, _)| name == key);
    ensure!(
        has("lowerdir"),
        "options: lowerdir: missing (overlay on {destination})"
    );
    if !has("upperdir") {
        options.flags.insert(MountFlag::Ro);
    }
    options.recursive = false;
    share("overlay".into(), overlay, destination, options, sharing)
}

/// Tag and place among the other mounts are for the caller to say.
fn share(
    source: PathBuf,
    overlay: Vec<(String, Option<String>)>,
    destination: String,
    options: Options,
    sharing: Sharing,
) -> Result<Placed> {
    ensure!(
        sharing == Sharing::Untrusted,
        "source: {} on {destination} is a directory, and none may be shared with this guest (annotation {} is \"deny\", or it is confidential)",
        source.display(),
        annotations::VOLUMES
    );
    let volume = Volume {
        tag: String::new(),
        name: Volume::name(&source),
        destination,
        after: 0,
        flags: options.flags,
        // When an inode's times are written is for the host's file system to say.
        propagation: options
            .data
            .into_iter()
            .filter(|option| !option.ends_with("lazytime"))
            .collect(),
    };
    let source = Source {
        path: source,
        overlay,
        readonly: volume.flags.contains(&MountFlag::Ro),
        recursive: options.recursive,
    };
    Ok(Placed::Volume(source, volume))
}

/// A copy whose mode lacks what the flags forbid, since there is no mount to forbid it.
fn inject(
    source: &Path,
    meta: &fs::Metadata,
    destination: String,
    flags: &BTreeSet<MountFlag>,
) -> Result<InjectedFile> {
    ensure!(
        meta.len() <= Environment::MAX_FILE_BYTES as u64,
        "source: {} has {} bytes, more than the {} that can be copied into a guest",
        source.display(),
        meta.len(),
        Environment::MAX_FILE_BYTES
    );
    let content = fs::read(source).with_context(|| format!("source: {}", source.display()))?;
    let forbidden = [(MountFlag::Nosuid, 0o6000_u32), (MountFlag::Noexec, 0o111)];
    let mode = forbidden
        .iter()
        .filter(|(flag, _)| flags.contains(flag))
        .fold(meta.mode() & 0o7777, |mode, (_, bits)| mode & !bits);
    Ok(InjectedFile {
        destination,
        mode,
        uid: meta.uid(),
        gid: meta.gid(),
        readonly: flags.contains(&MountFlag::Ro),
        content: Blob(content),
    })
}

/// Engines make `/dev/shm` on the host, sized as the user asked, so that the containers of a pod can share it. A guest has
/// its own, of that size.
fn shm(source: &Path, mut flags: BTreeSet<MountFlag>) -> Result<Mount> {
    let stat = rustix::fs::statvfs(source).with_context(|| format!("source: {}", source.display()))?;
    let bytes = stat
        .f_blocks
        .saturating_mul(stat.f_frsize)
        .clamp(1 << 20, 1 << 40);
    flags.extend([MountFlag::Nosuid, MountFlag::Nodev, MountFlag::Noexec]);
    let options = vec!["mode=1777".to_owned(), format!("size={bytes}")];
    Ok(Mount {
        destination: "/dev/shm".to_owned(),
        filesystem: Filesystem::Tmpfs,
        flags,
        options,
    })
}

/// Options that set (`true`) or clear a flag of mount(2). Those with an `r` in front are for mounts below as well: a file system
/// that a guest has just made has none, and neither has a file.
pub const FLAG_OPTIONS: [(&str, MountFlag, bool); 34] = [
    ("ro", MountFlag::Ro, true),
    ("rro", MountFlag::Ro, true),
    ("rw", MountFlag::Ro, false),
    ("rrw", MountFlag::Ro, false),
    ("nosuid", MountFlag::Nosuid, true),
    ("rnosuid", MountFlag::Nosuid, true),
    ("suid", MountFlag::Nosuid, false),
    ("rsuid", MountFlag::Nosuid, false),
    ("nodev", MountFlag::Nodev, true),
    ("rnodev", MountFlag::Nodev, true),
    ("dev", MountFlag::Nodev, false),
    ("rdev", MountFlag::Nodev, false),
    ("noexec", MountFlag::Noexec, true),
    ("rnoexec", MountFlag::Noexec, true),
    ("exec", MountFlag::Noexec, false),
    ("rexec", MountFlag::Noexec, false),
    ("sync", MountFlag::Sync, true),
    ("async", MountFlag::Sync, false),
    ("dirsync", MountFlag::Dirsync, true),
    ("noatime", MountFlag::Noatime, true),
    ("rnoatime", MountFlag::Noatime, true),
    ("atime", MountFlag::Noatime, false),
    ("ratime", MountFlag::Noatime, false),
    ("nodiratime", MountFlag::Nodiratime, true),
    ("rnodiratime", MountFlag::Nodiratime, true),
    ("diratime", MountFlag::Nodiratime, false),
    ("rdiratime", MountFlag::Nodiratime, false),
    ("relatime", MountFlag::Relatime, true),
    ("rrelatime", MountFlag::Relatime, true),
    ("norelatime", MountFlag::Relatime, false),
    ("rnorelatime", MountFlag::Relatime, false),
    ("strictatime", MountFlag::Strictatime, true),
    ("rstrictatime", MountFlag::Strictatime, true),
    ("nostrictatime", MountFlag::Strictatime, false),
];

/// Options that make a mount a bind mount.
pub const BIND_OPTIONS: [&str; 2] = ["bind", "rbind"];

/// Options that are no file system's own and travel to the guest among those that are: `tmpcopyup`, `remount`, propagation, and
/// those about how an inode's times are written, which the kernel has for every file system.
pub const GUEST_OPTIONS: [&str; 12] = [
    "lazytime",
    "nolazytime",
    "private",
    "remount",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "slave",
    "tmpcopyup",
    "unbindable",
];

/// Options of an overlay besides its directories (the kernel's Documentation/filesystems/overlayfs).
const OVERLAY_OPTIONS: [&str; 7] = [
    "index",
    "metacopy",
    "nfs_export",
    "redirect_dir",
    "userxattr",
    "volatile",
    "xino",
];

/// Options that ask for something that a bind mount does not have, or that is done otherwise here: how links are followed.
pub const BIND_REFUSED: [&str; 5] = [
    "tmpcopyup",
    "nosymfollow",
    "copy-symlink",
    "src-nofollow",
    "dest-nofollow",
];

/// Options without effect here: the kernel's own defaults, what it logs while it mounts, and the version of an inode, which no file
/// system of a guest shows to anyone.
pub const NEUTRAL_OPTIONS: [&str; 5] = ["defaults", "silent", "loud", "iversion", "noiversion"];

fn parse_options(options: &[String]) -> Result<Options> {
    let mut parsed = Options::default();
    for option in options.iter().map(String::as_str) {
        if let Some((_, flag, set)) = FLAG_OPTIONS.iter().find(|(name, _, _)| *name == option) {
            parsed.flags.remove(flag);
            parsed.flags.extend(set.then_some(*flag));
            continue;
        }
        match option {
            _ if BIND_OPTIONS.contains(&option) => {
                parsed.bind = true;
                parsed.recursive = option == "rbind";
            }
            "idmap" | "ridmap" => bail!("ID-mapped mounts are not supported"),
            _ if option.starts_with("idmap=") || option.starts_with("ridmap=") => {
                bail!("ID-mapped mounts are not supported")
            }
            // Labels of the host's SELinux.
            _ if option.starts_with("context=") || NEUTRAL_OPTIONS.contains(&option) => {}
            _ => parsed.data.push(option.to_owned()),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
#[path = "mounts_test.rs"]
mod tests;
