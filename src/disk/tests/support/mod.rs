//! What the tests share: building images, decrypting them with another implementation of XTS, and running tools.

// Each test program uses a part of it.
#![allow(dead_code)]

pub mod erofs;
pub mod source;

use std::fs::{self, File, OpenOptions};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aes::Aes256;
use aes::cipher::KeyInit;
use disk::{Built, Options, Tree, Unlock};

/// An image in a directory of its own.
pub struct Image {
    pub directory: tempfile::TempDir,
    pub file: File,
    pub built: Built,
    pub unlock: Unlock,
}

impl Image {
    /// Converts `rootfs` with a random key.
    pub fn build(rootfs: &Path) -> Self {
        Self::build_with(rootfs, Unlock::generate().expect("a key"), 2)
    }

    pub fn build_with(rootfs: &Path, unlock: Unlock, threads: usize) -> Self {
        Self::of_tree(&Tree::scan(rootfs).expect("a tree"), unlock, threads)
    }

    /// Converts a tree that has been scanned.
    pub fn of_tree(tree: &Tree, unlock: Unlock, threads: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("an image");
        let options = Options {
            threads: NonZero::new(threads),
            label: "test",
            ..Options::default()
        };
        let built = tree.build(&file, &unlock, &options).expect("a conversion");
        Self {
            directory,
            file,
            built,
            unlock,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// The payload, decrypted by the crate xts-mode.
    pub fn plaintext(&self) -> Vec<u8> {
        let layout = &self.built.layout;
        let mut data = vec![0; layout.payload_bytes as usize];
        self.file
            .read_exact_at(&mut data, layout.payload_offset)
            .expect("the payload");
        let key = self.unlock.volume_key().as_bytes();
        let half = |range| Aes256::new_from_slice(&key[range]).expect("an AES key");
        let xts = xts_mode::Xts128::new(half(0..32), half(32..64));
        for (number, sector) in (0u128..).zip(data.chunks_exact_mut(4096)) {
            xts.decrypt_sector(sector, (number * 8).to_le_bytes().into());
        }
        data
    }

    /// The decrypted payload as a file; only tests ever have one.
    pub fn plaintext_file(&self) -> PathBuf {
        let path = self.directory.path().join("plaintext");
        fs::write(&path, self.plaintext()).expect("writing the plaintext");
        path
    }

    /// A file with the volume key.
    pub fn key_file(&self) -> PathBuf {
        let path = self.directory.path().join("key");
        fs::write(&path, self.unlock.volume_key().as_bytes()).expect("writing the key");
        path
    }
}

/// Runs a tool that must succeed; a missing tool is a failure. Returns its output.
pub fn tool(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{text}",
        output.status
    );
    text
}

/// Runs a tool; a missing tool is a failure. Nobody may be there to answer the device mapper as udev does.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name)
        .args(arguments)
        .env("PATH", path)
        .env("DM_DISABLE_UDEV", "1")
        .output();
    output.unwrap_or_else(|error| panic!("cannot run {name} (Debian: erofs-utils, cryptsetup-bin): {error}"))
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
