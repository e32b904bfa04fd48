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
use crate::world;
use rustix::mount::MountAttrFlags;
use std::fs;
use workload::{Layer, VolumeKey};

/// The disk with the layers.
const LAYER_DISK: &str = "/dev/vda";
/// The disk for the writable layer, where there is one.
pub const SCRATCH_DISK: &str = "/dev/vdb";

/// Opens and mounts every layer; returns the mount points in the same order.
pub fn activate(mapper: &Mapper, layers: &[Layer], keys: &[VolumeKey]) -> Result<Vec<String>> {
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
    fs::create_dir(&at).context(|| format!("create {at}"))?;
    NewFs::open("erofs")?
        .source(&verified)?
        .set("ro")?
        .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)?
        .attach_at(&at)?;
    Ok(at)
}
