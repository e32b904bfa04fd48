//! Says how long each phase of the set-up took.

use std::time::Instant;

/// Runs the phase `name` and reports its duration in milliseconds, also if it fails.
pub fn phase<T, E>(name: &'static str, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let started = Instant::now();
    let result = run();
    let ms = started.elapsed().as_secs_f64() * 1000.0;
    tracing::debug!(phase = name, ms, ok = result.is_ok(), "phase of the VM's set-up");
    result
}
