//! `measure`: what a verifier will see of a confidential guest, told before there is one.
//!
//! ```text
//!   stage0, bzImage, initrd ─► launch digest       one for each number of vCPUs, CPU model and VMSA variant
//!   bundle or sealed image ──► Workload ─► HOST_DATA
//! ```
//!
//! The launch is planned as `create` plans it and the Workload is made as `create` makes it, by the same functions: what is printed
//! here is what runs, or `create` fails.

use super::create;
use crate::bundle::Bundle;
use crate::bundle::sizing::Sizing;
use crate::cli::Measure;
use crate::image::Reference;
use crate::infra;
use crate::logging::phase;
use crate::mkcw_disk;
use crate::overlay::Overlay;
use crate::root_disk;
use crate::sealed::{self, Contents};
use crate::settings::{MAX_VCPUS, Settings};
use crate::tee::expected::{GuestFiles, expected};
use crate::tee::{Wish, host, wanted, wanted_by_mkcw};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest as _, Sha384};
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use tee::PAGE_SIZE;
use tee::appraise::AppraisalPolicy;
use tee::image::Kind;
use tee::launch::{LaunchDigest, PageType, Policy};
use tee::measure::Plan;
use tee::report::HostData;
use tee::vmsa::{CpuModel, Variant};
use workload::{Hex, Tee, TeeKind, Workload};

/// What a launch uses if nothing else is asked for.
const LAUNCHED: Variant = Variant::Linux6_11;
/// The command.
pub fn run(settings: &Settings, args: &Measure) -> Result<()> {
    let guest = GuestFiles::open()?;
    let subject = args
        .subject
        .as_deref()
        .map(|name| Subject::of(name, settings))
        .transpose()?;
    let report = Report::new(&guest, subject, settings, args)?;
    if args.policy {
        return report.print_policy(settings.tee.policy);
    }
    match args.json {
        true => super::print_json(&report),
        false => report.print(),
    }
}

/// `3`, or `1..8` with both ends.
pub fn parse_vcpus(text: &str) -> Result<RangeInclusive<u8>, String> {
    let number = |text: &str| text.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count));
    let range = match text.split_once("..") {
        None => number(text).map(|count| count..=count),
        Some((first, last)) => number(first).zip(number(last)).map(|(first, last)| first..=last),
    };
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| format!("{text:?} is neither a number from 1 to {MAX_VCPUS} nor a range such as 1..8"))
}

/// The name of a VMSA variant.
pub fn parse_variant(text: &str) -> Result<Variant, String> {
    let found = Variant::ALL.into_iter().find(|variant| variant.name() == text);
    found.ok_or_else(|| {
        let names = Variant::ALL.map(Variant::name).join(", ");
        format!("{text:?} is no VMSA variant ({names})")
    })
}

/// What would run.
#[derive(Debug, Serialize)]
struct Subject {
    /// Bundle or image.
    source: String,
    /// The TEE that the Workload names.
    tee: TeeKind,
    /// SHA-256 of the Workload.
    host_data: HostData,
    /// Length of the Workload's canonical bytes.
    workload_bytes: usize,
    /// Number of vCPUs that `create` would choose; none where that is the host's to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<u8>,
    /// What a person should know.
    notes: Vec<String>,
}

impl Subject {
    fn of(name: &str, settings: &Settings) -> Result<Self> {
        let path = Path::new(name);
        match Reference::parse(name) {
            Some(image) => Self::of_image(&image, settings),
            None if path.join(mkcw_disk::CONFIG).exists() => Self::of_mkcw(path, settings),
            None => Self::of_bundle(path, settings),
        }
    }

    /// Of the root file system of an image of mkcw, which says all that is measured. What such an image runs in is SEV-SNP, or what this
    /// machine's administrator has set.
    fn of_mkcw(rootfs: &Path, settings: &Settings) -> Result<Self> {
        let kind = match settings.tee.kind {
            Wish::Sim => TeeKind::Sim,
            Wish::None | Wish::Snp | Wish::Auto => TeeKind::Snp,
        };
        let what = || format!("root file system {}", rootfs.display());
        let disk = mkcw_disk::find(rootfs).with_context(what)?;
        let disk = disk.with_context(|| format!("{}: there is no /{}", what(), mkcw_disk::DISK))?;
        let image = disk.seal(Tee { kind, exec: false }).with_context(what)?;
        Ok(Self::of_sealed(rootfs.display().to_string(), &image.contents))
    }

    fn of_bundle(dir: &Path, settings: &Settings) -> Result<Self> {
        let bundle = Bundle::load(dir, None)?;
        ensure!(
            !infra::is_infra(&bundle),
            "bundle {}: an infra container has no virtual machine, so there is nothing to measure",
            dir.display()
        );
        let sizing = Sizing::of(&bundle, settings)?;
        let image = match sealed::find(&bundle.rootfs)? {
            None => mkcw_disk::of_broker(&bundle, || wanted_by_mkcw(&bundle, settings))?,
            image => image,
        };
        if let Some(image) = image {
            return Ok(Self {
                vcpus: Some(sizing.vcpus),
                ..Self::of_sealed(dir.display().to_string(), &image.contents)
            });
        }
        let Some(tee) = wanted(&bundle, settings)? else {
            bail!(
                "bundle {}: it asks for no TEE, so nothing would measure it: set annotation io.cwrun.tee, or tee.kind in cwrun.toml",
                dir.display()
            );
        };
        let workload = of_bundle(&bundle, &sizing, tee, settings)?;
        let mut notes = Vec::new();
        if Overlay::mounted_on(&bundle.rootfs)?.is_some_and(|overlay| overlay.upper.is_some()) {
            notes.push(
                "HOST_DATA is this container's alone: its root file system has an upper directory, and what the engine puts there, with the time that it does, is in the root hash"
                    .to_owned(),
            );
        }
        if let (TeeKind::Snp, Err(missing)) = (tee.kind, host::support()) {
            notes.push(format!("this machine can't run it: {missing:#}"));
        }
        let mut subject = Self::new(dir.display().to_string(), &workload, tee.kind);
        subject.notes.splice(0..0, notes);
        Ok(Self {
            vcpus: Some(sizing.vcpus),
            ..subject
        })
    }

    fn of_image(image: &Reference, settings: &Settings) -> Result<Self> {
        let contents = Contents::of_stored(image, &root_disk::scratch_dir(&settings.cache)?)?;
        Ok(Self::of_sealed(image.to_string(), &contents))
    }

    fn of_sealed(source: String, contents: &Contents) -> Self {
        // None is read that names none.
        let tee = contents.workload.tee.map_or(TeeKind::Snp, |tee| tee.kind);
        Self::new(source, &contents.workload, tee)
    }

    fn new(source: String, workload: &Workload, tee: TeeKind) -> Self {
        let mut notes = Vec::new();
        if tee == TeeKind::Sim {
            notes.push("the TEE is simulated: it protects nothing".to_owned());
        }
        if workload.root.is_mkcw() {
            notes.push(
                "HOST_DATA says of the root file system only which LUKS header it has: a host can garble the rest unnoticed"
                    .to_owned(),
            );
        }
        Self {
            source,
            tee,
            host_data: HostData(workload.digest().0),
            workload_bytes: workload.to_bytes().len(),
            vcpus: None,
            notes,
        }
    }
}

/// The Workload that `create` would make now.
fn of_bundle(bundle: &Bundle, sizing: &Sizing, tee: workload::Tee, settings: &Settings) -> Result<Workload> {
    let (mut workload, ..) = create::describe(bundle, "measured", sizing, Some(tee))?;
    let disk = phase("convert", || root_disk::obtain(bundle, settings))?;
    create::set_root(&mut workload, disk.root)?;
    Ok(workload)
}

/// All that is printed.
#[derive(Debug, Serialize)]
struct Report {
    /// Directory of the guest files.
    guest_files: PathBuf,
    /// What stage0 loads, as its page of hashes has it.
    boot: Boot,
    /// Pages that SNP_LAUNCH_UPDATE takes, in order. The registers of each vCPU come after them.
    pages: Vec<Page>,
    /// What differs by the host's kernel.
    variants: Vec<VariantOf>,
    /// By variant, CPU model and number of vCPUs.
    launches: Vec<Launch>,
    /// What would run; none if nothing was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Subject>,
}

#[derive(Debug, Serialize)]
struct Boot {
    kernel: BootFile,
    initrd: BootFile,
    cmdline: BootFile,
    /// The command line itself, the same for every guest.
    cmdline_text: String,
}

#[derive(Debug, Serialize)]
struct BootFile {
    sha256: Hex<32>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Page {
    /// Guest physical address.
    gpa: String,
    /// What the firmware makes of it.
    #[serde(rename = "type")]
    page_type: PageType,
    /// Where its contents are from.
    source: &'static str,
    /// SHA-384 of the contents, where they are measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha384: Option<Hex<48>>,
}

#[derive(Debug, Serialize)]
struct VariantOf {
    name: Variant,
    kernels: &'static str,
    /// Whether it is the one that cwrun launches on.
    launched: bool,
}

#[derive(Debug, Serialize)]
struct Launch {
    vcpus: u8,
    cpu: CpuModel,
    variant: Variant,
    launch_digest: LaunchDigest,
    /// Bytes whose contents the firmware measures.
    measured_bytes: usize,
    /// SHA-384 of the boot vCPU's save area, and of every other's.
    vmsa_sha384: Vec<Hex<48>>,
}

impl Report {
    fn new(
        guest: &GuestFiles,
        subject: Option<Subject>,
        settings: &Settings,
        args: &Measure,
    ) -> Result<Self> {
        let known = subject.as_ref().and_then(|subject| subject.vcpus);
        let vcpus = args
            .vcpus
            .clone()
            .unwrap_or_else(|| known.map_or(1..=settings.vm.max_vcpus, |count| count..=count));
        let cpus = or_all(&args.cpu, &CpuModel::ALL);
        let variants = or_all(&args.variant, &[LAUNCHED]);
        let mut launches = Vec::new();
        for variant in &variants {
            for cpu in &cpus {
                launches.extend(launches_of(guest, vcpus.clone(), *cpu, *variant)?);
            }
        }
        let boot = guest.boot.expected();
        let file = |sha256, bytes| BootFile {
            sha256: Hex(sha256),
            bytes,
        };
        Ok(Self {
            guest_files: guest.dir.clone(),
            boot: Boot {
                kernel: file(boot.kernel.sha256, boot.kernel.len),
                initrd: file(boot.initrd.sha256, boot.initrd.len),
                cmdline: file(boot.cmdline.sha256, boot.cmdline.len),
                cmdline_text: guest.boot.cmdline().to_owned(),
            },
            pages: pages(guest, &guest.plan(1, CpuModel::Milan, LAUNCHED)?),
            variants: Variant::ALL
                .map(|name| VariantOf {
                    name,
                    kernels: name.kernels(),
                    launched: name == LAUNCHED,
                })
                .into(),
            launches,
            workload: subject,
        })
    }

    /// For a person.
    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "guest files   {}", self.guest_files.display())?;
        if let Some(subject) = &self.workload {
            writeln!(
                out,
                "workload      {} ({} bytes)",
                subject.source, subject.workload_bytes
            )?;
            writeln!(out, "host data     {}", subject.host_data)?;
            for note in &subject.notes {
                writeln!(out, "              {note}")?;
            }
        }
        for variant in &self.variants {
            let used = if variant.launched {
                ": what cwrun launches on"
            } else {
                ""
            };
            writeln!(
                out,
                "variant       {}: {}{used}",
                variant.name.name(),
                variant.kernels
            )?;
        }
        writeln!(
            out,
            "\nLAUNCH DIGESTS\n{:<6} {:>5} {:>8}  DIGEST",
            "CPU", "VCPUS", "MEASURED"
        )?;
        let mut variant = LAUNCHED;
        for launch in &self.launches {
            if launch.variant != variant {
                variant = launch.variant;
                writeln!(out, "{}:", variant.name())?;
            }
            let Launch {
                vcpus,
                cpu,
                launch_digest,
                measured_bytes,
                ..
            } = launch;
            writeln!(
                out,
                "{:<6} {vcpus:>5} {measured_bytes:>8}  {launch_digest}",
                cpu.name()
            )?;
        }
        writeln!(
            out,
            "\nPAGES\n{:<14} {:>5} {:<8} CONTENTS",
            "ADDRESS", "PAGES", "TYPE"
        )?;
        for pages in self
            .pages
            .chunk_by(|a, b| (a.page_type, a.source) == (b.page_type, b.source))
        {
            let Some(first) = pages.first() else { continue };
            let kind = type_name(first.page_type);
            writeln!(
                out,
                "{:<14} {:>5} {kind:<8} {}",
                first.gpa,
                pages.len(),
                first.source
            )?;
        }
        let gpa = tee::launch::VMSA_GPA.to_string();
        writeln!(
            out,
            "{gpa:<14} {:>5} {:<8} registers of a vCPU, once for each",
            1, "vmsa"
        )?;
        Ok(())
    }

    /// A policy for `verify` and for the broker, which accepts these launches and this Workload.
    fn print_policy(&self, guest: Policy) -> Result<()> {
        let host_data: Vec<_> = self.workload.iter().map(|subject| subject.host_data).collect();
        let mut processors: Vec<_> = self.launches.iter().map(|launch| launch.cpu).collect();
        // Its certificates are those of a Genoa, whatever the guest's processors are.
        if self
            .workload
            .as_ref()
            .is_some_and(|subject| subject.tee == TeeKind::Sim)
        {
            processors.push(CpuModel::Genoa);
        }
        processors.sort_unstable();
        processors.dedup();
        let mut text = String::from(
            "# Written by `cwrun measure --policy`. Firmware may be of any age: see minimum_tcb.\n",
        );
        for note in self.workload.iter().flat_map(|subject| &subject.notes) {
            text += &format!("# {note}\n");
        }
        text += "launch_digests = [\n";
        for launch in &self.launches {
            let (vcpus, cpu, variant) = (launch.vcpus, launch.cpu, launch.variant.name());
            text += &format!(
                "  \"{}\", # {vcpus} vCPUs, {cpu}, {variant}\n",
                launch.launch_digest
            );
        }
        text += "]\nhost_data = [\n";
        host_data
            .iter()
            .for_each(|data| text += &format!("  \"{data}\",\n"));
        text += "]\n";
        let names: Vec<_> = processors.iter().map(|cpu| format!("\"{cpu}\"")).collect();
        text += &format!("processors = [{}]\n", names.join(", "));
        text += &format!("allow_smt = {}\n", guest.has(Policy::SMT));
        text += &format!("allow_debug = {}\n", guest.has(Policy::DEBUG));
        // What can't be read back would be refused later, far from here.
        toml::from_str::<AppraisalPolicy>(&text).context("the policy")?;
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("standard output")
    }
}

fn or_all<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    if asked.is_empty() {
        all.to_vec()
    } else {
        asked.to_vec()
    }
}

fn launches_of(
    guest: &GuestFiles,
    vcpus: RangeInclusive<u8>,
    cpu: CpuModel,
    variant: Variant,
) -> Result<Vec<Launch>> {
    let launch = |(vcpus, launch_digest)| {
        let plan = guest.plan(vcpus, cpu, variant)?;
        let mut vmsa_sha384: Vec<_> = plan
            .pages()
            .iter()
            .filter(|page| page.page_type == PageType::Vmsa)
            .map(|page| sha384(&page.bytes[..]))
            .collect();
        vmsa_sha384.truncate(2);
        Ok(Launch {
            vcpus,
            cpu,
            variant,
            launch_digest,
            measured_bytes: plan.measured(),
            vmsa_sha384,
        })
    };
    expected(guest, vcpus, cpu, variant)?
        .into_iter()
        .map(launch)
        .collect()
}

fn sha384(bytes: &[u8]) -> Hex<48> {
    Hex(Sha384::digest(bytes).into())
}

/// The pages of the image as this plan launches them.
fn pages(guest: &GuestFiles, plan: &Plan) -> Vec<Page> {
    let sources = guest.stage0.pages().iter().map(|page| source(page.kind));
    plan.updates()
        .zip(sources)
        .map(|(page, source)| Page {
            gpa: page.gpa.to_string(),
            page_type: page.page_type,
            source,
            sha384: page
                .page_type
                .measures_contents()
                .then(|| sha384(&page.bytes[..PAGE_SIZE])),
        })
        .collect()
}

fn source(kind: Kind) -> &'static str {
    match kind {
        Kind::Load => "stage0: page tables, code, data",
        Kind::Hashes => "hashes and lengths of bzImage, initrd and command line",
        Kind::Secrets => "keys for messages to the firmware, which fills it; its address is measured",
        Kind::Cpuid => "CPUID leaves of the VMM, checked by the firmware; its address is measured",
        Kind::Scratch => "zeros",
    }
}

fn type_name(page_type: PageType) -> &'static str {
    match page_type {
        PageType::Normal => "normal",
        PageType::Vmsa => "vmsa",
        PageType::Zero => "zero",
        PageType::Unmeasured => "unmeasured",
        PageType::Secrets => "secrets",
        PageType::Cpuid => "cpuid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_vcpus_are_one_or_a_range() {
        assert_eq!(parse_vcpus("3"), Ok(3..=3));
        assert_eq!(parse_vcpus("1..8"), Ok(1..=8));
        assert_eq!(parse_vcpus("64..64"), Ok(64..=64));
        for bad in [
            "", "0", "65", "1..", "..8", "8..1", "1..65", "-1", "1...3", "1,2", "1-2",
        ] {
            assert!(parse_vcpus(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variants_have_the_names_that_documents_have() {
        for variant in Variant::ALL {
            assert_eq!(parse_variant(variant.name()), Ok(variant));
        }
        let error = parse_variant("linux-6.12").unwrap_err();
        assert!(error.contains("linux-6.11, amd-snp-host-v12"), "{error}");
    }

    #[test]
    fn an_image_that_is_not_sealed_is_no_subject() {
        let dir = tempfile::tempdir().unwrap();
        let image = Reference::parse(&format!("oci:{}", dir.path().display())).unwrap();
        assert!(Contents::of_stored(&image, dir.path()).is_err());
    }
}
