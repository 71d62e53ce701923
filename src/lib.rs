//! Launches VMNetX packages.

pub mod capture;
pub mod cli;
pub mod doctor;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod registry;
pub mod resume;
pub mod server;
pub mod vm;
