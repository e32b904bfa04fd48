//! One scene, played with cwrun and with crun as podman's runtime, and what was said compared.

use crate::podman::{IMAGE, Podman, as_installed};
use e2e::process::Finished;
use e2e::process::eventually;
use e2e::{Run, bed};
use std::fs;
use std::path::{Path, PathBuf};

/// podman with one runtime, in a shell: `$TEST` is a directory with files for it, `$IMAGE` the image.
pub struct Shell {
    crun: bool,
    /// A file in place of the bed's `containers.conf`.
    configuration: Option<PathBuf>,
    said: Vec<String>,
}

const TEST: &str = "/tmp/podman-test";

impl Shell {
    /// Runs `podman` with words as a shell reads them.
    fn run(&self, words: &str) -> Run {
        let runtime = if self.crun { "crun".into() } else { bed().cwrun() };
        // One line, so that options may be written in several.
        let words = words.replace("\n            ", " ");
        let line = format!("exec podman --runtime {} {words}", runtime.display());
        let mut run = as_installed(Run::new("sh").args(["-c", &line]));
        if let Some(path) = &self.configuration {
            run = run.env("CONTAINERS_CONF", path);
        }
        run.env("IMAGE", IMAGE).env("TEST", TEST).deadline(120)
    }

    /// Runs it to its end, and says how long that took, for whoever reads what a failed test printed.
    fn finish(&self, run: Run, words: &str) -> Finished {
        let done = run.finish();
        eprintln!("crun {}: {:.1?} podman {words}", self.crun, done.took);
        done
    }

    /// Runs `podman`, which must succeed.
    #[track_caller]
    pub fn ok(&self, words: &str) {
        self.finish(self.run(words), words).ok();
    }

    /// Runs `podman` and notes what it said.
    pub fn say(&mut self, words: &str) {
        self.answer(words, "");
    }

    /// Runs `podman` with something to read, and notes what it said.
    pub fn answer(&mut self, words: &str, input: &str) {
        let done = self.finish(self.run(words).stdin(input), words);
        let is_id = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let text = done.text();
        let lines: Vec<_> = text
            .lines()
            .map(|line| if is_id(line) { "ID" } else { line })
            .collect();
        // Runtimes word their errors each in their own way.
        let error = !done.stderr.is_empty();
        self.note(format!(
            "podman {words}: {lines:?}, status {}, error: {error}",
            done.code
        ));
        if error {
            eprintln!("crun {}: podman {words}: {}", self.crun, done.stderr);
        }
    }

    /// Notes what was seen outside podman.
    pub fn note(&mut self, seen: impl Into<String>) {
        self.said.push(seen.into());
    }

    /// Waits until the container's log has `text` `count` times.
    pub fn wait_for_log(&self, container: &str, text: &str, count: usize) {
        eventually(text, 60, || {
            let log = self.run(&format!("logs {container}")).finish().ok().text();
            (log.matches(text).count() >= count).then_some(())
        });
    }
}

/// Does the same with either runtime and compares what was said.
#[track_caller]
pub fn same(scene: impl Fn(&mut Shell)) {
    same_with(None, scene);
}

/// The same with this `containers.conf`.
#[track_caller]
pub fn same_with(configuration: Option<&str>, scene: impl Fn(&mut Shell)) {
    let _podman = Podman::new();
    let test = Path::new(TEST);
    fs::create_dir_all(test).expect("the bed is writable");
    fs::write(test.join("file"), "from the host\n").expect("the bed is writable");
    fs::write(test.join("environment"), "FROM_FILE=of a file\n").expect("the bed is writable");
    let [ours, theirs] = [false, true].map(|crun| {
        let path = Path::new(TEST).join("containers.conf");
        let configuration = configuration.map(|text| {
            fs::write(&path, text).expect("the bed is writable");
            path
        });
        let mut shell = Shell {
            crun,
            configuration,
            said: Vec::new(),
        };
        scene(&mut shell);
        shell.said
    });
    let differences: Vec<String> = ours
        .iter()
        .zip(&theirs)
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("cwrun: {ours}\ncrun:  {theirs}"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(ours.len(), theirs.len());
}
