//! `inspect`: what a sealed image would do.

use crate::bundle::Bundle;
use crate::cli::Inspect;
use crate::image::Reference;
use crate::root_disk;
use crate::sealed::{self, Contents, WORKLOAD, words};
use crate::settings::Settings;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;

/// The command.
pub fn run(settings: &Settings, args: &Inspect) -> Result<()> {
    let contents = match Reference::parse(&args.image) {
        Some(image) => Contents::of_stored(&image, &root_disk::scratch_dir(&settings.cache)?)?,
        None => of_directory(Path::new(&args.image)).with_context(|| args.image.clone())?,
    };
    if args.json {
        return super::print_json(&words::json(&contents));
    }
    let text = words::describe(&contents);
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
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
