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
use crate::settings::{Settings, Tee as TeeSettings};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::path::Path;
use tee::vmsa::Variant;
use vmm::Boot;
use vmm::snp::{IDENTITY_BLOCK, Identity, PAGE_BYTES, Snp, check_policy};
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
    let sev = krun::sev(bundle)?;
    let annotated = bundle.annotation(annotations::TEE).map(parse_wish).transpose()?;
    let kind = decide(annotated, sev.as_deref(), settings.tee.kind, || {
        host::support().map(drop)
    })?;
    let exec = match bundle.annotation(annotations::TEE_EXEC) {
        None | Some("deny") => false,
        Some("allow") => true,
        Some(other) => bail!(
            "config.json: annotation {}: {other:?} is neither \"allow\" nor \"deny\"",
            annotations::TEE_EXEC
        ),
    };
    Ok(kind.map(|kind| workload::Tee { kind, exec }))
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
    match kind {
        TeeKind::Snp => {
            let snp = snp(settings, host_data)?;
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
            let evidence = Evidence::new(&plan, host_data, settings.policy);
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
fn snp(settings: &TeeSettings, host_data: [u8; 32]) -> Result<Snp> {
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
        identity: identity(settings)?,
    })
}

/// The owner's signed block, if the settings name one.
fn identity(settings: &TeeSettings) -> Result<Option<Identity>> {
    let (Some(block), Some(authentication)) = (&settings.id_block, &settings.id_auth) else {
        ensure!(
            settings.id_block.is_none() && settings.id_auth.is_none(),
            "cwrun.toml: tee.id_block and tee.id_auth belong together"
        );
        return Ok(None);
    };
    let authentication = Box::new(read_exact::<PAGE_BYTES>(authentication)?);
    // AMD 56860 table 76: the author key's algorithm, 0 without one.
    let author = authentication[4..8] != [0; 4];
    Ok(Some(Identity {
        block: read_exact::<IDENTITY_BLOCK>(block)?,
        authentication,
        author,
    }))
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
