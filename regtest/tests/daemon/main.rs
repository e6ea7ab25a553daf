//! The real daemon on the real bitcoind, from its user's side: by gRPC, by the command line, by its files and logs.
//!
//! Every test starts a chain and daemons of its own on free ports, and ends them. What `cargo demo` shows is shown here
//! by playing it; the other tests show what it does not.

#![allow(clippy::unwrap_used, missing_docs)]

mod breach;
mod chain_away;
mod cli;
mod closed;
mod crash;
mod demo;
mod disk_full;
mod events;
mod hostile;
mod keys;
mod metrics;
mod process;
mod refusals;
mod reserve;
mod restart;
mod restore;
mod secrets;
mod settings;
mod shop;
mod support;
mod token;
mod wallet_send;
