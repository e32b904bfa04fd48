//! One layer: a tar archive that may be compressed, as it is told by its first bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use disk::Archive;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::blobs::{Blob, Blobs, Sha256Digest};
use super::manifest::Layer;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Opens a layer, whose archive has the digest `diff_id`. If it is compressed or lies in an archive, it is copied to a file without a name
/// in the directory `scratch`.
pub fn open(blobs: &Blobs, layer: &Layer, diff_id: &Sha256Digest, scratch: &Path) -> Result<Archive> {
    let blob = blobs.open(&layer.name)?;
    let mut magic = Vec::new();
    blob.reader().take(4).read_to_end(&mut magic)?;
    let copied = if magic.starts_with(&GZIP) {
        unpack(&blob, layer, scratch, gunzip)?
    } else if magic == ZSTD {
        unpack(&blob, layer, scratch, unzstd)?
    } else if blob.offset > 0 {
        unpack(&blob, layer, scratch, |input, output| copy(input, output))?
    } else {
        let digest = digest(&blob)?;
        (blob.file, digest)
    };
    let (file, digest) = copied;
    diff_id.expect(digest)?;
    Ok(Archive { file, digest })
}

/// Copies what `decode` makes of the blob, and returns the copy and its digest.
fn unpack(
    blob: &Blob,
    layer: &Layer,
    scratch: &Path,
    decode: impl FnOnce(&mut Digesting<'_>, &mut Copy) -> io::Result<()>,
) -> Result<(File, [u8; 32])> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(scratch, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("can't make a file in {}", scratch.display()))?;
    let mut input = Digesting::new(blob);
    let mut output = Copy {
        file: file.into(),
        digest: Sha256::new(),
    };
    decode(&mut input, &mut output).context("can't be unpacked")?;
    // What follows the compressed data counts as well.
    copy(&mut input, &mut io::sink())?;
    if let Some(expected) = &layer.digest {
        expected.expect(input.digest.finalize().into())?;
    }
    Ok((output.file, output.digest.finalize().into()))
}

fn gunzip(input: &mut Digesting<'_>, output: &mut Copy) -> io::Result<()> {
    copy(flate2::read::MultiGzDecoder::new(input), output)
}

/// One frame. What may be behind it, as zstd:chunked has it, is no part of the archive.
fn unzstd(input: &mut Digesting<'_>, output: &mut Copy) -> io::Result<()> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(input);
    copy(decoder.map_err(io::Error::other)?, output)
}

/// The digest of a blob as it is.
fn digest(blob: &Blob) -> io::Result<[u8; 32]> {
    let mut input = Digesting::new(blob);
    copy(&mut input, &mut io::sink())?;
    Ok(input.digest.finalize().into())
}

fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the digest of what is read.
struct Digesting<'a> {
    reader: Box<dyn Read + 'a>,
    digest: Sha256,
}

impl<'a> Digesting<'a> {
    fn new(blob: &'a Blob) -> Self {
        Self {
            reader: Box::new(blob.reader()),
            digest: Sha256::new(),
        }
    }
}

impl Read for Digesting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buffer)?;
        self.digest.update(&buffer[..len]);
        Ok(len)
    }
}

/// Takes the digest of what is written.
struct Copy {
    file: File,
    digest: Sha256,
}

impl Write for Copy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write(bytes)?;
        self.digest.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
