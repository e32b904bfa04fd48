//! Resource limits by name (getrlimit(2)).

use crate::failure::{Context as _, Failure, Result};
use crate::sys;
use workload::Rlimit;

/// Names in the order of their numbers, asm-generic/resource.h.
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Sets the limits on this process.
pub fn apply(limits: &[Rlimit]) -> Result<()> {
    limits.iter().try_for_each(|limit| {
        let name = &limit.resource;
        let resource = number(name)
            .ok_or_else(|| Failure::other(format!("process.rlimits: unknown resource {name:?}")))?;
        sys::set_rlimit(resource, limit.soft, limit.hard)
            .context(|| format!("process.rlimits: {name} soft {} hard {}", limit.soft, limit.hard))
    })
}

fn number(name: &str) -> Option<u32> {
    NAMES
        .iter()
        .position(|known| *known == name)
        .map(|index| index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_c_library() {
        assert_eq!(number("RLIMIT_CPU"), Some(libc::RLIMIT_CPU));
        assert_eq!(number("RLIMIT_NOFILE"), Some(libc::RLIMIT_NOFILE));
        assert_eq!(number("RLIMIT_MEMLOCK"), Some(libc::RLIMIT_MEMLOCK));
        assert_eq!(number("RLIMIT_RTTIME"), Some(libc::RLIMIT_RTTIME));
        assert_eq!(number("RLIMIT_NONE"), None);
    }

    #[test]
    fn an_unknown_name_is_named() {
        let limit = Rlimit {
            resource: "RLIMIT_FOO".into(),
            soft: 1,
            hard: 1,
        };
        let message = apply(&[limit]).unwrap_err().to_string();
        assert_eq!(message, "process.rlimits: unknown resource \"RLIMIT_FOO\"");
    }
}
