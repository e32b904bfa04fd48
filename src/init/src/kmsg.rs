//! Lines of our own in the kernel log, which is where the host looks when a guest dies.

use std::fs::File;
use std::io::Write as _;

/// Writes one line at level "error". Best effort: there is nowhere to complain to.
pub fn error(text: &str) {
    write('3', text);
}

/// Writes one line at level "info".
pub fn info(text: &str) {
    write('6', text);
}

fn write(level: char, text: &str) {
    let Ok(mut log) = File::options().write(true).open("/dev/kmsg") else {
        eprintln!("init: {text}");
        return;
    };
    // One write is one record; the kernel cuts what is longer.
    let _ = log.write_all(format!("<{level}>init: {text}\n").as_bytes());
}
