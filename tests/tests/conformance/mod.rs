//! What the OCI runtime specification 1.2 demands of a runtime, as far as it takes a running container to see it: a test for each MUST,
//! named after it. docs/conformance.md has the list, with the tests elsewhere that show the others.
//!
//! A machine takes seconds to start, so that few containers serve many tests: the first test that asks runs the container through its
//! life and keeps what was seen at each step, the others only look at that.

mod config;
mod life;
mod linux;
mod runtime;

use e2e::{Cwrun, Finished};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What a command said that was to fail.
#[derive(Debug, Clone)]
struct Said {
    code: i32,
    stderr: String,
}

impl Said {
    fn of(done: &Finished) -> Self {
        Self {
            code: done.code,
            stderr: done.stderr.clone(),
        }
    }

    /// It was an error, and one that says this.
    #[track_caller]
    fn is_an_error_about(&self, part: &str) {
        assert!(self.code != 0 && self.stderr.starts_with("cwrun: "), "{self:?}");
        assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
    }
}

/// Runs a command that is to fail.
fn fails(cwrun: &Cwrun, args: &[&str]) -> Said {
    Said::of(&cwrun.command(args).finish())
}

/// The namespace of this kind that a process is in, or `self` is.
fn namespace(process: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{process}/ns/{kind}"));
    link.unwrap_or_else(|error| panic!("{kind} of {process}: {error}"))
        .to_string_lossy()
        .into_owned()
}

/// A process in namespaces of its own, to be joined. Dropped, it ends.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(flags)
            .args(["sh", "-c", "echo; exec sleep 600"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) is there");
        // It is where it shall be once it has said something.
        let mut byte = [0];
        let stdout = child.stdout.as_mut().expect("it is piped");
        std::io::Read::read_exact(stdout, &mut byte).expect("the process runs");
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn path(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.0.id()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
