//! `cwrun-broker`: the key broker's commands.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use broker::api::{Broker, Parts};
use broker::appraisal::Appraiser;
use broker::config::Config;
use broker::key_file::StoreKey;
use broker::policy::{Launches, Policies};
use broker::server::{self, Server};
use broker::store::Store;
use broker::token::Tokens;
use broker::verdict::VerdictLog;
use clap::{Parser, Subcommand};
use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use workload::Hex;

/// Gives keys and secrets to confidential guests whose attestation report says that they are who they should be.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers guests and admins until it is stopped
    Serve {
        /// Configuration file
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/cwrun-broker/cwrun-broker.toml"
        )]
        config: PathBuf,
    },
    /// Makes the key file and the empty store that the configuration names, where they are missing
    Init {
        /// Configuration file
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/cwrun-broker/cwrun-broker.toml"
        )]
        config: PathBuf,
    },
    /// Makes an admin token: prints it, and the line for the configuration
    Token,
    /// Reads configuration, policies and store, and says whether the broker would start
    Check {
        /// Configuration file
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/cwrun-broker/cwrun-broker.toml"
        )]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let result = match Arguments::parse().command {
        Command::Serve { config } => serve(&config),
        Command::Init { config } => init(&config),
        Command::Token => token(),
        Command::Check { config } => check(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cwrun-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init(config: &Path) -> Result<()> {
    let config = Config::read(config)?;
    for path in [&config.key_file, &config.store] {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
    }
    if config.store.exists() && !config.key_file.exists() {
        bail!(
            "the store {} is there, but its key file {} is not",
            config.store.display(),
            config.key_file.display()
        );
    }
    if !config.key_file.exists() {
        StoreKey::generate()?.create(&config.key_file)?;
        println!(
            "made the key file {}; keep a copy where the store's backups are not",
            config.key_file.display()
        );
    }
    if !config.store.exists() {
        Store::create(&config.store, &StoreKey::read(&config.key_file)?)?;
        println!("made the store {}", config.store.display());
    }
    Ok(())
}

fn token() -> Result<()> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    let token = Hex(bytes).to_string();
    let hash = Hex::<32>(Sha256::digest(token.as_bytes()).into());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "admin token, for whoever registers workloads:\n\n    {token}\n"
    )?;
    writeln!(
        out,
        "line for the configuration:\n\n    admin_token_sha256 = \"{hash}\""
    )?;
    Ok(())
}

fn check(config: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let config = Config::read(config)?;
    let key = StoreKey::read(&config.key_file)?;
    Policies::open(config.policies.as_deref())?;
    Launches::open(config.mkcw.launches.as_deref())?;
    Appraiser::new(&config.evidence, runtime.handle().clone())?;
    if let Some(tls) = &config.tls {
        server::tls_acceptor(tls)?;
    }
    let store = Store::open(&config.store, &key)?;
    println!("everything can be read; {} workloads are registered", store.len());
    Ok(())
}

fn serve(config: &Path) -> Result<()> {
    let config = Config::read(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let broker = assemble(&config, runtime.handle())?;
    let tls = config.tls.as_ref().map(server::tls_acceptor).transpose()?;
    warn_of_risks(&config);
    runtime.block_on(async {
        let listener = server::listen(config.listen)
            .await
            .with_context(|| format!("cannot listen at {}", config.listen))?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        // Tests and scripts wait for this line, and take the port from it where the configuration says 0.
        tracing::info!("listening at {}", listener.local_addr()?);
        let stop = async {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            tracing::info!("stopping");
        };
        Server::new(Arc::new(broker), config.limits.clone(), tls)
            .serve(listener, stop)
            .await;
        Ok(())
    })
}

fn assemble(config: &Config, runtime: &tokio::runtime::Handle) -> Result<Broker> {
    let key = StoreKey::read(&config.key_file)?;
    Ok(Broker::new(Parts {
        policies: Policies::open(config.policies.as_deref())?,
        launches: Launches::open(config.mkcw.launches.as_deref())?,
        appraiser: Appraiser::new(&config.evidence, runtime.clone())?,
        store: Store::open(&config.store, &key)?,
        sessions: config.session_limits(),
        tokens: Tokens::new(key.signing_key()),
        verdicts: VerdictLog::open(&config.verdict_log)
            .with_context(|| format!("cannot open the verdict log {}", config.verdict_log.display()))?,
        admin: config.admin_token_sha256,
        mkcw: config.mkcw.clone(),
    }))
}

/// Says at every start what this configuration gives up.
fn warn_of_risks(config: &Config) {
    if config.evidence.accept_sim {
        tracing::warn!(
            "accept_sim is true: whoever can reach this broker gets every key with a report of the software TEE, which anybody can make"
        );
    }
    if config.mkcw.open_registration {
        tracing::warn!(
            "mkcw.open_registration is true: whoever can reach this broker can register workloads"
        );
    }
    if config.tls.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!("without [tls], admin tokens and registered keys cross the network in the clear");
    }
    if config.admin_token_sha256.is_none() {
        tracing::info!("there is no admin_token_sha256, so there is no admin API");
    }
}
