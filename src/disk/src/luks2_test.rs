//! Headers that are whole (their checksums fit) and lie.

use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::*;
use crate::Unlock;

/// A file with a header as `write` makes it, and of the right length.
fn image() -> (File, Layout) {
    let layout = Layout::new(100, [1; 32], [2; 32], [3; 16]);
    let file = tempfile::tempfile().unwrap();
    file.set_len(layout.image_bytes()).unwrap();
    write(&file, &Unlock::generate().unwrap(), &layout, "label").unwrap();
    (file, layout)
}

/// Replaces text in the metadata of both copies and makes their checksums fit.
fn forge(file: &File, from: &str, to: &str) {
    for copy in [Copy::Primary, Copy::Secondary] {
        let mut bytes = vec![0; HEADER_LEN];
        file.read_exact_at(&mut bytes, copy.offset()).unwrap();
        let json = String::from_utf8(bytes[4096..].to_vec()).unwrap();
        assert!(json.contains(from), "{from} in {json}");
        let mut json = json
            .replacen(from, to, 1)
            .trim_end_matches('\0')
            .as_bytes()
            .to_vec();
        json.resize(HEADER_LEN - 4096, 0);
        bytes[4096..].copy_from_slice(&json);
        seal(&mut bytes);
        file.write_all_at(&bytes, copy.offset()).unwrap();
    }
}

fn seal(header: &mut [u8]) {
    header[448..512].fill(0);
    let checksum = Sha256::digest(&*header);
    header[448..480].copy_from_slice(&checksum);
}

fn refused(file: &File) -> String {
    match inspect(file) {
        Ok(inspection) => panic!("accepted: {inspection:?}"),
        Err(Error::Header(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_written_is_read() {
    let (file, layout) = image();
    let inspection = inspect(&file).unwrap();
    assert_eq!(
        (inspection.label.as_str(), &inspection.layout),
        ("label", &layout)
    );
    let slot = Keyslot {
        number: 0,
        kdf: "pbkdf2".to_owned(),
        iterations: 1000,
        memory_kib: 0,
    };
    assert_eq!(inspection.keyslots, [slot]);
    assert_eq!(inspection.uuid.len(), 36);
}

#[test]
fn lies_are_named() {
    let lies = [
        // The attacks that confidential guests have fallen for: no encryption, or another kind.
        (
            r#""encryption":"aes-xts-plain64","sector_size""#,
            r#""encryption":"cipher_null-ecb","sector_size""#,
            "segments.0",
        ),
        (
            r#""encryption":"aes-xts-plain64","key_size""#,
            r#""encryption":"cipher_null-ecb","key_size""#,
            "keyslots.0",
        ),
        (r#""type":"crypt""#, r#""type":"linear""#, "segments.0"),
        (r#""type":"luks2""#, r#""type":"reencrypt""#, "keyslots.0"),
        (r#""segments":{"0""#, r#""segments":{"1""#, "segments"),
        (r#""key_size":64,"af""#, r#""key_size":0,"af""#, "keyslots.0"),
        (r#""iv_tweak":"0""#, r#""iv_tweak":"1""#, "segments.0"),
        (
            r#""iv_tweak":"0""#,
            r#""iv_tweak":0"#,
            "metadata of the primary header",
        ),
        (r#""stripes":4000"#, r#""stripes":1"#, "keyslots.0"),
        (
            r#""stripes":4000"#,
            r#""stripes":4294967296"#,
            "metadata of the primary header",
        ),
        (r#""offset":"1048576""#, r#""offset":"0""#, "segments.0"),
        (
            r#""payload_offset":1048576"#,
            r#""payload_offset":0"#,
            "segments.0",
        ),
        (
            r#""offset":"32768""#,
            r#""offset":"18446744073709551615""#,
            "keyslots.0",
        ),
        (
            r#""offset":"32768""#,
            r#""offset":"18446744073709551616""#,
            "metadata of the primary header",
        ),
        (r#""iterations":1000"#, r#""iterations":1"#, "iterations"),
        (r#""iterations":1000"#, r#""iterations":4294967295"#, "iterations"),
        (r#""type":"cwrun""#, r#""type":"clevis""#, "tokens.0"),
        (
            r#""data_blocks":100"#,
            r#""data_blocks":18446744073709551615"#,
            "data_blocks",
        ),
        (r#""data_blocks":100"#, r#""data_blocks":101"#, "payload_bytes"),
        (
            r#""config":{"#,
            r#""config":{"requirements":{},"#,
            "metadata of the primary header",
        ),
        (
            r#""tokens":{"#,
            r#""tokens":{"1":1,"#,
            "metadata of the primary header",
        ),
        (
            r#"{"keyslots""#,
            r#"[{"keyslots""#,
            "metadata of the primary header",
        ),
    ];
    for (from, to, named) in lies {
        let (file, _) = image();
        forge(&file, from, to);
        let message = refused(&file);
        assert!(message.contains(named), "{to}: {message}");
    }
}

#[test]
fn expensive_key_derivation_is_refused() {
    let (file, _) = image();
    let kdf = r#""kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"#;
    forge(
        &file,
        kdf,
        r#""kdf":{"type":"argon2id","time":4,"memory":4294967295,"cpus":2,"#,
    );
    assert_eq!(
        refused(&file),
        "keyslots.0.kdf.memory in the metadata is 4294967295 and should be 16 to 1048576"
    );
    assert!(unlock(&file, b"x").is_err());
}

#[test]
fn deep_nesting_is_refused() {
    let (file, _) = image();
    forge(
        &file,
        r#""config":{"#,
        &format!(r#""config":{}{{"#, "[".repeat(6000)),
    );
    refused(&file);
}

#[test]
fn copies_must_agree() {
    let (file, _) = image();
    let mut bytes = vec![0; HEADER_LEN];
    file.read_exact_at(&mut bytes, Copy::Secondary.offset()).unwrap();
    bytes[16..24].copy_from_slice(&9u64.to_be_bytes());
    seal(&mut bytes);
    file.write_all_at(&bytes, Copy::Secondary.offset()).unwrap();
    assert!(refused(&file).contains("binary part differs"));
}

#[test]
fn fixed_fields_of_the_binary_part() {
    for (at, value, named) in [
        (0, b'X', "magic"),
        (7, 1, "version"),
        (15, 1, "hdr_size"),
        (72, b'm', "checksum_alg"),
        (263, 1, "hdr_offset"),
        (24, 7, "label"),
        (480, 1, "checksum"),
    ] {
        let (file, _) = image();
        let mut bytes = vec![0; HEADER_LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes[at] = value;
        if at != 480 {
            seal(&mut bytes);
        }
        file.write_all_at(&bytes, 0).unwrap();
        let message = refused(&file);
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn short_files() {
    for len in [0, 100, 4096, 16 << 10, 20 << 10] {
        let (file, _) = image();
        file.set_len(len).unwrap();
        assert!(refused(&file).contains("ends inside"));
    }
}

/// Ten thousand headers whose checksums fit, and whose content is damaged in both copies alike.
mod mutations {
    use std::sync::LazyLock;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    static HEADERS: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = vec![0; 2 * HEADER_LEN];
        image().0.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });

    /// Bytes of the metadata, which are the ones worth lying about, or any.
    fn places() -> impl Strategy<Value = usize> {
        prop_oneof![4 => 4096..5600usize, 1 => 0..HEADER_LEN]
    }

    fn replacements() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            vec(any::<u8>(), 1..4),
            vec(0x20..0x7fu8, 1..8),
            proptest::sample::select(vec![
                "0",
                "-1",
                "4294967295",
                "1e9",
                "null",
                "{",
                "]",
                "\"",
                "[[[["
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn refused_or_within_limits(changes in vec((places(), replacements()), 1..5)) {
            let mut bytes = HEADERS.clone();
            for copy in bytes.chunks_exact_mut(HEADER_LEN) {
                for (at, new) in &changes {
                    copy.iter_mut().skip(*at).zip(new).for_each(|(byte, new)| *byte = *new);
                }
                seal(copy);
            }
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.set_len(Layout::new(100, [1; 32], [2; 32], [3; 16]).image_bytes()).unwrap();
            if let Ok(inspection) = inspect(&file) {
                prop_assert_eq!(inspection.cipher, "aes-xts-plain64");
                prop_assert_eq!(inspection.layout.data_blocks, 100);
                let slot = &inspection.keyslots[0];
                prop_assert!(slot.kdf == "pbkdf2" && slot.iterations >= 1000);
            }
        }
    }
}
