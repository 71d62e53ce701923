//! Launches VMNetX packages.

pub mod cli;
pub mod vm;
