//! The way from a sealed container's guest to its key broker: HTTP over vsock here, HTTP or HTTPS there.
//!
//! ```text
//!   guest ── vsock port BROKER ── VMM ── socket pair ── proxy ── host's network ── broker
//!            (confined, no network) └─ Line ─ sockets ─┘  its own process, started by the creating process
//! ```
//!
//! | module | its job |
//! |---|---|
//! | `upstream` | which broker, and how it is reached |
//! | `line` | between VMM and proxy: a new stream for each connection of the guest's |
//! | `proxy` | the process: started, confined, ended |
//! | `forward` | one request of the guest's, and what becomes of it |
//!
//! The proxy sees nothing that would have to be kept from this host: nonces, evidence, and what is encrypted to the guest.

mod confine;
mod forward;
mod line;
pub mod proxy;
mod upstream;

pub use forward::agent;
pub use line::Line;
pub use upstream::{Upstream, refuse_unused};
