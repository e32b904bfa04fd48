//! Layers over layers: what is deleted, replaced, kept, followed and refused.

use std::io::Write as _;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// What a test puts into a layer.
#[derive(Clone, Copy)]
enum Put<'a> {
    File(&'a str),
    Directory(u32),
    Link(&'a str),
    Hard(&'a str),
    Node(EntryType, u32, u32),
}
use Put::{Directory, File as Data, Hard, Link, Node as Device};

fn bytes(members: &[(&str, Put<'_>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, put) in members {
        let mut header = Header::new_gnu();
        // `Builder` refuses paths that hostile archives have.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let link = |header: &mut Header, kind, target: &str| {
            header.set_entry_type(kind);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        };
        let mut data = "";
        match *put {
            Data(content) => data = content,
            Directory(mode) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(mode);
            }
            Link(target) => link(&mut header, EntryType::Symlink, target),
            Hard(target) => link(&mut header, EntryType::Link, target),
            Device(kind, major, minor) => {
                header.set_entry_type(kind);
                header.set_device_major(major).unwrap();
                header.set_device_minor(minor).unwrap();
            }
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn archive(bytes: &[u8]) -> Archive {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Archive {
        file,
        digest: [0; 32],
    }
}

/// Every path of the tree but the top, with what is there: data, `mode/` of a directory, `-> target`.
fn listing(layers: &[&[(&str, Put<'_>)]]) -> Result<Vec<(String, String)>, Error> {
    let tree = Tree::from_archives(
        layers.iter().map(|members| archive(&bytes(members))).collect(),
        Markers::Shown,
    )?;
    let mut reader = super::super::Reader::new(&tree);
    let mut all = Vec::new();
    let mut waiting = vec![(ROOT, String::new())];
    while let Some((inode, path)) = waiting.pop() {
        let Kind::Directory { first, count } = tree.at(inode).kind else {
            unreachable!()
        };
        for &entry in &tree.entries[first..first + count] {
            let name = String::from_utf8_lossy(tree.name(entry)).into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{path}/{name}");
            let inode = tree.at(entry.inode);
            let what = match inode.kind {
                Kind::Directory { .. } => {
                    waiting.push((entry.inode, path.clone()));
                    format!("{:o}/", inode.mode & 0o7777)
                }
                Kind::Regular { size } => {
                    let mut data = vec![0; size as usize];
                    reader.read(entry.inode, 0, &mut data)?;
                    String::from_utf8(data).unwrap()
                }
                Kind::Symlink { target } => {
                    format!("-> {}", String::from_utf8_lossy(tree.target(target)))
                }
                Kind::Character { major, minor } => format!("c{major}:{minor}"),
                Kind::Block { major, minor } => format!("b{major}:{minor}"),
                _ => "other".to_owned(),
            };
            all.push((path, what));
        }
    }
    all.sort();
    Ok(all)
}

fn assert_listing(layers: &[&[(&str, Put<'_>)]], expected: &[(&str, &str)]) {
    let owned = |(path, what): &(&str, &str)| (path.to_string(), what.to_string());
    assert_eq!(
        listing(layers).unwrap(),
        expected.iter().map(owned).collect::<Vec<_>>()
    );
}

#[test]
fn a_later_layer_replaces_and_adds() {
    assert_listing(
        &[
            &[
                ("etc/", Directory(0o755)),
                ("etc/a", Data("old")),
                ("etc/b", Data("kept")),
                ("dir/x", Data("gone")),
            ],
            &[
                ("./etc", Directory(0o700)),
                ("/etc/a", Data("new")),
                ("dir", Data("a file now")),
            ],
        ],
        &[
            ("/dir", "a file now"),
            ("/etc", "700/"),
            ("/etc/a", "new"),
            ("/etc/b", "kept"),
        ],
    );
}

#[test]
fn whiteouts_delete_what_lies_below_and_nothing_of_their_own_layer() {
    let lower: &[(&str, Put<'_>)] = &[
        ("a", Data("1")),
        ("d/x", Data("2")),
        ("d/y", Data("3")),
        ("e/f/g", Data("4")),
    ];
    assert_listing(
        &[
            lower,
            &[
                (".wh.a", Data("")),
                ("d/.wh.x", Data("")),
                (".wh.not-there", Data("")),
            ],
        ],
        &[
            ("/d", "755/"),
            ("/d/y", "3"),
            ("/e", "755/"),
            ("/e/f", "755/"),
            ("/e/f/g", "4"),
        ],
    );
    // Whichever comes first.
    let new = ("e/f/new", Data("5"));
    let wanted = [
        ("/a", "1"),
        ("/d", "755/"),
        ("/d/x", "2"),
        ("/d/y", "3"),
        ("/e", "755/"),
        ("/e/f", "755/"),
        ("/e/f/new", "5"),
    ];
    for opaque in ["e/.wh..wh..opq", "e/f/.wh..wh..opq", ".wh.e"] {
        assert_listing(&[lower, &[new, (opaque, Data(""))]], &wanted);
        assert_listing(&[lower, &[(opaque, Data("")), new]], &wanted);
    }
    assert_listing(
        &[
            &[("a/b", Data("1")), (".wh..wh.plnk/x", Data(""))],
            &[(".wh.a", Data(""))],
        ],
        &[("/.wh..wh.plnk", "755/"), ("/.wh..wh.plnk/x", "")],
    );
}

#[test]
fn hard_links_are_one_file_and_stay_one_when_a_name_goes() {
    let layers: [&[(&str, Put<'_>)]; 2] = [
        &[("a", Data("1")), ("d/b", Hard("a")), ("c", Hard("./d/b"))],
        &[(".wh.a", Data(""))],
    ];
    assert_listing(&layers, &[("/c", "1"), ("/d", "755/"), ("/d/b", "1")]);
    let tree = Tree::from_archives(
        layers.iter().map(|members| archive(&bytes(members))).collect(),
        Markers::Shown,
    )
    .unwrap();
    assert_eq!(
        tree.inodes
            .iter()
            .filter(|inode| inode.nlink == 2 && matches!(inode.kind, Kind::Regular { .. }))
            .count(),
        1
    );
    assert_eq!(tree.files(), 1);
}

#[test]
fn the_way_to_a_member_leads_through_links_and_never_out_of_the_tree() {
    let lower: &[(&str, Put<'_>)] = &[
        ("usr/bin/", Directory(0o755)),
        ("bin", Link("usr/bin")),
        ("abs", Link("/usr")),
        ("up", Link("../../../..")),
        ("far", Link("../../etc/new")),
    ];
    let upper: &[(&str, Put<'_>)] = &[
        ("bin/sh", Data("1")),
        ("abs/x", Data("2")),
        ("up/y", Data("3")),
        ("far/z", Data("4")),
    ];
    assert_listing(
        &[lower, upper],
        &[
            ("/abs", "-> /usr"),
            ("/bin", "-> usr/bin"),
            ("/etc", "755/"),
            ("/etc/new", "755/"),
            ("/etc/new/z", "4"),
            ("/far", "-> ../../etc/new"),
            ("/up", "-> ../../../.."),
            ("/usr", "755/"),
            ("/usr/bin", "755/"),
            ("/usr/bin/sh", "1"),
            ("/usr/x", "2"),
            ("/y", "3"),
        ],
    );
}

#[test]
fn devices_come_with_their_numbers() {
    assert_listing(
        &[&[
            ("c", Device(EntryType::Char, 1, 3)),
            ("b", Device(EntryType::Block, 259, 0x12345)),
        ]],
        &[("/b", "b259:74565"), ("/c", "c1:3")],
    );
}

#[test]
fn what_no_root_file_system_can_have_is_refused_by_name() {
    let long = "n".repeat(99);
    for (members, problem) in [
        (&[("../a", Data(""))][..], "leads out"),
        (&[("a/../../b", Data(""))], "leads out"),
        (
            &[("a", Data("")), ("a/b", Data(""))],
            "below something that is no directory",
        ),
        (&[("a", Link("a")), ("a/b", Data(""))], "too many symbolic links"),
        (&[("a", Hard("b"))], "not there"),
        (
            &[("a/", Directory(0o755)), ("b", Hard("a"))],
            "hard link to a directory",
        ),
        (&[("b", Hard(""))], "link to nothing"),
        (&[("a", Link(""))], "link to nothing"),
        (&[("./", Link("x"))], "in the place of the root directory"),
        (
            &[(long.as_str(), Device(EntryType::Char, 0x1000, 0))],
            "device number",
        ),
        (&[("x", Device(EntryType::new(b'V'), 0, 0))], "of a type"),
        (&[("x", Device(EntryType::GNUSparse, 0, 0))], "holes"),
    ] {
        let error = listing(&[&[], members]).unwrap_err().to_string();
        assert!(
            error.contains(problem) && error.starts_with("layer 2: "),
            "{error}"
        );
    }
    let whiteout = listing(&[&[("x", Device(EntryType::Char, 0, 0))]]).unwrap_err();
    assert!(whiteout.to_string().contains("device 0:0"), "{whiteout}");
}

#[test]
fn an_archive_that_is_cut_off_or_damaged_is_refused() {
    let whole = bytes(&[("a", Data("data")), ("b", Data(""))]);
    let open =
        |bytes: &[u8]| Tree::from_archives(vec![archive(bytes)], Markers::Shown).map(|tree| tree.files());
    assert_eq!(open(&whole).unwrap(), 2);
    // Without the end: engines write such archives too.
    assert_eq!(open(&whole[..512 * 3]).unwrap(), 2);
    for cut in [100, 512, 514, 512 * 2 + 7] {
        let error = open(&whole[..cut]).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{cut}: {error}");
    }
    let mut damaged = whole.clone();
    damaged[3] ^= 1;
    assert!(open(&damaged).unwrap_err().to_string().contains("checksum"));
    assert!(open(b"").is_ok_and(|files| files == 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// With checksums made good again, so that what is behind them is reached.
    #[test]
    fn damaged_archives_are_trees_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = bytes(&[
            ("d/", Directory(0o755)), ("d/a", Data("some data")), ("l", Link("d")), ("h", Hard("d/a")), ("l/x", Data("1")), (".wh.d", Data("")),
        ]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for header in bytes.chunks_exact_mut(512).filter(|header| header[257..262] == *b"ustar") {
            let mut fixed = Header::from_byte_slice(header).clone();
            fixed.set_cksum();
            header.copy_from_slice(fixed.as_bytes());
        }
        if let Ok(tree) = Tree::from_archives(vec![archive(&bytes)], Markers::Shown) {
            let (image, key) = (tempfile::tempfile().unwrap(), crate::VolumeKey::generate().unwrap());
            let _ = tree.build_payload(&image, &key, &crate::Options::default());
        }
    }
}
