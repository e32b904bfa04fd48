//! End-to-end tests, by topic. Each needs a KVM that works and a machine of its own: run them in the testbed.

mod cache;
mod conformance;
mod crash;
mod errors;
mod events;
mod exec;
mod guest;
mod hooks;
mod layers;
mod lifecycle;
mod mkcw;
mod network;
mod podman;
mod podman_options;
mod scratch;
mod seccomp;
mod secrecy;
mod streams;
mod tamper;
mod terminal;
mod update;
mod volumes;
mod wrong_input;
