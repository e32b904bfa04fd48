//! A confidential guest's client of a key broker. It speaks trustee's KBS attestation protocol, version 0.4.0
//! (`kbs/docs/kbs_attestation_protocol.md` of confidential-containers/trustee), over any stream of bytes.
//!
//! ```text
//!   guest                                                          broker
//!     makes a key
//!     ── POST /kbs/v0/auth      {version, tee} ───────────────────►
//!     ◄─ nonce, cookie kbs-session-id ─────────────────────────────
//!     asks the TEE for evidence: REPORT_DATA = SHA-384 of nonce and public key
//!     ── POST /kbs/v0/attest    {runtime-data, tee-evidence} ─────►   is this the workload?
//!     ◄─ 200 ──────────────────────────────────────────────────────
//!     ── GET  /kbs/v0/resource/<repository>/<type>/<tag> ─────────►
//!     ◄─ JWE to the public key ────────────────────────────────────
//! ```
//!
//! | module | its job |
//! |---|---|
//! | `client` | sessions, retries, what went wrong |
//! | `protocol` | the messages, and the hash that the report vouches for |
//! | `jwe` | opens what was encrypted to the guest |
//! | `http` | HTTP/1.1 with limits, both for this client and for whoever has to understand it |
//!
//! No TLS, no threads, no I/O but on the stream that it is given. Whoever carries the bytes, the host above all, can hold them up and
//! no more: a resource opens only with the key that the report vouches for.
//!
//! SECURITY: everything that arrives is hostile. It is limited in size before it is parsed, parsed once, and shown in an error only cut short
//! and without control characters. What a resource *says* is not vouched for by this protocol: whoever can reach the guest can encrypt to
//! its public key. A wrong volume key opens no disk whose root hash is attested; a secret comes from whoever answered.
#![forbid(unsafe_code)]

pub mod client;
pub mod http;
pub mod jwe;
pub mod protocol;

pub use client::{Client, Error, Patience, Surroundings};
pub use protocol::{Resource, Tee};
