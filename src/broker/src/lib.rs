//! The key broker: gives a workload's keys and secrets to guests whose attestation report says that they are that workload.
//!
//! ```text
//!   guest ──HTTP──► server ──► api ──► session    which nonce was asked, which report answered
//!                                 ├──► appraisal  is the report genuine, and does a policy accept it (crate tee)
//!                                 ├──► store      registrations, encrypted
//!                                 ├──► jwe, mkcw  encrypt to the guest's key
//!                                 └──► verdict    one line for each decision
//! ```
//!
//! SECURITY: everything that comes over HTTP is hostile, from guests, hosts and admins alike. It is limited in size and time before it
//! is parsed, parsed once, and never named in an error beyond a few characters.
#![deny(unsafe_code)]

pub mod api;
pub mod appraisal;
pub mod config;
pub mod jwe;
pub mod key_file;
pub mod limit;
pub mod metrics;
pub mod mkcw;
pub mod policy;
pub mod protocol;
pub mod record;
pub mod server;
pub mod session;
pub mod store;
pub mod token;
pub mod vcek;
pub mod verdict;
