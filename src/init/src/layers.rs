//! From a disk to a mounted layer: what the Workload says about the disk, and nothing that the disk says about itself.
//!
//! ```text
//!   /dev/vda ── dm-crypt (key) ──► /dev/dm-0 ── dm-verity (root hash) ──► /dev/dm-1 ── EROFS, read-only ──► /l/0
//! ```

use crate::dm::{Access, Mapper, Target};
use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::world;
use rustix::mount::MountAttrFlags;
use std::fs;
use workload::{Layer, VolumeKey};

/// Device node of the `index`-th virtio disk: `/dev/vda`, …, `/dev/vdz`. The Workload's limit on layers keeps it within
/// the alphabet.
pub fn disk(index: usize) -> Result<String> {
    let letter = u8::try_from(index)
        .ok()
        .and_then(|index| b'a'.checked_add(index))
        .filter(u8::is_ascii_lowercase)
        .ok_or_else(|| Failure::other(format!("disk {index} is more than a guest can have")))?;
    Ok(format!("/dev/vd{}", char::from(letter)))
}

/// Sets up the mappings of every layer; returns their verified devices in the same order.
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
            let crypt = Target::crypt(&disk(index)?, key, &layer.crypt, &[]);
            let plain = mapper.activate(&format!("layer{index}-crypt"), &crypt, Access::ReadOnly)?;
            let verity = Target::verity(&plain, &layer.verity);
            mapper.activate(&format!("layer{index}"), &verity, Access::ReadOnly)
        })
        .collect()
}

/// Mounts the verified devices; returns the mount points in the same order.
pub fn mount(devices: &[String]) -> Result<Vec<String>> {
    devices
        .iter()
        .enumerate()
        .map(|(index, device)| {
            let at = format!("{}/{index}", world::LAYERS);
            fs::create_dir(&at).context(|| format!("create {at}"))?;
            NewFs::open("erofs")?
                .source(device)?
                .set("ro")?
                .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
                .map_err(|failure| Failure::other(format!("layer {index}: {failure}")))?
                .attach_at(&at)?;
            Ok(at)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_in_order_and_end_with_the_alphabet() {
        assert_eq!(disk(0).unwrap(), "/dev/vda");
        assert_eq!(disk(25).unwrap(), "/dev/vdz");
        assert!(disk(26).is_err());
        assert!(disk(usize::MAX).is_err());
    }
}
