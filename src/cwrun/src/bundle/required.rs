//! Properties that the specification has as REQUIRED and whose absence the types of `oci-spec` take for a zero. A container without
//! `process.user.uid` would run as root.

use anyhow::{Result, bail};
use serde_json::Value;

/// Objects, where they are if they are there (`*`: any name or index), and what each must have (config.md, config-linux.md).
const REQUIRED: [(&str, &[&str]); 15] = [
    ("root", &["path"]),
    ("process.user", &["uid", "gid"]),
    ("process.consoleSize", &["height", "width"]),
    ("process.rlimits.*", &["type", "soft", "hard"]),
    ("hooks.*.*", &["path"]),
    ("linux.uidMappings.*", &["containerID", "hostID", "size"]),
    ("linux.gidMappings.*", &["containerID", "hostID", "size"]),
    ("linux.devices.*", &["type", "path"]),
    ("linux.resources.devices.*", &["allow"]),
    ("linux.resources.hugepageLimits.*", &["pageSize", "limit"]),
    ("linux.resources.blockIO.weightDevice.*", &["major", "minor"]),
    ("linux.resources.blockIO.throttleReadBpsDevice.*", THROTTLE),
    ("linux.resources.blockIO.throttleWriteBpsDevice.*", THROTTLE),
    ("linux.resources.blockIO.throttleReadIOPSDevice.*", THROTTLE),
    ("linux.resources.blockIO.throttleWriteIOPSDevice.*", THROTTLE),
];
const THROTTLE: &[&str] = &["major", "minor", "rate"];

/// Refuses a configuration that lacks one of them.
pub fn check(config: &Value) -> Result<()> {
    REQUIRED
        .iter()
        .try_for_each(|(place, names)| search(config, place, "", names))
}

/// Refuses a `process` of OCI that lacks one of them.
pub fn check_process(process: &Value) -> Result<()> {
    let of_process = REQUIRED.iter().filter_map(|(place, names)| {
        let place = place.strip_prefix("process.")?;
        Some((place, names))
    });
    of_process
        .into_iter()
        .try_for_each(|(place, names)| search(process, place, "", names))
}

/// Follows `place` down from `value`, which is at `at`.
fn search(value: &Value, place: &str, at: &str, names: &[&str]) -> Result<()> {
    let (step, rest) = place.split_once('.').unwrap_or((place, ""));
    let dot = if at.is_empty() { "" } else { "." };
    match (step, value) {
        ("", Value::Object(fields)) => match names.iter().find(|name| !fields.contains_key(**name)) {
            Some(name) => bail!("{at}.{name}: missing"),
            None => Ok(()),
        },
        ("*", Value::Object(fields)) => fields
            .iter()
            .try_for_each(|(name, value)| search(value, rest, &format!("{at}{dot}{name}"), names)),
        ("*", Value::Array(items)) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| search(value, rest, &format!("{at}[{index}]"), names)),
        (step, value) => match value.get(step) {
            Some(value) => search(value, rest, &format!("{at}{dot}{step}"), names),
            None => Ok(()),
        },
    }
}
