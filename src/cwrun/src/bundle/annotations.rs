//! Annotations of config.json that change what cwrun does.

use super::Bundle;
use anyhow::{Result, bail, ensure};

/// Size of the writable layer, or `ram`.
pub const SCRATCH: &str = "io.cwrun.scratch";
/// Whether directories of the host may be shared with the guest: `deny` or `untrusted`.
pub const VOLUMES: &str = "io.cwrun.volumes";
/// Ports of the host that lead into a container with the host's network.
pub const HOST_PORTS: &str = "io.cwrun.host-ports";
/// Which TEE: `none`, `snp`, `sim` or `auto`.
pub const TEE: &str = "io.cwrun.tee";
/// Whether `exec` may run processes in a confidential container: `allow`.
pub const TEE_EXEC: &str = "io.cwrun.tee.exec";
/// URL of the key broker that a sealed container asks.
pub const BROKER: &str = "io.cwrun.broker";
/// Number of vCPUs.
pub const KRUN_CPUS: &str = "krun.cpus";
/// Guest memory in MiB.
pub const KRUN_RAM_MIB: &str = "krun.ram_mib";
/// Which TEE.
pub const KRUN_VARIANT: &str = "krun.variant";
/// Which of crun's handlers.
const HANDLER: &str = "run.oci.handler";
/// By which CRI-O and containerd say that a container is the infra container of a pod, with the value that says so.
pub const SANDBOX: [(&str, &str); 2] = [
    ("io.kubernetes.cri-o.ContainerType", "sandbox"),
    ("io.kubernetes.cri.container-type", "sandbox"),
];
/// By which podman says that a container is one of its own.
pub const PODMAN: (&str, &str) = ("io.container.manager", "libpod");

/// All of them, sorted. An engine that gets annotations from strangers should know this list (`features`).
pub const ALL: [&str; 14] = [
    PODMAN.0,
    BROKER,
    crate::mkcw_disk::PASSPHRASE_FILE,
    HOST_PORTS,
    SCRATCH,
    TEE,
    TEE_EXEC,
    VOLUMES,
    SANDBOX[0].0,
    SANDBOX[1].0,
    KRUN_CPUS,
    KRUN_RAM_MIB,
    KRUN_VARIANT,
    HANDLER,
];

/// Refuses annotations under our own name that this release does not know, since what they ask for may be a matter of safety,
/// and handlers of crun other than the one that we stand in for.
pub fn check(bundle: &Bundle) -> Result<()> {
    let annotations = bundle.spec.annotations().iter().flatten();
    ensure!(
        annotations.clone().all(|(key, _)| !key.is_empty()),
        "config.json: annotations: a key is empty"
    );
    let unknown = annotations
        .map(|(key, _)| key.as_str())
        .filter(|key| key.starts_with("io.cwrun.") && !ALL.contains(key))
        .min();
    if let Some(key) = unknown {
        bail!("config.json: annotation {key}: unknown to this release");
    }
    if let Some(handler) = bundle.annotation(HANDLER) {
        ensure!(
            handler == "krun",
            "config.json: annotation {HANDLER}: {handler:?} is not supported, expected \"krun\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_is_sorted() {
        assert!(super::ALL.is_sorted());
    }
}
