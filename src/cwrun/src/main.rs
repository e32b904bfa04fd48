//! `cwrun`: an OCI runtime that runs each container in a microVM on an encrypted disk.
//!
//! ```text
//!   cli ──► commands ──► bundle    config.json, split in two
//!                    ──► root_disk the encrypted disk (crate disk), layer by layer (overlay)
//!                    ──► launch    namespaces, cgroup, hooks, confinement
//!                    ──► machine   the VMM process: boots (crate vmm) and serves the guest
//!                    ──► broker    which key broker a sealed container asks, and the way there
//!                    ──► infra     in its place for a pod's infra container: holds namespaces, without a VM
//!                    ──► state     what is known between commands
//!   settings ──► what cwrun.toml sets, read once by the commands that depend on it
//!   user ──────► whether all this is the system's or one user's
//! ```

mod broker;
mod bundle;
mod cgroup;
mod channel;
mod cli;
mod commands;
mod control;
mod failure;
mod guest_files;
mod image;
mod image_file;
mod infra;
mod kvm;
mod launch;
mod logging;
mod machine;
mod mkcw_disk;
mod network;
mod output;
mod overlay;
mod root_disk;
mod sealed;
mod settings;
mod signal;
mod signal_fd;
mod state;
mod tee;
mod user;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command, Global};
use settings::Settings;
use std::os::fd::RawFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let inherited = inherited_descriptors();
    let cli = Cli::parse();
    let log = logging::Options {
        file: cli.global.log.clone(),
        format: cli.global.log_format,
        debug: cli.global.debug,
    };
    let result = logging::start(&log).and_then(|()| dispatch(&cli, &inherited));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            logging::report_error(&error, cli.global.log.as_deref());
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn dispatch(cli: &Cli, inherited: &[RawFd]) -> Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Exec(args) => return commands::exec::run(global, args, inherited),
        Command::Run(args) => return commands::run::run(global, &settings(global)?, args, inherited),
        Command::Verify(args) => return commands::verify::run(args),
        Command::Create(args) => commands::create::run(global, &settings(global)?, args, inherited),
        Command::Start(args) => commands::start::run(global, args),
        Command::State(args) => commands::state::run(global, args),
        Command::Kill(args) => commands::kill::run(global, args),
        Command::Delete(args) => commands::delete::run(global, args),
        Command::Ps(args) => commands::ps::run(global, args),
        Command::Pause(args) => commands::pause::pause(global, args),
        Command::Resume(args) => commands::pause::resume(global, args),
        Command::Update(args) => commands::update::run(global, args),
        Command::Events(args) => commands::events::run(global, args),
        Command::Checkpoint(_) => commands::checkpoint::checkpoint(),
        Command::Restore(_) => commands::checkpoint::restore(),
        Command::List(args) => commands::list::run(global, args),
        Command::Spec(args) => commands::spec::run(global, args),
        Command::Features => commands::features::run(),
        Command::Check(args) => commands::check::run(args),
        Command::Measure(args) => commands::measure::run(&Settings::load()?, args),
        Command::Attest(args) => commands::attest::run(global, args),
        Command::BrokerProxy => broker::proxy::run(),
        Command::Seal(args) => commands::seal::run(&Settings::load()?, args),
        Command::Inspect(args) => commands::inspect::run(&Settings::load()?, args),
        Command::Disk(command) => commands::disk::run(command),
    }?;
    Ok(0)
}

/// The settings of this machine, with what the command line has in their place.
fn settings(global: &Global) -> Result<Settings> {
    let mut settings = Settings::load()?;
    if global.id_block.is_some() || global.id_auth.is_some() {
        settings.tee.id_block.clone_from(&global.id_block);
        settings.tee.id_auth.clone_from(&global.id_auth);
    }
    Ok(settings)
}

/// Descriptors from 3 up that are open before this program opens any.
fn inherited_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The listing's own descriptor is among them and closed by now.
    numbers.into_iter().filter(|fd| *fd > 2 && is_open(*fd)).collect()
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD on any number is harmless: it fails for one that is not open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}
