//! What tests of reading share: images, repositories that hold them, web servers good and bad, tiers that fail.

pub(crate) mod bad_http;
pub(crate) mod repository;
pub(crate) mod source;
