//! Headers that `cryptsetup` made, on plain files: no device mapper is needed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mkcw::{Error, Footer, Header};
use tempfile::TempDir;

struct Disk {
    directory: TempDir,
}

impl Disk {
    /// A disk of 8 MiB that the passphrase `swordfish` opens.
    fn new(options: &[&str]) -> Self {
        let disk = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        let file = File::create(disk.path()).expect("a file");
        file.set_len(8 << 20).expect("a length");
        fs::write(disk.file("passphrase"), "swordfish").expect("a file");
        let key_file = disk.file("passphrase");
        let path = disk.path();
        let fixed = [
            "luksFormat",
            "-q",
            "--type",
            "luks1",
            "--key-file",
            text(&key_file),
        ];
        let arguments = [
            &fixed,
            options,
            &["--pbkdf-force-iterations", "1000", text(&path)],
        ];
        assert_success(&cryptsetup(&arguments.concat()));
        disk
    }

    /// As `buildah mkcw` chooses them.
    fn usual() -> Self {
        Self::new(&[
            "--cipher",
            "aes-xts-plain64",
            "--key-size",
            "512",
            "--hash",
            "sha256",
        ])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn path(&self) -> PathBuf {
        self.file("disk.img")
    }

    fn open(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.path())
            .expect("the disk")
    }

    fn header(&self) -> Result<Header, Error> {
        Header::read(&self.open(), 8 << 20)
    }

    fn unlock(&self, passphrase: &str) -> Result<Vec<u8>, Error> {
        let opened = self.header()?.unlock(&self.open(), passphrase.as_bytes())?;
        Ok(opened.key.as_bytes().to_vec())
    }

    /// The volume key, as `cryptsetup` finds it.
    fn volume_key(&self) -> Vec<u8> {
        let (key_file, volume_key) = (self.file("passphrase"), self.file("volume-key"));
        assert_success(&cryptsetup(&[
            "luksDump",
            "-q",
            "--dump-volume-key",
            "--volume-key-file",
            text(&volume_key),
            "--key-file",
            text(&key_file),
            text(&self.path()),
        ]));
        fs::read(volume_key).expect("the volume key")
    }
}

fn cryptsetup(arguments: &[&str]) -> Output {
    let output = Command::new("cryptsetup").args(arguments).output();
    output.expect("cryptsetup is installed")
}

#[track_caller]
fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain names")
}

/// The last sentence of the chain.
fn cause(error: Error) -> String {
    match error {
        Error::Header(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

#[test]
fn the_volume_key_is_the_one_that_cryptsetup_finds() {
    let disk = Disk::usual();
    assert_eq!(disk.unlock("swordfish").expect("a key"), disk.volume_key());
    assert!(matches!(disk.unlock("swordfish\n"), Err(Error::WrongPassphrase)));
    assert!(matches!(disk.unlock(""), Err(Error::WrongPassphrase)));
    let header = disk.header().expect("a header");
    assert_eq!(header.payload(), 2 << 20..8 << 20);
    let uuid = cryptsetup(&["luksUUID", text(&disk.path())]).stdout;
    assert_eq!(header.uuid(), String::from_utf8(uuid).expect("a UUID").trim_end());
    assert_eq!(Footer::read(&disk.open()).expect("no error"), None);
}

/// With a second key slot, and then without the first.
#[test]
fn any_key_slot_will_do() {
    let disk = Disk::usual();
    let (first, second) = (disk.file("passphrase"), disk.file("second"));
    fs::write(&second, "trout").expect("a file");
    assert_success(&cryptsetup(&[
        "luksAddKey",
        "-q",
        "--pbkdf-force-iterations",
        "1000",
        "--key-file",
        text(&first),
        text(&disk.path()),
        text(&second),
    ]));
    let key = disk.volume_key();
    assert_eq!(disk.unlock("swordfish").expect("a key"), key);
    assert_eq!(disk.unlock("trout").expect("a key"), key);
    assert_success(&cryptsetup(&[
        "luksKillSlot",
        "-q",
        "--key-file",
        text(&second),
        text(&disk.path()),
        "0",
    ]));
    assert!(matches!(disk.unlock("swordfish"), Err(Error::WrongPassphrase)));
    assert_eq!(disk.unlock("trout").expect("a key"), key);
}

#[test]
fn damaged_key_material_opens_nothing() {
    let disk = Disk::usual();
    // The first key slot's material starts at sector 8.
    for at in [4096, 4096 + 128_000, 4096 + 255_999] {
        let file = disk.open();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
        assert!(matches!(disk.unlock("swordfish"), Err(Error::WrongPassphrase)));
        file.write_all_at(&byte, at).expect("a byte");
    }
    disk.unlock("swordfish").expect("a key");
}

#[test]
fn what_mkcw_does_not_make_is_refused() {
    for (options, expected) in [
        (
            &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"][..],
            "cipher-mode is \"cbc-essiv:sha256\" and should be xts-plain64",
        ),
        (
            &["--cipher", "aes-xts-plain64", "--key-size", "256"],
            "key-bytes is 32 and should be 64",
        ),
        (
            &[
                "--cipher",
                "aes-xts-plain64",
                "--key-size",
                "512",
                "--hash",
                "sha512",
            ],
            "hash-spec is \"sha512\" and should be sha256",
        ),
    ] {
        let error = Disk::new(options).unlock("swordfish").expect_err("an error");
        assert_eq!(cause(error), expected);
    }
}

/// `cryptsetup` makes such a disk only where there is a device mapper, hence by hand.
#[test]
fn a_null_cipher_is_refused() {
    let disk = Disk::usual();
    for (mode, null) in [("ecb", true), ("xts-plain64", true), ("ecb", false)] {
        let mut names = [0; 64];
        let name = if null { "cipher_null" } else { "aes" };
        names[..name.len()].copy_from_slice(name.as_bytes());
        names[32..32 + mode.len()].copy_from_slice(mode.as_bytes());
        disk.open().write_all_at(&names, 8).expect("the header");
        let dump = cryptsetup(&["luksDump", text(&disk.path())]).stdout;
        assert!(String::from_utf8_lossy(&dump).contains(name));
        let expected = if null {
            "cipher-name is \"cipher_null\" and should be aes"
        } else {
            "cipher-mode is \"ecb\" and should be xts-plain64"
        };
        assert_eq!(cause(disk.unlock("swordfish").expect_err("an error")), expected);
    }
}

/// Where a disk was made for guests of today but is LUKS2, the message says so.
#[test]
fn luks2_is_refused() {
    let disk = Disk::usual();
    let key_file = disk.file("passphrase");
    let path = disk.path();
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(32 << 20))
        .expect("a length");
    let pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let fixed = [
        "luksFormat",
        "-q",
        "--type",
        "luks2",
        "--key-file",
        text(&key_file),
        text(&path),
    ];
    assert_success(&cryptsetup(&[&pbkdf[..], &fixed].concat()));
    let error = disk.header().expect_err("an error");
    assert_eq!(cause(error), "version is 2 and should be 1");
}
