//! Real guests, launched as users launch them.
//!
//! Needs what `tests/setup test` installs. KVM is not needed: guests run under TCG, a boot takes about ten seconds.

mod cli;
mod support;
mod vm;
