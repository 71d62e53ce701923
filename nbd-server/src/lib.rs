//! Serves the disks of VMNetX packages over NBD, read-only.

mod control;
mod error;
mod export;
mod listener;
mod output;
mod prefetch;
mod server;
mod session;
mod status;

pub mod cli;
pub mod limits;

pub use control::{Stats, serve_control};
pub use error::Error;
pub use export::{Export, ExportStats, Exports};
pub use listener::Listener;
pub use server::serve;
