//! The VMNetX package format, without I/O.
