//! `seal`: from a workload to an image that only an attested guest can open, and a registration for the broker that lets it.
//!
//! ```text
//!   SOURCE ─► tree ─► encrypted into the layer of a draft ─┐
//!           └► Workload with root hash, TEE, rules, secrets ┼─► record ─► broker ─► image gets its name
//!   guest files ─► launch digests ──────────────────────────┘
//! ```
//!
//! The key is drawn here, goes into the record and is forgotten. The layer is the only copy of what is sealed that is written, and it is
//! ciphertext; it has no name until everything else has succeeded.

use crate::cli::Seal;
use crate::image::Reference;
use crate::image::write::{Draft, TAR_BLOCK, TAR_END, header, write_member};
use crate::output::{Output, directory_of, progress_bar};
use crate::root_disk;
use crate::sealed::record::{Record, Secrets};
use crate::sealed::register::Registrar;
use crate::sealed::source::Source;
use crate::sealed::{self, Broker, Contents};
use crate::settings::Settings;
use crate::tee::expected::{GuestFiles, expected};
use crate::tee::host;
use anyhow::{Context, Result, bail, ensure};
use disk::{Built, Options, Progress, VolumeKey};
use rustix::fs::Mode;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tee::launch::LaunchDigest;
use tee::vmsa::Variant;
use workload::sealed::{MAX_SECRETS, is_id};
use workload::{Allow, Hex, Passphrase, RootFs, Scratch, Sealed, Secret, SecretPlace, TeeKind, Workload};

/// How old everything in an image is: the same input gives the same image.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// Longest part of a default id that is the source's name.
const LONGEST_STEM: usize = 48;

/// The command.
pub fn run(settings: &Settings, args: &Seal) -> Result<()> {
    let start = Instant::now();
    let order = Order::new(settings, args)?;
    let target = Reference::parse(&args.output).with_context(|| {
        format!(
            "--output {:?}: expected oci:DIR[:TAG] or oci-archive:FILE[:TAG]",
            args.output
        )
    })?;
    let directory = directory_of(target.path()).to_owned();
    let draft = Draft::begin(target)?;
    let record_file = args.record.as_deref().map(NewFile::create).transpose()?;
    let source = Source::open(&args.source, &args.args, &directory, settings)?;
    let key = VolumeKey::generate()?;
    let built = convert(&source, &draft, &key)?;
    let workload = order.seal(source.workload, &built, &key, &args.source)?;
    let layer = finish_layer(&draft, &built, &workload, args.broker.as_deref())?;
    let sealed = workload.sealed.as_ref().context("the workload is sealed")?;
    let record = Record::new(
        &sealed.id,
        &order.digests,
        workload.digest(),
        Passphrase::from_bytes(key.as_bytes().to_vec()),
        order.values,
        order.policy,
    );
    let document = record.to_json()?;
    if let Some(registrar) = &order.registrar {
        registrar.put(&sealed.id, &document)?;
    }
    let record_file = record_file.map(|file| file.write(&document)).transpose()?;
    let configuration = json!({
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": source.config,
        "history": [{"created": CREATED, "created_by": "cwrun seal"}],
    });
    let bar = progress_bar();
    bar.set_length(layer);
    let published = draft.publish(layer, configuration, &|done| bar.set_position(done));
    bar.finish_and_clear();
    let manifest = published?;
    if let Some(file) = record_file {
        file.keep();
    }
    let done = Done {
        args,
        workload: &workload,
        digests: &order.digests,
        manifest,
        built: &built,
        seconds: start.elapsed().as_secs_f64(),
    };
    done.tell()
}

/// What is asked for on the command line, checked before anything costs time.
struct Order {
    tee: workload::Tee,
    allow: BTreeSet<Allow>,
    secrets: Vec<SecretArgument>,
    values: Secrets,
    policy: serde_json::Value,
    digests: BTreeMap<u8, LaunchDigest>,
    id: Option<String>,
    scratch: Option<u64>,
    registrar: Option<Registrar>,
}

impl Order {
    fn new(settings: &Settings, args: &Seal) -> Result<Self> {
        ensure!(
            args.record.is_some() || args.register.is_some(),
            "the key goes into --record FILE or to a broker, --register URL: with neither it would be lost"
        );
        ensure!(
            args.id.as_deref().is_none_or(is_id),
            "--id {:?}: expected 1 to 64 of A-Z a-z 0-9 . _ - without a dot in front",
            args.id.as_deref().unwrap_or_default()
        );
        if let Some(url) = &args.broker {
            sealed::check_url(url).context("--broker")?;
        }
        let registrar = match (&args.register, &args.token_file) {
            (Some(url), Some(token)) => Some(Registrar::new(url, token, &settings.broker)?),
            _ => None,
        };
        let (exec, rules): (Vec<_>, Vec<_>) = args.allow.iter().partition(|rule| **rule == Rule::Exec);
        let values = values(&args.secret, &args.secret_file)?;
        let vcpus = args.vcpus.clone().unwrap_or(1..=settings.vm.max_vcpus);
        let cpu = args.cpu.unwrap_or_else(host::cpu_model);
        Ok(Self {
            tee: workload::Tee {
                kind: args.tee.into(),
                exec: !exec.is_empty(),
            },
            allow: rules
                .into_iter()
                .filter_map(|rule| rule.allow().cloned())
                .collect(),
            secrets: args.secret.clone(),
            values,
            policy: sealed::record::policy(args.policy.as_deref())?,
            digests: expected(&GuestFiles::open()?, vcpus, cpu, Variant::Linux6_11)?,
            id: args.id.clone(),
            scratch: args.scratch,
            registrar,
        })
    }

    /// The Workload as it will run.
    fn seal(&self, mut workload: Workload, built: &Built, key: &VolumeKey, source: &str) -> Result<Workload> {
        let layout = &built.layout;
        workload.root = RootFs::Layers {
            layers: vec![root_disk::layer(layout, 0)],
        };
        workload.tee = Some(self.tee);
        if let Some(bytes) = self.scratch {
            workload.scratch = Scratch::Disk { bytes };
        }
        let user = workload.process.user.clone();
        let secrets = self.secrets.iter().map(|secret| Secret {
            mac: self
                .values
                .get(&secret.name)
                .map(|value| Secret::mac_of(key.as_bytes(), &secret.name, value.as_bytes())),
            ..secret.for_user(&user)
        });
        workload.sealed = Some(Sealed {
            id: self
                .id
                .clone()
                .unwrap_or_else(|| default_id(source, &layout.root_hash)),
            allow: self.allow.clone(),
            secrets: secrets.collect(),
        });
        // What a guest would refuse is refused here, by the same reader.
        let bytes = workload.to_bytes();
        let disk = layout.payload_bytes;
        Ok(Contents::parse(&bytes, None, disk)?.workload)
    }
}

/// The values of the secrets that have some.
fn values(secrets: &[SecretArgument], files: &[(String, PathBuf)]) -> Result<Secrets> {
    ensure!(secrets.len() <= MAX_SECRETS, "--secret: more than {MAX_SECRETS}");
    let mut values = Secrets::new();
    for (name, path) in files {
        ensure!(
            secrets.iter().any(|secret| secret.name == *name),
            "--secret-file {name}: no --secret says where {name} goes"
        );
        let value = sealed::record::secret(path).with_context(|| format!("--secret-file {name}"))?;
        ensure!(
            values.insert(name.clone(), value).is_none(),
            "--secret-file {name}: given twice"
        );
    }
    for secret in secrets.iter().filter(|secret| !values.contains_key(&secret.name)) {
        tracing::warn!(
            "secret {}: without --secret-file {}=FILE the registration has no value for it, and the workload will not start until it has one; nothing then tells the owner's value from another",
            secret.name,
            secret.name
        );
    }
    Ok(values)
}

/// The source's name, and what no other image has.
fn default_id(source: &str, root_hash: &[u8; 32]) -> String {
    let stem = match Reference::parse(source) {
        Some(image) => image.path().file_stem().map(ToOwned::to_owned),
        None => fs::canonicalize(source)
            .ok()
            .and_then(|path| path.file_name().map(ToOwned::to_owned)),
    };
    let stem = stem.unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let stem: String = stem
        .to_string_lossy()
        .chars()
        .filter(fits)
        .take(LONGEST_STEM)
        .collect();
    let stem = match stem.trim_start_matches('.') {
        "" => "workload",
        stem => stem,
    };
    let hash = Hex(*root_hash).to_string();
    format!("{stem}-{}", &hash[..12])
}

fn convert(source: &Source, draft: &Draft, key: &VolumeKey) -> Result<Built> {
    let mut salt = [0; 32];
    getrandom(&mut salt, GetRandomFlags::empty()).context("random numbers")?;
    let bar = progress_bar();
    let show = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let options = Options {
        progress: Some(&show),
        salt: Some(salt),
        ..Options::default()
    };
    let at = draft.layer_start + DISK_AT;
    let built = source.tree.build_payload_at(draft.file(), at, key, &options);
    bar.finish_and_clear();
    Ok(built?)
}

/// Where in the layer the disk lies: behind the headers of its directory and of itself.
const DISK_AT: u64 = 2 * TAR_BLOCK;

/// Writes what is around the disk; returns the layer's length in bytes.
fn finish_layer(draft: &Draft, built: &Built, workload: &Workload, broker: Option<&str>) -> Result<u64> {
    let (file, start) = (draft.file(), draft.layer_start);
    let disk = built.layout.payload_bytes;
    let bytes = workload.to_bytes();
    ensure!(
        bytes.len() <= sealed::MAX_WORKLOAD,
        "the workload's document has {} bytes, more than {}",
        bytes.len(),
        sealed::MAX_WORKLOAD
    );
    let write = || -> Result<u64> {
        file.write_all_at(&header(&format!("{}/", sealed::DIRECTORY), 0, true)?, start)?;
        file.write_all_at(&header(sealed::DISK, disk, false)?, start + TAR_BLOCK)?;
        let mut at = start + DISK_AT + disk.next_multiple_of(TAR_BLOCK);
        at = write_member(file, at, sealed::WORKLOAD, &bytes)?;
        if let Some(url) = broker {
            let broker = Broker { url: url.to_owned() };
            at = write_member(file, at, sealed::BROKER, &serde_json::to_vec(&broker)?)?;
        }
        at += TAR_END;
        file.set_len(at)?;
        Ok(at - start)
    };
    write().context("the image's layer")
}

/// A file that must not be there yet, for its owner alone.
struct NewFile {
    output: Output,
    path: PathBuf,
}

/// It has its name, and loses it again unless it is kept.
struct Written(Option<PathBuf>);

impl NewFile {
    fn create(path: &Path) -> Result<Self> {
        ensure!(
            fs::symlink_metadata(path).is_err(),
            "--record {}: it is there already, and may hold the key of another image",
            path.display()
        );
        let output = Output::create(path).context("--record")?;
        Ok(Self {
            output,
            path: path.to_owned(),
        })
    }

    fn write(self, bytes: &[u8]) -> Result<Written> {
        let write = || -> std::io::Result<()> {
            self.output.file.write_all_at(bytes, 0)?;
            // A key that is lost is lost for good.
            self.output.file.sync_all()?;
            rustix::fs::fchmod(&self.output.file, Mode::RUSR | Mode::WUSR)?;
            crate::output::give_name(&self.output.file, &self.path)
        };
        write().with_context(|| format!("--record {}", self.path.display()))?;
        Ok(Written(Some(self.path)))
    }
}

impl Written {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The image that it is the record of was not written.
            let _ = fs::remove_file(path);
        }
    }
}

/// What is told in the end.
struct Done<'a> {
    args: &'a Seal,
    workload: &'a Workload,
    digests: &'a BTreeMap<u8, LaunchDigest>,
    manifest: Hex<32>,
    built: &'a Built,
    seconds: f64,
}

impl Done<'_> {
    fn tell(&self) -> Result<()> {
        let Self { args, built, .. } = self;
        let id = self.workload.sealed.as_ref().map_or("", |sealed| &sealed.id);
        let digests: BTreeMap<_, _> = self
            .digests
            .iter()
            .map(|(count, digest)| (count, digest.to_string()))
            .collect();
        if args.json {
            return super::print_json(&json!({
                "id": id,
                "image": args.output,
                "manifest_digest": format!("sha256:{}", self.manifest),
                "host_data": self.workload.digest(),
                "root_hash": Hex(built.layout.root_hash),
                "launch_digests": digests,
                "record": args.record,
                "registered": args.register,
                "files": built.files,
                "data_bytes": built.data_bytes,
                "disk_bytes": built.layout.payload_bytes,
                "seconds": self.seconds,
            }));
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "sealed as      {id}")?;
        writeln!(out, "image          {} (sha256:{})", args.output, self.manifest)?;
        writeln!(out, "HOST_DATA      {}", self.workload.digest())?;
        for (count, digest) in &digests {
            writeln!(out, "{count:>2} vCPUs       {digest}")?;
        }
        if let Some(record) = &args.record {
            writeln!(out, "record         {} (holds the key)", record.display())?;
        }
        if let Some(url) = &args.register {
            writeln!(out, "registered at  {url}")?;
        }
        writeln!(out, "files          {}, {} bytes", built.files, built.data_bytes)?;
        writeln!(out, "seconds        {:.3}", self.seconds)?;
        Ok(())
    }
}

/// A TEE on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// AMD SEV-SNP.
    Snp,
    /// A simulated one, which protects nothing.
    Sim,
}

impl From<Kind> for TeeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Snp => Self::Snp,
            Kind::Sim => Self::Sim,
        }
    }
}

/// What `--allow` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// More processes.
    Exec,
    /// A change of what runs.
    Change(Allow),
}

impl Rule {
    fn allow(&self) -> Option<&Allow> {
        match self {
            Self::Exec => None,
            Self::Change(allow) => Some(allow),
        }
    }
}

/// `--allow`
pub fn parse_rule(text: &str) -> Result<Rule, String> {
    match text {
        "exec" => Ok(Rule::Exec),
        _ => text
            .parse()
            .map(Rule::Change)
            .map_err(|error: workload::sealed::NoRule| format!("{error}, or exec")),
    }
}

/// `--scratch`
pub fn parse_scratch(text: &str) -> Result<u64, String> {
    let bytes = crate::bundle::sizing::parse_size_argument(text)?;
    let fits = (Workload::MIN_SCRATCH_BYTES..=Workload::MAX_SCRATCH_BYTES).contains(&bytes);
    fits.then_some(bytes)
        .ok_or_else(|| format!("{text} is not between 4 MiB and 16 TiB"))
}

/// `--secret NAME=PLACE`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArgument {
    name: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Variable(String),
    File {
        path: String,
        mode: u32,
        /// The workload's own user if none is given.
        owner: Option<(u32, u32)>,
    },
}

impl SecretArgument {
    fn for_user(&self, user: &workload::User) -> Secret {
        let place = match &self.place {
            Place::Variable(name) => SecretPlace::Variable { name: name.clone() },
            Place::File { path, mode, owner } => {
                let (uid, gid) = owner.unwrap_or((user.uid, user.gid));
                SecretPlace::File {
                    path: path.clone(),
                    mode: *mode,
                    uid,
                    gid,
                }
            }
        };
        Secret {
            name: self.name.clone(),
            place,
            mac: None,
        }
    }
}

/// `NAME=env:VARIABLE`, or `NAME=/PATH[,mode=0400][,owner=UID:GID]`.
pub fn parse_secret(text: &str) -> Result<SecretArgument, String> {
    let parse = || -> Result<SecretArgument> {
        let (name, place) = text.split_once('=').context("no place")?;
        ensure!(is_id(name), "{name:?} can't be a secret's name");
        if let Some(variable) = place.strip_prefix("env:") {
            ensure!(
                workload::sealed::is_variable_name(variable),
                "{variable:?} can't be a variable's name"
            );
            return Ok(SecretArgument {
                name: name.to_owned(),
                place: Place::Variable(variable.to_owned()),
            });
        }
        let mut parts = place.split(',');
        let path = parts.next().unwrap_or_default();
        ensure!(
            workload::sealed::is_plain_path(path),
            "{path:?} is not an absolute path without . and .."
        );
        let (mut mode, mut owner) = (0o400, None);
        for part in parts {
            match part.split_once('=') {
                Some(("mode", octal)) => {
                    let bits = u32::from_str_radix(octal, 8).ok().filter(|bits| *bits <= 0o777);
                    mode = bits.with_context(|| format!("mode {octal:?} is not 0 to 0777"))?;
                }
                Some(("owner", ids)) => {
                    let (uid, gid) = ids.split_once(':').context("owner is not UID:GID")?;
                    owner = Some((uid.parse()?, gid.parse()?));
                }
                _ => bail!("{part:?} is neither mode=OCTAL nor owner=UID:GID"),
            }
        }
        Ok(SecretArgument {
            name: name.to_owned(),
            place: Place::File {
                path: path.to_owned(),
                mode,
                owner,
            },
        })
    };
    parse().map_err(|error| {
        format!("{error:#}: expected NAME=env:VARIABLE or NAME=/PATH[,mode=0400][,owner=UID:GID]")
    })
}

/// `NAME=FILE`
pub fn parse_secret_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if is_id(name) && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=FILE".to_owned()),
    }
}

#[cfg(test)]
#[path = "seal_test.rs"]
mod tests;
