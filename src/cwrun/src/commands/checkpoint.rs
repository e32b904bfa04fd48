//! `checkpoint` and `restore`: refused, whatever their options, so that an engine has a sentence to pass on.

use anyhow::{Result, bail};

/// `checkpoint`
pub fn checkpoint() -> Result<()> {
    bail!("checkpoint: the container is a virtual machine, whose state can't be saved")
}

/// `restore`
pub fn restore() -> Result<()> {
    bail!("restore: containers are virtual machines, which can't be restored from a saved state")
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use clap::Parser;

    /// Options of crun and runc, as podman gives them.
    #[test]
    fn every_option_is_taken() {
        let given = "cwrun --root /r checkpoint --image-path /i --work-path=/w --leave-running --tcp-established --pre-dump id";
        let cli = Cli::try_parse_from(given.split(' ')).unwrap();
        assert!(matches!(cli.command, Command::Checkpoint(_)));
        let given = "cwrun restore --bundle /b --console-socket /s --image-path /i --pid-file /p --detach id";
        let cli = Cli::try_parse_from(given.split(' ')).unwrap();
        assert!(matches!(cli.command, Command::Restore(_)));
        assert!(super::checkpoint().is_err() && super::restore().is_err());
    }
}
