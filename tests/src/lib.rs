//! Fixtures of the end-to-end tests: the whole of `cwrun`, as engines call it, on a KVM that works.
//!
//! ```text
//!   bed      what the tests run: binary, guest files and root file systems, copied to memory once
//!   bundle   an OCI bundle, built by changing a sound one
//!   cwrun    the runtime with a state directory of its own; sees to it that nothing is left behind
//!   facts    lines `key=value` that a script in a container printed
//!   host     what the host holds that a container could leave: processes, mounts, cgroups, devices, files
//!   process  running a program with a deadline
//!   stuck    what a program that did not keep it was doing
//!   tree     random trees with every kind of entry, and a listing of all there is to see
//!   pattern  reproducible bytes, and random choices that can be repeated
//! ```
//!
//! Tests change the machine that they run on (mounts, cgroups, `/dev`), so they belong into the testbed and are ignored
//! elsewhere: `tests/testbed/run -- <test binary> --ignored --test-threads=1`.

pub mod bed;
pub mod bundle;
pub mod cwrun;
pub mod facts;
pub mod host;
pub mod pattern;
pub mod process;
mod stuck;
pub mod tree;

pub use bed::bed;
pub use bundle::Bundle;
pub use cwrun::Cwrun;
pub use facts::Facts;
pub use host::Host;
pub use process::{Finished, Run};

/// `short` repetitions, or `long` in a soak (`CWRUN_SOAK` set).
pub fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os("CWRUN_SOAK").is_some() {
        long
    } else {
        short
    }
}
