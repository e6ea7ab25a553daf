//! Onions and failure packets (BOLT 4), invoices (BOLT 11), graph and path finding (BOLT 7).
//!
//! The crate is pure. It opens no socket, reads no clock and draws no randomness: session keys, node keys,
//! heights and times are arguments. It knows nothing of channels; who forwards what is the daemon's affair.

mod cipher;
pub mod failure;
pub mod graph;
pub mod invoice;
pub mod liquidity;
pub mod map;
pub mod onion;
pub mod path;

pub use cipher::SharedSecret;
