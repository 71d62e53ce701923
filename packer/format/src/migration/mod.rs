//! QEMU's migration stream: a saved VM is read, written again, or handed to QEMU page by page as its postcopy source.
//!
//! ```text
//! saved file --StreamReader--> Configuration, Block..., Page..., DeviceState --StreamWriter--> a precopy stream (all RAM, or what is not mapped)
//!                                                                            --StreamWriter--> the source's side of a postcopy migration
//!                                                                            <--ReturnPath--   what that migration's target asks for
//! ```
//!
//! The reader takes any [`std::io::Read`], the writer appends to a vector, the return path is fed slices. All know x86's 4 KiB
//! pages and machine types that send a configuration and section footers (2.4 and later). `docs/migration.md` has the
//! bytes, and what is refused. Sources: QEMU's `migration/savevm.c`, `ram.c`, `vmstate.c`, `postcopy-ram.c` and
//! `docs/devel/migration/`; libvirt's `qemu_saveimage.c`.

mod block;
mod configuration;
mod device_state;
mod error;
mod input;
mod postcopy;
mod reader;
mod return_path;
mod save_file;
#[cfg(test)]
mod tests;
mod wire;
mod writer;

pub use block::{Block, PageAt, PageRange};
pub use configuration::Configuration;
pub use device_state::{Device, DeviceState};
pub use error::{ReturnPathError, SaveFileError, StreamError, Unsupported, WriteError};
pub use postcopy::{PostcopyActive, PostcopySetup, UrgentWriter};
pub use reader::{Page, StreamReader};
pub use return_path::{ReturnMessage, ReturnPath};
pub use save_file::{Compression, SaveFile};
pub use writer::{Precopy, StreamWriter};

/// Bytes of a page of guest RAM, the unit in which RAM is sent: `TARGET_PAGE_SIZE` of x86.
pub const PAGE_BYTES: usize = 4096;
