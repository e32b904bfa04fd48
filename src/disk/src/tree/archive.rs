//! A tree out of the layers of an image, as unpacking them one over the other would make it (OCI image specification, layer.md), without
//! unpacking: only names and attributes are read, and where in the archives the data is.
//!
//! Nothing is written anywhere, so nobody needs to be root, owners are kept, and no plaintext lies in a directory meanwhile. The archives
//! are hostile: paths stay within the tree, whatever symbolic links they lead through.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::list::is_kept;
use super::markers::Attribute;
use super::tar::{Failure, Member, MemberKind, Members};
use super::{
    Entry, Inode, Kind, LONGEST_VALUE, Markers, Origin, ROOT, Source, Span, Target, Time, Tree, XattrSet,
};
use crate::Error;

/// A layer of an image: a tar archive, not compressed.
#[derive(Debug)]
pub struct Archive {
    /// Open for reading; nobody changes it while the tree is in use.
    pub file: File,
    /// SHA-256 of the file, which is what the specification calls its DiffID.
    pub digest: [u8; 32],
}

/// What a name begins with that deletes another (layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The name that deletes all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What the names of bookkeeping of aufs begin with, which some layers of old still have.
const AUFS: &[u8] = b".wh..wh.";

/// Longest path of a member; `PATH_MAX` is 4096 with the final NUL.
const LONGEST_PATH: usize = 4095;
/// Longest name.
const LONGEST_NAME: usize = 255;
/// Symbolic links that the way to a member may lead through, as in the kernel (path_resolution(7)).
const MOST_LINKS: u32 = 40;
/// See [`Tree::from_archives`].
pub(super) fn tree(archives: Vec<Archive>, markers: Markers) -> Result<Tree, Error> {
    let mut unpacked = Unpacked::new();
    for (layer, archive) in archives.iter().enumerate() {
        unpacked
            .apply(layer as u32, &archive.file) // a file for each, so less than 2^32
            .map_err(|failure| failed(layer + 1, failure))?;
    }
    unpacked.flatten(archives, markers)
}

fn failed(layer: usize, failure: Failure) -> Error {
    match failure {
        Failure::Read(source) => Error::ArchiveRead { layer, source },
        Failure::Member(path, problem) => Error::Archive {
            layer,
            member: PathBuf::from(OsStr::from_bytes(&path)),
            problem,
        },
    }
}

/// Index of a node.
type NodeId = usize;

/// The file system that the layers so far make.
struct Unpacked {
    /// The first is the top directory. Some are no longer reached.
    nodes: Vec<Node>,
}

struct Node {
    kind: NodeKind,
    /// The last layer that put it or something below it in its place.
    layer: u32,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

enum NodeKind {
    Regular { archive: u32, offset: u64, size: u64 },
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl Node {
    /// A directory that no layer lists though something lies in it: as engines make it.
    fn directory(layer: u32) -> Self {
        Self {
            kind: NodeKind::Directory(BTreeMap::new()),
            layer,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time {
                seconds: 0,
                nanoseconds: 0,
            },
            xattrs: Vec::new(),
        }
    }
}

impl Unpacked {
    fn new() -> Self {
        Self {
            nodes: vec![Node::directory(0)],
        }
    }

    fn apply(&mut self, layer: u32, file: &File) -> Result<(), Failure> {
        let mut members = Members::new(file)?;
        while let Some(member) = members.next()? {
            self.member(layer, member)?;
        }
        Ok(())
    }

    fn member(&mut self, layer: u32, member: Member) -> Result<(), Failure> {
        let bad = |problem| Failure::Member(member.path.clone(), problem);
        let names = names(&member.path).map_err(bad)?;
        let Some((&name, parents)) = names.split_last() else {
            return match member.kind {
                MemberKind::Directory => {
                    self.set_attributes(0, member);
                    Ok(())
                }
                _ => Err(bad("would be in the place of the root directory")),
            };
        };
        let parent = self.directory(parents, Some(layer)).map_err(bad)?;
        if name == OPAQUE {
            self.prune(parent, layer);
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(name) = name.strip_prefix(WHITEOUT) {
            self.delete(parent, name, layer);
            return Ok(());
        }
        let name = Box::from(name);
        self.put(layer, parent, name, member)
    }

    /// Gives `name` in the directory `parent` to `member`.
    fn put(&mut self, layer: u32, parent: NodeId, name: Box<[u8]>, member: Member) -> Result<(), Failure> {
        let kind = match &member.kind {
            MemberKind::HardLink(target) => {
                let target = self
                    .existing_file(target)
                    .map_err(|problem| Failure::Member(member.path.clone(), problem))?;
                self.nodes[target].layer = layer;
                self.children(parent).insert(name, target);
                return Ok(());
            }
            MemberKind::Directory => {
                let present = self.children(parent).get(&name).copied();
                if let Some(present) = present.filter(|&id| self.is_directory(id)) {
                    self.nodes[present].layer = layer;
                    self.set_attributes(present, member);
                    return Ok(());
                }
                NodeKind::Directory(BTreeMap::new())
            }
            &MemberKind::Regular { offset, size } => NodeKind::Regular {
                archive: layer,
                offset,
                size,
            },
            MemberKind::Symlink(target) if target.is_empty() || target.len() > LONGEST_PATH => {
                return Err(Failure::Member(member.path, "is a link to nothing that can be"));
            }
            MemberKind::Symlink(target) => NodeKind::Symlink(target.clone()),
            &MemberKind::Character(major, minor) => NodeKind::Character(major, minor),
            &MemberKind::Block(major, minor) => NodeKind::Block(major, minor),
            MemberKind::Fifo => NodeKind::Fifo,
        };
        let id = self.nodes.len();
        self.nodes.push(Node {
            kind,
            ..Node::directory(layer)
        });
        self.set_attributes(id, member);
        self.children(parent).insert(name, id);
        Ok(())
    }

    fn set_attributes(&mut self, id: NodeId, member: Member) {
        let node = &mut self.nodes[id];
        node.mode = member.mode;
        node.uid = member.uid;
        node.gid = member.gid;
        node.mtime = member.mtime;
        node.xattrs = member.xattrs;
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.nodes[id].kind, NodeKind::Directory(_))
    }

    /// The entries of a directory.
    fn children(&mut self, id: NodeId) -> &mut BTreeMap<Box<[u8]>, NodeId> {
        match &mut self.nodes[id].kind {
            NodeKind::Directory(children) => children,
            _ => unreachable!("callers come with a directory"),
        }
    }

    /// The directory that `names` lead to from the top, through symbolic links too, which end within the tree.
    ///
    /// With a `layer` what is missing is made by it, and all on the way is marked as having something of it.
    fn directory(&mut self, names: &[&[u8]], layer: Option<u32>) -> Result<NodeId, &'static str> {
        let mut ahead: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let (mut way, mut links) = (vec![0], 0);
        while let Some(name) = ahead.pop() {
            let at = way[way.len() - 1];
            if name == b".." {
                // The parent of the top is the top.
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let next = match (self.children(at).get(&*name).copied(), layer) {
                (Some(next), _) => next,
                (None, None) => return Err("is a link to what is not there"),
                (None, Some(layer)) => {
                    let next = self.nodes.len();
                    self.nodes.push(Node::directory(layer));
                    self.children(at).insert(name.into(), next);
                    next
                }
            };
            match &self.nodes[next].kind {
                NodeKind::Directory(_) => way.push(next),
                NodeKind::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err("lies behind too many symbolic links");
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    let names = target.split(|byte| *byte == b'/').rev();
                    ahead.extend(
                        names
                            .filter(|name| !name.is_empty() && *name != b".")
                            .map(<[u8]>::to_vec),
                    );
                    if ahead.iter().map(Vec::len).sum::<usize>() > 2 * LONGEST_PATH {
                        return Err("lies behind symbolic links that are too long");
                    }
                }
                _ => return Err("lies below something that is no directory"),
            }
        }
        if let Some(layer) = layer {
            for &id in &way {
                self.nodes[id].layer = layer;
            }
        }
        Ok(way[way.len() - 1])
    }

    /// The file, no directory, that a hard link names.
    fn existing_file(&mut self, path: &[u8]) -> Result<NodeId, &'static str> {
        let names = names(path)?;
        let (&name, parents) = names.split_last().ok_or("is a hard link to a directory")?;
        let parent = self.directory(parents, None)?;
        let id = self.children(parent).get(name).copied();
        let id = id.ok_or("is a link to what is not there")?;
        if self.is_directory(id) {
            return Err("is a hard link to a directory");
        }
        Ok(id)
    }

    /// Removes `name` from a directory, as far as it comes from below `layer`.
    fn delete(&mut self, parent: NodeId, name: &[u8], layer: u32) {
        let Some(&id) = self.children(parent).get(name) else {
            return;
        };
        if self.nodes[id].layer < layer {
            self.children(parent).remove(name);
        } else if self.is_directory(id) {
            self.prune(id, layer);
        }
    }

    /// Removes from a directory, and from those in it, all that comes from below `layer`.
    fn prune(&mut self, directory: NodeId, layer: u32) {
        let mut waiting = vec![directory];
        while let Some(id) = waiting.pop() {
            let mut children = std::mem::take(self.children(id));
            children.retain(|_, child| self.nodes[*child].layer == layer);
            waiting.extend(children.values().filter(|child| self.is_directory(**child)));
            *self.children(id) = children;
        }
    }

    /// The tree, in the order in which a scan of the unpacked directory would find it.
    fn flatten(self, archives: Vec<Archive>, markers: Markers) -> Result<Tree, Error> {
        let tree = Tree {
            path: PathBuf::from("/"),
            markers,
            source: Source::Archives(archives),
            inodes: Vec::new(),
            entries: Vec::new(),
            xattrs: vec![XattrSet::new()],
            names: Vec::new(),
            covered: Vec::new(),
        };
        let mut flat = Flat {
            nodes: &self.nodes,
            tree,
            inodes: HashMap::new(),
            sets: HashMap::from([(XattrSet::new(), 0)]),
        };
        flat.add(0, ROOT, Span::default())?;
        let mut waiting = vec![(ROOT, 0)];
        while let Some((inode, node)) = waiting.pop() {
            let mut found = flat.directory(inode, node)?;
            found.reverse();
            waiting.extend(found);
        }
        Ok(flat.tree)
    }
}

/// Writes nodes down as inodes and entries.
struct Flat<'a> {
    nodes: &'a [Node],
    tree: Tree,
    /// Files, no directories, that have a name already.
    inodes: HashMap<NodeId, u32>,
    /// Index of each set of extended attributes.
    sets: HashMap<XattrSet, u32>,
}

impl Flat<'_> {
    /// Gives a directory its entries; returns the directories in it.
    fn directory(&mut self, index: u32, node: NodeId) -> Result<Vec<(u32, NodeId)>, Error> {
        let NodeKind::Directory(children) = &self.nodes[node].kind else {
            unreachable!("only directories wait");
        };
        let dots = [(&b"."[..], None), (b"..", None)];
        let names = children.iter().map(|(name, id)| (&**name, Some(*id)));
        let mut all: Vec<_> = names.chain(dots).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        let (mut entries, mut directories) = (Vec::with_capacity(all.len()), Vec::new());
        for (name, id) in all {
            let span = self.store(name);
            let inode = match id {
                None if name == b".." => self.tree.at(index).parent,
                None => index,
                Some(id) => self.entry(id, index, span, &mut directories)?,
            };
            entries.push(Entry { name: span, inode });
        }
        let (first, count) = (self.tree.entries.len(), entries.len());
        self.tree.entries.extend(entries);
        self.tree.inodes[index as usize].kind = Kind::Directory { first, count };
        Ok(directories)
    }

    fn entry(
        &mut self,
        id: NodeId,
        parent: u32,
        name: Span,
        directories: &mut Vec<(u32, NodeId)>,
    ) -> Result<u32, Error> {
        if let Some(&inode) = self.inodes.get(&id) {
            self.tree.inodes[inode as usize].nlink += 1;
            return Ok(inode);
        }
        let inode = self.add(id, parent, name)?;
        match self.nodes[id].kind {
            NodeKind::Directory(_) => {
                self.tree.inodes[parent as usize].nlink += 1;
                directories.push((inode, id));
            }
            _ => drop(self.inodes.insert(id, inode)),
        }
        Ok(inode)
    }

    /// A new inode.
    fn add(&mut self, id: NodeId, parent: u32, name: Span) -> Result<u32, Error> {
        let index = u32::try_from(self.tree.inodes.len()).map_err(|_| Error::TooMany {
            path: self.tree.path.clone(),
        })?;
        let node = &self.nodes[id];
        let (kind, bits) = self.kind(&node.kind);
        let (archive, offset) = match node.kind {
            NodeKind::Regular { archive, offset, .. } => (archive, offset),
            _ => (0, 0),
        };
        self.tree.inodes.push(Inode {
            kind,
            mode: bits | node.mode,
            uid: node.uid,
            gid: node.gid,
            nlink: if matches!(kind, Kind::Directory { .. }) {
                2
            } else {
                1
            },
            mtime: node.mtime,
            origin: Origin::Member { archive, offset },
            xattrs: 0,
            parent,
            name,
        });
        if matches!(kind, Kind::Character { major: 0, minor: 0 }) && self.tree.markers.lists_whiteouts() {
            return Err(Error::Archive {
                layer: node.layer as usize + 1,
                member: self.tree.relative_path(index),
                problem: "is a device 0:0, which an overlay of the image could not show",
            });
        }
        self.tree.inodes[index as usize].xattrs = self.xattrs(&node.xattrs, index)?;
        Ok(index)
    }

    /// The type, and its bits in `st_mode` (inode(7)).
    fn kind(&mut self, kind: &NodeKind) -> (Kind, u16) {
        match kind {
            &NodeKind::Regular { size, .. } => (Kind::Regular { size }, 0o100_000),
            NodeKind::Directory(_) => (Kind::Directory { first: 0, count: 0 }, 0o040_000),
            NodeKind::Symlink(target) => {
                let target = Target(self.store(target));
                (Kind::Symlink { target }, 0o120_000)
            }
            &NodeKind::Character(major, minor) => (Kind::Character { major, minor }, 0o020_000),
            &NodeKind::Block(major, minor) => (Kind::Block { major, minor }, 0o060_000),
            NodeKind::Fifo => (Kind::Fifo, 0o010_000),
        }
    }

    /// The index of a set of extended attributes.
    fn xattrs(&mut self, all: &[(Vec<u8>, Vec<u8>)], inode: u32) -> Result<u32, Error> {
        let mut set = XattrSet::new();
        for (name, value) in all.iter().filter(|(name, _)| is_kept(name)) {
            let shown = || String::from_utf8_lossy(name).into_owned();
            if value.len() > LONGEST_VALUE || name.len() > LONGEST_NAME {
                return Err(Error::XattrValue {
                    path: self.tree.path(inode),
                    name: shown(),
                    size: value.len(),
                });
            }
            match self.tree.markers.attribute(name, value) {
                Attribute::Named(name) => set.push((name, value.clone())),
                Attribute::Dropped => {}
                Attribute::Refused => return Err(self.tree.marker(inode, &shown())),
            }
        }
        set.sort_unstable();
        let next = self.tree.xattrs.len() as u32; // at most one for each inode
        let index = *self.sets.entry(set.clone()).or_insert(next);
        if index == next {
            self.tree.xattrs.push(set);
        }
        Ok(index)
    }

    /// Puts bytes into the arena.
    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.tree.names.len();
        self.tree.names.extend_from_slice(bytes);
        Span {
            start,
            len: bytes.len() as u16, // names and targets are at most LONGEST_PATH
        }
    }
}

/// The names in the path of a member. Where it begins does not matter: all paths are relative to the top.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("has a path of more than 4095 bytes");
    }
    let names = path.split(|byte| *byte == b'/');
    let names: Vec<_> = names.filter(|name| !name.is_empty() && *name != b".").collect();
    for name in &names {
        match *name {
            b".." => return Err("leads out of its directory"),
            name if name.len() > LONGEST_NAME => return Err("has a name of more than 255 bytes"),
            name if name.contains(&0) => return Err("has a name with a NUL"),
            _ => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
#[path = "archive_test.rs"]
mod tests;
