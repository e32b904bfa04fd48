//! The simulated TEE's answers to its guest: reports that everybody can make.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tee::launch::{LaunchDigest, Policy};
use tee::measure::Plan;
use tee::report::{HostData, ReportData};
use tee::sim::Guest;

/// How long the guest may take over its question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers the guest that asks for a report.
#[derive(Debug)]
pub struct Evidence {
    guest: Guest,
    /// Our end and the guest's. Made beforehand, since the VMM's sandbox has no calls for new sockets.
    pair: Mutex<Option<(UnixStream, UnixStream)>>,
}

impl Evidence {
    /// Of a guest that this launch and this Workload's hash would have made.
    pub fn new(plan: &Plan, host_data: [u8; 32], policy: Policy) -> io::Result<Self> {
        let measurement: LaunchDigest = plan.digest();
        Self::of(Guest {
            measurement,
            host_data: HostData(host_data),
            policy,
            identity: None,
        })
    }

    fn of(guest: Guest) -> io::Result<Self> {
        let pair = Mutex::new(Some(UnixStream::pair()?));
        Ok(Self { guest, pair })
    }

    /// The guest's end of a connection, whose other end is answered by a thread of its own. `None` but for the first time, which is init's.
    pub fn connect(&self) -> Option<UnixStream> {
        let mut pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = pair.take()?;
        let guest = self.guest.clone();
        let thread = std::thread::Builder::new().name("evidence".into());
        // A guest that asks no proper question gets no answer.
        thread.spawn(move || drop(answer(&guest, ours))).ok()?;
        Some(theirs)
    }
}

fn answer(guest: &Guest, mut stream: UnixStream) -> io::Result<()> {
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
        let evidence = Evidence::of(guest).unwrap();
        let mut stream = evidence.connect().unwrap();
        stream.write_all(&[9; 64]).unwrap();
        let mut report = vec![0; REPORT];
        stream.read_exact(&mut report).unwrap();
        assert_eq!(report[0x50..0x90], [9; 64]);
        assert_eq!(report[0x90..0xc0], [5; 48]);
        assert_eq!(report[0xc0..0xe0], [6; 32]);
        assert!(evidence.connect().is_none(), "one guest, one question");
    }
}
