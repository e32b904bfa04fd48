//! The real image, instruction by instruction, in a CPU emulator with the SNP semantics modelled around it.

mod attacks;
mod boots;
mod fixture;
mod host;
mod image;
mod machine;
mod reproducible;
mod unicorn;
