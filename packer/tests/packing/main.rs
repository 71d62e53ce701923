//! What the packer publishes, checks and exports: at the library's level and with the real program.

mod access;
mod base;
mod build;
mod chains;
mod command;
mod crash;
mod damage;
mod domain;
mod formats;
mod images;
mod memory;
mod order;
mod power_loss;
mod properties;
mod prune;
mod push;
mod readers;
mod repack;
mod repair;
mod serve;
mod server;
mod signing;
mod support;
mod versions;
