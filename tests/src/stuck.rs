//! What cwrun's processes and their VMs are doing: for the log of a test that waited for them in vain, before it kills them.

use crate::host::{names, processes};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Of each VM, what KVM has counted.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Tells standard error of each thread of each cwrun, where in the kernel it is, and what each VM does in a second.
pub(crate) fn tell(what: &str) {
    eprintln!("{what}: what there is of cwrun meanwhile");
    for (pid, name) in processes() {
        let command = text(&format!("/proc/{pid}/cmdline")).replace('\0', " ");
        eprintln!("{pid} {name}: {command}");
        for thread in names(&format!("/proc/{pid}/task")) {
            let told = ["stat", "wchan", "syscall", "stack"]
                .map(|file| text(&format!("/proc/{pid}/task/{thread}/{file}")));
            eprintln!("  {told:?}");
        }
    }
    if !Path::new(COUNTERS).exists() {
        let mount = ["-t", "debugfs", "debugfs", "/sys/kernel/debug"];
        let _ = Command::new("mount").args(mount).status();
    }
    tell_counters();
    std::thread::sleep(Duration::from_secs(1));
    tell_counters();
}

fn tell_counters() {
    // The files beside the machines' directories are the sums of all, and have nothing in them to list.
    for machine in names(COUNTERS) {
        for part in [machine.clone(), format!("{machine}/vcpu0")] {
            let directory = format!("{COUNTERS}/{part}");
            let counted: Vec<_> = names(&directory)
                .map(|name| (text(&format!("{directory}/{name}")), name))
                .filter(|(value, _)| !value.is_empty() && value != "0")
                .map(|(value, name)| format!("{name}={value}"))
                .collect();
            if !counted.is_empty() {
                eprintln!("{part}: {}", counted.join(" "));
            }
        }
    }
}

/// What is in a file, trimmed; nothing if it can't be read, for processes end and files are missing.
fn text(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default())
        .trim()
        .to_owned()
}
