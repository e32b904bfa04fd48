//! Running a program to its end, with a deadline: no test hangs the bed.

use crate::stuck;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a program may take unless the test says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `CWRUN_PATIENCE` times as long, where that is set: on a machine that has much else to do.
pub(crate) fn patient(duration: Duration) -> Duration {
    let factor = std::env::var("CWRUN_PATIENCE").ok();
    duration * factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A program to run.
pub struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, or 128 + the number of the signal that ended it.
    pub code: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
    what: String,
}

impl Run {
    /// The program `name`.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(name),
            stdin: None,
            deadline: DEADLINE,
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from its environment.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Its working directory.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// What it reads on standard input; without this, the end of file.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Fails the test if it takes longer.
    pub fn deadline(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// The command itself, for what this type does not offer.
    pub fn command(self) -> Command {
        self.command
    }

    /// Runs it to the end and collects what it writes.
    pub fn finish(mut self) -> Finished {
        let what = format!("{:?}", self.command);
        self.command.stdin(if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        feed(&mut child, self.stdin);
        let stdout = child.stdout.take().map(collect).expect("it is piped");
        let stderr = child.stderr.take().map(collect).expect("it is piped");
        let status = wait(&mut child, self.deadline, &what);
        let took = start.elapsed();
        // Whatever it left running may hold the pipes open.
        let rest = patient(self.deadline)
            .saturating_sub(took)
            .max(Duration::from_secs(5));
        let [stdout, stderr] = [stdout, stderr].map(|reader| {
            let end = Instant::now() + rest;
            while !reader.is_finished() {
                assert!(
                    Instant::now() < end,
                    "{what}: ended, but something holds its output open"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            reader.join().expect("reading a pipe does not panic")
        });
        Finished {
            code: code(status),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            took,
            what,
        }
    }

    /// Starts it with its standard streams as the command has them; the caller waits with [`wait`].
    pub fn spawn(mut self) -> Child {
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.command))
    }
}

fn feed(child: &mut Child, bytes: Option<Vec<u8>>) {
    if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), bytes) {
        // It need not read all of it.
        std::thread::spawn(move || drop(pipe.write_all(&bytes)));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits for a child; kills it and fails the test when it takes too long.
pub fn wait(child: &mut Child, deadline: Duration, what: &str) -> ExitStatus {
    let end = Instant::now() + patient(deadline);
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() >= end {
            stuck::tell(what);
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: did not end within {} s", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Exit code, or 128 + signal.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("a process exits or is killed")
}

/// Repeats a look until it sees what it wants; fails the test when that takes too long.
pub fn eventually<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patient(Duration::from_secs(seconds));
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        if Instant::now() >= end {
            stuck::tell(what);
            panic!("{what}: not within {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Puts the program into a process group of its own, so that it can be killed with what it started.
pub fn own_group(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless it exited with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "{}: exit code\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            tail(&self.text()),
            tail(&self.stderr)
        );
        self
    }

    /// Fails the test unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(0)
    }
}

/// The end of a text, which may be long.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(2000);
    let start = (start..text.len())
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(start);
    &text[start..]
}
