//! The broker as a program, over HTTP on the loopback interface, with guests of the software TEE.

mod attacks;
mod client;
mod crash;
mod fuzz;
mod harness;
mod limits;
mod mkcw;
mod protocol;
