//! What cwrun's processes and their VMs are doing: for the log of a test that waited for them in vain, before it kills them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Tells standard error of each thread of each cwrun, where in the kernel it is, and what each VM does in two seconds.
pub(crate) fn tell(what: &str) {
    eprintln!("{what}: what there is of cwrun meanwhile");
    for process in entries("/proc") {
        let name = text(&process, "comm");
        let command = text(&process, "cmdline").replace('\0', " ");
        // A VMM's command line may be anything; its name is not.
        if name.starts_with("cwrun") || command.contains("cwrun") {
            eprintln!("{} {name}: {command}", process.display());
            for thread in entries(process.join("task")) {
                let fields = ["comm", "wchan", "syscall", "stack"].map(|file| text(&thread, file));
                let state = text(&thread, "status")
                    .lines()
                    .find(|line| line.starts_with("State"))
                    .map(str::to_owned);
                eprintln!("  {} {fields:?} {state:?}", thread.display());
            }
        }
    }
    let counters = "/sys/kernel/debug/kvm";
    if !Path::new(counters).exists() {
        let _ = Command::new("mount")
            .args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"])
            .status();
    }
    for _ in 0..2 {
        for machine in entries(counters).filter(|path| path.is_dir()) {
            let told: Vec<_> = entries(machine.join("vcpu0"))
                .chain(entries(&machine))
                .filter(|path| path.is_file())
                .map(|path| {
                    format!(
                        "{}={}",
                        path.file_name().unwrap_or_default().display(),
                        text(&path, "")
                    )
                })
                .filter(|line| !line.ends_with("=0"))
                .collect();
            eprintln!("{}: {}", machine.display(), told.join(" "));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// What is in a file, trimmed; nothing if it can't be read, for processes end and files are missing.
fn text(path: &Path, file: &str) -> String {
    let path = if file.is_empty() {
        path.to_owned()
    } else {
        path.join(file)
    };
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default())
        .trim()
        .to_owned()
}
