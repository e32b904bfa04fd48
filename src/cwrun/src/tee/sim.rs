//! The simulated TEE's answers to its guest: reports that everybody can make.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tee::launch::{LaunchDigest, Policy};
use tee::measure::Plan;
use tee::report::{HostData, ReportData};
use tee::sim::Guest;

/// How long the guest may take over its question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers guests that ask for a report.
#[derive(Debug, Clone)]
pub struct Evidence(Guest);

impl Evidence {
    /// Of a guest that this launch and this Workload's hash would have made.
    pub fn new(plan: &Plan, host_data: [u8; 32], policy: Policy) -> Self {
        let measurement: LaunchDigest = plan.digest();
        Self(Guest {
            measurement,
            host_data: HostData(host_data),
            policy,
            identity: None,
        })
    }

    /// The guest's end of a connection, whose other end is answered by a thread of its own. `None` if the host has no room for one.
    pub fn connect(&self) -> Option<UnixStream> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        let guest = self.0.clone();
        let thread = std::thread::Builder::new().name("evidence".into());
        // A guest that asks no proper question gets no answer.
        thread.spawn(move || drop(answer(&guest, ours))).ok()?;
        Some(theirs)
    }
}

fn answer(guest: &Guest, mut stream: UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut question = [0; 64];
    stream.read_exact(&mut question)?;
    stream.write_all(guest.attest(ReportData(question)).report.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::protocol::REPORT;

    #[test]
    fn a_question_is_answered_with_a_report_of_this_workload() {
        let guest = Guest {
            measurement: LaunchDigest([5; 48]),
            host_data: HostData([6; 32]),
            policy: Policy::STRICT,
            identity: None,
        };
        let mut stream = Evidence(guest).connect().unwrap();
        stream.write_all(&[9; 64]).unwrap();
        let mut report = vec![0; REPORT];
        stream.read_exact(&mut report).unwrap();
        assert_eq!(report[0x50..0x90], [9; 64]);
        assert_eq!(report[0x90..0xc0], [5; 48]);
        assert_eq!(report[0xc0..0xe0], [6; 32]);
    }
}
