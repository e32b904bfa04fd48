//! The end of the disk: what krun must know before it can start a guest.
//!
//! ```text
//!   … │ zeros up to a multiple of 4 KiB │ workload JSON │ KRUN │ length of the JSON, u64 little endian │ end
//! ```
//!
//! The same JSON is the file `/krun-sev.json` of the image. It has the six keys of [`WorkloadConfig`] and no others.

use serde::Deserialize;

use crate::{Error, ReadAt, WrongField};

/// The longest workload configuration accepted, in bytes. Real ones have some hundreds.
pub const MAX_WORKLOAD: u64 = 64 << 10;

const MAGIC: &[u8; 4] = b"KRUN";

/// Magic and length.
const TAIL_LEN: u64 = 12;

/// Longest `workload_id` and `attestation_url`, in bytes, that krun's guest has room for.
const MAX_TEXT: usize = 255;

const DOCUMENT: &str = "the workload configuration";

/// The workload configuration at the end of a disk, and where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The configuration.
    pub workload: WorkloadConfig,
    /// Offset in bytes of its first byte: everything else on the disk ends here or before.
    pub offset: u64,
}

impl Footer {
    /// Reads the end of `disk`. `None` if there is no footer, which is to say: no `KRUN` twelve bytes before the end.
    ///
    /// SECURITY: whoever stores the disk can have written this. It may be wrong, but is well-formed.
    ///
    /// # Errors
    /// [`Error::Footer`], [`Error::Json`], [`Error::Workload`] where there is one that is not as it should be;
    /// [`Error::Read`].
    pub fn read<D: ReadAt + ?Sized>(disk: &D) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Read {
            part: "footer",
            source,
        };
        let Some(end) = disk.length().map_err(failed)?.checked_sub(TAIL_LEN) else {
            return Ok(None);
        };
        let mut tail = [0; TAIL_LEN as usize];
        disk.read_exact_at(&mut tail, end).map_err(failed)?;
        let Some((MAGIC, length)) = tail.split_first_chunk() else {
            return Ok(None);
        };
        let length = length
            .iter()
            .rev()
            .fold(0, |length, byte| length << 8 | u64::from(*byte));
        let limit = MAX_WORKLOAD.min(end);
        if length == 0 || length > limit {
            let expected = format_args!("1 to {limit} bytes");
            return Err(Error::Footer(WrongField::new(
                "length",
                format_args!("{length} bytes"),
                expected,
            )));
        }
        // Within MAX_WORKLOAD, so it fits any usize.
        let mut json = vec![0; length as usize];
        let offset = end - length;
        disk.read_exact_at(&mut json, offset).map_err(failed)?;
        Ok(Some(Self {
            workload: WorkloadConfig::parse(&json)?,
            offset,
        }))
    }
}

/// Which kind of confidential guest the image was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// SEV or SEV-ES.
    Sev,
    /// SEV-SNP.
    Snp,
}

/// What krun is told about a workload: the JSON in the footer and in `/krun-sev.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Key `tee`.
    pub tee: Tee,
    /// Key `tee_data`: a JSON document in a string, such as `{"gen":"milan"}` for SEV-SNP. Not taken apart here.
    pub tee_data: String,
    /// Name under which the key broker knows the passphrase; printable, 1 to 255 bytes.
    pub workload_id: String,
    /// Virtual processors that the launch measurement counts on; 1 to 255.
    pub cpus: u8,
    /// Memory of the guest that it counts on, in MiB; at least 1.
    #[serde(rename = "ram_mib")]
    pub memory_mib: u32,
    /// URL of the key broker, printable, at most 255 bytes; empty if the image names none.
    pub attestation_url: String,
}

impl WorkloadConfig {
    /// Reads the content of `/krun-sev.json`. Any bytes may be passed.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Workload`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() as u64 > MAX_WORKLOAD {
            let expected = format_args!("{MAX_WORKLOAD} bytes or less");
            return Err(Error::Workload(WrongField::new(
                "length",
                format_args!("{} bytes", json.len()),
                expected,
            )));
        }
        let config: Self = serde_json::from_slice(json).map_err(|source| Error::Json {
            document: DOCUMENT,
            source,
        })?;
        config.check().map_err(Error::Workload)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), WrongField> {
        if self.cpus == 0 {
            return Err(WrongField::new("cpus", 0, "1 to 255"));
        }
        if self.memory_mib == 0 {
            return Err(WrongField::new("ram_mib", 0, "1 to 4294967295"));
        }
        if self.workload_id.is_empty() {
            return Err(WrongField::new("workload_id", "empty", "a name"));
        }
        for (field, text) in [
            ("workload_id", &self.workload_id),
            ("attestation_url", &self.attestation_url),
        ] {
            if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(WrongField::text(
                    field,
                    text,
                    "printable text of at most 255 bytes",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "footer_test.rs"]
mod tests;
