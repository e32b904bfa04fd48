//! `disk`: make and examine encrypted disks by hand.

use crate::cli::{Disk, DiskBuild, DiskInspect};
use crate::image::Reference;
use crate::output::{Output, directory_of, progress_bar, suffixed};
use anyhow::{Context, Result};
use disk::{Inspection, Markers, Options, Progress, Unlock};
use serde_json::json;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;
use zeroize::Zeroizing;

/// The commands.
pub fn run(command: &Disk) -> Result<()> {
    match command {
        Disk::Build(args) => build(args),
        Disk::Inspect(args) => inspect(args),
        Disk::Cache(command) => super::disk_cache::run(command),
    }
}

fn build(args: &DiskBuild) -> Result<()> {
    let start = Instant::now();
    let key_path = args
        .key_file
        .clone()
        .unwrap_or_else(|| suffixed(&args.image, ".key"));
    let key = KeyFile::read_or_generate(&key_path)?;
    let unlock =
        Unlock::from_key_file(&key.bytes).with_context(|| format!("key file {}", key_path.display()))?;
    let context = || format!("root file system {}", args.source.display());
    let output = Output::create(&args.image)?;
    let tree = match args.source.to_str().and_then(Reference::parse) {
        Some(image) => disk::Tree::from_archives(image.layers(directory_of(&args.image))?, Markers::Plain),
        None => disk::Tree::scan(args.source.as_ref()),
    };
    let tree = tree.with_context(context)?;
    let bar = progress_bar();
    let show = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let options = Options {
        progress: Some(&show),
        ..Options::default()
    };
    let built = tree.build(&output.file, &unlock, &options);
    bar.finish_and_clear();
    let built = built.with_context(context)?;
    // The key first: an image without its key would be of no use.
    key.save(&key_path)?;
    output.publish()?;
    let seconds = start.elapsed().as_secs_f64();
    let layout = &built.layout;
    if args.json {
        return super::print_json(&json!({
            "image": args.image,
            "key_file": key_path,
            "root_hash": hex(&layout.root_hash),
            "files": built.files,
            "data_bytes": built.data_bytes,
            "image_bytes": built.image_bytes,
            "seconds": seconds,
            "layout": layout,
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "root hash    {}", hex(&layout.root_hash))?;
    writeln!(out, "key file     {}", key_path.display())?;
    writeln!(out, "files        {}", built.files)?;
    writeln!(out, "data bytes   {}", built.data_bytes)?;
    writeln!(out, "image bytes  {}", built.image_bytes)?;
    writeln!(out, "seconds      {seconds:.3}")?;
    Ok(())
}

fn inspect(args: &DiskInspect) -> Result<()> {
    let context = || args.image.display().to_string();
    let image = File::open(&args.image).with_context(context)?;
    let inspection = disk::inspect(&image).with_context(context)?;
    if args.json {
        print_inspection_json(&inspection)
    } else {
        print_inspection(&inspection)
    }
}

fn print_inspection_json(inspection: &Inspection) -> Result<()> {
    let keyslots: Vec<_> = inspection
        .keyslots
        .iter()
        .map(|slot| json!({"number": slot.number, "kdf": slot.kdf, "iterations": slot.iterations, "memory_kib": slot.memory_kib}))
        .collect();
    super::print_json(&json!({
        "format": "LUKS2",
        "uuid": inspection.uuid,
        "label": inspection.label,
        "cipher": inspection.cipher,
        "key_bits": inspection.key_bits,
        "keyslots": keyslots,
        "root_hash": hex(&inspection.layout.root_hash),
        "image_bytes": inspection.image_bytes,
        "layout": inspection.layout,
    }))
}

fn print_inspection(inspection: &Inspection) -> Result<()> {
    let layout = &inspection.layout;
    let mut out = std::io::stdout().lock();
    writeln!(out, "format        LUKS2, EROFS under dm-verity")?;
    writeln!(out, "uuid          {}", inspection.uuid)?;
    writeln!(
        out,
        "cipher        {}, {} bits, sectors of {} bytes",
        inspection.cipher, inspection.key_bits, layout.sector_size
    )?;
    for slot in &inspection.keyslots {
        writeln!(
            out,
            "key slot {}    {}, {} iterations, {} KiB",
            slot.number, slot.kdf, slot.iterations, slot.memory_kib
        )?;
    }
    writeln!(
        out,
        "payload       {} bytes at {}",
        layout.payload_bytes, layout.payload_offset
    )?;
    writeln!(out, "data blocks   {} of 4096 bytes", layout.data_blocks)?;
    writeln!(out, "hash offset   {}", layout.verity_superblock_offset)?;
    writeln!(out, "salt          {}", hex(&layout.salt))?;
    writeln!(
        out,
        "root hash     {} (as the image says; not verified)",
        hex(&layout.root_hash)
    )?;
    Ok(())
}

/// What is in a key file, or will be.
struct KeyFile {
    bytes: Zeroizing<Vec<u8>>,
    new: bool,
}

impl KeyFile {
    fn read_or_generate(path: &Path) -> Result<Self> {
        let context = || format!("key file {}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let Unlock::Key(key) = Unlock::generate()? else {
                    unreachable!("a generated key is a volume key")
                };
                return Ok(Self {
                    bytes: Zeroizing::new(key.as_bytes().to_vec()),
                    new: true,
                });
            }
            Err(error) => return Err(error).with_context(context),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(disk::MAX_KEY_FILE + 1));
        file.take(disk::MAX_KEY_FILE as u64 + 1)
            .read_to_end(&mut bytes)
            .with_context(context)?;
        Ok(Self { bytes, new: false })
    }

    fn save(&self, path: &Path) -> Result<()> {
        if !self.new {
            return Ok(());
        }
        let write = || {
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?
                .write_all(&self.bytes)
        };
        write().with_context(|| format!("key file {}", path.display()))
    }
}

fn hex<const N: usize>(bytes: &[u8; N]) -> String {
    workload::Hex(*bytes).to_string()
}
