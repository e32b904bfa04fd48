//! The simulated TEE's answers to its guest: reports that everybody can make.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tee::launch::{LaunchDigest, Policy};
use tee::measure::Plan;
use tee::report::{HostData, ReportData};
use tee::sim::{Guest, Identity};

/// How long the guest may take over a question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions that may be open at once, each with a thread and two descriptors.
const MAX_OPEN: usize = 16;

/// Answers the guest that asks for reports: one on each connection.
#[derive(Debug)]
pub struct Evidence {
    guest: Guest,
    open: Arc<AtomicUsize>,
}

impl Evidence {
    /// Of a guest that this launch, this Workload's hash and the owner's block would have made.
    pub fn new(plan: &Plan, host_data: [u8; 32], policy: Policy, identity: Option<Identity>) -> Self {
        let measurement: LaunchDigest = plan.digest();
        Self::of(Guest {
            measurement,
            host_data: HostData(host_data),
            policy,
            identity,
        })
    }

    fn of(guest: Guest) -> Self {
        let open = Arc::default();
        Self { guest, open }
    }

    /// The guest's end of a new connection, whose other end is answered by a thread of its own. `None` while too many wait.
    pub fn connect(&self) -> Option<UnixStream> {
        let place = Place::take(&self.open)?;
        let (ours, theirs) = UnixStream::pair().ok()?;
        let guest = self.guest.clone();
        let thread = std::thread::Builder::new().name("evidence".into());
        let serve = move || {
            // A guest that asks no proper question gets no answer.
            let _ = answer(&guest, ours);
            drop(place);
        };
        thread.spawn(serve).ok()?;
        Some(theirs)
    }
}

/// One of the connections that may be open.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(open));
        // Counted first: what is one too many gives its place back as it is dropped.
        (open.fetch_add(1, Ordering::Relaxed) < MAX_OPEN).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(guest: &Guest, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut question = [0; 64];
    stream.read_exact(&mut question)?;
    stream.write_all(&guest.report(ReportData(question)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::protocol::REPORT;

    fn evidence() -> Evidence {
        Evidence::of(Guest {
            measurement: LaunchDigest([5; 48]),
            host_data: HostData([6; 32]),
            policy: Policy::STRICT,
            identity: None,
        })
    }

    #[test]
    fn every_question_is_answered_with_a_report_of_this_workload() {
        let evidence = evidence();
        for question in [[9; 64], [8; 64], [9; 64]] {
            let mut stream = evidence.connect().unwrap();
            stream.write_all(&question).unwrap();
            let mut report = vec![0; REPORT];
            stream.read_exact(&mut report).unwrap();
            assert_eq!(report[0x50..0x90], question);
            assert_eq!(report[0x90..0xc0], [5; 48]);
            assert_eq!(report[0xc0..0xe0], [6; 32]);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "one connection, one question");
        }
    }

    #[test]
    fn a_guest_that_only_connects_takes_no_more_than_its_share() {
        let evidence = evidence();
        let open: Vec<_> = (0..MAX_OPEN).map(|_| evidence.connect().unwrap()).collect();
        assert!(evidence.connect().is_none());
        drop(open);
        let deadline = std::time::Instant::now() + PATIENCE;
        while evidence.connect().is_none() {
            assert!(std::time::Instant::now() < deadline, "places come back");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
