//! Which TEE a container gets, and what its guest then starts from.
//!
//! ```text
//!   io.cwrun.tee │ krun.variant, flavor │ cwrun.toml ─► choose ─► none   vmlinux, as ever
//!                                                         │       snp    bzImage in stage0, under SEV-SNP
//!                                                         │       sim    the same without SNP: protects nothing
//!                                       host: what is there
//! ```
//!
//! Whoever asks for a TEE gets it or an error that says what is missing: nothing here falls back to something weaker.

pub mod expected;
pub mod host;
mod sim;

use crate::bundle::{Bundle, annotations, krun};
use crate::guest_files;
use crate::mkcw_disk;
use crate::sealed::Contents;
use crate::settings::{Settings, Tee as TeeSettings};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::path::Path;
use tee::launch::{ID_AUTH_SIZE, ID_BLOCK_SIZE, IdAuth, IdBlock, LaunchDigest};
use tee::report::KeyDigest;
use tee::vmsa::Variant;
use vmm::Boot;
use vmm::snp::{Identity, Snp, check_policy};
use workload::{TeeKind, Workload};

use expected::GuestFiles;
pub use sim::Evidence;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// No TEE.
    #[default]
    None,
    /// SEV-SNP.
    Snp,
    /// A TEE that protects nothing.
    Sim,
    /// SEV-SNP where there is one.
    Auto,
}

/// What the guest of a container starts from.
pub struct Start {
    /// For the VMM.
    pub boot: Boot,
    /// What answers a simulated TEE's guest.
    pub evidence: Option<Evidence>,
}

/// The TEE for this bundle, or none.
pub fn choose(bundle: &Bundle, settings: &Settings) -> Result<Option<workload::Tee>> {
    choose_where(bundle, settings, || host::support().map(drop))
}

/// The TEE for this bundle on a machine that has SEV-SNP.
pub fn wanted(bundle: &Bundle, settings: &Settings) -> Result<Option<workload::Tee>> {
    choose_where(bundle, settings, || Ok(()))
}

/// The TEE for an image of mkcw whose passphrase is with a key broker, or an error: there is none without.
pub fn of_mkcw(bundle: &Bundle, settings: &Settings) -> Result<workload::Tee> {
    of_mkcw_where(bundle, settings, || host::support().map(drop))
}

/// The same on a machine that has SEV-SNP.
pub fn wanted_by_mkcw(bundle: &Bundle, settings: &Settings) -> Result<workload::Tee> {
    of_mkcw_where(bundle, settings, || Ok(()))
}

fn of_mkcw_where(
    bundle: &Bundle,
    settings: &Settings,
    support: impl Fn() -> Result<()>,
) -> Result<workload::Tee> {
    if let Some(tee) = choose_where(bundle, settings, &support)? {
        return Ok(tee);
    }
    let exec = exec(bundle)?;
    let by = format!("/{} in the image", mkcw_disk::CONFIG);
    ensure!(
        bundle.annotation(annotations::TEE) != Some("none"),
        "config.json: annotation {}: \"none\" contradicts {by}, which demands SEV-SNP: a key broker gives the passphrase to no other guest",
        annotations::TEE
    );
    support().with_context(|| format!("{by}: SEV-SNP is demanded and can't be had here"))?;
    Ok(workload::Tee {
        kind: TeeKind::Snp,
        exec,
    })
}

fn choose_where(
    bundle: &Bundle,
    settings: &Settings,
    support: impl FnOnce() -> Result<()>,
) -> Result<Option<workload::Tee>> {
    let sev = krun::sev(bundle)?;
    let annotated = bundle.annotation(annotations::TEE).map(parse_wish).transpose()?;
    let kind = decide(annotated, sev.as_deref(), settings.tee.kind, support)?;
    let exec = exec(bundle)?;
    Ok(kind.map(|kind| workload::Tee { kind, exec }))
}

/// Whether the host may have more processes run in it.
fn exec(bundle: &Bundle) -> Result<bool> {
    match bundle.annotation(annotations::TEE_EXEC) {
        None | Some("deny") => Ok(false),
        Some("allow") => Ok(true),
        Some(other) => bail!(
            "config.json: annotation {}: {other:?} is neither \"allow\" nor \"deny\"",
            annotations::TEE_EXEC
        ),
    }
}

/// The TEE of a sealed workload, which is the one that its owner demands, or an error where somebody here demands another or it can't be had.
pub fn of_sealed(bundle: &Bundle, settings: &Settings, contents: &Contents) -> Result<workload::Tee> {
    let annotated = bundle.annotation(annotations::TEE).map(parse_wish).transpose()?;
    let sev = krun::sev(bundle)?;
    // Its parser lets none through without.
    let demanded = contents
        .workload
        .tee
        .context("the sealed workload names no TEE")?;
    agree(demanded.kind, annotated, sev.as_deref(), settings.tee.kind)?;
    if demanded.kind == TeeKind::Snp {
        host::support().context("the sealed workload demands SEV-SNP, which can't be had here")?;
    }
    let exec = bundle
        .annotation(annotations::TEE_EXEC)
        .map(|value| value == "allow");
    ensure!(
        exec.is_none_or(|exec| exec == demanded.exec),
        "config.json: annotation {}: the sealed workload says itself whether the host may run more processes in it: {}",
        annotations::TEE_EXEC,
        if demanded.exec { "it may" } else { "it may not" }
    );
    Ok(demanded)
}

/// Whether nobody here demands another TEE than a sealed workload does.
fn agree(demanded: TeeKind, annotated: Option<Wish>, sev: Option<&str>, default: Wish) -> Result<()> {
    let own = match demanded {
        TeeKind::Snp => Wish::Snp,
        TeeKind::Sim => Wish::Sim,
    };
    if let Some(wish) = annotated.filter(|wish| ![own, Wish::Auto].contains(wish)) {
        bail!(
            "config.json: annotation {}: {:?} is not the TEE that the sealed workload demands, {:?}",
            annotations::TEE,
            name(wish),
            name(own)
        )
    }
    if demanded == TeeKind::Sim {
        let by = sev.map(str::to_owned).or_else(|| {
            let by_default = annotated != Some(Wish::Sim) && default == Wish::Snp;
            by_default.then(|| "cwrun.toml: tee.kind".to_owned())
        });
        if let Some(by) = by {
            bail!("{by}: SEV-SNP is demanded, and the workload is sealed for a simulated TEE");
        }
    }
    Ok(())
}

fn parse_wish(text: &str) -> Result<Wish> {
    match text {
        "none" => Ok(Wish::None),
        "snp" => Ok(Wish::Snp),
        "sim" => Ok(Wish::Sim),
        "auto" => Ok(Wish::Auto),
        _ => bail!(
            "config.json: annotation {}: {text:?} is none of \"none\", \"snp\", \"sim\", \"auto\"",
            annotations::TEE
        ),
    }
}

/// `sev` says who demands SEV in crun's words. `support` is asked only if the answer matters.
fn decide(
    annotated: Option<Wish>,
    sev: Option<&str>,
    default: Wish,
    support: impl FnOnce() -> Result<()>,
) -> Result<Option<TeeKind>> {
    let by_annotation = format!("config.json: annotation {}", annotations::TEE);
    let (wish, by) = match (annotated, sev) {
        (Some(wish @ (Wish::None | Wish::Sim)), Some(sev)) => bail!(
            "{by_annotation}: {:?} contradicts {sev}, which demands SEV-SNP",
            name(wish)
        ),
        (_, Some(sev)) => (Wish::Snp, sev.to_owned()),
        // Whoever leaves it to the machine does not take back what its administrator demands.
        (Some(Wish::Auto) | None, None) if matches!(default, Wish::Snp | Wish::Sim) => {
            (default, "cwrun.toml: tee.kind".to_owned())
        }
        (Some(wish), None) => (wish, by_annotation),
        (None, None) => (default, "cwrun.toml: tee.kind".to_owned()),
    };
    match wish {
        Wish::None => Ok(None),
        Wish::Sim => Ok(Some(TeeKind::Sim)),
        Wish::Snp => {
            support().with_context(|| format!("{by}: SEV-SNP is demanded and can't be had here"))?;
            Ok(Some(TeeKind::Snp))
        }
        Wish::Auto => Ok(match support() {
            Ok(()) => Some(TeeKind::Snp),
            Err(missing) => {
                tracing::info!("{by}: no TEE here, runs without: {missing:#}");
                None
            }
        }),
    }
}

fn name(wish: Wish) -> &'static str {
    match wish {
        Wish::None => "none",
        Wish::Snp => "snp",
        Wish::Sim => "sim",
        Wish::Auto => "auto",
    }
}

/// What a guest of this size starts from. The Workload must be complete: its hash goes into the launch.
pub fn start(
    workload: &Workload,
    memory_mib: u64,
    vcpus: u8,
    settings: &TeeSettings,
    debug: bool,
) -> Result<Start> {
    let dir = guest_files::find()?;
    let open = |name: &str| {
        let path = dir.join(name);
        File::open(&path).with_context(|| format!("guest file {}", path.display()))
    };
    let Some(kind) = workload.tee.map(|tee| tee.kind) else {
        let cmdline = if debug { "ignore_loglevel" } else { "" };
        return Ok(Start {
            boot: Boot::Kernel {
                kernel: open("vmlinux")?,
                initrd: open("initrd")?,
                cmdline: cmdline.to_owned(),
            },
            evidence: None,
        });
    };
    let (least, most) = (confidential::MIN_MEMORY_MIB, confidential::MAX_MEMORY_MIB);
    ensure!(
        (least..=most).contains(&memory_mib),
        "a confidential guest has between {least} and {most} MiB of memory, not {memory_mib} MiB"
    );
    let guest = GuestFiles::open()?;
    let host_data: [u8; 32] = Sha256::digest(workload.to_bytes()).into();
    let cpu = host::cpu_model();
    let plan = guest.plan(vcpus, cpu, Variant::Linux6_11)?;
    let files = guest.boot;
    tracing::debug!(
        "launch digest {} ({} bytes measured, {vcpus} vCPUs, {cpu})",
        plan.digest(),
        plan.measured()
    );
    let owner = owner(settings, plan.digest())?;
    match kind {
        TeeKind::Snp => {
            let snp = snp(settings, host_data, owner.as_ref())?;
            Ok(Start {
                boot: Boot::Firmware(Box::new(files.launch(&plan, memory_mib, snp))),
                evidence: None,
            })
        }
        TeeKind::Sim => {
            let warning = "io.cwrun.tee is \"sim\": this TEE is simulated and protects NOTHING, neither from this host nor from anybody on it";
            // On stderr always: nobody may take this for protection because a log was not read.
            eprintln!("cwrun: {warning}");
            tracing::warn!("{warning}");
            let evidence = Evidence::new(
                &plan,
                host_data,
                settings.policy,
                owner.as_ref().map(Owner::for_reports),
            );
            let plain = confidential::read_image(&open("stage0-plain")?)?;
            let plan = files.plan(&plain, vcpus, cpu, Variant::Linux6_11)?;
            Ok(Start {
                boot: Boot::Firmware(Box::new(files.simulate(&plan, memory_mib))),
                evidence: Some(evidence),
            })
        }
    }
}

/// What the firmware is asked for.
fn snp(settings: &TeeSettings, host_data: [u8; 32], owner: Option<&Owner>) -> Result<Snp> {
    let bit = host::support()?.encryption_bit;
    ensure!(
        bit == confidential::ENCRYPTION_BIT,
        "this processor encrypts by address bit {bit}, and guests are built for bit {}",
        confidential::ENCRYPTION_BIT
    );
    let policy = settings.policy.bits();
    check_policy(policy, host::traits()).context("cwrun.toml: tee.policy")?;
    Ok(Snp {
        sev: host::open_sev()?,
        policy,
        host_data,
        identity: owner.map(Owner::for_firmware),
    })
}

/// The owner's signed block, if the settings name one that is for this launch: what the firmware would refuse is refused here, with a
/// sentence.
fn owner(settings: &TeeSettings, digest: LaunchDigest) -> Result<Option<Owner>> {
    let (block, authentication) = match (&settings.id_block, &settings.id_auth) {
        (Some(block), Some(authentication)) => (block, authentication),
        (None, None) => return Ok(None),
        _ => bail!(
            "an ID block and its authentication belong together: --id-block and --id-auth, or tee.id_block and tee.id_auth in cwrun.toml"
        ),
    };
    let in_block = || format!("ID block {}", block.display());
    let in_auth = || format!("ID authentication {}", authentication.display());
    let bytes = read_exact::<ID_BLOCK_SIZE>(block)?;
    let block = IdBlock::parse(&bytes).with_context(in_block)?;
    ensure!(
        block.digest == digest,
        "{}: it is for launch digest {}, and this guest's is {digest} (see `cwrun measure`)",
        in_block(),
        block.digest
    );
    ensure!(
        block.policy == settings.policy,
        "{}: it is for guest policy {}, and tee.policy is {}",
        in_block(),
        block.policy,
        settings.policy
    );
    let auth = IdAuth::parse(&read_exact::<ID_AUTH_SIZE>(authentication)?).with_context(in_auth)?;
    auth.check(&block).with_context(in_auth)?;
    Ok(Some(Owner { block, auth }))
}

/// An ID block and who signed it, checked.
struct Owner {
    block: IdBlock,
    auth: IdAuth,
}

impl Owner {
    /// As the VMM passes it on.
    fn for_firmware(&self) -> Identity {
        Identity {
            block: self.block.to_bytes(),
            authentication: self.auth.to_bytes(),
            author: self.auth.author.is_some(),
        }
    }

    /// As it shows in reports.
    fn for_reports(&self) -> tee::sim::Identity {
        tee::sim::Identity {
            family_id: self.block.family_id,
            image_id: self.block.image_id,
            guest_svn: self.block.guest_svn,
            id_key: KeyDigest::of(&self.auth.id_key),
            author_key: self.auth.author.as_ref().map(|(_, key)| KeyDigest::of(key)),
        }
    }
}

/// A file of exactly this length.
fn read_exact<const N: usize>(path: &Path) -> Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(N as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| path.display().to_string())?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| {
        anyhow::anyhow!(
            "{}: has {} bytes, expected {N}",
            path.display(),
            if length > N {
                "more".to_owned()
            } else {
                length.to_string()
            }
        )
    })
}

#[cfg(test)]
#[path = "tee_test.rs"]
mod tests;
