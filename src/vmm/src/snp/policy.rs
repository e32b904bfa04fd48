//! The guest policy (AMD 56860 §4.3, table 9): what the firmware makes sure of for the guest's whole life. Here it is a number, of
//! which only those bits matter that depend on the host: the firmware refuses what it can't keep, and this says which clause it was.

/// The guest may run where simultaneous multithreading is on.
const SMT: u64 = 1 << 16;
/// A migration agent may move it.
const MIGRATE: u64 = 1 << 18;
/// It runs on one socket only.
const SINGLE_SOCKET: u64 = 1 << 20;

/// What of this host a policy depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTraits {
    /// Simultaneous multithreading is on.
    pub smt: bool,
    /// Processor packages.
    pub sockets: u32,
}

/// Why a guest with some policy can't run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The host has SMT.
    #[error(
        "the guest policy forbids simultaneous multithreading, which is on here: turn it off in the firmware or with `nosmt`"
    )]
    Smt,
    /// The host has more than one socket.
    #[error("the guest policy demands a single socket, and this machine has {0}")]
    Sockets(u32),
    /// Migration needs an agent.
    #[error("the guest policy allows migration, for which this VMM has no agent")]
    Migration,
    /// The identity block was signed for another one.
    #[error("the identity block was made for the guest policy {block:#x}, not for {policy:#x}")]
    Identity {
        /// The policy in the block.
        block: u64,
        /// The policy of this launch.
        policy: u64,
    },
}

/// Whether this host can keep `policy`.
pub fn check_policy(policy: u64, host: HostTraits) -> Result<(), PolicyError> {
    if policy & SMT == 0 && host.smt {
        return Err(PolicyError::Smt);
    }
    if policy & SINGLE_SOCKET != 0 && host.sockets > 1 {
        return Err(PolicyError::Sockets(host.sockets));
    }
    if policy & MIGRATE != 0 {
        return Err(PolicyError::Migration);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_cant_keep_a_policy_is_told_which_clause() {
        let host = HostTraits {
            smt: true,
            sockets: 2,
        };
        assert_eq!(check_policy(0x3_0000, host), Ok(()));
        let strict = 0x12_0000;
        assert_eq!(check_policy(strict, host), Err(PolicyError::Smt));
        let calm = HostTraits { smt: false, ..host };
        assert_eq!(check_policy(strict, calm), Err(PolicyError::Sockets(2)));
        let small = HostTraits { sockets: 1, ..calm };
        assert_eq!(check_policy(strict, small), Ok(()));
        assert_eq!(check_policy(0x7_0000, host), Err(PolicyError::Migration));
    }
}
