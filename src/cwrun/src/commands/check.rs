//! `check`: what this machine can do, and what to do about what it can't.

use crate::cli::Check;
use crate::guest_files;
use crate::settings::Settings;
use crate::tee;
use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// How long the test guest may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    ok: bool,
    /// Containers can't run without it.
    required: bool,
    /// What was found.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// The command. Fails if containers can't run here.
pub fn run(args: &Check) -> Result<()> {
    let findings = [kvm(), guest(), configuration(), sev_snp(), cgroups()];
    let able = findings.iter().all(|finding| finding.ok || !finding.required);
    if args.json {
        super::print_json(&serde_json::json!({"ok": able, "checks": findings}))?;
    } else {
        let mut out = std::io::stdout().lock();
        for finding in &findings {
            let mark = if finding.ok {
                "ok"
            } else if finding.required {
                "MISSING"
            } else {
                "absent"
            };
            writeln!(out, "{:<8} {:<12} {}", mark, finding.name, finding.detail)?;
            if let Some(advice) = &finding.advice {
                writeln!(out, "{:<21} -> {advice}", "")?;
            }
        }
    }
    match able {
        true => Ok(()),
        false => bail!("containers can't run on this machine"),
    }
}

fn finding(name: &'static str, required: bool, result: Result<String, (String, &str)>) -> Finding {
    match result {
        Ok(detail) => Finding {
            name,
            ok: true,
            required,
            detail,
            advice: None,
        },
        Err((detail, advice)) => Finding {
            name,
            ok: false,
            required,
            detail,
            advice: Some(advice.to_owned()),
        },
    }
}

/// Present, permitted, and able to run a guest: a device that opens says nothing of the last.
fn kvm() -> Finding {
    let result = match crate::kvm::open() {
        Err(error) => Err((
            format!("{error:#}"),
            "cwrun needs hardware virtualization: real hardware, or nested virtualization enabled for this machine",
        )),
        Ok(kvm) => match vmm::probe::probe(kvm.as_fd(), PROBE_DEADLINE) {
            Ok(probe) => Ok(format!(
                "/dev/kvm runs a guest ({:.1} ms)",
                probe.elapsed.as_secs_f64() * 1000.0
            )),
            Err(error) => Err((
                format!("/dev/kvm opens but can't run a guest: {error}"),
                "enable virtualization (AMD-V, VT-x) in the firmware, or nested virtualization if this is a virtual machine itself",
            )),
        },
    };
    finding("kvm", true, result)
}

fn guest() -> Finding {
    let result = guest_files::find().and_then(|dir| {
        for name in ["vmlinux", "initrd"] {
            let path = dir.join(name);
            std::fs::File::open(&path).with_context(|| format!("guest file {}", path.display()))?;
        }
        Ok(dir)
    });
    finding(
        "guest files",
        true,
        result
            .map(|dir| format!("kernel and initrd in {}", dir.display()))
            .map_err(|error| {
                (
                    format!("{error:#}"),
                    "build them with `make guest` and install them with `make install`",
                )
            }),
    )
}

/// No container is created with settings that can't be read.
fn configuration() -> Finding {
    let result = match Settings::load() {
        Ok(Settings { file: Some(file), .. }) => Ok(file.display().to_string()),
        Ok(_) => Ok("no cwrun.toml: defaults".to_owned()),
        Err(error) => Err((
            format!("{error:#}"),
            "correct the file: contrib/cwrun.toml in the sources shows every key",
        )),
    };
    finding("settings", true, result)
}

/// Informative: without it containers run unattested (`tee = none`).
fn sev_snp() -> Finding {
    let result = match tee::host::verdict() {
        Ok(support) => Ok(format!(
            "{} confidential guests at once ({}; encryption bit {})",
            support.guests,
            tee::host::cpu_model(),
            support.encryption_bit
        )),
        Err(missing) => Err((
            format!("{missing}: nothing protects containers from this host"),
            missing.advice(),
        )),
    };
    finding("sev-snp", false, result)
}

fn cgroups() -> Finding {
    let result = match libcgroups::common::get_cgroup_setup() {
        Ok(setup) => Ok(format!("{setup}")),
        Err(error) => Err((
            format!("{error}"),
            "mount cgroup2 on /sys/fs/cgroup, or use --cgroup-manager disabled",
        )),
    };
    finding("cgroups", false, result)
}
