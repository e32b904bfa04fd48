//! OCI hooks, runtime-spec config.md#posix-platform-hooks: programs that get the container's state on standard input.

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Hook;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs hooks in order; the first that fails ends it.
pub fn run_all(name: &str, hooks: &[Hook], state: &serde_json::Value) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        run(hook, state).with_context(|| format!("hooks.{name}[{index}]: {}", hook.path().display()))
    })
}

/// Runs hooks whose failure changes nothing any more: each failure is logged.
pub fn run_all_logging(name: &str, hooks: &[Hook], state: &serde_json::Value) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run(hook, state) {
            tracing::warn!("hooks.{name}[{index}]: {}: {error:#}", hook.path().display());
        }
    }
}

fn run(hook: &Hook, state: &serde_json::Value) -> Result<()> {
    let args = hook.args().clone().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some((arg0, rest)) = args.split_first() {
        command.arg0(arg0).args(rest);
    }
    let env = hook
        .env()
        .iter()
        .flatten()
        .filter_map(|variable| variable.split_once('='));
    command
        .env_clear()
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its input is in its right.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let timeout = hook
        .timeout()
        .map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
    let status = wait(&mut child, timeout)?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("exited with status {code}"),
        (None, signal) => bail!("ended by signal {}", signal.unwrap_or_default()),
    }
}

fn wait(child: &mut Child, timeout: Option<Duration>) -> Result<ExitStatus> {
    let Some(timeout) = timeout else {
        return Ok(child.wait()?);
    };
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill().and_then(|()| child.wait())?;
            bail!("did not end within its timeout of {} s", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into())
            .set_args(Some(vec!["sh".into(), "-c".into(), script.into()]))
            .set_timeout(timeout);
        hook
    }

    #[test]
    fn a_hook_gets_the_state_and_its_failure_names_it() {
        let state = serde_json::json!({"id": "c1"});
        run_all(
            "createRuntime",
            &[hook("read x; test \"$x\" = '{\"id\":\"c1\"}'", None)],
            &state,
        )
        .unwrap();
        let error = run_all(
            "createRuntime",
            &[hook("exit 0", None), hook("exit 3", None)],
            &state,
        )
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "hooks.createRuntime[1]: /bin/sh: exited with status 3"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_ended() {
        let error = run_all(
            "poststop",
            &[hook("exec sleep 100", Some(1))],
            &serde_json::Value::Null,
        )
        .unwrap_err();
        assert!(
            format!("{error:#}").ends_with("did not end within its timeout of 1 s"),
            "{error:#}"
        );
    }
}
