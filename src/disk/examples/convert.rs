//! Converts a directory: `convert ROOTFS IMAGE [THREADS]`. Writes the key beside the image; prints layout and times.

use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, image, threads @ ..] = arguments.as_slice() else {
        return Err("usage: convert ROOTFS IMAGE [THREADS]".into());
    };
    let threads = threads.first().map(|threads| threads.parse()).transpose()?;
    let unlock = disk::Unlock::generate()?;
    std::fs::write(format!("{image}.key"), unlock.volume_key().as_bytes())?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(image)?;
    let start = Instant::now();
    let tree = disk::Tree::scan(Path::new(rootfs))?;
    let scanned = start.elapsed();
    let built = tree.build(
        &file,
        &unlock,
        &disk::Options {
            threads,
            ..Default::default()
        },
    )?;
    println!("{built:#?}");
    println!("scan {scanned:?}, all {:?}", start.elapsed());
    Ok(())
}
