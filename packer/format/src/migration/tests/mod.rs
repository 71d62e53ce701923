//! The codec on streams that are made here; `tests/migration` has QEMU's own.

mod damage;
mod device_state;
mod postcopy;
mod properties;
mod refusals;
mod return_path;
mod sample;
mod save_file;
