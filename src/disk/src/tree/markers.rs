//! What overlayfs leaves in directories: whiteouts and extended attributes, which mean something only to an overlay.
//!
//! The guest lays its writable layer over every image with overlayfs, so each mark in an image is read as one. What the
//! tree's own attributes are must therefore be written in the one form that shows them, and what the marks of a layer
//! are in the one form that the guest obeys (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts").
//!
//! ```text
//!                                 Plain      Shown              Layer (trusted)    Layer (user)
//!   character device 0:0          kept       kept, listed       kept: a whiteout   kept: a whiteout
//!   trusted.overlay.opaque=y      kept       escaped            kept               escaped
//!   user.overlay.opaque=y         kept       kept               kept               becomes trusted
//!   …origin, impure, nlink, uuid  kept       escaped            dropped            dropped (of user)
//!   …redirect, metacopy, others   kept       escaped            refused            refused (of user)
//! ```
//!
//! No form of a device 0:0 is shown by an overlay. So the top directory has a list of them ([`WHITEOUTS`]), and the guest puts each
//! over the overlay as a mount of its own.

use serde::{Deserialize, Serialize};

/// How marks of overlayfs in a tree are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Markers {
    /// As what they are: an image that nobody will stack.
    Plain,
    /// As parts of the tree that an overlay of the image shall show like any other.
    Shown,
    /// As marks: the tree is a layer of an overlay.
    Layer {
        /// The overlay was mounted with `userxattr`: its attributes are `user.overlay.*`.
        user: bool,
    },
}

/// The namespace of marks that every overlay in a guest reads.
const TRUSTED: &[u8] = b"trusted.overlay.";
/// The one of overlays mounted with `userxattr`.
const USER: &[u8] = b"user.overlay.";
/// Behind the namespace: an attribute that is to be shown, without this word.
const ESCAPE: &[u8] = b"overlay.";
/// Marks that say nothing about a tree that lies below.
const BOOKKEEPING: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"uuid", b"upper"];

/// Attribute of the top directory: paths, below it, of the devices 0:0 that an overlay of the image shall show, each with a NUL behind
/// it, at most 65,535 bytes. Nothing else in an image can have this name, since attributes that look like marks are escaped or refused.
pub const WHITEOUTS: &[u8] = b"trusted.overlay.cwrun.whiteouts";

/// What becomes of an extended attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    /// It gets this name.
    Named(Vec<u8>),
    /// It is left out.
    Dropped,
    /// It can't have the meaning that it has.
    Refused,
}

impl Markers {
    /// What becomes of the attribute `name`.
    pub(super) fn attribute(self, name: &[u8], value: &[u8]) -> Attribute {
        let kept = || Attribute::Named(name.to_vec());
        let escaped = |rest: &[u8]| Attribute::Named([TRUSTED, ESCAPE, rest].concat());
        match self {
            Self::Plain => kept(),
            Self::Shown | Self::Layer { user: true } if name.starts_with(TRUSTED) => {
                escaped(&name[TRUSTED.len()..])
            }
            Self::Shown => kept(),
            Self::Layer { user } => {
                let namespace = if user { USER } else { TRUSTED };
                match name.strip_prefix(namespace) {
                    None => kept(),
                    Some(b"opaque") if value == b"y" => Attribute::Named([TRUSTED, b"opaque"].concat()),
                    Some(mark) if BOOKKEEPING.contains(&mark) => Attribute::Dropped,
                    Some(mark) => match mark.strip_prefix(ESCAPE) {
                        Some(rest) if user => Attribute::Named([USER, rest].concat()),
                        Some(_) => kept(),
                        None => Attribute::Refused,
                    },
                }
            }
        }
    }

    /// Whether a character device 0:0 has to be listed so that a guest shows it.
    pub(super) fn lists_whiteouts(self) -> bool {
        self == Self::Shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Attribute {
        Attribute::Named(name.as_bytes().to_vec())
    }

    #[test]
    fn attributes_follow_the_table() {
        let (trusted, user) = (Markers::Layer { user: false }, Markers::Layer { user: true });
        for (markers, name, value, expected) in [
            (
                Markers::Plain,
                "trusted.overlay.opaque",
                "y",
                named("trusted.overlay.opaque"),
            ),
            (
                Markers::Shown,
                "trusted.overlay.opaque",
                "y",
                named("trusted.overlay.overlay.opaque"),
            ),
            (
                Markers::Shown,
                "trusted.overlay.overlay.x",
                "",
                named("trusted.overlay.overlay.overlay.x"),
            ),
            (
                Markers::Shown,
                "user.overlay.opaque",
                "y",
                named("user.overlay.opaque"),
            ),
            (
                trusted,
                "trusted.overlay.opaque",
                "y",
                named("trusted.overlay.opaque"),
            ),
            (trusted, "trusted.overlay.opaque", "x", Attribute::Refused),
            (trusted, "trusted.overlay.origin", "", Attribute::Dropped),
            (trusted, "trusted.overlay.redirect", "/a", Attribute::Refused),
            (trusted, "trusted.overlay.metacopy", "", Attribute::Refused),
            (
                trusted,
                "trusted.overlay.overlay.x",
                "",
                named("trusted.overlay.overlay.x"),
            ),
            (trusted, "user.overlay.opaque", "y", named("user.overlay.opaque")),
            (user, "user.overlay.opaque", "y", named("trusted.overlay.opaque")),
            (user, "user.overlay.redirect", "/a", Attribute::Refused),
            (user, "user.overlay.impure", "y", Attribute::Dropped),
            (user, "user.overlay.overlay.x", "", named("user.overlay.x")),
            (
                user,
                "trusted.overlay.opaque",
                "y",
                named("trusted.overlay.overlay.opaque"),
            ),
            (user, "user.other", "", named("user.other")),
        ] {
            assert_eq!(
                markers.attribute(name.as_bytes(), value.as_bytes()),
                expected,
                "{markers:?} {name}"
            );
        }
    }
}
