//! What is read of a sealed image that anybody may have made.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;
use workload::{Crypt, Hex, Layer, Scratch, Tee, TeeKind, User, Verity};

/// Bytes of its disk.
const DISK_BYTES: u64 = 3 * 4096;

/// A workload as `seal` makes it of an image that runs nginx.
pub(crate) fn workload(allow: &[&str]) -> Workload {
    let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let user = User {
        uid: 33,
        gid: 33,
        additional_gids: vec![44],
        umask: None,
    };
    let plain = source::of_engine(
        strings(&["/usr/sbin/nginx", "-g", "daemon off;"]),
        strings(&["PATH=/usr/bin:/bin", "FOO=bar", "HOME=/var/www"]),
        "/srv".to_owned(),
        user,
        Scratch::Disk { bytes: 1 << 30 },
    );
    Workload {
        root: RootFs::Layers {
            layers: vec![Layer {
                crypt: Crypt {
                    offset: 0,
                    length: DISK_BYTES,
                    sector_size: 4096,
                },
                verity: Verity {
                    data_blocks: 1,
                    hash_start_block: 2,
                    salt: Hex([1; 32]),
                    root_hash: Hex([2; 32]),
                },
            }],
        },
        tee: Some(Tee {
            kind: TeeKind::Sim,
            exec: false,
        }),
        sealed: Some(Sealed {
            id: "nginx-1".to_owned(),
            allow: allow.iter().map(|rule| rule.parse().unwrap()).collect(),
            secrets: Vec::new(),
        }),
        ..plain
    }
}

/// A root file system with these files in its directory.
fn image(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join(DIRECTORY)).unwrap();
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    root
}

fn refused(root: &TempDir) -> String {
    format!("{:#}", find(root.path()).expect_err("an image that is damaged"))
}

#[test]
fn what_is_sealed_is_found_and_everything_else_is_not() {
    let (document, disk) = (workload(&["args"]).to_bytes(), [0; DISK_BYTES as usize]);
    let root = image(&[(WORKLOAD, &document), (DISK, &disk)]);
    let image_found = find(root.path()).unwrap().unwrap();
    assert_eq!(image_found.contents.workload, workload(&["args"]));
    assert_eq!(image_found.contents.broker, None);
    fs::write(
        root.path().join(BROKER),
        r#"{"url":"https://broker.example.org/x"}"#,
    )
    .unwrap();
    let contents = find(root.path()).unwrap().unwrap().contents;
    assert_eq!(contents.broker.unwrap().url, "https://broker.example.org/x");
    let ordinary = tempfile::tempdir().unwrap();
    assert!(find(ordinary.path()).unwrap().is_none());
    fs::write(ordinary.path().join(DIRECTORY), "a file").unwrap();
    assert!(find(ordinary.path()).unwrap().is_none());
}

/// Files of an image by their names, and what is said of them.
type Damaged<'a> = (&'a [(&'a str, &'a [u8])], &'a str);

#[test]
fn a_damaged_image_is_an_error_and_never_an_ordinary_one() {
    let (document, disk) = (workload(&[]).to_bytes(), [0; DISK_BYTES as usize]);
    let not_sealed = Workload {
        sealed: None,
        ..workload(&[])
    };
    let cases: [Damaged<'_>; 11] = [
        (&[(WORKLOAD, &document)], "disk.img: missing"),
        (&[(WORKLOAD, b"{}"), (DISK, &disk)], "missing field"),
        (&[(WORKLOAD, b""), (DISK, &disk)], "not valid"),
        (&[(WORKLOAD, &document), (DISK, &disk[1..])], "has 12287 bytes"),
        (&[(WORKLOAD, &document), (DISK, b"")], "has 0 bytes"),
        (
            &[(WORKLOAD, &not_sealed.to_bytes()), (DISK, &disk)],
            "not a sealed one",
        ),
        (
            &[(WORKLOAD, &[document.as_slice(), b"\n"].concat()), (DISK, &disk)],
            "canonical form",
        ),
        (
            &[(WORKLOAD, &vec![b' '; MAX_WORKLOAD + 1]), (DISK, &disk)],
            "longer than 1048576 bytes",
        ),
        (
            &[
                (WORKLOAD, &document),
                (DISK, &disk),
                (BROKER, b"{\"url\":\"file:///etc\"}"),
            ],
            "not a URL",
        ),
        (
            &[
                (WORKLOAD, &document),
                (DISK, &disk),
                (BROKER, b"{\"url\":\"http://a b\"}"),
            ],
            "not a URL",
        ),
        (
            &[
                (WORKLOAD, &document),
                (DISK, &disk),
                (BROKER, b"{\"uri\":\"http://a\"}"),
            ],
            "unknown field",
        ),
    ];
    for (files, said) in cases {
        let error = refused(&image(files));
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn nothing_outside_of_the_root_is_opened() {
    let document = workload(&[]).to_bytes();
    let outside = image(&[(WORKLOAD, &document), (DISK, &[0; DISK_BYTES as usize])]);
    for name in [WORKLOAD, DISK] {
        let root = image(&[(WORKLOAD, &document), (DISK, &[0; DISK_BYTES as usize])]);
        fs::remove_file(root.path().join(name)).unwrap();
        symlink(outside.path().join(name), root.path().join(name)).unwrap();
        refused(&root);
        fs::remove_file(root.path().join(name)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join(name),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let error = refused(&root);
        assert!(error.contains("not a regular file"), "{error}");
    }
    let root = tempfile::tempdir().unwrap();
    symlink(outside.path().join(DIRECTORY), root.path().join(DIRECTORY)).unwrap();
    refused(&root);
}

#[test]
fn what_a_stranger_wrote_is_shown_without_its_control_characters() {
    let mut workload = workload(&["env:*"]);
    workload.process.args.push("\x1b[2Jgone\n".to_owned());
    workload.process.env.push("A=\x07".to_owned());
    let contents = Contents::parse(&workload.to_bytes(), None, DISK_BYTES).unwrap();
    let text = words::describe(&contents);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    for said in [
        "sealed as            nginx-1\n",
        "runs                 \"/usr/sbin/nginx\" \"-g\" \"daemon off;\" \"\\u{1b}[2Jgone\\n\"\n",
        "as                   user 33, group 33, groups 44, no capabilities\n",
        "a SIMULATED one, which protects nothing",
        "the host may change  \"env:*\"\n",
        "exec                 not allowed\n",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(text.contains(&workload.digest().to_string()), "{text}");
    assert_eq!(words::json(&contents)["host_data"], workload.digest().to_string());
}

proptest! {
    #[test]
    fn an_altered_document_is_another_workload_or_an_error(
        position in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        let mut document = workload(&["args", "file:/etc/x"]).to_bytes();
        let position = position.index(document.len());
        match cut {
            true => document.truncate(position),
            false => document[position] = byte,
        }
        if let Ok(contents) = Contents::parse(&document, None, DISK_BYTES) {
            prop_assert_eq!(contents.workload.to_bytes(), document);
            words::describe(&contents);
        }
    }

    #[test]
    fn no_bytes_are_too_strange_for_a_hint(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Broker::parse(&bytes);
        let _ = Contents::parse(&bytes, Some(&bytes), 0);
    }
}
