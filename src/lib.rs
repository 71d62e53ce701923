//! Launches VMNetX packages.

pub mod cli;
pub mod registry;
pub mod resume;
pub mod server;
pub mod vm;
