//! What the demo, the end-to-end tests, the crash tests and the benchmarks share.
//!
//! `bitcoind` finds, provisions and runs a real bitcoind on regtest; `network` runs real `millraced` processes
//! on it and talks gRPC with them. This crate plays the outside world: it never depends on the daemon's own crates.

pub mod bitcoind;
mod port;
mod supervisor;

#[cfg(feature = "network")]
pub mod accounts;
#[cfg(feature = "network")]
pub mod bench;
#[cfg(feature = "network")]
pub mod books;
#[cfg(feature = "network")]
pub mod client;
#[cfg(feature = "network")]
pub mod crash;
#[cfg(feature = "network")]
pub mod demo;
#[cfg(feature = "network")]
pub mod ldk;
#[cfg(feature = "network")]
pub mod matrix;
#[cfg(feature = "network")]
pub mod mesh;
#[cfg(feature = "network")]
pub mod network;
#[cfg(feature = "network")]
pub mod node;
#[cfg(feature = "network")]
pub mod pay_stream;
#[cfg(feature = "network")]
pub mod plan;
#[cfg(feature = "network")]
pub mod programs;
#[cfg(feature = "network")]
pub mod random;
#[cfg(feature = "network")]
pub mod report;
#[cfg(feature = "network")]
pub mod stay;
#[cfg(feature = "network")]
pub mod tower;
