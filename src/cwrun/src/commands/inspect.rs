//! `inspect`: what a sealed image would do.

use crate::bundle::Bundle;
use crate::cli::Inspect;
use crate::image::Reference;
use crate::root_disk;
use crate::sealed::{self, BROKER, Contents, DISK, MAX_BROKER, MAX_WORKLOAD, WORKLOAD, words};
use crate::settings::Settings;
use anyhow::{Context, Result, bail};
use disk::{Markers, Tree};
use std::io::Write;
use std::path::Path;

/// The command.
pub fn run(settings: &Settings, args: &Inspect) -> Result<()> {
    let contents = match Reference::parse(&args.image) {
        Some(image) => of_image(&image, settings),
        None => of_directory(Path::new(&args.image)),
    }
    .with_context(|| args.image.clone())?;
    if args.json {
        return super::print_json(&words::json(&contents));
    }
    let text = words::describe(&contents);
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
}

/// Of an image as it is stored. A registry may have compressed its layer on the way.
fn of_image(image: &Reference, settings: &Settings) -> Result<Contents> {
    let scratch = root_disk::scratch_dir(&settings.cache)?;
    let tree = Tree::from_archives(image.layers(&scratch)?, Markers::Shown)?;
    let Some(document) = tree.read_file(WORKLOAD, MAX_WORKLOAD)? else {
        bail!("it is not sealed: there is no /{WORKLOAD}")
    };
    let broker = tree.read_file(BROKER, MAX_BROKER)?;
    let disk = tree
        .find_file(DISK)
        .with_context(|| format!("/{DISK}: missing"))?;
    Contents::parse(&document, broker.as_deref(), disk)
}

/// Of a root file system, or the bundle that it belongs to.
fn of_directory(path: &Path) -> Result<Contents> {
    if let Some(image) = sealed::find(path)? {
        return Ok(image.contents);
    }
    if path.join("config.json").exists() {
        let bundle = Bundle::load(path, None)?;
        if let Some(image) = sealed::find(&bundle.rootfs)? {
            return Ok(image.contents);
        }
    }
    if path.join("oci-layout").exists() {
        bail!(
            "it is an image layout: oci:{} names the image in it",
            path.display()
        )
    }
    bail!("it is not sealed: there is no /{WORKLOAD}")
}
