//! Serves the disks of VMNetX packages over NBD, read-only.

mod cause;
mod error;
mod export;
mod host;
mod listener;
mod output;
mod prefetch;
mod server;
mod session;
mod status;
mod tls;
mod upkeep;

pub mod cli;
pub mod control;
pub mod limits;

pub use cause::Cause;
pub use control::api::ExportStats;
pub use error::Error;
pub use export::{Export, Exports};
pub use host::{Host, HostOptions, mapped_bytes_default, sealed_zeros};
pub use listener::Listener;
pub use server::serve;
pub use tls::{Tls, TlsError};
