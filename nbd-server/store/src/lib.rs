//! Reads chunks of a VMNetX repository.
