//! `disk cache`: what is kept of converted root file systems.

use crate::cli::{DiskCache, DiskCacheList, DiskCachePrune};
use crate::root_disk;
use crate::settings::Settings;
use anyhow::{Result, ensure};
use disk::cache::{Cache, Listed, Verdict};
use serde_json::json;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Characters of an identity that a table shows: enough to tell any two apart.
const SHORT: usize = 12;

/// The commands.
pub fn run(command: &DiskCache) -> Result<()> {
    let cache = root_disk::open_cache(&Settings::load()?.cache)?;
    match command {
        DiskCache::List(args) => list(&cache, args),
        DiskCache::Prune(args) => prune(&cache, args),
        DiskCache::Verify => verify(&cache),
    }
}

fn list(cache: &Cache, args: &DiskCacheList) -> Result<()> {
    let entries = cache.list()?;
    if args.json {
        let entry = |entry: &Listed| {
            json!({
                "identity": entry.identity,
                "source": entry.source,
                "bytes": entry.bytes,
                "used": seconds(entry.used),
                "in_use": entry.busy,
            })
        };
        return super::print_json(&json!(entries.iter().map(entry).collect::<Vec<_>>()));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:SHORT$}  {:>14}  {:20}  IN USE  SOURCE",
        "IDENTITY", "BYTES", "LAST USED"
    )?;
    for entry in &entries {
        writeln!(
            out,
            "{:SHORT$}  {:>14}  {:20}  {:6}  {}",
            &entry.identity[..SHORT],
            entry.bytes,
            date(entry.used),
            if entry.busy { "yes" } else { "no" },
            entry.source.display()
        )?;
    }
    Ok(())
}

fn prune(cache: &Cache, args: &DiskCachePrune) -> Result<()> {
    let freed = cache.prune(args.keep)?;
    writeln!(std::io::stdout(), "{freed} bytes freed")?;
    Ok(())
}

fn verify(cache: &Cache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let (mut bad, mut written) = (0, Ok(()));
    cache.verify(|entry, verdict| {
        let word = match verdict {
            Verdict::Good => "good",
            Verdict::Damaged => "damaged, removed",
            Verdict::Outdated => "its source was changed, removed",
        };
        bad += usize::from(verdict != Verdict::Good);
        let line = writeln!(
            out,
            "{} {}: {word}",
            &entry.identity[..SHORT],
            entry.source.display()
        );
        if written.is_ok() {
            written = line;
        }
    })?;
    written?;
    ensure!(
        bad == 0,
        "{bad} disks in the cache were not good; they will be made again when they are needed"
    );
    Ok(())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn date(time: SystemTime) -> String {
    let form = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time::OffsetDateTime::from(time).format(&form).unwrap_or_default()
}
