//! From the disk to mounted layers: what the Workload says about the disk, and nothing that the disk says about itself.
//!
//! ```text
//!   /dev/vda  ┌─────────┬─────────┬───     all layers lie on one disk, end to end
//!             │ layer 0 │ layer 1 │ …
//!             └────┬────┴─────────┴───
//!                  └─ dm-crypt (key) ─► dm-verity (root hash) ─► EROFS, read-only ─► /l/0
//! ```

use crate::dm::{Access, Mapper, Target};
use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::{mkcw_disk, world};
use mkcw::InnerConfig;
use rustix::mount::MountAttrFlags;
use std::fs;
use workload::protocol::Keys;
use workload::{Layer, RootFs, VolumeKey};

/// The disk with the layers.
const LAYER_DISK: &str = "/dev/vda";
/// The disk for the writable layer, where there is one.
pub const SCRATCH_DISK: &str = "/dev/vdb";

/// The root file system's lower directories, and what the disk says of the process if that is its to say.
pub type Lower = (Vec<String>, Option<InnerConfig>);

/// Opens and mounts the root file system; returns the mount points, the lowest layer first.
pub fn activate(mapper: &Mapper, root: &RootFs, keys: &Keys) -> Result<Lower> {
    match (root, keys) {
        (RootFs::Layers { layers }, Keys::Layers { keys }) => Ok((stack(mapper, layers, keys)?, None)),
        (RootFs::Mkcw { header }, Keys::Passphrase { passphrase }) => {
            let (lower, config) = mkcw_disk::activate(mapper, LAYER_DISK, header, passphrase)
                .map_err(|failure| Failure::other(format!("mkcw disk: {failure}")))?;
            Ok((vec![lower], Some(config)))
        }
        _ => Err(Failure::other("the keys are not of the root file system's kind")),
    }
}

fn stack(mapper: &Mapper, layers: &[Layer], keys: &[VolumeKey]) -> Result<Vec<String>> {
    if layers.len() != keys.len() {
        let (layers, keys) = (layers.len(), keys.len());
        return Err(Failure::other(format!(
            "the workload has {layers} layers, but {keys} keys came with it"
        )));
    }
    layers
        .iter()
        .zip(keys)
        .enumerate()
        .map(|(index, (layer, key))| {
            one(mapper, index, layer, key)
                .map_err(|failure| Failure::other(format!("layer {index}: {failure}")))
        })
        .collect()
}

fn one(mapper: &Mapper, index: usize, layer: &Layer, key: &VolumeKey) -> Result<String> {
    let crypt = Target::crypt(LAYER_DISK, key, &layer.crypt, &[]);
    let plain = mapper.activate(&format!("layer{index}-crypt"), &crypt, Access::ReadOnly)?;
    let verity = Target::verity(&plain, &layer.verity);
    let verified = mapper.activate(&format!("layer{index}"), &verity, Access::ReadOnly)?;
    let at = format!("{}/{index}", world::LAYERS);
    mount(NewFs::open("erofs")?, &verified, &at)?;
    Ok(at)
}

/// Mounts a layer, read-only, on a directory that it makes.
pub fn mount(file_system: NewFs, device: &str, at: &str) -> Result<()> {
    fs::create_dir(at).context(|| format!("create {at}"))?;
    file_system
        .source(device)?
        .set("ro")?
        .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)?
        .attach_at(at)
        .map(drop)
}
