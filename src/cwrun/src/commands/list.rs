//! `list`: all containers under `--root`.

use crate::cli::{Global, List, ListFormat};
use crate::state::{Container, Root};
use anyhow::{Context, Result};
use std::io::Write;

/// The command.
pub fn run(global: &Global, args: &List) -> Result<()> {
    let containers = Root::new(global.root.clone())?.list()?;
    if args.format == ListFormat::Json && !args.quiet {
        let entries: Vec<_> = containers.iter().map(entry).collect();
        return super::print_json(&entries);
    }
    let mut text = String::new();
    if args.quiet {
        containers
            .iter()
            .for_each(|container| text.push_str(&format!("{}\n", container.record.id)));
    } else {
        text.push_str(&format!(
            "{:<20} {:<8} {:<9} {:<40} {:<30} OWNER\n",
            "NAME", "PID", "STATUS", "BUNDLE PATH", "CREATED"
        ));
        containers
            .iter()
            .for_each(|container| text.push_str(&row(container)));
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
}

fn row(container: &Container) -> String {
    let record = &container.record;
    let status = container.status();
    let pid = pid(container, status);
    let bundle = record.bundle.display().to_string();
    format!(
        "{:<20} {pid:<8} {status:<9} {bundle:<40} {:<30} {}\n",
        record.id, record.created, record.owner
    )
}

fn entry(container: &Container) -> serde_json::Value {
    let status = container.status();
    let mut entry = container.oci_state(status);
    entry["pid"] = pid(container, status).into();
    entry["created"] = container.record.created.clone().into();
    entry["rootfs"] = container.record.rootfs.display().to_string().into();
    entry["owner"] = container.record.owner.to_string().into();
    entry
}

/// The VMM's number while it lives, else 0.
fn pid(container: &Container, status: crate::state::Status) -> i32 {
    if status == crate::state::Status::Stopped {
        0
    } else {
        container.record.vmm.map_or(0, |vmm| vmm.pid)
    }
}
