//! Finds out whether this machine's KVM can run a guest.
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What was found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// How long the test guest ran.
    pub elapsed: Duration,
}

/// Why no guest can run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not KVM's API.
    #[error("KVM speaks API version {0}, not 12")]
    ApiVersion(i32),
}

/// Runs a guest of a few instructions on `kvm` (an open `/dev/kvm`), for at most `deadline`.
pub fn probe(_kvm: BorrowedFd<'_>, _deadline: Duration) -> Result<Probe, ProbeError> {
    unimplemented!()
}
