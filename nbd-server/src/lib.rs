//! Serves the disks of a VMNetX package over NBD.
