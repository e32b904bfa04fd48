//! Which program runs, with which variables; the words for why it can't be are crun's, since engines read them.

use crate::failure::{Failure, Result, reason};
use crate::sys;
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use workload::Process;
use workload::protocol::FailureKind;

/// Where programs are looked for if the workload has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that `execve` takes.
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the workload's program, as the user it runs as and from its working directory. `passwd` is the container's
    /// `/etc/passwd`.
    pub fn find(process: &Process, passwd: &str) -> Result<Self> {
        let env = environment(&process.env, process.user.uid, passwd);
        let search = env
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        let name = process.args.first().map(String::as_str).unwrap_or_default();
        let path = locate(name, search)?;
        Ok(Self {
            path: c_string(path)?,
            args: process
                .args
                .iter()
                .cloned()
                .map(c_string)
                .collect::<Result<_>>()?,
            env: env.into_iter().map(c_string).collect::<Result<_>>()?,
        })
    }

    /// Becomes the program, with `last` right before. Returns only if either fails.
    pub fn execute(&self, last: impl FnOnce() -> Result<()>) -> Failure {
        let (args, env) = (sys::Pointers::to(&self.args), sys::Pointers::to(&self.env));
        if let Err(failure) = last() {
            return failure;
        }
        let error = sys::execute(&self.path, &args, &env);
        let path = self.path.to_string_lossy();
        if error.kind() == io::ErrorKind::NotFound {
            // The file was there a moment ago: what is missing is its interpreter.
            let hint = "exec container process (missing dynamic library?)";
            return Failure::new(
                FailureKind::NotFound,
                format!("{hint} `{path}`: {}", reason(error)),
            );
        }
        Failure::new(
            FailureKind::NotExecutable,
            format!("exec container process `{path}`: {}", reason(error)),
        )
    }
}

/// Variables without duplicates (the last one wins), and `HOME`.
fn environment(env: &[String], uid: u32, passwd: &str) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    let mut merged: Vec<String> = Vec::with_capacity(env.len() + 1);
    for entry in env {
        let Some(wanted) = name(entry) else {
            continue;
        };
        merged.retain(|earlier| name(earlier).as_ref() != Some(&wanted));
        merged.push(entry.clone());
    }
    if !merged.iter().any(|entry| entry.starts_with("HOME=")) {
        merged.push(format!("HOME={}", home(uid, passwd).unwrap_or("/")));
    }
    merged
}

/// Home directory of a user by passwd(5).
fn home(uid: u32, passwd: &str) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then_some(home)
    })
}

/// The path of the program `name`, looked for in `search` unless it has a slash.
fn locate(name: &str, search: &str) -> Result<String> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => Err(not_found(name)),
            Err(error) => Err(not_executable(name, error)),
        };
    }
    let mut refused = None;
    for directory in search.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // The one behind it may be the right one, as in execvp(3).
            Err(error) => refused = refused.or(Some(not_executable(&path, error))),
        }
    }
    Err(refused.unwrap_or_else(|| not_found(name)))
}

/// Would `execve` take this file, as far as can be seen from outside?
fn executable(path: &str) -> rustix::io::Result<()> {
    let meta = stat(path)?;
    if !FileType::from_raw_mode(meta.st_mode).is_file() {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn not_found(name: &str) -> Failure {
    let reason = reason(Errno::NOENT);
    Failure::new(
        FailureKind::NotFound,
        format!("executable file `{name}` not found in $PATH: {reason}"),
    )
}

fn not_executable(path: &str, error: Errno) -> Failure {
    let kind = match error {
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => FailureKind::NotFound,
        _ => FailureKind::NotExecutable,
    };
    Failure::new(kind, format!("open executable `{path}`: {}", reason(error)))
}

fn c_string(text: String) -> Result<CString> {
    CString::new(text).map_err(|_| Failure::other("process: a string contains a NUL byte"))
}

#[cfg(test)]
#[path = "program_test.rs"]
mod tests;
