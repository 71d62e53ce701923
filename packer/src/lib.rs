//! Publishes disks as VMNetX packages.
