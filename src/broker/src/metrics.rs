//! Counters, as Prometheus reads them (text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histogram of durations, in seconds.
const BOUNDS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

/// All counters.
#[derive(Default)]
pub struct Metrics(Mutex<Counters>);

#[derive(Default)]
struct Counters {
    /// By route and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    /// By event, outcome and clause.
    verdicts: BTreeMap<(&'static str, &'static str, String), u64>,
    /// Requests by duration, and their sum.
    durations: [u64; BOUNDS.len()],
    seconds: f64,
}

/// Values that are not counted but looked up.
pub struct Gauges {
    /// Sessions in the table.
    pub sessions: usize,
    /// Registrations in the store.
    pub registrations: usize,
}

impl Metrics {
    /// Counts a request.
    pub fn request(&self, route: &'static str, status: u16, duration: Duration) {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.requests.entry((route, status)).or_default() += 1;
        let seconds = duration.as_secs_f64();
        counters.seconds += seconds;
        for (count, bound) in counters.durations.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
    }

    /// Counts a verdict. There are few clauses, all of them the broker's own names.
    pub fn verdict(&self, event: &'static str, outcome: &'static str, clause: &str) {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counters
            .verdicts
            .entry((event, outcome, clause.to_owned()))
            .or_default() += 1;
    }

    /// The page.
    pub fn page(&self, gauges: &Gauges) -> String {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        let mut line = |text: std::fmt::Arguments| {
            // Writing to a String can't fail.
            let _ = page.write_fmt(text);
            page.push('\n');
        };
        line(format_args!("# TYPE cwrun_broker_requests_total counter"));
        for ((route, status), count) in &counters.requests {
            line(format_args!(
                "cwrun_broker_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
            ));
        }
        line(format_args!("# TYPE cwrun_broker_verdicts_total counter"));
        for ((event, outcome, clause), count) in &counters.verdicts {
            line(format_args!(
                "cwrun_broker_verdicts_total{{event=\"{event}\",outcome=\"{outcome}\",clause=\"{clause}\"}} {count}"
            ));
        }
        line(format_args!("# TYPE cwrun_broker_request_seconds histogram"));
        for (bound, count) in BOUNDS.iter().zip(counters.durations) {
            line(format_args!(
                "cwrun_broker_request_seconds_bucket{{le=\"{bound}\"}} {count}"
            ));
        }
        let total: u64 = counters.requests.values().sum();
        line(format_args!(
            "cwrun_broker_request_seconds_bucket{{le=\"+Inf\"}} {total}"
        ));
        line(format_args!(
            "cwrun_broker_request_seconds_sum {}",
            counters.seconds
        ));
        line(format_args!("cwrun_broker_request_seconds_count {total}"));
        line(format_args!("# TYPE cwrun_broker_sessions gauge"));
        line(format_args!("cwrun_broker_sessions {}", gauges.sessions));
        line(format_args!("# TYPE cwrun_broker_registrations gauge"));
        line(format_args!(
            "cwrun_broker_registrations {}",
            gauges.registrations
        ));
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_with_their_labels() {
        let metrics = Metrics::default();
        metrics.request("attest", 200, Duration::from_millis(2));
        metrics.request("attest", 200, Duration::from_secs(9));
        metrics.verdict("attest", "refused", "nonce");
        let page = metrics.page(&Gauges {
            sessions: 3,
            registrations: 4,
        });
        for line in [
            "cwrun_broker_requests_total{route=\"attest\",status=\"200\"} 2",
            "cwrun_broker_verdicts_total{event=\"attest\",outcome=\"refused\",clause=\"nonce\"} 1",
            "cwrun_broker_request_seconds_bucket{le=\"0.001\"} 0",
            "cwrun_broker_request_seconds_bucket{le=\"2.5\"} 1",
            "cwrun_broker_request_seconds_bucket{le=\"+Inf\"} 2",
            "cwrun_broker_sessions 3",
            "cwrun_broker_registrations 4",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
