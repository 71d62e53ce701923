//! Launches VMNetX packages.
