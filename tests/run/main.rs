//! Real guests, launched as users launch them.
//!
//! Needs what `tests/setup demo` installs. KVM is not needed: guests run under TCG, a boot takes about ten seconds.

mod support;
mod vm;
