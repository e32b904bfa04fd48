//! The keys and secrets of a sealed Workload: asked of the key broker, who gives them to the workload that this guest proves to be.
//!
//! ```text
//!   TEE ─ evidence ─► client (crate attest) ── vsock port BROKER ── the host passes it on ── key broker
//!                        │
//!                        ├ ID/key/disk      volume keys, or a passphrase, for `layers`; wiped when the kernel has them
//!                        └ ID/secret/NAME   a file in memory, or a variable of the first process
//! ```
//!
//! SECURITY: the host carries the bytes. It learns nothing from them, since they are encrypted to a key that this guest draws and the report
//! vouches for. It can keep them back, or put others in their place: a wrong volume key opens no disk that the Workload names, and what a
//! secret must be is told by a MAC under that key. One that was sealed without a value has none, and may be one of the host's making.

use crate::evidence::Source;
use crate::failure::{Failure, Result};
use crate::{evidence, sys};
use attest::{Client, Patience, Resource, Surroundings};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;
use workload::protocol::{BROKER, HOST_CID, Keys};
use workload::{
    Blob, InjectedFile, Layer, Passphrase, RootFs, Sealed, SecretPlace, TeeKind, VolumeKey, Workload,
};
use zeroize::{Zeroize as _, Zeroizing};

/// How long one answer may take. The host's own limit is shorter, so that it has time to say so.
const ANSWER: Duration = Duration::from_secs(30);

/// What the broker gave.
pub struct Released {
    /// Of the root file system.
    pub keys: Keys,
    /// Beside those of the engine.
    pub secrets: Secrets,
}

/// Files and variables that nobody but the workload may see. Wiped when dropped.
#[derive(Default)]
pub struct Secrets {
    files: Vec<InjectedFile>,
    /// `NAME=value`
    env: Vec<String>,
}

/// Asks for what the Workload needs, if it is sealed. `keys` is what came from the host.
pub fn release(workload: &Workload, keys: Keys) -> Result<Released> {
    let secrets = Secrets::default();
    let sealed = match (&workload.sealed, keys) {
        (Some(sealed), Keys::Broker) => sealed,
        (None, keys @ (Keys::Layers { .. } | Keys::Passphrase { .. })) => {
            return Ok(Released { keys, secrets });
        }
        // SECURITY: a host that has the key has no business with a sealed disk, and one that chose the key chose the disk.
        (Some(_), _) => {
            return Err(Failure::other(
                "the workload is sealed, so its keys come from the key broker and not from the host",
            ));
        }
        (None, Keys::Broker) => {
            return Err(Failure::other(
                "the keys are said to be with a key broker, but the workload is not sealed and names none",
            ));
        }
    };
    let tee = workload.tee;
    let (Some(source), Some(tee)) = (evidence::source(tee)?, tee) else {
        return Err(Failure::other(
            "the workload is sealed, and there is no TEE to prove it to the key broker",
        ));
    };
    let mut guest = Guest {
        source,
        kind: tee.kind,
    };
    ask(&mut guest, tee.kind, workload, sealed)
}

fn ask<S: Surroundings>(
    surroundings: &mut S,
    kind: TeeKind,
    workload: &Workload,
    sealed: &Sealed,
) -> Result<Released> {
    let tee = match kind {
        TeeKind::Snp => attest::Tee::Snp,
        TeeKind::Sim => attest::Tee::Sim,
    };
    let mut client = Client::new(surroundings, tee, Patience::default());
    let mut get = |kind: &str, tag: &str| {
        let resource = Resource::new(&sealed.id, kind, tag)
            .ok_or_else(|| Failure::other(format!("{}/{kind}/{tag} is not a resource", sealed.id)))?;
        client
            .resource(&resource)
            .map_err(|error| Failure::other(error.to_string()))
    };
    let disk_key = get("key", "disk")?;
    let keys = disk_keys(&workload.root, &disk_key)?;
    let mut secrets = Secrets::default();
    for secret in &sealed.secrets {
        let content = get("secret", &secret.name)?;
        if !secret.admits(&disk_key, &content) {
            return Err(Failure::other(format!(
                "the secret {} is not the one that the workload was sealed with: somebody between the owner's broker and this guest has put another in its place, or the owner has",
                secret.name
            )));
        }
        secrets.place(&secret.name, &secret.place, content)?;
    }
    Ok(Released { keys, secrets })
}

/// What the resource `key/disk` means for this root file system.
fn disk_keys(root: &RootFs, bytes: &[u8]) -> Result<Keys> {
    match root {
        RootFs::Layers { layers } => volume_keys(layers, bytes),
        RootFs::Mkcw { .. } => passphrase(bytes),
    }
}

/// As its owner gave it to `buildah`.
fn passphrase(bytes: &[u8]) -> Result<Keys> {
    if !(1..=mkcw::MAX_PASSPHRASE).contains(&bytes.len()) {
        return Err(Failure::other(format!(
            "the key broker's passphrase of the disk has {} bytes, not 1 to {}",
            bytes.len(),
            mkcw::MAX_PASSPHRASE
        )));
    }
    Ok(Keys::Passphrase {
        passphrase: Passphrase::from_bytes(bytes.to_vec()),
    })
}

/// One key after the other, in the order of the layers.
fn volume_keys(layers: &[Layer], bytes: &[u8]) -> Result<Keys> {
    let (keys, rest) = bytes.as_chunks::<{ VolumeKey::LEN }>();
    if keys.len() != layers.len() || !rest.is_empty() {
        return Err(Failure::other(format!(
            "the key broker's key of the disk has {} bytes, and the workload's {} layers need {}",
            bytes.len(),
            layers.len(),
            layers.len() * VolumeKey::LEN
        )));
    }
    let keys = keys.iter().map(|key| VolumeKey::from_bytes(*key)).collect();
    Ok(Keys::Layers { keys })
}

impl Secrets {
    fn place(&mut self, name: &str, place: &SecretPlace, content: Zeroizing<Vec<u8>>) -> Result<()> {
        match place {
            SecretPlace::File { path, mode, uid, gid } => self.files.push(InjectedFile {
                destination: path.clone(),
                mode: *mode,
                uid: *uid,
                gid: *gid,
                readonly: true,
                content: Blob(content.to_vec()),
            }),
            SecretPlace::Variable { name: variable } => {
                let value = std::str::from_utf8(&content)
                    .ok()
                    .filter(|value| !value.contains('\0'))
                    .ok_or_else(|| {
                        Failure::other(format!(
                            "the secret {name} can't be the variable {variable}: it is not text, or has a NUL byte"
                        ))
                    })?;
                self.env.push(format!("{variable}={value}"));
            }
        }
        Ok(())
    }

    /// Puts them where the container is made from: files behind the engine's, variables behind the Workload's.
    pub fn give(mut self, files: &mut Vec<InjectedFile>, env: &mut Vec<String>) {
        files.append(&mut self.files);
        env.append(&mut self.env);
    }
}

/// Wipes what a container was made from, once its process is there.
pub fn wipe(files: &mut [InjectedFile], env: &mut [String]) {
    files.iter_mut().for_each(|file| file.content.0.zeroize());
    env.iter_mut().for_each(String::zeroize);
}

impl Drop for Secrets {
    fn drop(&mut self) {
        wipe(&mut self.files, &mut self.env);
    }
}

/// Where a client in this guest runs.
struct Guest {
    source: Source,
    kind: TeeKind,
}

impl Surroundings for Guest {
    type Stream = File;

    fn connect(&mut self) -> io::Result<File> {
        let socket = sys::vsock_connect(HOST_CID, BROKER)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(ANSWER))?;
        }
        Ok(File::from(socket))
    }

    fn evidence(&mut self, report_data: &[u8; 64]) -> std::result::Result<String, String> {
        let said = (self.source)(report_data).map_err(|failure| failure.message)?;
        json(self.kind, &said)
    }

    fn now(&mut self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        // Neither is ever negative.
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }

    fn sleep(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

/// Evidence as trustee's clients send it.
fn json(kind: TeeKind, said: &evidence::Evidence) -> std::result::Result<String, String> {
    let parsed = tee::evidence::Evidence::from_raw(&said.report, &said.certificates);
    let mut evidence = parsed.map_err(|error| error.to_string())?;
    if kind == TeeKind::Sim {
        evidence.chain = tee::sim::chain();
    }
    Ok(evidence.to_json())
}

#[cfg(test)]
#[path = "sealed_test.rs"]
mod tests;
