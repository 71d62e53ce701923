//! Launches VMNetX packages.

pub mod cli;
pub mod server;
pub mod vm;
