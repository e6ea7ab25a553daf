//! The only bitcoind client: the node's eyes on the chain and its hand towards the mempool.
//!
//! * [`bitcoind`]: one bitcoind over JSON-RPC, its version and network checked, its answers verified.
//! * [`watch`]: blocks in order, across reorgs, restarts and outages; the state of the sync.
//! * [`broadcast`]: transactions that are sent again until they are no longer needed.
//! * [`fees`]: what a transaction should pay.
//!
//! It uses polling only (no ZMQ), keeps no files, decides nothing about channels, and trusts
//! bitcoind for consensus: what can be checked without a chain state of our own is checked, the rest
//! is believed.

pub mod bitcoind;
pub mod broadcast;
mod error;
pub mod fees;
pub mod watch;

pub use bitcoind::{Auth, Bitcoind, Config, Timeouts};
pub use error::ChainError;
pub use watch::{ChainEvent, Cursor, SyncState, Trail, Watcher};

/// Shorthand of this crate's results.
pub type Result<T> = std::result::Result<T, ChainError>;
