//! Whether this guest is what its Workload says, before anything else is done with it.
//!
//! ```text
//!   firmware ─► report: HOST_DATA, as it was launched       must equal   SHA-256 of the Workload, as the host sent it
//!                       REPORT_DATA, a number drawn here
//! ```
//!
//! SECURITY: the host says what runs, so it could launch with one Workload's hash and send another. A guest under SNP therefore checks
//! always, whatever the Workload says of itself, and a Workload that names a TEE runs in that TEE or not at all. The signature is not
//! checked here: a report of the firmware's comes over a channel that the host can't write to, and a simulated one proves nothing.
//!
//! Later, verifiers have reports of their own ([`Session`](crate::session::Session), `Attest`). The host never chooses their REPORT_DATA.

use crate::failure::{Context as _, Failure, Result};
use crate::mount::NewFs;
use crate::sys;
use rustix::mount::MountAttrFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use workload::protocol::{EVIDENCE, HOST_CID, REPORT};
use workload::{Tee, TeeKind};

/// There if the kernel talks to an SNP firmware.
const DEVICE: &str = "/dev/sev-guest";
/// The kernel's interface to reports (Linux `Documentation/ABI/testing/configfs-tsm`).
const CONFIGFS: &str = "/sys/kernel/config";
const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// Offsets in a report (AMD 56860 table 23).
const REPORT_DATA: std::ops::Range<usize> = 0x50..0x90;
const HOST_DATA: std::ops::Range<usize> = 0xc0..0xe0;

/// The longest certificate table that is passed on, in bytes; a longer one is left out.
const MAX_CERTIFICATES: u64 = 64 << 10;

/// What the TEE says of this guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The report.
    pub report: Vec<u8>,
    /// Certificates that came with it, as the firmware's interface has them; empty if none did.
    pub certificates: Vec<u8>,
}

/// Asks the TEE for a report with this REPORT_DATA.
pub type Source = fn(&[u8; 64]) -> Result<Evidence>;

/// Checks the Workload's bytes. `tee` is what they say of the guest.
pub fn check(workload: &[u8], tee: Option<Tee>) -> Result<()> {
    let Some(ask) = source(tee)? else {
        return Ok(());
    };
    let mut nonce = [0; 64];
    getrandom(&mut nonce, GetRandomFlags::empty()).context(|| "random numbers".into())?;
    compare(&ask(&nonce)?.report, &nonce, &Sha256::digest(workload).into())
}

/// Where this guest has reports from, if it is confidential. `tee` is what its Workload says.
pub fn source(tee: Option<Tee>) -> Result<Option<Source>> {
    let snp = Path::new(DEVICE).exists();
    match (snp, tee.map(|tee| tee.kind)) {
        (true, Some(TeeKind::Snp) | None) => Ok(Some(firmware_report)),
        (true, Some(TeeKind::Sim)) => Err(Failure::other(
            "the Workload is for a simulated TEE, and this guest runs under SEV-SNP",
        )),
        (false, Some(TeeKind::Snp)) => Err(Failure::other(
            "the Workload demands SEV-SNP, under which this guest does not run",
        )),
        (false, Some(TeeKind::Sim)) => Ok(Some(simulated_report)),
        (false, None) => Ok(None),
    }
}

/// Whether a report answers this number and names this hash.
fn compare(report: &[u8], nonce: &[u8; 64], hash: &[u8; 32]) -> Result<()> {
    if report.len() != REPORT {
        let length = report.len();
        return Err(Failure::other(format!(
            "the TEE's report has {length} bytes, not {REPORT}"
        )));
    }
    if report.get(REPORT_DATA) != Some(&nonce[..]) {
        return Err(Failure::other("the TEE's report answers another question"));
    }
    if report.get(HOST_DATA) != Some(&hash[..]) {
        return Err(Failure::other(
            "the Workload is not the one that this guest was launched for: its hash is not the host data of the TEE's report",
        ));
    }
    Ok(())
}

/// From the firmware, through the kernel.
fn firmware_report(nonce: &[u8; 64]) -> Result<Evidence> {
    if !Path::new(REPORTS).exists() {
        let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        NewFs::open("configfs")?
            .source("configfs")?
            .mount(hardened)?
            .attach_at(CONFIGFS)?;
    }
    ask_kernel(Path::new(REPORTS), nonce)
}

/// One entry below `reports` is one question: its `inblob` is answered in its `outblob`, with certificates in its `auxblob`.
fn ask_kernel(reports: &Path, nonce: &[u8; 64]) -> Result<Evidence> {
    let entry = reports.join("cwrun");
    fs::create_dir(&entry).context(|| "ask the TEE for a report".into())?;
    let answer = fs::write(entry.join("inblob"), nonce).and_then(|()| fs::read(entry.join("outblob")));
    let certificates = read_certificates(&entry.join("auxblob"));
    // An entry that stays is one more directory that nobody looks at.
    let _ = fs::remove_dir(&entry);
    Ok(Evidence {
        report: answer.context(|| "ask the TEE for a report".into())?,
        certificates,
    })
}

/// Hosts need not have any, and verifiers have them from elsewhere then.
fn read_certificates(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_CERTIFICATES + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 <= MAX_CERTIFICATES => bytes,
        _ => Vec::new(),
    }
}

/// From the host, which may say what it likes.
fn simulated_report(nonce: &[u8; 64]) -> Result<Evidence> {
    let what = || "ask the simulated TEE for a report".to_owned();
    let socket = sys::vsock_connect(HOST_CID, EVIDENCE).context(what)?;
    let mut stream = fs::File::from(socket);
    stream.write_all(nonce).context(what)?;
    let mut report = vec![0; REPORT];
    stream.read_exact(&mut report).context(what)?;
    Ok(Evidence {
        report,
        certificates: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; 64] = [7; 64];

    fn report(host_data: [u8; 32]) -> Vec<u8> {
        let mut report = vec![0; REPORT];
        report[0x50..0x90].copy_from_slice(&NONCE);
        report[0xc0..0xe0].copy_from_slice(&host_data);
        report
    }

    #[test]
    fn the_workload_that_was_launched_is_taken_and_no_other() {
        let hash: [u8; 32] = Sha256::digest(b"workload").into();
        assert_eq!(compare(&report(hash), &NONCE, &hash), Ok(()));
        for bit in 0..256 {
            let mut other = hash;
            other[bit / 8] ^= 1 << (bit % 8);
            let failure = compare(&report(other), &NONCE, &hash).unwrap_err();
            assert!(
                failure
                    .message
                    .contains("not the one that this guest was launched for")
            );
        }
    }

    #[test]
    fn a_report_that_was_not_asked_for_is_refused() {
        let hash = [1; 32];
        let failure = compare(&report(hash), &[8; 64], &hash).unwrap_err();
        assert!(failure.message.contains("answers another question"));
        let short = compare(&report(hash)[..REPORT - 1], &NONCE, &hash).unwrap_err();
        assert!(short.message.contains("1183 bytes"), "{short}");
    }

    #[test]
    fn a_workload_that_names_a_tee_does_not_run_without() {
        let tee = Tee {
            kind: TeeKind::Snp,
            exec: false,
        };
        let failure = check(b"workload", Some(tee)).unwrap_err();
        assert!(failure.message.contains("demands SEV-SNP"), "{failure}");
        assert_eq!(check(b"workload", None), Ok(()));
    }

    #[test]
    fn the_kernels_interface_is_used_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("table"), [1; 5]).unwrap();
        assert_eq!(read_certificates(&dir.path().join("table")), [1; 5]);
        assert_eq!(read_certificates(&dir.path().join("none")), [0; 0]);
        fs::write(dir.path().join("table"), vec![1; (64 << 10) + 1]).unwrap();
        assert_eq!(read_certificates(&dir.path().join("table")), [0; 0]);
        // No kernel makes an answer here.
        let failure = ask_kernel(dir.path(), &NONCE).unwrap_err();
        assert!(
            failure.message.starts_with("ask the TEE for a report: "),
            "{failure}"
        );
    }
}
