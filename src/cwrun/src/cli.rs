//! The command line: crun's commands and options, and a few of our own.

use crate::cgroup;
use crate::logging::Format;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// OCI runtime that runs each container in a microVM on an encrypted disk.
#[derive(Debug, Parser)]
#[command(name = "cwrun", version = VERSION, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Options for all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// Options for all commands.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory for the state of containers [default: /run/cwrun, or $XDG_RUNTIME_DIR/cwrun]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// File for log messages
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of log messages
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log details and durations, and show the guest kernel's messages on stderr
    #[arg(long, global = true)]
    pub debug: bool,
    /// Have systemd manage cgroups; the same as --cgroup-manager systemd
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Who manages cgroups
    #[arg(long, global = true, value_name = "MANAGER", default_value = "cgroupfs")]
    pub cgroup_manager: cgroup::Manager,
    /// The owner's ID block for a confidential container, 96 bytes; with --id-auth, in place of tee.id_block of cwrun.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub id_block: Option<PathBuf>,
    /// Its ID authentication information, 4096 bytes
    #[arg(long, global = true, value_name = "FILE")]
    pub id_auth: Option<PathBuf>,
}

impl Global {
    /// Who manages cgroups, from both options.
    pub fn cgroups(&self) -> cgroup::Manager {
        if self.systemd_cgroup {
            cgroup::Manager::Systemd
        } else {
            self.cgroup_manager
        }
    }
}

/// One command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container: boot its VM up to the point where the workload can start
    Create(Create),
    /// Start the workload of a created container
    Start(Id),
    /// Print the state of a container as JSON
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a container
    Delete(Delete),
    /// Create a container, start it and wait for its end
    Run(Run),
    /// Run one more process in a container
    Exec(Exec),
    /// List the processes of a container
    Ps(Ps),
    /// Stop the processes of a container where they are
    Pause(Id),
    /// Let the processes of a paused container go on
    Resume(Id),
    /// Change the limits of a running container
    Update(Box<Update>),
    /// Print what a container uses, and when it had too little memory
    Events(Events),
    /// Refused: a virtual machine can't be saved
    Checkpoint(Refused),
    /// Refused: no virtual machine is ever saved
    Restore(Refused),
    /// List containers
    List(List),
    /// Write a configuration to begin with
    Spec(Spec),
    /// Print the features of this runtime as JSON
    Features,
    /// Say what this machine can do and what is missing
    Check(Check),
    /// Tell launch digest and HOST_DATA of a confidential container before it runs
    Measure(Measure),
    /// Write the evidence of a running confidential container
    Attest(Attest),
    /// Judge evidence by a policy: the exit status is 0 only if it is accepted
    Verify(Verify),
    /// Make an image that only a confidential guest can open, by a key from its owner's broker
    Seal(Box<Seal>),
    /// Say what a sealed image would run, allow and be measured as
    Inspect(Inspect),
    /// Make and examine encrypted disks
    #[command(subcommand)]
    Disk(Disk),
    /// Started by cwrun itself: passes a sealed container's requests on to its key broker
    #[command(hide = true)]
    BrokerProxy,
}

/// A container.
#[derive(Debug, Args)]
pub struct Id {
    /// The container's ID
    pub id: String,
}

/// `create`
#[derive(Debug, Args)]
pub struct Create {
    /// The container's ID
    pub id: String,
    /// Bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Configuration to use in place of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File to write the process ID of the container to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that receives the master side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Number of descriptors to pass into the container (a VM can take none)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted and without effect: nothing of the host's file systems is visible in a VM
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted and without effect: a VM has a keyring of its own
    #[arg(long)]
    pub no_new_keyring: bool,
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// As for `create`
    #[command(flatten)]
    pub create: Create,
    /// Return when the workload has been started
    #[arg(short, long)]
    pub detach: bool,
    /// Don't delete the container when it has ended
    #[arg(long)]
    pub keep: bool,
}

/// `exec`
#[derive(Debug, Args)]
pub struct Exec {
    /// Profile for the process (AppArmor does not reach into a VM: accepted and without effect)
    #[arg(short, long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Control group that the process begins in, as a path below the container's own
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Unix socket that receives the master side of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Return when the process runs
    #[arg(short, long)]
    pub detach: bool,
    /// Add a variable to the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Also in a paused container, where the process runs once that goes on
    #[arg(long)]
    pub ignore_paused: bool,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// File with the process as OCI has it, in place of a program on the command line
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// SELinux label (does not reach into a VM: accepted and without effect)
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// File to write the number of the process's stand-in on this host to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Number of descriptors to pass into the container (a VM can take none)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User and group, in numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// The container's ID
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// `ps`
#[derive(Debug, Args)]
pub struct Ps {
    /// Form of the list
    #[arg(short, long, default_value = "table")]
    pub format: ListFormat,
    /// The container's ID
    pub id: String,
}

/// `update`. Sizes are numbers of bytes, with a unit if need be (`512m`), and -1 for no limit.
#[derive(Debug, Args)]
pub struct Update {
    /// File with limits as in `linux.resources` of config.json, or - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "limits")]
    pub resources: Option<PathBuf>,
    /// Limits one by one
    #[command(flatten)]
    pub limits: UpdateLimits,
    /// The container's ID
    pub id: String,
}

/// Limits on the command line of `update`.
#[derive(Debug, Args)]
#[group(id = "limits", multiple = true)]
pub struct UpdateLimits {
    /// Share of the disks' time
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Burst of CPU time beyond the quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_burst: Option<u64>,
    /// 1 to run only while nothing else does
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Period of real-time scheduling, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_rt_period: Option<u64>,
    /// Time of real-time scheduling in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// Share of CPU time
    #[arg(long, alias = "cpu-shares", value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Processors of the host to run on
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes of the host to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Limit on the kernel's memory, with version 1 of cgroups
    #[arg(long, value_name = "BYTES", value_parser = crate::bundle::sizing::parse_limit_argument, allow_negative_numbers = true)]
    pub kernel_memory: Option<i64>,
    /// Limit on the kernel's memory for TCP, with version 1 of cgroups
    #[arg(long, value_name = "BYTES", value_parser = crate::bundle::sizing::parse_limit_argument, allow_negative_numbers = true)]
    pub kernel_memory_tcp: Option<i64>,
    /// Limit on memory, at most what the guest was booted with
    #[arg(long, value_name = "BYTES", value_parser = crate::bundle::sizing::parse_limit_argument, allow_negative_numbers = true)]
    pub memory: Option<i64>,
    /// Memory that is better left to the container
    #[arg(long, value_name = "BYTES", value_parser = crate::bundle::sizing::parse_limit_argument, allow_negative_numbers = true)]
    pub memory_reservation: Option<i64>,
    /// Limit on memory and swap space together
    #[arg(long, value_name = "BYTES", value_parser = crate::bundle::sizing::parse_limit_argument, allow_negative_numbers = true)]
    pub memory_swap: Option<i64>,
    /// Limit on processes and threads in the guest
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
}

/// `events`
#[derive(Debug, Args)]
pub struct Events {
    /// Print once what the container uses, and end
    #[arg(long)]
    pub stats: bool,
    /// Time between two prints, such as 500ms or 1m30s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::commands::events::parse_interval)]
    pub interval: Duration,
    /// The container's ID
    pub id: String,
}

/// `checkpoint` and `restore`: whatever other runtimes take.
#[derive(Debug, Args)]
pub struct Refused {
    /// Options and the container's ID
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<String>,
}

/// `kill`
#[derive(Debug, Args)]
pub struct Kill {
    /// Send the signal to all processes of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container's ID
    pub id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM", allow_negative_numbers = true)]
    pub signal: String,
}

/// `delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// Whatever state it is in, and without complaint if there is none
    #[arg(short, long)]
    pub force: bool,
    /// The container's ID
    pub id: String,
}

/// `list`
#[derive(Debug, Args)]
pub struct List {
    /// IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Form of the list
    #[arg(short, long, default_value = "table")]
    pub format: ListFormat,
}

/// Form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// Columns.
    Table,
    /// An array of objects.
    Json,
}

/// `spec`
#[derive(Debug, Args)]
pub struct Spec {
    /// Directory to write config.json into
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// For a user who is not root
    #[arg(long)]
    pub rootless: bool,
}

/// `check`
#[derive(Debug, Args)]
pub struct Check {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `measure`
#[derive(Debug, Args)]
pub struct Measure {
    /// Bundle directory, the root file system of an image of mkcw, or a sealed image: oci:DIR[:TAG], oci-archive:FILE[:TAG]; without it, launch digests alone
    pub subject: Option<String>,
    /// Number of vCPUs, or a range such as 1..8 [default: the bundle's, or 1 to vm.max_vcpus]
    #[arg(long, value_name = "N", value_parser = crate::commands::measure::parse_vcpus)]
    pub vcpus: Option<std::ops::RangeInclusive<u8>>,
    /// CPU model: milan, genoa or turin; may be repeated [default: all]
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    pub cpu: Vec<tee::vmsa::CpuModel>,
    /// VMSA variant, by the kernel that launches; may be repeated [default: linux-6.11]
    #[arg(long, value_name = "VARIANT", value_delimiter = ',', value_parser = crate::commands::measure::parse_variant)]
    pub variant: Vec<tee::vmsa::Variant>,
    /// Print JSON
    #[arg(long, conflicts_with = "policy")]
    pub json: bool,
    /// Print a policy for `verify`
    #[arg(long)]
    pub policy: bool,
}

/// `attest`
#[derive(Debug, Args)]
pub struct Attest {
    /// The container's ID
    pub id: String,
    /// What the verifier chose: 16 to 256 visible ASCII characters
    #[arg(long, value_name = "N")]
    pub nonce: workload::Nonce,
    /// File to write to, in place of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Policy (TOML): launch digests, host_data, processors and more
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// What the verifier chose for `attest`; without it the evidence may be old
    #[arg(long, value_name = "N")]
    pub nonce: Option<workload::Nonce>,
    /// The Workload that must be running
    #[arg(long, value_name = "FILE")]
    pub workload: Option<PathBuf>,
    /// Certificate of the chip's key, in place of what came with the evidence
    #[arg(long, value_name = "FILE")]
    pub vcek: Option<PathBuf>,
    /// AMD's revocation list for the processor generation; may be repeated
    #[arg(long, value_name = "FILE")]
    pub crl: Vec<PathBuf>,
    /// Believe the software TEE, which proves nothing, and not AMD
    #[arg(long)]
    pub sim: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Evidence as `attest` or trustee has it, or the bytes of a report; - for standard input
    pub evidence: PathBuf,
}

/// `seal`
#[derive(Debug, Args)]
pub struct Seal {
    /// Bundle directory, image (oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG]), or directory with a root file system
    pub source: String,
    /// Image to write: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(short, long, value_name = "IMAGE")]
    pub output: String,
    /// Program and arguments, of an image in place of its Cmd
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub args: Vec<String>,
    /// Name of the registration at the broker [default: the source's name and a part of the root hash]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// File for the registration, which holds the key; it must not exist
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Broker to register with
    #[arg(long, value_name = "URL", requires = "token_file")]
    pub register: Option<String>,
    /// File with the broker's admin token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Where guests find the broker, written into the image; the host may know better
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// More clauses for the registration (TOML, or JSON by its name) [default: allow_smt = true]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// What the host may change: args, cwd, terminal, env:NAME, env:PREFIX*, file:/PATH, exec; may be repeated
    #[arg(long, value_name = "RULE", value_parser = crate::commands::seal::parse_rule)]
    pub allow: Vec<crate::commands::seal::Rule>,
    /// Where a secret goes: NAME=env:VARIABLE or NAME=/PATH[,mode=0400][,owner=UID:GID]; may be repeated
    #[arg(long, value_name = "NAME=PLACE", value_parser = crate::commands::seal::parse_secret)]
    pub secret: Vec<crate::commands::seal::SecretArgument>,
    /// Value of a secret, for the registration; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = crate::commands::seal::parse_secret_file)]
    pub secret_file: Vec<(String, PathBuf)>,
    /// TEE that it has to run in
    #[arg(long, value_name = "KIND", default_value = "snp")]
    pub tee: crate::commands::seal::Kind,
    /// Numbers of vCPUs to run with: one, or a range such as 1..8 [default: 1 to vm.max_vcpus]
    #[arg(long, value_name = "N", value_parser = crate::commands::measure::parse_vcpus)]
    pub vcpus: Option<std::ops::RangeInclusive<u8>>,
    /// CPU model to run on: milan, genoa or turin [default: this machine's]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<tee::vmsa::CpuModel>,
    /// How much the workload may write, such as 4GiB [default: a bundle's, or vm.default_scratch]
    #[arg(long, value_name = "SIZE", value_parser = crate::commands::seal::parse_scratch)]
    pub scratch: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Sealed image (oci:DIR[:TAG], oci-archive:FILE[:TAG]), or directory with its root file system or bundle
    pub image: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `disk`
#[derive(Debug, Subcommand)]
pub enum Disk {
    /// Convert a root file system into an encrypted disk image
    Build(DiskBuild),
    /// Say what a disk image is
    Inspect(DiskInspect),
    /// Examine and clear the cache of converted root file systems
    #[command(subcommand)]
    Cache(DiskCache),
}

/// `disk cache`
#[derive(Debug, Subcommand)]
pub enum DiskCache {
    /// List what is in the cache, the last used first
    List(DiskCacheList),
    /// Remove what no container uses
    Prune(DiskCachePrune),
    /// Read everything in the cache, and remove what is damaged or no longer what its source is
    Verify,
}

/// `disk cache list`
#[derive(Debug, Args)]
pub struct DiskCacheList {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `disk cache prune`
#[derive(Debug, Args)]
pub struct DiskCachePrune {
    /// Keep the most recently used disks up to this size, such as 10GiB
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = crate::bundle::sizing::parse_size_argument)]
    pub keep: u64,
}

/// `disk build`
#[derive(Debug, Args)]
pub struct DiskBuild {
    /// Directory with the root file system, or an image: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG]
    pub source: OsString,
    /// Image file to write
    pub image: PathBuf,
    /// Key: 64 bytes are the volume key itself, anything else is a passphrase; made if it does not exist [default: IMAGE.key]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `disk inspect`
#[derive(Debug, Args)]
pub struct DiskInspect {
    /// Image file
    pub image: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
