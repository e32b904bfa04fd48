//! Becoming the workload's user with the workload's capabilities (capabilities(7)).
//!
//! The order matters: the bounding set can only be cut while CAP_SETPCAP is there, groups before the user, `KEEPCAPS`
//! across the change of user, then the three sets, and the ambient set last because it must lie within them.

use crate::failure::{Context as _, Result};
use rustix::fs::{Gid, Uid};
use rustix::process::umask;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use std::collections::BTreeSet;
use workload::{Capabilities, Capability, User};

/// File mode creation mask where the workload names none.
const DEFAULT_UMASK: u32 = 0o022;

/// Changes this process, whose thread is the only one. With `keep`, that capability stays permitted even if the workload
/// doesn't get it; what is returned then makes use of it and takes it away.
pub fn become_user(
    user: &User,
    capabilities: Option<&Capabilities>,
    keep: Option<CapabilitySet>,
) -> Result<Option<Kept>> {
    if let Some(sets) = capabilities {
        drop_bounding(&sets.bounding)?;
    }
    let groups: Vec<Gid> = user
        .additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).context(|| "set the supplementary groups".into())?;
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).context(|| format!("set group ID {}", user.gid))?;
    set_keep_capabilities(capabilities.is_some() || keep.is_some()).context(|| "keep capabilities".into())?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).context(|| format!("set user ID {}", user.uid))?;
    let wanted = match capabilities {
        Some(sets) => Some(wanted(sets)),
        // What the change of user would have left, had nothing been kept.
        None if keep.is_some() && !uid.is_root() => Some(NONE),
        None => None,
    };
    let kept = match (wanted, keep) {
        (Some(wanted), Some(keep)) if !wanted.effective.contains(keep) => Some(Kept { keep, wanted }),
        _ => None,
    };
    if let Some(wanted) = wanted {
        let permitted = wanted.permitted | kept.as_ref().map_or(CapabilitySet::empty(), |kept| kept.keep);
        set_capabilities(None, CapabilitySets { permitted, ..wanted })
            .context(|| "set the capabilities".into())?;
    }
    if let Some(sets) = capabilities {
        raise_ambient(sets)?;
    }
    umask(rustix::fs::Mode::from_raw_mode(
        user.umask.unwrap_or(DEFAULT_UMASK) & 0o7777,
    ));
    Ok(kept)
}

/// A capability that this process holds back from the workload.
pub struct Kept {
    keep: CapabilitySet,
    wanted: CapabilitySets,
}

impl Kept {
    /// Makes it effective.
    pub fn raise(&self) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.wanted.effective | self.keep,
            permitted: self.wanted.permitted | self.keep,
            ..self.wanted
        };
        set_capabilities(None, sets).context(|| "raise a capability".into())
    }

    /// Leaves the workload what it may have, in one system call.
    pub fn drop(self) -> Result<()> {
        set_capabilities(None, self.wanted).context(|| "set the capabilities".into())
    }
}

const NONE: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

fn drop_bounding(keep: &BTreeSet<Capability>) -> Result<()> {
    Capability::all()
        .filter(|capability| !keep.contains(capability))
        .try_for_each(|capability| {
            remove_capability_from_bounding_set(bit(capability))
                .context(|| format!("drop {} from the bounding set", capability.name()))
        })
}

fn wanted(sets: &Capabilities) -> CapabilitySets {
    let set = |of: &BTreeSet<Capability>| of.iter().copied().map(bit).collect::<CapabilitySet>();
    CapabilitySets {
        effective: set(&sets.effective),
        permitted: set(&sets.permitted),
        inheritable: set(&sets.inheritable),
    }
}

fn raise_ambient(sets: &Capabilities) -> Result<()> {
    clear_ambient_capability_set().context(|| "clear the ambient capabilities".into())?;
    for capability in &sets.ambient {
        // As crun does: an ambient capability that is not permitted and inheritable is left out.
        if sets.permitted.contains(capability) && sets.inheritable.contains(capability) {
            configure_capability_in_ambient_set(bit(*capability), true)
                .context(|| format!("raise {} in the ambient set", capability.name()))?;
        }
    }
    Ok(())
}

fn bit(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << capability.number())
}
