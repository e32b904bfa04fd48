//! A directory of the host for a guest: a server of the FUSE protocol (linux/fuse.h, ABI 7.33) over open descriptors.
//!
//! ```text
//!   request ─► Exchange ─► Request (parsed once) ─► Server ─┬─ Inodes   number ─► O_PATH descriptor, references
//!   answer  ◄─ Exchange ◄─ header, payload ◄────────────────┴─ Opened   number ─► open file or directory
//! ```
//!
//! Nothing is known here of how requests come: [`Exchange`] hands out their bytes and takes the answers, and moves file content between
//! a descriptor and the other side's memory.
//!
//! The other side is hostile. It names files by numbers that it got from here, and within a directory by single names: no `/`, no `.`, no
//! `..`, no symbolic link is ever followed. A number stands for a descriptor, so renames on either side change nothing about what it
//! stands for. What all this can reach at most is for the caller to bound, who opens the root directory and makes the mounts.
//!
//! Nothing is cached: names and attributes are valid for no time, so that both sides see each other's changes at once, and the other
//! side forgets an inode when nobody uses it, which keeps descriptors few.

mod inodes;
mod message;
mod opened;
mod server;

pub use server::{Exchange, HEADER, Limits, Server};
