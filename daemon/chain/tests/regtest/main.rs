//! The chain crate on a real bitcoind, and on one that lies.

#![allow(clippy::unwrap_used, missing_docs)]

mod broadcast;
mod connect;
mod fees;
mod follow;
mod lying;
mod mempool;
mod support;
