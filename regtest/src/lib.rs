//! What the demo, the end-to-end tests, the crash tests and the benchmarks share.
//!
//! `bitcoind` finds, provisions and runs a real bitcoind on regtest. This crate plays the outside
//! world: it never depends on the daemon's own crates.

pub mod bitcoind;
