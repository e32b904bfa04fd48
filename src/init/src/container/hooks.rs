//! Hooks of the start (OCI runtime-spec config.md#startcontainer-hooks): programs of the container that run in it before its first process
//! does, as the same user, with the container's state on standard input. What they print goes nowhere, as with the other hooks; their
//! standard error is the container's.

use crate::failure::{Context as _, Failure, Result};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use workload::Hook;

/// How often a hook with a timeout is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Runs them in order; the first that fails is the end.
pub fn run(hooks: &[Hook], state: &str) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        run_one(hook, state)
            .map_err(|failure| Failure::other(format!("hooks.startContainer[{index}]: {failure}")))
    })
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let path = &hook.path;
    let mut command = Command::new(path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env.iter().filter_map(|entry| entry.split_once('='));
    command
        .env_clear()
        .envs(variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut child = command.spawn().context(|| path.clone())?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its input is in its right.
        let _ = input.write_all(state.as_bytes());
    }
    let status =
        wait(&mut child, hook.timeout).map_err(|failure| Failure::other(format!("{path}: {failure}")))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Failure::other(format!("{path}: exited with status {code}"))),
        (None, signal) => Err(Failure::other(format!(
            "{path}: ended by signal {}",
            signal.unwrap_or_default()
        ))),
    }
}

fn wait(child: &mut Child, timeout: Option<u32>) -> Result<ExitStatus> {
    let waited = |status: std::io::Result<ExitStatus>| status.context(|| "wait for it".into());
    let Some(seconds) = timeout else {
        return waited(child.wait());
    };
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    loop {
        if let Some(status) = child.try_wait().context(|| "wait for it".into())? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let ended = child.kill().and_then(|()| child.wait());
            waited(ended)?;
            return Err(Failure::other(format!(
                "did not end within its timeout of {seconds} s"
            )));
        }
        sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u32>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(String::from).into(),
            env: vec!["A=b".into()],
            timeout,
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_only_its_own_environment() {
        let script = "read state; test \"$state\" = '{\"id\":\"c\"}' && test \"$A\" = b && test -z \"$HOME\"";
        run(&[hook(script, None)], "{\"id\":\"c\"}\n").unwrap();
    }

    #[test]
    fn the_first_that_fails_is_named_and_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let touch = hook(&format!(": > {}", mark.display()), None);
        let message = |hooks: &[Hook]| run(hooks, "{}").unwrap_err().to_string();
        assert_eq!(
            message(&[hook("exit 0", None), hook("exit 3", None), touch]),
            "hooks.startContainer[1]: /bin/sh: exited with status 3"
        );
        assert!(!mark.exists());
        assert_eq!(
            message(&[hook("kill -9 $$", Some(9))]),
            "hooks.startContainer[0]: /bin/sh: ended by signal 9"
        );
        assert_eq!(
            message(&[hook("exec sleep 100", Some(1))]),
            "hooks.startContainer[0]: /bin/sh: did not end within its timeout of 1 s"
        );
        let nowhere = Hook {
            path: "/nowhere".into(),
            ..hook("", None)
        };
        assert_eq!(
            message(&[nowhere]),
            "hooks.startContainer[0]: /nowhere: No such file or directory"
        );
    }
}
