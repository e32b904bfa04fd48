//! One file per command.

pub mod attest;
pub mod check;
pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod disk;
mod disk_cache;
pub mod events;
pub mod exec;
pub mod features;
pub mod inspect;
pub mod kill;
pub mod list;
pub mod measure;
pub mod pause;
pub mod ps;
pub mod run;
pub mod seal;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
pub mod verify;

use anyhow::{Context, Result};
use std::io::Write;

/// Prints a document, indented.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("JSON")?;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}
