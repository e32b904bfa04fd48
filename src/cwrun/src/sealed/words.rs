//! What a sealed image would run, allow and be measured as, in words.

use super::Contents;
use serde_json::{Value, json};
use std::fmt::Write as _;
use workload::{RootFs, Scratch, Secret, SecretPlace, TeeKind, Workload};

/// Several lines. What is text in the Workload is shown with its control characters escaped: it is a stranger's.
pub fn describe(contents: &Contents) -> String {
    let (workload, sealed) = (&contents.workload, contents.sealed());
    let process = &workload.process;
    let mut lines = Lines::default();
    lines.say("sealed as", &sealed.id);
    lines.say("runs", &list(&process.args));
    lines.say("in", &format!("{:?}", process.cwd));
    lines.say("as", &user(workload));
    lines.each("with", process.env.iter().map(|variable| format!("{variable:?}")));
    lines.say("terminal", if process.terminal { "yes" } else { "no" });
    lines.say("root", &root(workload));
    lines.say("may write", &scratch(&workload.scratch));
    let mounts = workload.mounts.iter();
    lines.each(
        "mounts",
        mounts.map(|mount| format!("{} on {:?}", mount.filesystem.name(), mount.destination)),
    );
    lines.each(
        "devices",
        workload.devices.iter().map(|device| format!("{:?}", device.path)),
    );
    lines.each(
        "sysctl",
        workload
            .sysctl
            .iter()
            .map(|(name, value)| format!("{name:?} = {value:?}")),
    );
    lines.each(
        "clocks",
        workload
            .time_offsets
            .iter()
            .map(|(clock, by)| format!("{clock} ahead by {}.{:09} s", by.seconds, by.nanoseconds)),
    );
    lines.each(
        "before it runs",
        workload
            .start_hooks
            .iter()
            .map(|hook| format!("{:?} {}", hook.path, list(&hook.args))),
    );
    lines.say("in a TEE", tee(workload));
    lines.say(
        "exec",
        if exec(workload) {
            "allowed: the host may run more processes in it"
        } else {
            "not allowed"
        },
    );
    lines.each(
        "the host may change",
        sealed.allow.iter().map(|rule| format!("{:?}", rule.to_string())),
    );
    lines.each("gets secrets", sealed.secrets.iter().map(secret));
    let broker = contents.broker.as_ref().map(|broker| broker.url.as_str());
    lines.say(
        "its broker",
        broker.unwrap_or("not named in the image: annotation io.cwrun.broker or cwrun.toml has to"),
    );
    lines.say("HOST_DATA", &workload.digest().to_string());
    lines.0
}

/// The same for programs. `workload` is the Workload as it is.
pub fn json(contents: &Contents) -> Value {
    let workload = serde_json::from_slice::<Value>(&contents.workload.to_bytes());
    json!({
        "id": contents.sealed().id,
        "host_data": contents.workload.digest(),
        "broker": contents.broker.as_ref().map(|broker| &broker.url),
        "allow": contents.sealed().allow,
        "secrets": contents.sealed().secrets,
        // Its own bytes are JSON.
        "workload": workload.unwrap_or_default(),
    })
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn say(&mut self, name: &str, text: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "{name:<21}{text}");
    }

    /// One line for each; one that says so if there are none.
    fn each(&mut self, name: &str, texts: impl Iterator<Item = String>) {
        let mut first = true;
        for text in texts {
            self.say(if first { name } else { "" }, &text);
            first = false;
        }
        if first {
            self.say(name, "nothing");
        }
    }
}

fn list(args: &[String]) -> String {
    let quoted = args.iter().map(|arg| format!("{arg:?}"));
    quoted.collect::<Vec<_>>().join(" ")
}

fn user(workload: &Workload) -> String {
    let user = &workload.process.user;
    let mut text = format!("user {}, group {}", user.uid, user.gid);
    if !user.additional_gids.is_empty() {
        let groups: Vec<_> = user.additional_gids.iter().map(u32::to_string).collect();
        text = format!("{text}, groups {}", groups.join(" "));
    }
    match &workload.process.capabilities {
        None => format!("{text}, all capabilities"),
        Some(sets) if sets.effective.is_empty() => format!("{text}, no capabilities"),
        Some(sets) => format!("{text}, {} capabilities", sets.effective.len()),
    }
}

fn root(workload: &Workload) -> String {
    let access = if workload.readonly_root { ", read-only" } else { "" };
    match &workload.root {
        RootFs::Layers { layers } => {
            let bytes: u64 = layers
                .iter()
                .map(|layer| layer.verity.data_blocks.saturating_mul(4096))
                .sum();
            let hashes: Vec<_> = layers
                .iter()
                .map(|layer| layer.verity.root_hash.to_string())
                .collect();
            format!(
                "{bytes} bytes, encrypted, with the root hash {}{access}",
                hashes.join(" ")
            )
        }
        RootFs::Mkcw { header } => format!(
            "a disk of mkcw with the LUKS header {header}, encrypted, and not protected from changes{access}"
        ),
    }
}

fn scratch(scratch: &Scratch) -> String {
    match scratch {
        Scratch::Disk { bytes } => format!("{bytes} bytes, to a disk under a key of the guest's own"),
        Scratch::Ram { bytes } => format!("{bytes} bytes, to memory"),
    }
}

fn tee(workload: &Workload) -> &'static str {
    match workload.tee.map(|tee| tee.kind) {
        Some(TeeKind::Snp) => "SEV-SNP",
        Some(TeeKind::Sim) => "a SIMULATED one, which protects nothing",
        None => "none",
    }
}

fn exec(workload: &Workload) -> bool {
    workload.tee.is_none_or(|tee| tee.exec)
}

fn secret(secret: &Secret) -> String {
    let value = match secret.mac {
        Some(_) => "with the value it was sealed with",
        None => "with any value",
    };
    match &secret.place {
        SecretPlace::File { path, mode, uid, gid } => {
            format!(
                "{} in the file {path:?}, mode {mode:04o}, owner {uid}:{gid}, {value}",
                secret.name
            )
        }
        SecretPlace::Variable { name } => format!("{} in the variable {name}, {value}", secret.name),
    }
}
