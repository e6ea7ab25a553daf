//! The Millrace daemon: everything that touches the world.
//!
//! What a channel is and does is decided in `millrace-channel`, what is on disk in `millrace-journal`, what the chain
//! says in `millrace-chain`. Here these are wired to sockets, threads and people.

pub mod announce;
pub mod api;
pub mod chain_feed;
pub mod chain_source;
pub mod channels;
mod checkpoint;
pub mod claims;
mod clock;
pub mod coins;
pub mod config;
pub mod consent;
pub mod data_dir;
pub mod entry;
pub mod events;
pub mod facts;
mod feerate;
mod gauges;
pub mod gossip;
pub mod happened;
pub mod htlc_log;
pub mod idempotency;
mod keeper;
pub mod keys;
mod links;
pub mod log;
pub mod metrics;
pub mod network;
pub mod node;
pub mod payments;
pub mod peer;
pub mod policy;
pub mod prepare;
pub mod readiness;
mod recovery;
pub mod route;
pub mod run;
pub mod seed;
pub mod shutdown;
#[cfg(test)]
mod sim;
pub mod steps;
pub mod tls;
pub mod token;
pub mod towers;
pub mod view;
pub mod wallet;
