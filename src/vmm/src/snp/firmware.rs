//! What the secure processor's firmware and KVM answer when a step of a launch fails, in words.

use std::fmt;

/// Names of the firmware's status codes (AMD 56860 §6.5; `include/uapi/linux/psp-sev.h`), by their numbers.
const NAMES: [(u32, &str); 38] = [
    (0x01, "INVALID_PLATFORM_STATE"),
    (0x02, "INVALID_GUEST_STATE"),
    (0x03, "INVALID_CONFIG"),
    (0x04, "INVALID_LENGTH"),
    (0x05, "ALREADY_OWNED"),
    (0x06, "INVALID_CERTIFICATE"),
    (0x07, "POLICY_FAILURE"),
    (0x08, "INACTIVE"),
    (0x09, "INVALID_ADDRESS"),
    (0x0a, "BAD_SIGNATURE"),
    (0x0b, "BAD_MEASUREMENT"),
    (0x0c, "ASID_OWNED"),
    (0x0d, "INVALID_ASID"),
    (0x0e, "WBINVD_REQUIRED"),
    (0x0f, "DF_FLUSH_REQUIRED"),
    (0x10, "INVALID_GUEST"),
    (0x11, "INVALID_COMMAND"),
    (0x12, "ACTIVE"),
    (0x13, "HWERROR_PLATFORM"),
    (0x14, "HWERROR_UNSAFE"),
    (0x15, "UNSUPPORTED"),
    (0x16, "INVALID_PARAM"),
    (0x17, "RESOURCE_LIMIT"),
    (0x18, "SECURE_DATA_INVALID"),
    (0x19, "INVALID_PAGE_SIZE"),
    (0x1a, "INVALID_PAGE_STATE"),
    (0x1b, "INVALID_MDATA_ENTRY"),
    (0x1c, "INVALID_PAGE_OWNER"),
    (0x1d, "AEAD_OFLOW"),
    (0x1f, "RB_MODE_EXITED"),
    (0x20, "RMP_INIT_REQUIRED"),
    (0x21, "BAD_SVN"),
    (0x22, "BAD_VERSION"),
    (0x23, "SHUTDOWN_REQUIRED"),
    (0x24, "UPDATE_FAILED"),
    (0x25, "RESTORE_REQUIRED"),
    (0x26, "RMP_INITIALIZATION_FAILED"),
    (0x27, "INVALID_KEY"),
];

/// INVALID_PARAM: for a CPUID page it means that the firmware has written its corrections into the page.
pub const INVALID_PARAM: u32 = 0x16;
/// What the kernel leaves where it never called the firmware.
const NO_CALL: u32 = u32::MAX;

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SevError {
    /// The ioctl's error number.
    pub errno: i32,
    /// The firmware's status code; 0 where the firmware was not asked or did not object.
    pub firmware: u32,
}

impl SevError {
    /// Of the kernel alone.
    pub fn kernel(errno: i32) -> SevError {
        SevError { errno, firmware: 0 }
    }

    /// Whether the same call may succeed when it is made again.
    pub fn is_transient(self) -> bool {
        matches!(self.errno, libc::EAGAIN | libc::EINTR)
    }
}

impl fmt::Display for SevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = std::io::Error::from_raw_os_error(self.errno);
        match (self.firmware, name(self.firmware)) {
            (0 | NO_CALL, _) => write!(f, "{kernel}"),
            (code, Some(name)) => write!(f, "the SEV firmware answers {name} ({code:#x}; {kernel})"),
            (code, None) => write!(
                f,
                "the SEV firmware answers {code:#x}, which is no status known here ({kernel})"
            ),
        }
    }
}

impl std::error::Error for SevError {}

/// The firmware's name for a status code.
pub fn name(code: u32) -> Option<&'static str> {
    let found = NAMES.iter().find(|(number, _)| *number == code);
    found.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_firmwares_own_name() {
        assert_eq!(name(0x07), Some("POLICY_FAILURE"));
        assert_eq!(name(INVALID_PARAM), Some("INVALID_PARAM"));
        assert_eq!(name(0x17), Some("RESOURCE_LIMIT"));
        assert_eq!(name(0), None);
        assert!(NAMES.is_sorted_by_key(|(number, _)| *number));
    }

    #[test]
    fn a_failure_says_who_refused() {
        let told = |errno, firmware| SevError { errno, firmware }.to_string();
        assert!(told(libc::EIO, 0x07).starts_with("the SEV firmware answers POLICY_FAILURE (0x7; "));
        assert!(told(libc::EIO, 0x99).contains("0x99, which is no status known here"));
        assert!(told(libc::EINVAL, 0).starts_with("Invalid argument"));
        assert!(told(libc::EBUSY, NO_CALL).contains("busy"));
    }
}
